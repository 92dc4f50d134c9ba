"""The contract others rely on, executable: names, modes, groups, keys, exit codes, files.

What is promised but not built yet stands in LATER with the issue that builds it. An entry that has landed fails here until it is removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import fgvr
from fgvr.config.overrides import groups

FUNCTIONS = "load_config build_knowledge_base build_recognizer evaluate fit discover shared_pool".split()
RECORDS = "Sample Candidate FastResult Decision SlowResult Prediction Experience Manifest ModelSpec ModelStatus MemoryPlan Report".split()
ERRORS = (
    "FgvrError ConfigError DatasetError ImageError LeakError KnowledgeError StoreError ModelLoadError OutOfBudget WouldDeadlock "
    "LeaseTimeout RuntimeConflict UnreadableReply RemoteError"
).split()
POOL = "lease status plan set_budget pin evict cleanup".split()
REPORT = "top1 top1_interval slow_rate cost".split()
BASE = "manifest.json prototypes.safetensors classes.parquet experience.jsonl splits.json".split()
RUN = "config.yaml predictions.jsonl predictions.csv report.json report.html memory.jsonl log.txt".split()

OPTIONS = {
    "mode": "build_knowledge_base build_experience_base classify evaluate fastonly slowonly fast_slow baselines replay review compare "
    "discover plan doctor serve memory cache",
    "models": "tiny qwen2_5_vl_7b qwen2_5_vl_3b qwen2_5_vl_7b_int4 qwen2_5_vl_7b_mlx remote random-150m random-7b",
    "models/mllm": "tiny qwen2_5_vl_7b fake mlx",
    "models/encoder": "tiny fake",
    "models/joint": "tiny",
    "dataset": "birds folder cub200 dogs120 cars196 flowers102 pets37 aircraft100 food101 dtd47 eurosat10 sun397 ucf101 caltech101 "
    "imagenet1k birdsnap500",
    "trigger": "never always calibrated sare gates random oracle",
    "slow": "score reason analyse person",
    "fusion": "prototypes joint rerank",
    "knowledge": "default",
    "runtime": "default",
    "evaluation": "default",
    "paths": "default",
    "logging": "default",
    "experiment": "sare_dogs120 sare_flowers102 sare_cub200 sare_cars196 sare_pets37 sare_aircraft100 sare_birdsnap500 sare_food101 "
    "sare_dtd47 sare_imagenet1k sare_sun397 sare_ucf101",
}
KEYS = {
    "": "seed paths.home run.fresh knowledge.path knowledge.build runtime.budget evaluation.record trigger.target "
    "dataset.root dataset.shots dataset.tail_shots dataset.test_per_class dataset.split_seed dataset.seed "
    "slow.decoder slow.target slow.candidates slow.max_new_tokens "
    "models.mllm.source models.mllm.revision models.mllm.dtype models.mllm.quantization models.mllm.batch_size models.mllm.max_pixels "
    "models.encoder.source models.encoder.batch_size models.encoder.dtype "
    "runtime.device runtime.reserve runtime.max_models runtime.policy runtime.host_budget runtime.ttl runtime.lease_timeout "
    "runtime.preallocate runtime.pin runtime.max_concurrency",
    "mode=classify": "image",
    "mode=replay": "predictions",
    "mode=review": "answers",
    "mode=compare": "runs",
    "mode=discover": "images",
    "mode=memory": "action limit",
    "mode=cache": "action",
}

LATER: dict[str, int] = {}  # promise -> issue

PROMISED_OPTIONS = [f"{group}={option}" for group, options in OPTIONS.items() for option in options.split()]


def is_there(promise: str) -> bool:
    if "=" not in promise:
        return promise in fgvr.__all__ and hasattr(fgvr, promise)
    group, _, option = promise.partition("=")
    return option in groups().get(group, ())


@pytest.mark.parametrize("promise", [*FUNCTIONS, *RECORDS, *ERRORS, *PROMISED_OPTIONS])
def test_a_promise_is_kept_or_named_with_its_issue(promise: str) -> None:
    if promise in LATER:
        assert not is_there(promise), f"{promise} has landed: remove it from LATER"
    else:
        assert is_there(promise)


def test_nothing_is_postponed_that_was_not_promised() -> None:
    assert set(LATER) <= {*FUNCTIONS, *PROMISED_OPTIONS}


@pytest.mark.parametrize("choice", KEYS)
def test_keys_are_where_they_were_promised(choice: str) -> None:
    if choice in LATER:
        assert not is_there(choice)
        return
    values = {"image": "a.jpg", "predictions": "a.jsonl", "runs": "[a,b]", "images": "pictures", "answers": "answers.csv"}
    words = [choice, *(f"{key}={values[key]}" for key in KEYS[choice].split() if key in values)] if choice else []
    cfg = fgvr.load_config(*words)
    missing = [key for key in KEYS[choice].split() if cfg.get(key, "absent") == "absent"]
    assert not missing
    if choice:
        assert not any(key in fgvr.load_config() for key in KEYS[choice].split()), "a mode's keys exist only there"


def test_the_pool_offers_what_notebooks_use() -> None:
    from fgvr.runtime.pool import ModelPool

    assert [name for name in POOL if not callable(getattr(ModelPool, name, None))] == []
    assert set(REPORT) <= set(fgvr.Report.__slots__)


# --- exit codes and files, by the real command line --------------------------------------------------------------------------

WORLD = ["models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.shots=2", "dataset.calibration=0"]
PREDICTION = {
    "": "image sha256 label prediction name confidence by unsure fast history decision slow abstention cost",
    "fast": "candidates confidence margin entropy agreement",
    "history": "seen correct total",
    "decision": "escalate score threshold terms",
    "slow": "category probabilities rationale rules status",
    "cost": "mllm_calls prompt_tokens new_tokens encoder_forwards seconds",
}
CANDIDATE = "category probability image_score text_score name_score joint_score image_rank text_rank"


@pytest.fixture
def discovering(python: Callable[..., CompletedProcess[str]], home: Path) -> Callable[..., CompletedProcess[str]]:
    return lambda *words: python("discovering.py", f"paths.home={home}", *WORLD, *words)


@pytest.mark.parametrize(("words", "code"), [("mode=plan", 0), ("mode=buld", 2), ("mode=plan runtime.budget=banana", 2),
                                             ("mode=fastonly trigger=sare", 2), ("mode=classify image=no.jpg", 3)])  # fmt: skip
def test_exit_codes(discovering: Callable[..., CompletedProcess[str]], words: str, code: int) -> None:
    answer = discovering(*words.split())
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr


def test_files_of_a_base_and_of_a_run(discovering: Callable[..., CompletedProcess[str]], home: Path) -> None:
    answer = discovering("mode=slowonly")
    assert answer.returncode == 0, answer.stderr

    [base] = (home / "knowledge").glob("*/*/")
    assert len(base.name) == 12
    assert {file.name for file in base.iterdir()} >= set(BASE)
    assert not list(base.parent.glob("*.partial"))

    [run] = (home / "runs" / "slowonly").iterdir()
    assert len(run.name) == 12
    assert {file.name for file in run.iterdir()} >= set(RUN)

    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for part, keys in PREDICTION.items():
        assert set(keys.split()) <= set(rows[0][part] if part else rows[0]), part
    assert set(CANDIDATE.split()) <= set(rows[0]["fast"]["candidates"][0])

    report = json.loads((run / "report.json").read_text())
    assert set("n top1 top1_interval macro slow_rate fixed broken protocols cost peak_device_bytes model_loads classes".split()) <= set(
        report
    )
    assert len(report["top1_interval"]) == 2
    assert {"encoder_forwards", "mllm_calls"} <= set(report["cost"])
    assert set(report["model_loads"]) == {"mllm", "encoder", "joint"}
