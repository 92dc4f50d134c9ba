"""Stage `language`: the MLLM learns to answer exactly the prompts of `fgvr.agents.prompts`, and keeps learning to see."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgvr.agents import prompts
from fgvr.data.birds import ATTRIBUTES, describe, phrase, read
from tiny import common, mllm, vision
from tiny.world import HeldOut, TrainingWorld, held_out

STAGE = "language"
ENDINGS = ("letter", "name", "reason")


@dataclass(frozen=True, slots=True)
class LanguagePlan:
    """Schedule of the language stage; the shares of the tasks `class`, `ask`, `choose` leave the rest to `image`."""

    steps: int = 2400
    batch: int = 48
    rate: float = 2e-3
    vision_rate: float = 1e-3
    class_share: float = 0.17
    ask_share: float = 0.04
    choose_share: float = 0.09
    report: int = 25
    evaluate: int = 200


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch: `images` per sample, prompts and answers, pictures float32 [n * images, 3, h, w], labels int64 [n * images, 10]."""

    task: str
    images: int
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    pixels: torch.Tensor
    labels: torch.Tensor


def make_lesson(world: TrainingWorld, plan: LanguagePlan, seed: int, step: int) -> Lesson:
    """One task per batch, so that sequences are about equally long."""
    rng = np.random.default_rng((seed, 2, step))
    shares = np.cumsum([plan.class_share, plan.ask_share, plan.choose_share])
    task = ("class", "ask", "choose", "image")[int(np.searchsorted(shares, rng.random()))]
    images = int(rng.integers(1, 4)) if task == "class" else 1
    count = {"class": plan.batch * 2 // (1 + images), "choose": plan.batch // 2}.get(task, plan.batch)
    genera, members = np.sort(rng.choice(len(world.labels), count, replace=False)), rng.integers(0, 4, count)
    shots = np.stack([rng.permutation(3)[:images] for _ in range(count)])
    pictures = world.pictures[np.repeat(genera, images), np.repeat(members, images), shots.ravel()]
    flip = rng.random(len(pictures)) < 0.5
    pictures[flip] = pictures[flip, :, ::-1]
    species = world.labels[genera, members]
    pairs = [_words(task, world, g, m, rng) for g, m in zip(genera, members, strict=True)]
    asked, answers = zip(*pairs, strict=True)
    pixels = vision.resize(common.to_tensor(pictures), rng)
    return Lesson(task, images, asked, answers, pixels, torch.from_numpy(np.repeat(species, images, 0)))


def _words(task: str, world: TrainingWorld, genus: int, member: int, rng: np.random.Generator) -> tuple[str, str]:
    """Prompt and answer for one species."""
    attributes = world.labels[genus, member]
    if task == "image":
        return prompts.describe_image("bird"), describe(attributes)
    if task == "class":
        return prompts.describe_class(common.random_name(rng), "bird"), describe(attributes)
    if task == "ask":
        place = int(rng.integers(10))
        name = list(ATTRIBUTES)[place]
        return f"What is the {name} of this bird like?", phrase(name, ATTRIBUTES[name][attributes[place]]).capitalize() + "."
    return _choice(world, genus, member, rng)


def _choice(world: TrainingWorld, genus: int, member: int, rng: np.random.Generator) -> tuple[str, str]:
    """A multiple-choice question among 2 to 5: near relatives and strangers."""
    count = int(rng.integers(2, 6))
    relatives = [world.labels[genus, m] for m in rng.permutation(4) if m != member][: int(rng.integers(0, 4))]
    strangers = [world.labels[int(rng.integers(len(world.labels))), int(rng.integers(4))] for _ in range(count)]
    options = [world.labels[genus, member], *relatives, *strangers][:count]
    order = rng.permutation(count)
    names = [common.random_name(rng) for _ in options]
    said = [describe(options[i]) for i in order]
    place, ending = int(np.flatnonzero(order == 0)[0]), ENDINGS[int(rng.integers(3))]
    letter = "ABCDE"[place]
    truth = f"{describe(options[0])} {prompts.ANSWER} {letter}"
    answer = {"letter": letter, "name": names[place], "reason": truth}[ending]
    return prompts.choose("bird", names, said, (), ending=ending), answer


class Scribe:
    """Turns lessons into token ids in the chat template's form, with positions as Qwen2.5-VL counts them."""

    def __init__(self, tokenizer: mllm.Qwen2Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image, self.end, self.pad = (tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|im_end|>", "<|endoftext|>"))
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def prefix(self, images: int, tokens: int, prompt: str) -> list[int]:
        """Token ids up to where the answer begins."""
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": prompt}]
        turns = [{"role": "system", "content": [{"type": "text", "text": prompts.SYSTEM}]}, {"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.ids(text.replace("<|image_pad|>", "<|image_pad|>" * tokens))

    def positions(self, ids: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Multimodal positions [3, n, t] of right-padded ids [n, t]; `grid` is rows and columns of merged tokens."""
        is_image = ids == self.image
        rows, columns = grid
        size = rows * columns
        rank = is_image.long().cumsum(1) - 1
        inside, nth = rank % size, rank.div(size, rounding_mode="floor")
        width = max(grid)
        before = rank.clamp(min=-1) + 1  # image tokens up to and including this one
        full = torch.where(is_image, nth, before.div(size, rounding_mode="floor"))
        plain = torch.arange(ids.shape[1])[None] - full * (size - width)
        start = plain - inside
        row, column = start + inside.div(columns, rounding_mode="floor"), start + inside % columns
        return torch.stack([torch.where(is_image, x, plain) for x in (start, row, column)])


class Tutor(nn.Module):
    """The whole model with the vision stage's heads: language loss plus attribute loss."""

    def __init__(self, model: nn.Module, scribe: Scribe) -> None:
        super().__init__()
        self.model, self.scribe = model, scribe
        self.sight = vision.Objective(model.model.visual)

    def hidden(self, ids: torch.Tensor, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Last hidden states [n, t, width] of right-padded ids with merged image tokens [images, t', width] in their places."""
        core = self.model.model
        embedded = core.language_model.embed_tokens(ids)
        mask = (ids == self.scribe.image)[..., None]
        embedded = embedded.masked_scatter(mask.expand_as(embedded), tokens)
        positions = self.scribe.positions(ids, grid)
        return core.language_model(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state

    def forward(self, lesson: Lesson) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Total, language loss per answer token, attribute loss of the query heads."""
        tokens = mllm.look(self.model.model.visual, lesson.pixels)
        ids, targets, grid = self.batch(lesson)
        hidden = self.hidden(ids, tokens, grid)
        told = targets[:, 1:] >= 0
        logits = self.model.lm_head(hidden[:, :-1][told])
        language = F.cross_entropy(logits, targets[:, 1:][told])
        seen = common.attribute_loss(self.sight.query_heads(tokens), lesson.labels)
        total = language + seen
        if lesson.pixels.shape[2:] == (112, 112):
            flat = self.sight.flat_heads(self.sight.flat_norm(tokens).flatten(1))
            total = total + common.attribute_loss(flat, lesson.labels)
        return total, language, seen

    def batch(self, lesson: Lesson) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        """Right-padded ids and targets int64 [n, t] (-1 where nothing is learned), and the merged grid."""
        block = mllm.PATCH * mllm.MERGE
        grid = lesson.pixels.shape[2] // block, lesson.pixels.shape[3] // block
        rows = []
        for prompt, answer in zip(lesson.prompts, lesson.answers, strict=True):
            rows.append((self.scribe.prefix(lesson.images, grid[0] * grid[1], prompt), [*self.scribe.ids(answer), self.scribe.end]))
        length = max(len(p) + len(a) for p, a in rows)
        ids = torch.full((len(rows), length), self.scribe.pad)
        targets = torch.full((len(rows), length), -1)
        for i, (prefix, answer) in enumerate(rows):
            ids[i, : len(prefix) + len(answer)] = torch.tensor(prefix + answer)
            targets[i, len(prefix) : len(prefix) + len(answer)] = torch.tensor(answer)
        return ids, targets, grid


def train(world: TrainingWorld, plan: LanguagePlan, paths: common.Paths, seed: int, until: float = float("inf")) -> None:
    """Train or resume; starts from the vision stage's tower and heads, exports at every evaluation."""
    torch.manual_seed(seed)
    folder = paths.models / "mllm"
    model, tokenizer = mllm.build(folder)
    tutor, curve = Tutor(model, Scribe(tokenizer)), paths.curve(STAGE)
    if seen := common.load(paths.checkpoint(vision.STAGE)):
        tutor.sight.load_state_dict(seen["objective"])
    optimizer = common.adamw([(tutor.sight, plan.vision_rate), (model, plan.rate)])
    first = 0
    if state := common.load(paths.checkpoint(STAGE)):
        peaks = [group["peak"] for group in optimizer.param_groups]  # the plan's, should it have changed since
        tutor.load_state_dict(state["tutor"]), optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        first = state["step"]
    held = held_out(9000, shots=1, tests=5)
    sums, count = {}, {}
    for step, lesson in enumerate(common.prefetch(lambda s: make_lesson(world, plan, seed, s), first, plan.steps), first):
        common.set_rate(optimizer, common.cosine(step, plan.steps, warmup=60))
        with sdpa_kernel([SDPBackend.MATH]):
            total, language, attribute = tutor(lesson)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
        nn.utils.clip_grad_norm_(tutor.parameters(), 1.0)
        optimizer.step()
        for name, value in {lesson.task: language, "attribute": attribute}.items():
            sums[name], count[name] = sums.get(name, 0.0) + value.item(), count.get(name, 0) + 1
        done = step + 1
        if done % plan.report == 0 or done == 10:
            curve.add(done, **{k: v / count[k] for k, v in sums.items()})
            sums, count = {}, {}
        if done % plan.evaluate == 0 or done == plan.steps or time.time() > until:
            common.save_atomic(paths.checkpoint(STAGE), tutor=tutor.state_dict(), optimizer=optimizer.state_dict(), step=done)
            mllm.export(model, folder)
            curve.add(done, **evaluate(tutor, held))
        if time.time() > until:
            break


@torch.no_grad()
def evaluate(tutor: Tutor, held: HeldOut, pictures: int = 48) -> dict[str, float]:
    """Greedy descriptions and the candidate log-likelihood over all species, on some pictures of a development world."""
    scribe, rng = tutor.scribe, np.random.default_rng(0)
    species, tests = len(held.names), held.test.shape[1]
    chosen = np.sort(rng.choice(species * tests, pictures, replace=False))
    flat = held.test.reshape(-1, 112, 112, 3)[chosen]
    truth = chosen // tests
    tokens = mllm.look(tutor.model.model.visual, common.to_tensor(flat))
    prefix = scribe.prefix(1, 16, prompts.describe_image("bird"))
    ids = torch.tensor([prefix] * pictures)
    for _ in range(40):
        following = tutor.model.lm_head(tutor.hidden(ids, tokens, (4, 4))[:, -1]).argmax(-1)
        ids = torch.cat([ids, following[:, None]], 1)
        if (ids[:, len(prefix) :] == scribe.end).any(1).all():
            break
    said = [read(scribe.tokenizer.decode(row[len(prefix) :], skip_special_tokens=True)) for row in ids]
    right = np.array([[a == b for a, b in zip(s, held.labels[t], strict=True)] for s, t in zip(said, truth, strict=True)])
    scores = score(tutor, tokens, prefix, held.descriptions)
    order = scores.argsort(1)[:, ::-1]
    return {f"a_{n.replace(' ', '_')}": float(right[:, i].mean()) for i, n in enumerate(ATTRIBUTES)} | {
        "attributes": float(right.mean()),
        "score": float((order[:, 0] == truth).mean()),
        "score_pictures": pictures,
    }


def score(tutor: Tutor, tokens: torch.Tensor, prefix: list[int], descriptions: tuple[str, ...]) -> np.ndarray:
    """Log-likelihood of each description for each picture, nats, [pictures, descriptions]."""
    scribe = tutor.scribe
    answers = [[*scribe.ids(d), scribe.end] for d in descriptions]
    length = max(map(len, answers))
    padded = torch.tensor([a + [scribe.pad] * (length - len(a)) for a in answers])
    known = torch.arange(length)[None] < torch.tensor([len(a) for a in answers])[:, None]
    rows = torch.cat([torch.tensor(prefix).expand(len(answers), -1), padded], 1)
    result = []
    for seen in tokens:
        hidden = tutor.hidden(rows, seen.repeat(len(answers), 1, 1), (4, 4))[:, len(prefix) - 1 : -1]
        likely = tutor.model.lm_head(hidden).log_softmax(-1).gather(-1, padded[..., None])[..., 0]
        result.append((likely * known).sum(1).numpy())
    return np.stack(result)
