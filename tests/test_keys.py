"""What a key refuses: by its name, in every mode, before anything is loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fgvr
from fgvr import planning
from fgvr.cli import main
from fgvr.config.factories import instantiate, locate
from fgvr.config.group import Group, Leaf
from fgvr.config.overrides import groups
from fgvr.types import History
from fgvr.utils.paths import config_dir

WRONG = [
    ("logging.level=verbose", "debug, info, warning"),
    ("fusion.image_weight=abc", "a number from 0 to 1"),
    ("fusion.image_weight=1.5", "a number from 0 to 1"),
    ("fusion.top_k=0", "a whole number from 1 up"),
    ("fusion.temperature=0", "a number from 1e-06 up, or null"),
    ("fusion.joint=both", "one of score, rerank, or null"),
    ("fusion.joint_weight=1.5", "a number from 0 to 1"),
    ("dataset.on_bad_image=ignore", "skip, error"),
    ("models.mllm.batch_size=0", "a whole number from 1 up"),
    ("models.mllm.max_pixels=100", "a whole number from 784 up, or null"),
    ("slow.rules=abc", "a whole number from 0 up"),
    ("slow.candidates=some", "a whole number from 1 up, or all"),
    ("slow.weight=heavy", "a number from 0 to 1, or fitted"),
    ("slow.exemplars=1", "one of true, false"),
    ("models.mllm.max_pixels=abc", "a whole number from 784 up, or null"),
    ("models.mllm.batch_size=abc", "a whole number from 1 up"),
    ("models.mllm.revision=1234567", "must be text"),
    ("trigger.target=banana", "slow_rate:0.45, precision:0.9 or risk:0.1@0.1"),
    ("trigger.abstain=banana", "risk:0.1@0.1"),
    ("dataset.genera=[4,four]", "entry 'four' must be a whole number"),
    ("dataset.shots=true", "a whole number from 1 up"),
    ("seed=.5", "a whole number from 0 up"),
    ("evaluation.record=x", "one of needed, all"),
    ("evaluation.protocols=exact", "must be a list"),
    ("evaluation.protocols=[]", "not empty"),
    ("store.limit=abc", "a size such as 2GiB"),
    ("store=5", "write store.KEY=VALUE"),
    ("run=true", "write run.KEY=VALUE"),
    ("runtime=5", "The options of runtime: default"),
    ("trigger=null", "The options of trigger: always"),
    ("trigger.form=both", "joint, selective"),
    ("models.mllm.role=encoder", "must be mllm"),
    ("knowledge.path=", "must be text, or null"),
    ("knowledge.build=x", "one of missing, never, always"),
    ("slow.arbitrate=pool", "write slow.answer_fusion=log_linear"),
    ("knowledge.rehearse=false", "write knowledge.leave_one_out=false"),
    ("runtime.auto_cleanup=perhaps", "one of true, false"),
    ("runtime.watermarks.high=high", "a number from 0 to 1"),
    ("runtime.policy=banana", "lru, cost_aware"),
    ("runtime.reserve=some", "bytes, or a size such as 2GiB"),
    ("runtime.allocator.mmap_threshold=1GiB", "at most 32MiB"),
]


@pytest.mark.parametrize("mode", ["plan", "evaluate"])
@pytest.mark.parametrize(("override", "cure"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_value_is_a_configuration_error_in_every_mode(override: str, cure: str, mode: str, capsys) -> None:
    assert main([f"mode={mode}", "models=fake", override]) == 2
    said = capsys.readouterr().err
    assert override.partition("=")[0].rpartition(".")[2] in said and cure in said and "Traceback" not in said


@pytest.mark.parametrize("override", ["trigger.threshold=abc", "trigger.eta=-1", "trigger.shots=0"])
def test_a_policy_s_own_keys_are_looked_at(override: str, capsys) -> None:
    assert main(["mode=fastonly", "trigger=sare", "models=fake", override]) == 2
    assert override.partition("=")[0] in capsys.readouterr().err


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(fgvr.ConfigError, match=r"(?s)fusion.top_k=0: .*\nslow.rules=-1: "):
        fgvr.load_config("fusion.top_k=0", "slow.rules=-1")


GROUPS = {group: names for group, names in groups().items() if group.partition("/")[0] not in ("hydra", "local")}
ALONE = ("mode", "models", "experiment")  # which choose among the others' options
SETS = [[f"{group}={name}"] for group in ALONE for name in GROUPS[group]]
for _number in range(max(len(names) for group, names in GROUPS.items() if group not in ALONE)):
    SETS.append([f"{group}={names[_number % len(names)]}" for group, names in GROUPS.items() if group not in ALONE])
NEEDED = {
    "image": "a.jpg",
    "predictions": "a.jsonl",
    "runs": "[a,b]",
    "images": "pictures",
    "answers": "answers.csv",
    "dataset.root": "x",
}


@pytest.mark.parametrize("options", SETS, ids=lambda options: options[0])
def test_every_option_composes_binds_to_its_target_and_has_a_type_for_every_key(options: list[str]) -> None:
    """A new key must be a field of its group in fgvr/config/groups.py, or a wrong value of it would end in a traceback."""
    needed = [word for option in options for word in _needed(*option.split("="))]
    cfg = fgvr.load_config(*(["mode=evaluate", "models.force=true"] if len(options) > 1 else []), *options, *needed)
    unknown = list(_untyped(cfg))
    assert bool(unknown) == (options == ["mode=serve"]), f"fgvr.server.settings judges mode=serve alone: {unknown}"
    leaves = [leaf for _, leaf in [*cfg, *cfg.models] if isinstance(leaf, Leaf)]
    assert len(leaves) == 6
    for leaf in leaves:
        inspect.signature(locate(leaf.factory)).bind(**leaf.arguments)


def _needed(group: str, name: str) -> list[str]:
    file = config_dir() / group / f"{name}.yaml"  # an experiment is a row of a table
    written = file.read_text() if file.exists() else ""
    return [f"{key}={value}" for key, value in NEEDED.items() if f"\n{key.rpartition('.')[2]}: ???" in written]


def _untyped(group: Group, prefix: str = "") -> Iterator[str]:
    yield from (prefix + key for key in group.model_extra or ())
    for key, value in group:
        if isinstance(value, Group):
            yield from _untyped(value, f"{prefix}{key}.")


def test_a_key_that_is_added_and_that_nobody_knows_is_refused(capsys) -> None:
    assert main(["mode=plan", "models=fake", "+slow.rulez=3", "+note=1"]) == 2
    assert "slow.rulez: no such key here. Nearest: rules" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["models.mllm.device_map=auto", "+models.mllm.device_map=auto"])
def test_a_model_over_several_cards_is_refused_with_what_to_write_instead(word: str, capsys) -> None:
    assert main(["mode=plan", word]) == 2
    assert "not laid over several devices" in (said := capsys.readouterr().err) and "runtime.offload=auto" in said and len(said) < 400


def test_a_trigger_of_somebody_else_may_take_keys_of_its_own() -> None:
    cfg = fgvr.load_config(
        "trigger=never", "trigger._target_=fgvr.types.History", "+trigger.seen=1", "+trigger.correct=1", "+trigger.total=2"
    )
    assert instantiate(cfg.trigger, "trigger", History) == History(1, 1, 2)
    with pytest.raises(fgvr.ConfigError, match=r"fgvr.types.History: .*missing.*total"):
        instantiate(cfg.derive({"trigger": {"_target_": "fgvr.types.History", "seen": 1, "correct": 1}}).trigger, "trigger", History)
    with pytest.raises(fgvr.ConfigError, match="no such class or function"):
        instantiate(cfg.derive({"trigger._target_": "fgvr.types.Histoire"}).trigger, "trigger", History)


def test_a_plan_takes_a_reserve_with_a_unit() -> None:
    plain = planning.plan(fgvr.load_config("mode=plan", "models=tiny", "runtime.budget=18GiB"))
    kept = planning.plan(fgvr.load_config("mode=plan", "models=tiny", "runtime.budget=18GiB", "runtime.reserve=2GiB"))
    assert kept.needed - plain.needed == 2 << 30


def test_runs_with_odd_names_are_compared(tmp_path: Path, capsys) -> None:
    """Blanks, accents, `=` and brackets reach `mode=compare` as they are: the complaint is that nothing lies there, not their spelling."""
    one, two = tmp_path / "é=x [1]" / "A", tmp_path / "b c"
    assert main(["mode=compare", f"runs=[{one},{two}]"]) == 3
    said = capsys.readouterr().err
    assert json.dumps(str(one), ensure_ascii=False)[1:-1] in said.replace("\n", "")


def test_an_empty_path_is_not_the_folder_one_is_in(capsys) -> None:
    assert main(["mode=classify", "models=fake", "image="]) == 2
    assert "image=: must be an image or a folder of images" in capsys.readouterr().err


def test_a_name_that_begins_as_a_home_folder_does_is_a_name(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("models.encoder.source", "models.mllm.source"):
        assert main(["mode=plan", "models=tiny", f"{key}=~nobody-here/model"]) == 3
        assert "~nobody-here/model" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_CACHE", "~nobody-here")
    assert main(["mode=plan", "models=tiny", "models.mllm.source=some/model"]) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FGVR_HOME", "~nobody-here")
    assert main(["memory", "stats"]) == 0
    assert "bug" not in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_no_bug(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["mode=build_knowledge_base", "models=fake", "dataset.genera=[2]", f"paths.home={tmp_path / 'file'}"]) == 3
    said = capsys.readouterr().err
    assert "choose another home: paths.home=FOLDER" in said and "Traceback" not in said and "bug" not in said


def test_one_shot_is_refused_before_anything_is_built(tmp_path: Path, capsys) -> None:
    words = ["models=fake", "dataset.genera=[2]", "dataset.shots=1", "dataset.calibration=0", f"paths.home={tmp_path}"]
    assert main(["mode=evaluate", *words]) == 2
    assert "dataset.shots=2" in capsys.readouterr().err and not (tmp_path / "knowledge").exists()
    assert main(["mode=fastonly", *words]) == 0, "other triggers need no images that were left out"
