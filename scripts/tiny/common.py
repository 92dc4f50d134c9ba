"""What the training stages share: checkpoints, curves, learning rates, prefetching, tokenizers."""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from fgvr.agents import prompts
from fgvr.data.birds import ATTRIBUTES, describe
from tiny.world import CARDINALITIES

T = TypeVar("T")
MEAN, STD = 0.5, 0.25
"""One mean and deviation for all channels of pictures in [0, 1]; written into both models' preprocessing."""


class Curve:
    """A JSONL file with one line per report: step, seconds of this process, CPU seconds, values."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.time()
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, **values: float | str) -> None:
        line = {"step": step, "seconds": round(time.time() - self.started), "cpu": round(time.process_time()), **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in line.items()), flush=True)


def save_atomic(path: Path, **state: Any) -> None:
    """A checkpoint that is either the old or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    torch.save(state, scratch)
    os.replace(scratch, path)


def load(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=False) if path.exists() else None


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Factor on the peak learning rate: linear warm-up, then a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def adamw(groups: Sequence[tuple[nn.Module, float]], decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW over (module, peak rate) pairs; only matrices decay. Peak rates stay readable as `peak` in each group."""
    seen: set[int] = set()
    built = []
    for module, rate in groups:
        fresh = [p for p in module.parameters() if id(p) not in seen and p.requires_grad]
        seen.update(id(p) for p in fresh)
        built.append({"params": [p for p in fresh if p.ndim > 1], "lr": rate, "peak": rate, "weight_decay": decay})
        built.append({"params": [p for p in fresh if p.ndim <= 1], "lr": rate, "peak": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(built, betas=(0.9, 0.98), eps=1e-6)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def prefetch(make: Callable[[int], T], first: int, last: int, depth: int = 4) -> Iterator[T]:
    """`make(step)` for each step, prepared by one background thread; the result depends on the step only."""
    ready: queue.Queue[T | Exception] = queue.Queue(depth)

    def work() -> None:
        try:
            for step in range(first, last):
                ready.put(make(step))
        except Exception as exc:
            ready.put(exc)

    threading.Thread(target=work, daemon=True).start()
    for _ in range(first, last):
        item = ready.get()
        if isinstance(item, Exception):
            raise item
        yield item


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [..., h, w, 3] to normalised float32 [..., 3, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3).float().div_(255).sub_(MEAN).div_(STD)


def whitening_filters(patches: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` strongest whitened principal components of flattened patches [n, d], as filters [count, d]."""
    centred = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    order = values.argsort(descending=True)[:count]
    filters = (vectors[:, order] / (values[order] + 1e-3 * values[order[0]]).sqrt()).T
    if len(filters) < count:
        filters = torch.cat([filters, 0.02 * torch.randn(count - len(filters), patches.shape[1])])
    return 0.5 * filters


class AttributeHeads(nn.Module):
    """One linear classifier per attribute; used in training only, never shipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(CARDINALITIES))

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        return list(self.linear(self.norm(features)).float().split(CARDINALITIES, -1))


def attribute_loss(logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy; `labels` int64 [n, 10]."""
    return torch.stack([nn.functional.cross_entropy(x, labels[:, i]) for i, x in enumerate(logits)]).mean()


def attribute_hits(logits: list[torch.Tensor], labels: torch.Tensor) -> dict[str, float]:
    """Accuracy per attribute."""
    return {n: float((x.argmax(-1) == labels[:, i]).float().mean()) for i, (n, x) in enumerate(zip(ATTRIBUTES, logits, strict=True))}


def random_name(rng: np.random.Generator) -> str:
    """A pronounceable nonsense name, alike to but not taken from the worlds."""
    onsets, vowels = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "tr", "kl"], "aeiou"
    body = "".join(onsets[int(rng.integers(16))] + vowels[int(rng.integers(5))] for _ in range(int(rng.integers(2, 4))))
    return (body + ["", "", "n", "l", "s", "m"][int(rng.integers(6))]).capitalize()


def train_bpe(
    vocab_size: int,
    specials: Sequence[str],
    *,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
    normalizer: normalizers.Normalizer | None = None,
    seed: int = 0,
) -> Tokenizer:
    """A byte-level BPE over random descriptions, names and every prompt; every word of a description becomes one token."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(3000):
        names = [random_name(rng) for _ in range(3)]
        said = [describe(rng.integers(CARDINALITIES)) for _ in range(3)]
        endings = ("letter", "name", "reason")
        texts += [*said, *names, prompts.describe_image("bird"), prompts.describe_class(names[0], "bird"), prompts.SYSTEM]
        texts += [prompts.choose("bird", names, said, [], ending=endings[int(rng.integers(3))]), "What is the crown of this bird like?"]
        texts += ["Answer: A B C D E.", *prompts.name_prompts(names[0], "bird"), "system\nuser\nassistant\n", "Rule: look at it."]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(specials), initial_alphabet=alphabet)
    )
    return tokenizer


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a training keeps its things."""

    work: Path
    models: Path

    def checkpoint(self, stage: str) -> Path:
        return self.work / f"{stage}.pt"

    def curve(self, stage: str) -> Curve:
        return Curve(self.work / f"{stage}.jsonl")
