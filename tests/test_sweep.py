"""A sweep computes what its jobs need together, once: in one process, and in several that share the store. Counts, never seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

import fgvr
from fgvr import cli
from fgvr.data import pictures
from fgvr.runtime.pool import close_shared
from fgvr.utils.paths import config_dir
from hydra_plugins.fgvr_sweeper import QuickLoader

WORLD = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=6", "dataset.calibration=1", "evaluation.batch_size=8")


def settings(jobs: int) -> list[str]:
    return [f"slow_rate:{(i + 1) / (jobs + 1):.3f}" for i in range(jobs)]


@pytest.fixture(autouse=True)
def own_pool(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("FGVR_SWEEP", "")
    close_shared()
    yield
    close_shared()


def jobs(home: Path) -> list[list[dict]]:
    """Predictions of each job, in the order of the jobs."""
    # Launchers leave their own logs there, too.
    files = sorted((home / "sweeps").glob("*/*/predictions.jsonl"), key=lambda file: int(file.parent.name))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def answers(found: list[list[dict]]) -> list[list[tuple]]:
    """What each job says, without what it cost: that depends on who came first."""
    return [[(row["image"], row["prediction"], row["confidence"], row["by"], row["slow"]) for row in rows] for rows in found]


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_jobs_over_the_trigger_do_each_forward_once_and_load_each_model_once(
    count: int, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fgvr.build_knowledge_base(fgvr.load_config(*WORLD))
    close_shared()
    assert cli.main(["-m", "mode=evaluate", f"trigger.target={','.join(settings(count))}", *WORLD]) == 0, capsys.readouterr().err
    found = jobs(home)
    assert len(found) == count
    escalated = [{row["sha256"] for row in rows if row["decision"]["escalate"]} for rows in found]
    union = set().union(*escalated)
    assert len({len(some) for some in escalated}) > 3, "the jobs differ"
    pool = fgvr.shared_pool()
    done = pool.counters.snapshot()
    assert done.encoder_forwards == len({row["sha256"] for row in found[0]}) == 36
    assert done.mllm_calls == len(union) > 0
    assert pool.loads == {"encoder": 1, "mllm": 1, "joint": 0}
    assert sum(row["cost"]["mllm_calls"] for rows in found for row in rows) == len(union)


def test_a_job_whose_answers_are_remembered_opens_no_picture(home: Path, intercept) -> None:
    opened: list[Path] = []
    intercept(pictures, "read_image", lambda read, source, **limits: (opened.append(source), read(source, **limits))[1])

    def looked_at(*words: str) -> int:
        opened.clear()
        fgvr.evaluate(fgvr.load_config(*WORLD, "trigger=always", *words))
        return sum("test" in file.parts for file in opened)

    assert looked_at() == 36
    assert looked_at("run.fresh=true") == 0
    assert looked_at("run.fresh=true", "store.enabled=false") == 36


def test_each_combination_of_choices_is_composed_once(home: Path, intercept) -> None:
    composed: list[list[str]] = []

    def counted(load, self, master_config, sweep_overrides):
        composed.append(list(sweep_overrides))
        return load(self, master_config, sweep_overrides)

    intercept(ConfigLoaderImpl, "load_sweep_config", counted)
    done: list[object] = []
    assert cli.main(["-m", "mode=plan", "seed=1,2,3", "trigger=never,always", *WORLD], done.append) == 0
    assert len(done) == 6 and len(composed) == 2
    assert cli.main(["-m", "mode=plan", "seed=1,2,3", "trigger=never,nonsense", *WORLD], done.append) == 2
    assert len(done) == 6, "a wrong choice is told before the first job"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_processes_that_share_the_store_give_the_same_answers(
    launcher: str, home: Path, tmp_path: Path, python, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = f"trigger.target={','.join(settings(4))}"
    assert cli.main(["-m", "mode=evaluate", some, "logging=quiet", *WORLD]) == 0
    several = {"joblib": ["hydra.launcher.n_jobs=4"], "submitit_local": ["hydra.launcher.timeout_min=5"]}[launcher]
    other = tmp_path / "other"
    words = ["-m", "mode=evaluate", some, f"hydra/launcher={launcher}", *several, f"paths.home={other}", "logging=quiet", *WORLD]
    ran = python("discovering.py", *words)
    assert ran.returncode == 0, ran.stderr
    assert answers(jobs(other)) == answers(jobs(home))
    # At the same time two may compute the same; more than each of them once would mean that the store is not shared.
    assert [len(rows) for rows in jobs(other)] == [36] * 4


@pytest.mark.slow
def test_a_search_by_optuna_computes_what_its_trials_need_together_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.tune_trigger import tune

    study = tune(6, 0.1, 9010, 9011, list(WORLD))
    told = [trial.user_attrs for trial in study.trials]
    assert len(told) == 6 and study.best_value == max(t["top1"] - 0.1 * t["slow_rate"] for t in told)
    assert [t["encoder_forwards"] for t in told] == [36, 0, 0, 0, 0, 0]
    assert sum(t["mllm_calls"] for t in told) <= max(round(36 * t["slow_rate"]) for t in told)
    assert "on 9011, which was not searched" in capsys.readouterr().out


def test_a_job_is_composed_as_hydra_itself_composes_it() -> None:
    jobs = [
        ["trigger=calibrated", "trigger.target=slow_rate:0.1", "mode=evaluate"],
        ["trigger=calibrated", "trigger.target=slow_rate:0.2", "mode=evaluate"],  # a copy of the first
        ["trigger=never", "fusion.top_k=3", "dataset.genera=[3,3]"],
        ["fusion.top_k=${evaluation.batch_size}", "evaluation.batch_size=4", "models.mllm={batch_size: 2}"],
        ["+note=1", "~logging.level", "run.fresh=true"],
        ["hydra.job.name=other", "++trigger.target=slow_rate:0.3", "mode=fastonly"],
    ]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().config_loader()
        assert isinstance(hydra, ConfigLoaderImpl)
        master = hydra.load_configuration("config", ["hydra.sweep.dir=/tmp/elsewhere", "mode=evaluate"], RunMode.MULTIRUN)
        quick = QuickLoader(hydra)
        for job in jobs:
            expected, found = (OmegaConf.to_yaml(loader.load_sweep_config(master, list(job))) for loader in (hydra, quick))
            assert found == expected, job
            assert "hydra:" in found and job[1] in found


def test_a_key_there_is_not_is_told_in_hydras_words() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().config_loader()
        assert isinstance(hydra, ConfigLoaderImpl)
        master = hydra.load_configuration("config", [], RunMode.MULTIRUN)
        with pytest.raises(ConfigCompositionException, match="Could not override 'fusion.top_q'"):
            QuickLoader(hydra).load_sweep_config(master, ["fusion.top_q=3"])
