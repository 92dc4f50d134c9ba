"""Made-up runs in which System 1 is right with its confidence and System 2 is right more often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fgvr.types import Asked, Candidate, Cost, Decision, FastResult, History, Prediction, SlowResult

Run = Callable[..., list[Prediction]]


def made_up_run(n: int = 200, *, classes: int = 8, slow_rate: float = 0.4, seed: int = 0) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1.0, n)
    threshold = float(np.quantile(confidence, slow_rate)) if slow_rate < 1 else 2.0
    predictions = []
    for i, p in enumerate(confidence):
        label = i % classes
        top = label if rng.random() < p else (label + 1 + int(rng.integers(2))) % classes
        ids = [str(c) for c in dict.fromkeys([top, *((label + k) % classes for k in range(5))])][:5]
        candidates = tuple(
            Candidate(c, float(p * 0.5**k), 0.9 - k / 100, 0.3, image_rank=k + 1, text_rank=5 - k) for k, c in enumerate(ids)
        )
        fast = FastResult(f"{i:064x}", candidates, float(p), float(p / 2), 1.0, k_agrees(i), History(5, 3, 32))
        escalate = bool(p < threshold)
        slow = None
        if escalate:
            answer = str(label) if rng.random() < 0.9 and str(label) in ids else ids[-1]
            rest = [c for c in ids if c != answer]
            slow = SlowResult(answer, {answer: 0.8, **dict.fromkeys(rest, 0.05)}, f"It has the tail of {answer} <and not another>.")
        category = slow.category if slow is not None and slow.category else ids[0]
        predictions.append(
            Prediction(
                image=f"class {label}/{i:04d}.png",
                sha256=f"{i:064x}",
                label=str(label),
                category=category,
                name=f"Class {category}",
                confidence=0.8 if slow else float(p),
                by="slow" if slow else "fast",
                fast=fast,
                decision=Decision(escalate, float(p), threshold, {"confidence": float(p), "history": -0.25}),
                slow=slow,
                cost=Cost(
                    mllm_calls=int(escalate),
                    prompt_tokens=90 * escalate,
                    new_tokens=0,
                    encoder_forwards=1,
                    seconds=0.01,
                    asked=Asked(mllm_calls=int(escalate), encoder_forwards=1),
                ),
            )
        )
    return predictions


def k_agrees(i: int) -> bool:
    return i % 3 != 0


@pytest.fixture
def run() -> Run:
    return made_up_run


@pytest.fixture
def classes() -> dict[str, str]:
    return {str(c): f"Class {c}" for c in range(8)}
