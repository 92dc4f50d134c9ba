"""engine=ray: the rows, the report and the base of one process, whoever dies; and what is said before anything is computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import fgvr
from fgvr import cli, planning
from fgvr.modes.comparing_baselines import baselines
from fgvr.runtime.pool import close_shared
from fgvr.scale import working
from fgvr.scale.cluster import joined
from fgvr.session import Session
from tests.data.test_streams import images, shard

WORLD = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=16", "dataset.calibration=0", "logging=quiet")
WORDS = (*WORLD, "models.encoder.loader=tests.mortal.MortalLoader", "evaluation.batch_size=2", "trigger.target=slow_rate:0.5")
RAY = ("engine=ray", "engine.workers=2")
pytestmark = pytest.mark.timeout(600)  # a cluster starts in five seconds, on a busy machine in two minutes
COSTS = ("cost", "computed", "stage_seconds", "peak_device_bytes", "peak_host_bytes", "model_loads", "workers", "config", "provenance")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all tests here, as starting it takes seconds; the file in which a test may order deaths."""
    deaths = tmp_path_factory.mktemp("ray") / "deaths"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVR_DEATHS", str(deaths))
        with joined(fgvr.load_config(*RAY, "engine.object_store=100MiB").engine):
            yield deaths


@pytest.fixture(autouse=True)
def own_pool() -> Iterator[None]:
    close_shared()
    yield
    close_shared()


def rows(report: fgvr.Report) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (report.path / "predictions.jsonl").read_text().splitlines()]
    for row in found:
        row["cost"] = row["cost"]["asked"]  # the store may know what a dead worker has computed
    return found


def figures(report: fgvr.Report) -> dict[str, Any]:
    written = json.loads((report.path / "report.json").read_text())
    return {key: value for key, value in written.items() if key not in COSTS}


def evaluated(home: Path, *words: str) -> fgvr.Report:
    report = fgvr.evaluate(fgvr.load_config(f"paths.home={home}", *words))
    close_shared()
    return report


def bases(home: Path) -> list[str]:
    return [json.loads(file.read_text())["content_hash"] for file in home.glob("knowledge/*/*/manifest.json")]


def test_two_workers_give_what_one_process_gives_also_when_they_die(cluster: Path, home: Path) -> None:
    alone = evaluated(home / "alone", *WORDS)
    cluster.write_text("2")
    shared = evaluated(home / "shared", *WORDS, *RAY)
    assert cluster.read_text() == "0", "both deaths happened"
    assert rows(shared) == rows(alone) and len(rows(alone)) == 96
    assert figures(shared) == figures(alone)
    assert bases(home / "shared") == bases(home / "alone") != []
    workers = json.loads((shared.path / "report.json").read_text())["workers"]
    assert sum(worker["deaths"] for worker in workers) == 2
    assert sum(worker["rows"] for worker in workers) == 96
    assert all(worker["model_loads"] == {"encoder": 1, "mllm": 1, "joint": 0} for worker in workers if worker["rows"])
    assert "workers" not in json.loads((alone.path / "report.json").read_text())


def test_a_run_that_one_process_began_is_finished_by_workers(cluster: Path, home: Path) -> None:
    whole = evaluated(home, *WORDS)
    there = rows(whole)
    lines = (whole.path / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (whole.path / "predictions.jsonl.commit").write_text(str(sum(map(len, lines[:20]))))
    (whole.path / "report.json").unlink()
    assert rows(evaluated(home, *WORDS, *RAY)) == there


@pytest.mark.slow
def test_workers_read_a_stream_where_it_lies(cluster: Path, home: Path, tmp_path: Path) -> None:
    shard(tmp_path / "shards" / "train-0.tar", images(1000, 4))
    shard(tmp_path / "shards" / "test-0.tar", images(2000, 20))
    words = (*WORDS[5:], "models=fake", "dataset=webdataset", f"dataset.root={tmp_path / 'shards'}", "dataset.shots=4", "logging=quiet")
    alone, shared = evaluated(home / "alone", *words), evaluated(home / "shared", *words, *RAY)
    assert rows(shared) == rows(alone) and len(rows(alone)) == 60
    with pytest.raises(fgvr.ConfigError, match="worker 0 does not see .*gone.tar"):
        working(Session(fgvr.load_config(*words, *RAY)), lambda _: [tmp_path / "gone.tar"]).__enter__()


@pytest.mark.slow
def test_discovery_classification_and_baselines_by_workers(cluster: Path, home: Path, data: Path) -> None:
    """The fitted parts reach the workers: a rule of a baseline, a promise about final answers, a matcher."""
    words = (*WORDS, "dataset.test_per_class=4", "dataset.calibration=4", "trigger.abstain=risk:0.9@0.1", "fusion=joint")
    assert rows(evaluated(home / "alone", *words)) == rows(evaluated(home / "shared", *words, *RAY))
    pictures = next((data / "birds").rglob("test"))
    for one in ("alone", "shared"):
        engine, where = (RAY if one == "shared" else ()), f"paths.home={home / one}"
        assert cli.main(["mode=discover", f"images={pictures}", *WORLD, *engine, where]) == 0
        close_shared()
        assert cli.main(["mode=classify", f"image={pictures}", *WORDS, *engine, where]) == 0
        close_shared()
        baselines(Session(fgvr.load_config("mode=baselines", "baselines.which=[knn,mllm]", *WORDS, *engine, where)))
        close_shared()
    files = ("runs/discover/*/names.json", "runs/classify/*/predictions.jsonl", "runs/baselines/*/*/predictions.jsonl")
    for pattern in files:
        (alone, shared) = ([_plain(file, home / one) for file in sorted((home / one).glob(pattern))] for one in ("alone", "shared"))
        assert alone == shared != [], pattern


def _plain(file: Path, home: Path) -> list[Any]:
    found = [json.loads(line) for line in file.read_text().replace(str(home), "HOME").splitlines()] if file.suffix == ".jsonl" else []
    for row in found:
        del row["cost"]
    return found or [json.loads(file.read_text().replace(str(home), "HOME"))]


def test_what_a_cluster_lacks_is_said_before_work_begins(
    cluster: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(fgvr.ConfigError, match=r"engine.workers=9: this cluster has 2 cores, room for 2 workers"):
        fgvr.evaluate(fgvr.load_config(*WORDS, "engine=ray", "engine.workers=9"))
    session = Session(fgvr.load_config(*WORDS, *RAY))
    with pytest.raises(fgvr.ConfigError, match="worker 0 does not see .*gone.png; every node needs the images"):
        working(session, lambda _: [tmp_path / "gone.png"]).__enter__()
    monkeypatch.setenv("FGVR_OTHER_FILES", "here")
    with pytest.raises(fgvr.ModelLoadError, match="worker 0 has other model files for encoder; copy them"):
        fgvr.evaluate(fgvr.load_config(*WORDS, *RAY))
    with pytest.raises(fgvr.ModelLoadError, match="worker 0: elsewhere is not on this machine"):
        fgvr.evaluate(fgvr.load_config(*WORDS, *RAY, "models.encoder.source=elsewhere"))
    close_shared()
    (tmp_path / "fgvr-9.9.dist-info").mkdir()
    (tmp_path / "fgvr-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fgvr\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(fgvr.ConfigError, match=r"worker 0 has other versions: fgvr .* \(here 9.9\); install the same"):
        fgvr.evaluate(fgvr.load_config(*WORDS, *RAY))
    assert not list(home.glob("knowledge/*/*")), "nothing was built"


def test_a_cluster_of_another_ray_is_named(cluster: Path, python: Callable[..., CompletedProcess[str]]) -> None:
    import ray

    words = ["mode=evaluate", *WORLD, "engine=ray", f"engine.address={ray.get_runtime_context().gcs_address}"]
    said = python("-c", f"import ray, sys; ray.__version__ = '9.9'; from fgvr.cli import main; sys.exit(main({words}))")
    assert said.returncode == 2 and "Traceback" not in said.stderr
    assert f"the cluster runs other versions than this process: The cluster was started with: Ray: {ray.__version__}" in said.stderr


def test_without_ray_and_without_a_cluster_one_line_says_so(home: Path, python: Callable[..., CompletedProcess[str]]) -> None:
    words = ["mode=evaluate", *WORLD, "engine=ray"]
    said = python("-c", f"import sys; sys.modules['ray'] = None; from fgvr.cli import main; sys.exit(main({words}))")
    assert said.returncode == 2 and "pip install 'fgvr[ray]'" in said.stderr and "Traceback" not in said.stderr
    said = python("discovering.py", *words, "engine.address=127.0.0.1:1")
    assert said.returncode == 2 and "engine.address=127.0.0.1:1: no Ray cluster answers there" in said.stderr
    assert said.stderr.count("\n") <= 2 and not said.stdout


@pytest.mark.parametrize("address", ["somewhere", "10.0.0.1:", "ray://host"])
def test_an_address_has_a_host_and_a_port(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mode=plan", *WORLD, "engine=ray", f"engine.address={address}"]) == 2
    assert "must be HOST:PORT, ray://HOST:PORT, auto, or null" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["mode=evaluate", "online=statistics"], ["mode=serve"], ["mode=build_experience_base"]])
def test_what_cannot_be_shared_is_not_for_workers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, *WORLD, *RAY]) == 2
    assert "write engine=local" in capsys.readouterr().err


def test_a_plan_says_what_each_worker_would_hold() -> None:
    found = planning.plan(fgvr.load_config("mode=plan", "models=fake", "runtime.budget=1GiB", *RAY))
    alone = planning.plan(fgvr.load_config("mode=plan", "models=fake", "runtime.budget=1GiB"))
    assert found.needed == alone.needed
    (fact,) = set(found.facts) - set(alone.facts)
    assert fact.startswith("engine=ray: each of 2 workers needs")
    assert os.environ.get("RAY_ADDRESS") is None
