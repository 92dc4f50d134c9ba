"""Parts from outside the package: the examples of CONTRIBUTING.md as they stand there, by the public command line alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import fgvr
from fgvr.config.factories import locate
from fgvr.data import birds
from fgvr.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL))
SMALL = ["models=fake", "trigger=never", "knowledge.leave_one_out=false", "slow.weight=0.5", "logging.quiet=true"]
pytestmark = pytest.mark.timeout(400)  # processes of their own, beside whatever else runs
BIRDS = ["dataset.genera=[2]", "dataset.test_per_class=2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in EXAMPLES.items():
        file = tmp_path / "outside" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "outside"


def run(folder: Path, *words: str) -> CompletedProcess[str]:
    """`discovering.py` in a process of its own."""
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"PYTHONPATH": paths, "FGVR_HOME": str(folder.parent / "home")}
    command = [sys.executable, str(ROOT / "discovering.py"), f"hydra.searchpath=[{folder}]", *words]
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=390)


def report(folder: Path) -> dict:
    (file,) = (folder.parent / "home" / "runs").rglob("report.json")
    return json.loads(file.read_text())


def test_there_is_one_python_file_and_one_yaml_file_for_each_kind_of_part() -> None:
    kinds = [name.rpartition("/")[0] for name in EXAMPLES if name.endswith(".yaml")]
    assert sorted(kinds) == ["dataset", "models/encoder", "models/mllm", "runtime", "trigger"]
    assert len(EXAMPLES) == 2 * len(kinds)


def test_parts_from_outside_make_an_evaluation_together(folder: Path) -> None:
    words = ["dataset=squares", "models/encoder=colours", "fusion.image_weight=1", "models/mllm=brief", "slow.weight=0"]
    answer = run(folder, "mode=evaluate", *SMALL, *words, "trigger=shy", "trigger.least=2", "runtime=modest")
    assert answer.returncode == 0, answer.stderr
    found = report(folder)
    assert found["n"] > 0 and found["config"]["runtime"]["device"] == "modest.Modest"
    assert found["slow_rate"] == 1, "shy.Shy was asked (nothing is surer than 2), and so was brief.Brief"
    assert found["top1"] == 1, "colours tell coloured squares apart"


@pytest.mark.parametrize(("word", "theirs", "ours"), [
    ("trigger=shi", "shy", "calibrated"), ("trigger=null", "shy", "calibrated"), ("dataset=square", "squares", "produce"),
    ("models/mllm=brif", "brief", "ollama"), ("runtime=3", "modest", "default"),
])  # fmt: skip
def test_a_mistyped_option_is_answered_with_the_users_own_and_the_packages(folder: Path, word: str, theirs: str, ours: str) -> None:
    with pytest.raises(ConfigError, match="no such option") as refused:
        fgvr.load_config(f"hydra.searchpath=[{folder}]", word)
    listed = str(refused.value).rpartition(": ")[2].split(", ")
    assert theirs in listed and ours in listed and listed == sorted(listed)


def test_a_folder_of_options_that_is_not_there_is_named(folder: Path) -> None:
    for value in (f"[{folder}/absent]", f"{folder}/absent", f"[{folder},'file://{folder}/absent']"):
        with pytest.raises(ConfigError, match=r"hydra\.searchpath: .*absent is no folder"):
            fgvr.load_config(f"hydra.searchpath={value}", "trigger=shy")
    assert fgvr.load_config(f"hydra.searchpath=[file://{folder},pkg://fgvr]", "trigger=shy").get("trigger.least") == 0.9


def test_a_trigger_is_used_from_python(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = re.findall(r"```python\n(import sys\n.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    words = [word for word in [*SMALL, *BIRDS] if not word.startswith("trigger")]
    text = text.replace("FOLDER", str(folder)).replace('"trigger=shy"', ", ".join(map(repr, ["trigger=shy", *words])))
    monkeypatch.syspath_prepend(str(folder))  # put back afterwards, with what the example appends
    monkeypatch.chdir(tmp_path)
    birds.render(birds.make_world(seed=9000, genera=(2,), difficulty=1.0), 0, "sample", 0).save("bird.png")
    names: dict[str, Any] = {}
    try:
        exec(compile(text, "CONTRIBUTING.md", "exec"), names)
    finally:
        sys.modules.pop("shy", None)
    assert names["report"].trigger == "shy" and names["prediction"].decision.threshold == 0.8


def test_an_installed_package_registers_short_names(folder: Path) -> None:
    metadata = folder / "strange-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fgvr.loaders]\nbrief = brief:BriefLoader\n[fgvr.devices]\nmodest = modest:Modest\n")
    answer = run(folder, "mode=doctor", "models=fake", *BIRDS, "models.mllm.loader=brief", "runtime.device=modest", "logging.json=true")
    assert "modest.Modest: " in answer.stdout and "brief" not in answer.stderr, answer.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models.mllm.loader=nothing"], "models.mllm.loader=nothing is not known; known are clip, "),
        (["models.mllm.loader=nowhere.Loader"], "No module named 'nowhere'"),
        (["models.mllm.loader=brief.Brief"], "is no fgvr.runtime.loaders.base.Loader"),
        (["runtime.device=nowhere.Device"], "No module named 'nowhere'"),
    ],
)
def test_a_part_that_is_none_is_refused_by_name(folder: Path, words: list[str], said: str) -> None:
    answer = run(folder, "mode=plan", "models=fake", *words)
    assert answer.returncode == 2 and said in answer.stderr, answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_part_whose_folder_python_does_not_know_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"shy\.Shy.*No module named 'shy'.*PYTHONPATH"):
        locate("shy.Shy")
    with pytest.raises(ConfigError, match="there is no such class") as error:
        locate("fgvr.agents.trigger.Shy")
    assert "PYTHONPATH" not in str(error.value), "the module is there, the class is not"
