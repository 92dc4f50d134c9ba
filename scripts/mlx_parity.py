"""The tiny MLLM by MLX and by PyTorch through the same agents: same answers, and MLX's memory back after eviction.

    python scripts/mlx_parity.py            50 test birds of a development world

Both run `trigger=always` with a base of their own, built by their own describer. Non-zero exit when an answer differs, when a likelihood
differs by more than 1e-3 nats, or when a byte stays behind: of MLX's active and cached memory, against what the libraries themselves hold
once they have run (about 1 KiB of constants).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

import numpy as np
from PIL import Image

import fgvr
from fgvr.agents import prompts
from fgvr.config.configuration import Config
from fgvr.data.pictures import open_picture
from fgvr.runtime.devices.mlx_memory import MLX
from fgvr.session import Session

NATS = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-class", type=int, default=5, help="test birds of each of the 10 species")
    arguments = parser.parse_args()
    start = at_rest()
    with tempfile.TemporaryDirectory() as home:
        world = ["dataset.seed=9001", "dataset.genera=[5,5]", f"dataset.test_per_class={arguments.per_class}", "dataset.calibration=0"]
        words = [f"paths.home={home}", *world, "trigger=always", "store.enabled=false"]
        failures = compare(*(fgvr.load_config(*words, f"models/mllm={name}") for name in ("tiny", "mlx")))
    pool = fgvr.shared_pool()
    before = (MLX.active(), MLX.cached())
    released = sum(pool.evict(model.key) for model in pool.status())
    after = (MLX.active(), MLX.cached())
    print(f"MLX bytes active, cached: {start} at the start, {before} while resident, {after} after eviction ({released} released in all)")
    if after != start:
        failures.append("memory stayed behind")
    print("; ".join(failures) or "the same")
    return len(failures) > 0


def at_rest() -> tuple[int, int]:
    """MLX's active and cached bytes after a model has come, answered and gone."""
    pool = fgvr.shared_pool(fgvr.load_config("models/mllm=mlx"))
    with pool.lease("mllm") as mllm:
        mllm.score([Image.new("RGB", (112, 112))], ["Describe."], [["a bird", "a"]])
        mllm.generate([Image.new("RGB", (112, 112))], ["Describe."], max_new_tokens=2)
    pool.evict("mllm")
    return MLX.active(), MLX.cached()


def compare(torch: Config, mlx: Config) -> list[str]:
    """What differs, in words; prints the figures."""
    failures = []
    bases = [fgvr.build_knowledge_base(cfg) for cfg in (torch, mlx)]
    described = [[record.description for record in base.classes] for base in bases]
    same = sum(one == other for one, other in zip(*described, strict=True))
    print(f"descriptions of classes: {same} of {len(described[0])} equal")
    if same < len(described[0]):
        failures.append("descriptions differ")

    birds = Session(torch).dataset.split.test
    predictions = []
    for cfg, base in zip((torch, mlx), bases, strict=True):
        began = time.monotonic()
        predictions.append(fgvr.build_recognizer(cfg, base).batch(birds))
        print(f"{cfg.models.mllm.loader}: {len(birds)} birds recognised in {time.monotonic() - began:.1f} s")
    pairs = list(zip(*predictions, strict=True))
    same = sum(one.category == other.category and one.slow.category == other.slow.category for one, other in pairs)
    most = max(abs(one.slow.probabilities[c] - other.slow.probabilities[c]) for one, other in pairs for c in one.slow.probabilities)
    right = [sum(p.category == bird.label for p, bird in zip(answers, birds, strict=True)) for answers in predictions]
    print(f"predictions: {same} of {len(pairs)} equal, right {right[0]} and {right[1]}, largest difference of a probability {most:.1e}")
    if same < len(pairs):
        failures.append("predictions differ")

    pictures = [open_picture(bird.image) for bird in birds]
    texts = [record.description.text for record in bases[0].classes]
    question = [prompts.describe_image("bird")] * len(pictures)
    replies, scores = [], []
    for cfg in (torch, mlx):
        with fgvr.shared_pool(cfg).lease(Session(cfg).specs["mllm"]) as mllm:
            replies.append(mllm.generate(pictures, question, system=prompts.SYSTEM, max_new_tokens=80))
            answers = mllm.score(pictures, question, [texts] * len(pictures), system=prompts.SYSTEM)
            scores.append(np.array([s.log_likelihoods for s in answers]))
    same, most = sum(one == other for one, other in zip(*replies, strict=True)), np.abs(scores[0] - scores[1]).max()
    alike = int((scores[0].argmax(1) == scores[1].argmax(1)).sum())
    print(f"greedy descriptions of birds: {same} of {len(birds)} equal; likeliest of {len(texts)} texts: {alike} of {len(birds)} equal")
    print(f"log-likelihoods of {scores[0].size} answers: largest difference {most:.1e} nats (allowed {NATS})")
    if same < len(birds) or alike < len(birds) or most > NATS:
        failures.append("answers of the MLLM differ")
    return failures


if __name__ == "__main__":
    sys.exit(main())
