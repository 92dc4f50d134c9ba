"""What a key refuses: by its name, in every mode, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import fgvr
from fgvr import keys, planning
from fgvr.cli import main
from fgvr.overrides import groups
from fgvr.utils.paths import config_dir

WRONG = [
    ("logging.level=verbose", "debug, info, warning"),
    ("fusion.image_weight=abc", "a number from 0 to 1"),
    ("fusion.image_weight=1.5", "a number from 0 to 1"),
    ("fusion.top_k=0", "a whole number from 1 up"),
    ("fusion.temperature=0", "a number from 1e-06 up, or null"),
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
    ("models.mllm.role=encoder", "must be one of mllm"),
    ("knowledge.path=", "must be text, or null"),
    ("knowledge.build=x", "one of missing, never, always"),
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
    with pytest.raises(fgvr.ConfigError, match=r"fusion.top_k=0: .*; slow.rules=-1: "):
        fgvr.load_config("fusion.top_k=0", "slow.rules=-1")


def test_every_key_of_every_option_has_a_rule_and_keeps_it() -> None:
    """A new key must be placed in keys.RULES, or a wrong value of it would end in a traceback."""
    unknown: set[str] = set()
    for group, options in groups().items():
        for option in options:
            if group.partition("/")[0] in ("hydra", "local"):
                continue
            for key, value in _leaves(_package(group), OmegaConf.load(config_dir() / group / f"{option}.yaml")):
                if (rule := keys.rule_of(key)) is None:
                    unknown.add(f"{group}/{option}: {key}")
                elif value is not None and "${" not in str(value) and value != "???":
                    assert not rule(value), f"{group}/{option}: {key}={value} {rule(value)}"
    assert not unknown


def _package(group: str) -> str:
    return "" if group in ("mode", "experiment") else group.replace("/", ".") + "."


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    for name in node:
        if name in ("defaults", "_target_", "hydra"):
            continue
        value = OmegaConf.to_container(node, resolve=False)[name]
        if isinstance(node, DictConfig) and isinstance(value, dict):
            yield from _leaves(f"{prefix}{name}.", OmegaConf.create(value))
        else:
            yield f"{prefix}{name}", value


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


def test_a_place_that_cannot_be_written_is_no_bug(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["mode=build_knowledge_base", "models=fake", "dataset.genera=[2]", f"paths.home={tmp_path / 'file'}"]) == 3
    said = capsys.readouterr().err
    assert "file" in said and "Traceback" not in said and "bug" not in said


def test_one_shot_is_refused_before_anything_is_built(tmp_path: Path, capsys) -> None:
    words = ["models=fake", "dataset.genera=[2]", "dataset.shots=1", "dataset.calibration=0", f"paths.home={tmp_path}"]
    assert main(["mode=evaluate", *words]) == 2
    assert "dataset.shots=2" in capsys.readouterr().err and not (tmp_path / "knowledge").exists()
    assert main(["mode=fastonly", *words]) == 0, "other triggers need no images that were left out"
