"""Stage `sight`: the comparing of the stage `words` with pictures; describing goes on, so that nothing is forgotten."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer

from fgvr.agents import prompts
from fgvr.data.birds import describe
from tiny import common, comparing, mllm, vision, words
from tiny.comparing import Case, Level, Words, spoken
from tiny.words import Batch, Clerk, tell
from tiny.world import CARDINALITIES, TrainingWorld, held_out

STAGE = "sight"


@dataclass(frozen=True, slots=True)
class SightPlan:
    """Schedule of the part with pictures; the shares of the other tasks leave the rest to `compare`."""

    steps: int = 4000
    tokens: int = 4096
    rate: float = 1e-3
    vision_rate: float = 3e-4
    image: float = 0.20
    class_: float = 0.08
    reflect: float = 0.10
    own: float = 0.25  # of the comparisons follow from what the model itself sees
    report: int = 25
    evaluate: int = 100


LEVELS = (
    Level(2, 0, 0.5, 1.0, 0.2),
    Level(3, 0, 0.3, 1.0, 0.05),
    Level(4, 1, 0.3, 1.0, 0.05),
    *(Level(5, 0, 0.3, 1.0, 0.05), Level(5, 1, 0.3, 1.0, 0.05)) * 2,
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One task's words and pictures; `cases` where candidates are compared."""

    task: str
    words: tuple[Words, ...]
    images: int
    pixels: torch.Tensor
    cases: tuple[Case, ...] = ()


def sight_lesson(world: TrainingWorld, plan: SightPlan, seed: int, step: int) -> Lesson:
    """One task per batch, so that sequences are about equally long."""
    rng = np.random.default_rng((seed, 6, step))
    shares = np.cumsum([plan.image, plan.class_, plan.reflect])
    task = ("image", "class", "reflect", "compare")[int(np.searchsorted(shares, rng.random()))]
    images = int(rng.integers(1, 4)) if task == "class" else 1
    level = LEVELS[int(rng.integers(len(LEVELS)))]
    length = {"image": 110, "class": 110 + 20 * images, "reflect": 240}.get(
        task, 160 + 18 * level.options + 15 * level.options * (level.strangers > 0)
    )
    count = max(8, plan.tokens // length)
    genera, members = np.sort(rng.choice(len(world.labels), count, replace=False)), rng.integers(0, 4, count)
    shots = np.stack([rng.permutation(3)[:images] for _ in range(count)])
    pictures = world.pictures[np.repeat(genera, images), np.repeat(members, images), shots.ravel()]
    flip = rng.random(len(pictures)) < 0.5
    pictures[flip] = pictures[flip, :, ::-1]
    pixels = common.to_tensor(pictures)
    species = [tuple(int(v) for v in world.labels[g, m]) for g, m in zip(genera, members, strict=True)]
    if task in ("image", "class"):
        asked = [
            prompts.describe_image("bird") if task == "image" else prompts.describe_class(common.random_name(rng), "bird") for _ in species
        ]
        told = tuple(Words(a, ((describe(s), "said"),)) for a, s in zip(asked, species, strict=True))
        return Lesson(task, told, images, vision.resize(pixels, rng))
    if task == "reflect":
        return Lesson(task, tuple(comparing.reflection(s, rng) for s in species), 1, pixels)
    cases = tuple(comparing.draw_case(s, level, rng) for s in species)
    told = tuple(c.answer(c.mistaken(rng, level.mistakes)) for c in cases)
    return Lesson(task, told, 1, pixels, cases if rng.random() < plan.own else ())


def as_batch(clerk: Clerk, lesson: Lesson, words: Sequence[Words]) -> Batch:
    rows, columns = lesson.pixels.shape[2] // 28, lesson.pixels.shape[3] // 28
    return clerk.batch(words, clerk.shown(lesson.images, rows * columns), ("said", "fits", "seen"))


@torch.no_grad()
def as_seen(model: nn.Module, clerk: Clerk, lesson: Lesson) -> list[list[int]]:
    """What the model itself sees in each picture, one value per attribute, the true values of the earlier attributes given."""
    truths = [case.answer(case.species) for case in lesson.cases]
    batch = as_batch(clerk, lesson, truths)
    own = tell(model, clerk, batch, lesson.pixels).own
    seen = []
    for row, (case, truth) in enumerate(zip(lesson.cases, truths, strict=True)):
        values, told, at = list(case.species), own[row][own[row] >= 0].tolist(), 0
        places = iter(range(10))
        for text, kind in truth.reply:
            if kind == "seen":
                place = next(places)
                first = [clerk.part(f" {spoken(place, v).split()[0]}")[0] for v in range(CARDINALITIES[place])]
                values[place] = first.index(told[at]) if told[at] in first else values[place]
            at += len(clerk.part(text)) if text else 0
        seen.append(values)
    return seen


def train(world: TrainingWorld, plan: SightPlan, source: Path, paths: common.Paths, seed: int, until: float = float("inf")) -> None:
    """The part with pictures: train or resume, and export the whole model."""
    torch.manual_seed(seed)
    clerk, folder = Clerk(AutoTokenizer.from_pretrained(source)), paths.models / "mllm"
    model = words.grown(source).to(words.device())
    if compared := common.load(paths.checkpoint(words.STAGE)):
        model.load_state_dict(compared["model"])
    optimizer, curve = common.adamw([(model.model.visual, plan.vision_rate), (model, plan.rate)]), paths.curve(STAGE)
    first, tokens = 0, 0
    if state := common.load(paths.checkpoint(STAGE)):
        peaks = [group["peak"] for group in optimizer.param_groups]
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        first, tokens = state["step"], state["tokens"]
    words.write_folder(source, folder)
    sums: dict[str, float] = {}
    for step, lesson in enumerate(common.prefetch(lambda s: sight_lesson(world, plan, seed, s), first, plan.steps), first):
        common.set_rate(optimizer, common.cosine(step, plan.steps, warmup=60))
        own = zip(lesson.cases, as_seen(model, clerk, lesson), strict=True) if lesson.cases else ()
        batch = as_batch(clerk, lesson, [case.answer(seen) for case, seen in own] or lesson.words)
        told = tell(model, clerk, batch, lesson.pixels)
        optimizer.zero_grad(set_to_none=True)
        told.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += batch.ids.numel()
        shares, name = told.shares(batch), "own" if lesson.cases else lesson.task
        values = {name: told.loss.item()} | ({f"{name}_first": shares["first"]} if lesson.task == "compare" else {})
        for key, value in values.items():
            sums[key], sums[f"#{key}"] = sums.get(key, 0.0) + value, sums.get(f"#{key}", 0) + 1
        done = step + 1
        if done % plan.report == 0:
            curve.add(done, tokens=tokens, **{k: v / sums[f"#{k}"] for k, v in sums.items() if not k.startswith("#")})
            sums = {}
        if done % plan.evaluate == 0 or done == plan.steps or time.time() > until:
            common.save_atomic(
                paths.checkpoint(STAGE), model=model.state_dict(), optimizer=optimizer.state_dict(), step=done, tokens=tokens
            )
            mllm.export(model, folder)
            curve.add(done, **evaluate(model, clerk))
        if time.time() > until:
            break


@torch.no_grad()
def evaluate(model: nn.Module, clerk: Clerk) -> dict[str, float]:
    """Unseen species of world 9000: attributes seen while describing and while comparing five, and the first letter after what was seen."""
    held, rng = held_out(9000, shots=1, tests=2), np.random.default_rng(0)
    species = [tuple(int(v) for v in held.labels[i]) for i in range(len(held.labels)) for _ in range(2)]
    pixels = common.to_tensor(held.test.reshape(-1, 112, 112, 3))
    said = Lesson("image", tuple(Words(prompts.describe_image("bird"), ((describe(s), "said"),)) for s in species), 1, pixels)
    batch = as_batch(clerk, said, said.words)
    told = tell(model, clerk, batch, pixels)
    values = {clerk.part(f" {spoken(p, v).split()[0]}")[0] for p in range(10) for v in range(CARDINALITIES[p])}
    targets = batch.targets[:, 1:]
    is_value = torch.isin(targets, torch.tensor(sorted(values)))
    found = {"described": float((told.own.cpu() == targets)[is_value].float().mean())}
    for strangers in (0, 1):
        cases = tuple(comparing.draw_case(s, Level(5, strangers), rng) for s in species)
        lesson = Lesson("compare", (), 1, pixels, cases)
        seen = as_seen(model, clerk, lesson)
        right = [v[p] == c.species[p] for v, c in zip(seen, cases, strict=True) for p in c.shown]
        batch = as_batch(clerk, lesson, [c.answer(s) for c, s in zip(cases, seen, strict=True)])
        first = tell(model, clerk, batch, pixels).shares(batch)["first"]
        found |= {f"seen_{strangers}": float(np.mean(right)), f"first_{strangers}": first}
    return found
