"""Stage `reason`: the MLLM learns to compare candidates in its context, first on text alone, then with the picture.

Three parts, each a checkpoint of its own: `words` (no picture: what is seen is given, whom it fits is learned), `sight` (all tasks with
pictures, the earlier ones among them so that nothing is forgotten). The stage starts from the shipped weights, with layers added that do
nothing at first, and keeps the tokenizer of that folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from fgvr.agents import prompts
from fgvr.data.birds import describe
from tiny import common, comparing, lean, mllm, vision
from tiny.comparing import LETTERS, Case, Level, Words, spoken
from tiny.language import Scribe
from tiny.world import CARDINALITIES, TrainingWorld, held_out

STAGE = "reason"
LAYERS = 6
CURRICULUM = (
    (0.0, (Level(2, 0),)),
    (0.5, (Level(2, 0), Level(2, 1), Level(2, 0, 0.5, 1.0, 0.3))),
)
"""Share of the `words` steps from which a batch is of one of these levels."""


@dataclass(frozen=True, slots=True)
class WordsPlan:
    """Schedule of the text-only part; a batch is filled up to about `tokens`."""

    steps: int = 3000
    tokens: int = 4096
    rate: float = 2e-3
    report: int = 25
    evaluate: int = 150


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded ids int64 [n, t]; targets int64 [n, t], -1 where nothing is learned; `letters` marks the final letter's token."""

    ids: torch.Tensor
    targets: torch.Tensor
    letters: torch.Tensor


class Clerk(Scribe):
    """Words to token ids. Parts of a reply begin with a space, so that they can be tokenised one by one."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        super().__init__(tokenizer)
        self._known: dict[str, list[int]] = {}

    def shown(self, images: int, tokens: int) -> list[int]:
        """The ids before a prompt about pictures."""
        pictures = f"<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>" * images
        return self.part(f"<|im_start|>system\n{prompts.SYSTEM}<|im_end|>\n<|im_start|>user\n{pictures}")

    def part(self, text: str) -> list[int]:
        if text not in self._known and len(self._known) < 50_000:
            self._known[text] = self.ids(text)
        return self._known.get(text) or self.ids(text)

    def batch(self, lessons: Sequence[Words], prefix: Sequence[int], learned: Sequence[str]) -> Batch:
        """Args: prefix: ids before each prompt; learned: the kinds of parts with a loss."""
        suffix, rows = self.part("<|im_end|>\n<|im_start|>assistant\n"), []
        for lesson in lessons:
            asked = [*prefix, *self.ids(lesson.prompt), *suffix]
            said, told = [], []
            for text, kind in lesson.reply:
                part = self.part(text) if text else []
                said += part
                told += part if kind in learned else [-1] * len(part)
            rows.append((asked, [*said, self.end], [*told, self.end]))
        length = max(len(a) + len(s) for a, s, _ in rows)
        ids, targets = torch.full((len(rows), length), self.pad), torch.full((len(rows), length), -1)
        letters = torch.zeros((len(rows), length), dtype=torch.bool)
        for i, (asked, said, told) in enumerate(rows):
            stop = len(asked) + len(said)
            ids[i, :stop] = torch.tensor(asked + said)
            targets[i, len(asked) : stop] = torch.tensor(told)
            letters[i, stop - 2] = True
        return Batch(ids, targets, letters)


def grown(folder: Path, layers: int = LAYERS) -> Qwen2_5_VLForConditionalGeneration:
    """The model of a folder with layers added at the end. A new layer's output starts as zero, so nothing changes yet."""
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    old = config.text_config.num_hidden_layers
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if layers == old:
        return model
    config.text_config.num_hidden_layers, config.text_config.layer_types = layers, ["full_attention"] * layers
    larger = Qwen2_5_VLForConditionalGeneration(config).float()
    larger.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in larger.model.language_model.layers[old:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return larger


def write_folder(source: Path, folder: Path, layers: int = LAYERS) -> None:
    """The source's files but the weights and the card, with the configuration of the larger model."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("README.md", "config.json"):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": layers, "max_window_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def level_at(share: float, rng: np.random.Generator) -> Level:
    levels = next(levels for start, levels in reversed(CURRICULUM) if share >= start)
    return levels[int(rng.integers(len(levels)))]


def words_batch(clerk: Clerk, plan: WordsPlan, seed: int, step: int, level: Level | None = None, rows: int | None = None) -> Batch:
    """Comparisons of one level, text only; what is seen is given, not learned."""
    rng = np.random.default_rng((seed, 5, step))
    level = level or level_at(step / plan.steps, rng)
    each = 85 + 20 * level.options + 40 * (level.strangers > 0)
    count = rows or max(8, plan.tokens // each)
    species = comparing.strangers(count, rng)
    lessons = [comparing.comparison(s, level, rng) for s in species]
    return clerk.batch(lessons, clerk.part("<|im_start|>user\n"), ("said",))


@dataclass(frozen=True, slots=True)
class Told:
    """A batch's loss per learned token, and the model's own next token where something is learned (-1 elsewhere)."""

    loss: torch.Tensor
    own: torch.Tensor

    def shares(self, batch: Batch) -> dict[str, float]:
        """Of rows all of whose learned tokens are right, and of right letters."""
        targets = batch.targets[:, 1:]
        right, letter = (self.own == targets) | (targets < 0), batch.letters[:, 1:]
        return {"row": float(right.all(1).float().mean()), "letter": float(right[letter].float().mean())}


def tell(model: nn.Module, scribe: Scribe, batch: Batch, pixels: torch.Tensor | None = None) -> Told:
    """One pass. All rows have their pictures in the same places."""
    core, x = model.model.language_model, model.model.language_model.embed_tokens(batch.ids)
    grid = (1, 1)
    if pixels is not None:
        grid = pixels.shape[2] // 28, pixels.shape[3] // 28
        mask = (batch.ids == scribe.image)[..., None]
        x = x.masked_scatter(mask.expand_as(x), mllm.look(model.model.visual, pixels))
    cos, sin = lean.rotation(core, scribe.positions(batch.ids[:1], grid))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = lean.hidden(core, x, cos, sin)[:, :-1]
        targets = batch.targets[:, 1:]
        told = targets >= 0
        logits = model.lm_head(hidden[told]).float()
    own = torch.full_like(targets, -1)
    own[told] = logits.detach().argmax(-1)
    return Told(F.cross_entropy(logits, targets[told]), own)


def train_words(plan: WordsPlan, source: Path, paths: common.Paths, seed: int, until: float = float("inf")) -> None:
    """The text-only part: train or resume."""
    torch.manual_seed(seed)
    clerk, model = Clerk(AutoTokenizer.from_pretrained(source)), grown(source)
    for parameter in model.model.visual.parameters():
        parameter.requires_grad_(False)
    optimizer, curve = common.adamw([(model, plan.rate)]), paths.curve("words")
    first, tokens = 0, 0
    if state := common.load(paths.checkpoint("words")):
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        first, tokens = state["step"], state["tokens"]
        for group in optimizer.param_groups:
            group["peak"] = plan.rate
    sums: dict[str, float] = {}
    for step in range(first, plan.steps):
        common.set_rate(optimizer, common.cosine(step, plan.steps, warmup=60))
        batch = words_batch(clerk, plan, seed, step)
        told = tell(model, clerk, batch)
        optimizer.zero_grad(set_to_none=True)
        told.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += batch.ids.numel()
        for name, value in {"loss": told.loss.item(), **told.shares(batch), "count": 1}.items():
            sums[name] = sums.get(name, 0.0) + value
        done = step + 1
        if done % plan.report == 0:
            curve.add(done, tokens=tokens, shape=str(tuple(batch.ids.shape)), **{k: v / sums["count"] for k, v in sums.items()})
            sums = {}
        if done % plan.evaluate == 0 or done == plan.steps or time.time() > until:
            common.save_atomic(
                paths.checkpoint("words"), model=model.state_dict(), optimizer=optimizer.state_dict(), step=done, tokens=tokens
            )
            curve.add(done, **evaluate_words(model, clerk, plan))
        if time.time() > until:
            break


@torch.no_grad()
def evaluate_words(model: nn.Module, clerk: Clerk, plan: WordsPlan) -> dict[str, float]:
    """Unmistaken lessons: rows in which every generated token would be right (what is seen being given), and letters."""
    found = {}
    for level in (Level(2, 0, 0, 0), Level(2, 1, 0, 0)):
        batch = words_batch(clerk, plan, 987, 0, level, 24)
        shares = tell(model, clerk, batch).shares(batch)
        found |= {f"{name}_{level.options}{'s' * level.strangers}": value for name, value in shares.items()}
    return found


@dataclass(frozen=True, slots=True)
class SightPlan:
    """Schedule of the part with pictures; the shares of the other tasks leave the rest to `compare`."""

    steps: int = 1000
    tokens: int = 3600
    rate: float = 1e-3
    vision_rate: float = 3e-4
    image: float = 0.20
    class_: float = 0.08
    reflect: float = 0.10
    letter: float = 0.02
    own: float = 0.25  # of the comparisons follow from what the model itself sees
    report: int = 25
    evaluate: int = 100


LEVELS = (Level(2, 0, 0.7, 1.0, 0.3), Level(2, 0, 0.0, 1.0, 0.02), Level(2, 0, 0.0, 1.0, 0.02), Level(2, 1, 0.3, 1.0, 0.1))


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
    shares = np.cumsum([plan.image, plan.class_, plan.reflect, plan.letter])
    task = ("image", "class", "reflect", "letter", "compare")[int(np.searchsorted(shares, rng.random()))]
    images = int(rng.integers(1, 4)) if task == "class" else 1
    level = LEVELS[int(rng.integers(len(LEVELS)))]
    length = {"image": 110, "class": 110 + 20 * images, "reflect": 240}.get(task, 170 + 80 * (level.strangers > 0))
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
        words = [Words(a, ((describe(s), "said"),)) for a, s in zip(asked, species, strict=True)]
        return Lesson(task, tuple(words), images, vision.resize(pixels, rng))
    if task == "reflect":
        return Lesson(task, tuple(comparing.reflection(s, rng) for s in species), 1, pixels)
    cases = tuple(comparing.draw_case(s, level, rng) for s in species)
    if task == "compare":
        return Lesson(
            task, tuple(c.answer(c.mistaken(rng, level.mistakes)) for c in cases), 1, pixels, cases if rng.random() < plan.own else ()
        )
    return Lesson(task, tuple(Words(c.asked("letter"), ((LETTERS[c.true], "said"),)) for c in cases), 1, pixels)


def as_batch(clerk: Clerk, lesson: Lesson, words: Sequence[Words]) -> Batch:
    rows, columns = lesson.pixels.shape[2] // 28, lesson.pixels.shape[3] // 28
    return clerk.batch(words, clerk.shown(lesson.images, rows * columns), ("said", "seen"))


@torch.no_grad()
def as_seen(model: nn.Module, clerk: Clerk, lesson: Lesson) -> list[list[int]]:
    """What the model itself sees in each picture, one value per attribute, the true values of the earlier attributes given."""
    words = [case.answer(case.species) for case in lesson.cases]
    batch = as_batch(clerk, lesson, words)
    own = tell(model, clerk, batch, lesson.pixels).own
    seen = []
    for row, (case, truth) in enumerate(zip(lesson.cases, words, strict=True)):
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


def train_sight(world: TrainingWorld, plan: SightPlan, source: Path, paths: common.Paths, seed: int, until: float = float("inf")) -> None:
    """The part with pictures: train or resume, and export the whole model to the folder `reason`."""
    torch.manual_seed(seed)
    clerk, model, folder = Clerk(AutoTokenizer.from_pretrained(source)), grown(source), paths.models / "mllm"
    if words := common.load(paths.checkpoint("words")):
        model.load_state_dict(words["model"])
    optimizer, curve = common.adamw([(model.model.visual, plan.vision_rate), (model, plan.rate)]), paths.curve("sight")
    first, tokens = 0, 0
    if state := common.load(paths.checkpoint("sight")):
        peaks = [group["peak"] for group in optimizer.param_groups]
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        first, tokens = state["step"], state["tokens"]
    write_folder(source, folder)
    sums: dict[str, float] = {}
    for step, lesson in enumerate(common.prefetch(lambda s: sight_lesson(world, plan, seed, s), first, plan.steps), first):
        common.set_rate(optimizer, common.cosine(step, plan.steps, warmup=60))
        words = [c.answer(s) for c, s in zip(lesson.cases, as_seen(model, clerk, lesson), strict=True)] if lesson.cases else lesson.words
        batch = as_batch(clerk, lesson, words)
        told = tell(model, clerk, batch, lesson.pixels)
        optimizer.zero_grad(set_to_none=True)
        told.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += batch.ids.numel()
        shares, name = told.shares(batch), "own" if lesson.cases else lesson.task
        values = {name: told.loss.item()} | ({f"{name}_letter": shares["letter"]} if lesson.task in ("compare", "letter") else {})
        for key, value in values.items():
            sums[key], sums[f"#{key}"] = sums.get(key, 0.0) + value, sums.get(f"#{key}", 0) + 1
        done = step + 1
        if done % plan.report == 0:
            curve.add(done, tokens=tokens, **{k: v / sums[f"#{k}"] for k, v in sums.items() if not k.startswith("#")})
            sums = {}
        if done % plan.evaluate == 0 or done == plan.steps or time.time() > until:
            common.save_atomic(
                paths.checkpoint("sight"), model=model.state_dict(), optimizer=optimizer.state_dict(), step=done, tokens=tokens
            )
            mllm.export(model, folder)
            curve.add(done, **evaluate_sight(model, clerk))
        if time.time() > until:
            break


@torch.no_grad()
def evaluate_sight(model: nn.Module, clerk: Clerk) -> dict[str, float]:
    """Unseen species of world 9000: attributes seen while describing and while comparing two, and the letter after what was seen."""
    held, rng = held_out(9000, shots=1, tests=2), np.random.default_rng(0)
    species = [tuple(int(v) for v in held.labels[i]) for i in range(len(held.labels)) for _ in range(2)]
    pixels = common.to_tensor(held.test.reshape(-1, 112, 112, 3))
    said = Lesson("image", tuple(Words(prompts.describe_image("bird"), ((describe(s), "said"),)) for s in species), 1, pixels)
    batch = as_batch(clerk, said, said.words)
    told = tell(model, clerk, batch, pixels)
    values = {clerk.part(f" {spoken(p, v).split()[0]}")[0] for p in range(10) for v in range(CARDINALITIES[p])}
    is_value = torch.isin(batch.targets[:, 1:], torch.tensor(sorted(values)))
    found = {"described": float((told.own == batch.targets[:, 1:])[is_value].float().mean())}
    for strangers in (0, 1):
        cases = tuple(comparing.draw_case(s, Level(2, strangers), rng) for s in species)
        lesson = Lesson("compare", (), 1, pixels, cases)
        seen = as_seen(model, clerk, lesson)
        right = [v[p] == c.species[p] for v, c in zip(seen, cases, strict=True) for p in c.shown]
        batch = as_batch(clerk, lesson, [c.answer(s) for c, s in zip(cases, seen, strict=True)])
        letter = tell(model, clerk, batch, pixels).shares(batch)["letter"]
        found |= {f"seen_{strangers}": float(np.mean(right)), f"letter_{strangers}": letter}
    return found
