"""The benchmarks run and say what they measured; their seconds are nobody's gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks import batching


@pytest.mark.slow
def test_the_runtime_benchmark_on_the_tiny_models(python: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    answer = python("-m", "benchmarks", "runtime", "--repeat", "2", "--json", str(file))
    assert answer.returncode == 0, answer.stderr
    figures = json.loads(file.read_text())
    assert set(figures["lease_us"]) == {"one resident model", "two resident models", "one, while somebody listens"}
    assert [turn["role"] for turn in figures["turns"]] == ["encoder", "mllm", "joint"]
    for turn in figures["turns"]:
        assert turn["same"], "answers are bit-equal after eviction and return"
        assert turn["came_back"] == turn["nbytes"] > 1 << 20
        assert turn["restore"]["n"] == 2
    assert figures["machine"]["commit"] and "lease of one resident model" in answer.stdout


def test_models_that_are_not_there_are_an_error_with_a_cure(python: Callable[..., CompletedProcess[str]]) -> None:
    answer = python("-m", "benchmarks", "runtime", "--models", "random-7b")
    assert answer.returncode == 3
    assert "is not on this machine" in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.slow
def test_the_reference_does_the_work_of_its_description(python: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """Per query 2 encoder forwards and 3 openings before 1 generate call; ours 1 opening and the same answers."""
    answer = python("-m", "benchmarks", "slow", "--repeat", "2", "--size", "2", "--json")
    assert answer.returncode == 0 and "## slow" in answer.stderr, answer.stderr
    figures = json.loads(answer.stdout)
    theirs, ours, *others = figures["races"]["slow"]
    likelihoods = [lap for lap in others if "likelihood" in lap["way"]]
    assert len(likelihoods) in (2, 4)  # in bfloat16, too, where it pays
    assert (theirs["counts"]["encoder_forwards"], theirs["counts"]["mllm_calls"], theirs["counts"]["image_opens"]) == (4, 2, 6)
    assert (ours["counts"].get("encoder_forwards", 0), ours["counts"]["mllm_calls"], ours["counts"]["image_opens"]) == (0, 2, 2)
    assert theirs["counts"]["new_tokens"] == ours["counts"]["new_tokens"] > 0
    assert all("new_tokens" not in lap["counts"] and not lap["same_work"] for lap in likelihoods)
    assert figures["same_answers"]["float32"] == figures["images"] == 2
    assert all(lap["steady"] for lap in figures["races"]["slow"])


@pytest.mark.slow
def test_batches_of_any_size_and_order_give_the_answers_of_one_by_one() -> None:
    """The trained tiny models, pictures of three sizes, every image thought over."""
    small = ("dataset.genera=[3,3]", "dataset.shots=1", "knowledge.leave_one_out=false", "slow.weight=0.5")
    found = batching.measure(models="tiny", repeat=2, size=2, words=small, half=False).facts
    assert found["images"] == 12
    assert set(found["compared"]) == {"batches of 8, in order", "batches of 32, in order", "batches of 8, shuffled"}
    for row in found["compared"].values():
        assert row["flips"] == row["fast_flips"] == 0
        assert row["fast_apart"] < 1e-5 and 0 < row["slow_apart"] < 1e-3
