"""Stage `compare`: the side network (tiny/side.py) learns to name the candidate that fits what the model says it sees.

The shipped weights are frozen. The replies are the model's own words for pictures of the training world, so its errors of seeing are
part of the lesson. The only learned token is the letter, which nothing but comparing tells.
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
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from fgvr.agents import prompts
from fgvr.data.birds import ATTRIBUTES, describe, distance, phrase
from tiny import common, lean, mllm
from tiny.comparing import COUNTS, Case, Species, draw_case
from tiny.language import Scribe
from tiny.side import LETTERS, VOTES, Marks, Rows, Side, written
from tiny.world import TrainingWorld, held_out

STAGE = "compare"
WIDTH_ALONE = 128
"""Width of the MLLM without a side network."""


@dataclass(frozen=True, slots=True)
class ComparePlan:
    """Schedule of the stage."""

    steps: int = 1600
    batch: int = 48
    rate: float = 2e-3
    pictures: int = 8000  # whose own descriptions the lessons use
    quiet: float = 0.005  # weight of the side network's length
    silent: float = 1.0  # a letter's logit may be so far from zero where none is due: " A" also begins " Answer:"
    report: int = 50
    evaluate: int = 250


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions with replies, the letters [n] as indices, and the cases behind them."""

    rows: Rows
    letters: torch.Tensor
    cases: tuple[Case, ...]


class Reader:
    """The frozen model and its tokenizer: what it says of pictures, and how sure it is of each letter before any comparing."""

    def __init__(self, folder: Path) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        self.core = self.model.model.language_model
        self.scribe = Scribe(AutoTokenizer.from_pretrained(folder))
        self.letters = [self.scribe.ids(f" {letter}")[0] for letter in LETTERS]
        words = {i for name, values in ATTRIBUTES.items() for value in values for i in self.scribe.ids(f" {phrase(name, value)},")}
        begins = tuple(self.scribe.ids(letter)[0] for letter in LETTERS)
        (before, colon), ids = self.scribe.ids(f" {prompts.ANSWER}")[-2:], self.scribe.ids
        reply, line, turn = ids("assistant")[0], ids("\n")[0], ids("<|im_start|>")[0]
        self.marks = Marks(begins, reply, line, turn, (before, colon), tuple(sorted(words)))
        self._values = [[self.scribe.ids(f" {value}")[0] for value in values] for values in ATTRIBUTES.values()]
        self.places, at = [], len(self.scribe.ids("A bird with"))  # of the values in a description
        for name, values in ATTRIBUTES.items():
            self.places.append(at)
            at += len(self.scribe.ids(f" {phrase(name, values[0])},"))

    @torch.no_grad()
    def stream(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The stream before the last norm [n, t, width], of rows with one 112 x 112 picture each."""
        x = self.core.embed_tokens(ids)
        mask = (ids == self.scribe.image)[..., None]
        x = x.masked_scatter(mask.expand_as(x), mllm.look(self.model.model.visual, pixels))
        return lean.stream(self.core, x, *lean.rotation(self.core, self.scribe.positions(ids[:1], (4, 4))))

    @torch.no_grad()
    def logits(self, stream: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        return self.core.norm(stream) @ self.core.embed_tokens.weight[list(tokens)].T

    def say(self, pixels: torch.Tensor, labels: np.ndarray) -> np.ndarray:
        """What the model says of pictures, one value per attribute, after the true values of the earlier ones; int64 [n, 10]."""
        asked = self.scribe.prefix(1, 16, prompts.describe_image("bird"))
        ids = torch.tensor([[*asked, *self.scribe.ids(describe(row))] for row in labels])
        stream, said = self.stream(ids, pixels), np.zeros_like(labels)
        for i, (place, values) in enumerate(zip(self.places, self._values, strict=True)):
            said[:, i] = self.logits(stream[:, len(asked) + place - 1], values).argmax(-1).numpy()
        return said

    def batch(self, cases: Sequence[Case]) -> Batch:
        rows = [[*self.scribe.prefix(1, 16, case.prompt), *self.scribe.ids(case.reply)] for case in cases]
        ids = torch.full((len(rows), max(map(len, rows))), self.scribe.pad)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        length = len(self.scribe.ids(f"assistant\n{cases[0].reply}"))
        last, true = torch.tensor([len(row) - 1 for row in rows]), torch.tensor([case.true for case in cases])
        return Batch(Rows(ids, last, length), true, tuple(cases))

    def descriptions(self, cases: Sequence[Case]) -> Rows:
        """The same words without a question and a letter."""
        asked = self.scribe.prefix(1, 16, prompts.describe_image("bird"))
        ids = torch.tensor([[*asked, *self.scribe.ids(describe(case.said)), self.scribe.end] for case in cases])
        return Rows(ids, torch.full((len(cases),), ids.shape[1] - 1), ids.shape[1] - len(asked) + 2)

    def beforehand(self, batch: Batch, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the shipped model where a letter is due: its logits [n, letters] and the root mean square of its stream [n]."""
        stream = self.stream(batch.rows.ids, pixels)[torch.arange(len(batch.cases)), batch.rows.last]
        return self.logits(stream, self.letters), stream.pow(2).mean(1).sqrt()


def own_words(reader: Reader, world: TrainingWorld, plan: ComparePlan, path: Path) -> np.ndarray:
    """(genus, member, shot, what is said [10]) of pictures of the training world, int64 [n, 13]; kept in a file."""
    if path.exists():
        return np.load(path)
    rng, rows = np.random.default_rng(11), []
    order = [(g, int(rng.integers(4)), s) for s in range(3) for g in range(len(world.labels))][: plan.pictures]
    for start in range(0, len(order), 64):
        part = np.array(order[start : start + 64])
        where = tuple(part.T)
        said = reader.say(common.to_tensor(world.pictures[where]), world.labels[where[:2]])
        rows.append(np.concatenate([part, said], 1))
    np.save(path, found := np.concatenate(rows))
    return found


def make_batch(reader: Reader, labels: np.ndarray, words: np.ndarray, plan: ComparePlan, seed: int, step: int, count: int = 0) -> Batch:
    """Args: labels: of the training world; count: candidates, 0 to draw how many."""
    rng = np.random.default_rng((seed, 7, step))
    count = count or COUNTS[int(rng.integers(len(COUNTS)))]
    cases = []
    for genus, member, _, *said in words[rng.integers(len(words), size=plan.batch)].tolist():
        species = [tuple(int(v) for v in row) for row in labels[genus]]
        true = species.pop(member)
        cases.append(draw_case(true, tuple(said), species, count, rng))
    return reader.batch(cases)


def train(world: TrainingWorld, plan: ComparePlan, paths: common.Paths, seed: int, until: float = float("inf")) -> None:
    """Train or resume, and write the model of both networks in the place of the shipped one."""
    torch.manual_seed(seed)
    source = alone(paths)
    reader, curve = Reader(source), paths.curve(STAGE)
    words = own_words(reader, world, plan, paths.work / "own-words.npy")
    held, before, last = held_out_cases(reader), *habits(reader, world, words, plan, seed)
    side = Side(reader.core.embed_tokens.weight.pow(2).mean(1).sqrt(), reader.marks, reader.scribe.image)
    optimizer = common.adamw([(side, plan.rate)], decay=0.0)
    first = 0
    if state := common.load(paths.checkpoint(STAGE)):
        side.load_state_dict(state["side"]), optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    else:
        curve.add(0, **evaluate(reader, side, held, before))
    sums, tokens = np.zeros(4), 0
    batches = common.prefetch(lambda s: make_batch(reader, world.labels, words, plan, seed, s), first, plan.steps)
    for step, batch in enumerate(batches, first):
        common.set_rate(optimizer, common.cosine(step, plan.steps, warmup=50))
        reply, letters = side(batch.rows)
        given = letters[:, -1] + before[len(batch.cases[0].listed)]
        described = side(reader.descriptions(batch.cases[:8]))[1]
        undue = sum(F.relu(logits.abs() - plan.silent).pow(2).mean() for logits in (letters[:, :-1], described))
        loss, length = F.cross_entropy(given, batch.letters), reply.pow(2).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        (loss + plan.quiet * length + step / plan.steps * undue).backward()  # silence comes last, else it kills the circuit
        side.keep_marks()
        nn.utils.clip_grad_norm_(side.parameters(), 1.0)
        optimizer.step()
        sums += [loss.item(), float((given.argmax(-1) == batch.letters).float().mean()), length.item(), undue.item()]
        tokens, done = tokens + batch.rows.ids.numel(), step + 1
        if done % plan.report == 0:
            curve.add(done, tokens=tokens, **dict(zip(("loss", "letter", "length", "undue"), (sums / plan.report).tolist(), strict=True)))
            sums = np.zeros(4)
        if done % plan.evaluate == 0 or done == plan.steps or time.time() > until:
            common.save_atomic(paths.checkpoint(STAGE), side=side.state_dict(), optimizer=optimizer.state_dict(), step=done)
            curve.add(done, **evaluate(reader, side, held, before))
        if time.time() > until:
            break
    export(reader, side, last, source, paths.models / "mllm")


def alone(paths: common.Paths) -> Path:
    """A copy of the trained folder as it was before it got a side network."""
    folder, kept = paths.models / "mllm", paths.work / "mllm-alone"
    if json.loads((folder / "config.json").read_text())["hidden_size"] == WIDTH_ALONE:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
    return kept


def habits(reader: Reader, world: TrainingWorld, words: np.ndarray, plan: ComparePlan, seed: int) -> tuple[dict[int, torch.Tensor], float]:
    """The shipped model's mean logits of the letters by the number of candidates, and the mean length of its stream there."""
    logits, lengths = {}, []
    pixels = common.to_tensor(world.pictures[words[: plan.batch, 0], words[: plan.batch, 1], words[: plan.batch, 2]])
    for count in sorted(set(COUNTS)):
        found, length = reader.beforehand(make_batch(reader, world.labels, words, plan, seed, 10**6 + count, count), pixels)
        logits[count] = found.mean(0)
        lengths.append(length.mean())
    return logits, float(torch.stack(lengths).mean())


def export(reader: Reader, side: Side, last: float, source: Path, folder: Path) -> None:
    """The folder of the model of both: the source's files but the card, with its own configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != "README.md":
            shutil.copyfile(path, folder / path.name)
    mllm.export(written(reader.model, side, reader.letters, last, folder), folder)


def held_out_cases(reader: Reader) -> dict[str, Batch]:
    """World 9000: each species among its four nearest, with the truth in words, and with the model's own words for a picture."""
    held, rng = held_out(9000, shots=1, tests=4), np.random.default_rng(0)
    labels = [tuple(int(v) for v in row) for row in held.labels]
    own = reader.say(common.to_tensor(held.test.reshape(-1, 112, 112, 3)), np.repeat(held.labels, 4, 0))
    cases: dict[str, list[Case]] = {"true words": [], "own words": []}
    for i, words in enumerate(own):
        true: Species = labels[i // 4]
        near = sorted((o for o in labels if o != true), key=lambda o: (distance(o, true), rng.random()))[:4]
        options, order = [true, *near], rng.permutation(5)
        listed = tuple(options[k] for k in order)
        called = tuple(common.random_name(rng) for _ in options)
        for name, said in (("true words", true), ("own words", tuple(int(v) for v in words))):
            cases[name].append(Case(said, listed, called, int(np.flatnonzero(order == 0)[0])))
    return {name: reader.batch(some) for name, some in cases.items()}


@torch.no_grad()
def evaluate(reader: Reader, side: Side, held: dict[str, Batch], before: dict[int, torch.Tensor]) -> dict[str, float]:
    """Right letters, and how much of a telling word's votes goes to candidates whose descriptions have it."""
    found = {}
    for name, batch in held.items():
        logits = side(batch.rows)[1][:, -1] + before[5]
        found[name] = float((logits.argmax(-1) == batch.letters).float().mean())
        found[f"{name}, nats"] = float(F.cross_entropy(logits, batch.letters))
    batch, shares = held["true words"], []
    votes = side.votes(batch.rows, side.by_heads(batch.rows.ids))[..., VOTES]
    begins = 1 + batch.rows.length - len(reader.scribe.ids(batch.cases[0].reply))
    for row, case in enumerate(batch.cases):
        for place, at in enumerate(reader.places):
            owners = [i for i, option in enumerate(case.listed) if option[place] == case.said[place]]
            if len(owners) < len(case.listed):
                given = votes[row, begins + at + 1, : len(case.listed)]
                shares.append(float(given[owners].sum() / given.abs().sum()))
    return found | {"owners": float(np.mean(shares))}
