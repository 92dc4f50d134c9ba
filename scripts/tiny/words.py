"""Stage `words`: the MLLM learns to compare candidates in its context on text alone; what is seen is given, whom it fits is learned.

It starts from a trained folder (`--start`) with layers added that do nothing at first, and keeps that folder's tokenizer. First random
words are repeated, so that copying begins; then candidates are compared, from two to five. docs/reasoning-log.md tells why.
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
from tiny import common, comparing, lean, mllm
from tiny.comparing import Level, Words
from tiny.language import Scribe

STAGE = "words"
LAYERS = 6
REPEATED = 48
"""Words in a row that are said twice."""
CURRICULUM = (
    (0.0, (Level(2, 0), Level(3, 0))),
    (0.25, (Level(3, 0), Level(4, 0), Level(5, 0), Level(3, 1))),
    (0.5, (Level(3, 1), Level(4, 0, 0.3), Level(4, 1, 0.5), Level(5, 0, 0.5, 1.0, 0.1), Level(5, 1, 0.5, 1.0, 0.1))),
)
"""Share of the comparing steps from which a batch is of one of these levels."""


@dataclass(frozen=True, slots=True)
class WordsPlan:
    """Schedule of the stage; a batch is filled up to about `tokens`."""

    steps: int = 700
    tokens: int = 4096
    repeating: float = 0.17  # share of the steps, the first ones, in which random words are repeated
    rate: float = 2e-3
    report: int = 25
    evaluate: int = 60


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded ids int64 [n, t]; targets int64 [n, t], -1 where nothing is learned.

    `first` marks the first letter of a reply: the later ones can be guessed from it, so that they show nothing while the truth is given.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    first: torch.Tensor


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
            said, told, first = [], [], None
            for text, kind in lesson.reply:
                part = self.part(text) if text else []
                first = len(asked) + len(said) if kind == "fits" and first is None else first
                said += part
                told += part if kind in learned else [-1] * len(part)
            rows.append((asked, [*said, self.end], [*told, self.end], first))
        length = max(len(a) + len(s) for a, s, _, _ in rows)
        ids, targets = torch.full((len(rows), length), self.pad), torch.full((len(rows), length), -1)
        marked = torch.zeros((len(rows), length), dtype=torch.bool)
        for i, (asked, said, told, first) in enumerate(rows):
            stop = len(asked) + len(said)
            ids[i, :stop] = torch.tensor(asked + said)
            targets[i, len(asked) : stop] = torch.tensor(told)
            if first is not None:
                marked[i, first] = True
        return Batch(ids, targets, marked)

    def repeats(self, rows: int, rng: np.random.Generator) -> Batch:
        """Random words, then the same again: what a model must be able to copy before it can compare."""
        every = [i for token, i in self.tokenizer.get_vocab().items() if token.startswith("\u0120") and len(token) > 2]
        once = torch.from_numpy(rng.choice(sorted(every), (rows, REPEATED)))
        targets = torch.cat([torch.full_like(once, -1), once], 1)
        targets[:, REPEATED] = -1  # which word comes first again cannot be known
        first = torch.zeros_like(targets, dtype=torch.bool)
        first[:, REPEATED + 1] = True
        return Batch(torch.cat([once, once], 1), targets, first)


def grown(folder: Path, layers: int = LAYERS) -> Qwen2_5_VLForConditionalGeneration:
    """The model of a folder with layers added before its first. Their output starts as zero, so nothing changes yet.

    The heads of the first look at the tokens 1, 2, about 3 and about 5 before (by their biases and the rotation): from random heads the
    looking up of phrases in the context had not begun after four million tokens.
    """
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    old = config.text_config.num_hidden_layers
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if layers == old:
        return model
    config.text_config.num_hidden_layers, config.text_config.layer_types = layers, ["full_attention"] * layers
    larger = Qwen2_5_VLForConditionalGeneration(config).float()
    core, known = larger.model.language_model, model.model.language_model
    larger.model.visual.load_state_dict(model.model.visual.state_dict())
    core.embed_tokens.load_state_dict(known.embed_tokens.state_dict()), core.norm.load_state_dict(known.norm.state_dict())
    for layer, source in zip(core.layers[layers - old :], known.layers, strict=True):
        layer.load_state_dict(source.state_dict())
    with torch.no_grad():
        for layer in core.layers[: layers - old]:
            layer.self_attn.o_proj.weight.zero_(), layer.mlp.down_proj.weight.zero_()
            nn.init.orthogonal_(layer.self_attn.v_proj.weight)
            layer.self_attn.q_proj.weight.mul_(3), layer.self_attn.k_proj.weight.mul_(3)
        _look_back(core.layers[0].self_attn, ((1, 6.0), (2, 6.0), (3, 2.9), (5, 2.9)))
    return larger


def _look_back(attention: nn.Module, heads: Sequence[tuple[int, float]]) -> None:
    """Each head prefers the token so many places before: with q = (a, 0) and k turned by d angles, q.k is largest d places apart."""
    half, used = attention.head_dim // 2, 8
    angles = 10_000.0 ** (-torch.arange(used) / half)
    q, k = attention.q_proj.bias.view(-1, 2, half), attention.k_proj.bias.view(-1, 2, half)
    for head, (distance, size) in enumerate(heads):
        q[head, 0, :used], q[head, 1, :used] = size, 0.0
        k[head, 0, :used], k[head, 1, :used] = size * torch.cos(distance * angles), size * torch.sin(distance * angles)


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


def draw_batch(clerk: Clerk, plan: WordsPlan, seed: int, step: int) -> Batch:
    rng, share = np.random.default_rng((seed, 5, step)), step / plan.steps
    if share < plan.repeating:
        return clerk.repeats(plan.tokens // (2 * REPEATED), rng)
    return comparisons(clerk, level_at((share - plan.repeating) / (1 - plan.repeating), rng), plan.tokens, rng)


def comparisons(clerk: Clerk, level: Level, tokens: int, rng: np.random.Generator) -> Batch:
    """Text only: what is seen is given, not learned."""
    each = 120 + 18 * level.options + 15 * level.options * (level.strangers > 0)
    lessons = [comparing.comparison(s, level, rng) for s in comparing.strangers(max(8, tokens // each), rng)]
    return clerk.batch(lessons, clerk.part("<|im_start|>user\n"), ("said", "fits"))


@dataclass(frozen=True, slots=True)
class Told:
    """A batch's loss per learned token, and the model's own next token where something is learned (-1 elsewhere)."""

    loss: torch.Tensor
    own: torch.Tensor

    def shares(self, batch: Batch) -> dict[str, float]:
        """Of rows all of whose learned tokens are right, and of right first letters."""
        targets, first = batch.targets[:, 1:].to(self.own.device), batch.first[:, 1:]
        right = (self.own == targets) | (targets < 0)
        return {"row": float(right.all(1).float().mean()), "first": float(right[first].float().mean()) if first.any() else 0.0}


def tell(model: nn.Module, scribe: Scribe, batch: Batch, pixels: torch.Tensor | None = None) -> Told:
    """One pass. All rows have their pictures in the same places."""
    core, device = model.model.language_model, model.lm_head.weight.device
    ids, targets, grid = batch.ids.to(device), batch.targets[:, 1:].to(device), (1, 1)
    x = core.embed_tokens(ids)
    if pixels is not None:
        grid = pixels.shape[2] // 28, pixels.shape[3] // 28
        mask = (ids == scribe.image)[..., None]
        x = x.masked_scatter(mask.expand_as(x), mllm.look(model.model.visual, pixels.to(device)))
    cos, sin = lean.rotation(core, scribe.positions(batch.ids[:1], grid).to(device))
    told = targets >= 0
    with torch.autocast(device.type, torch.bfloat16):
        logits = model.lm_head(lean.hidden(core, x, cos, sin)[:, :-1][told]).float()
    own = torch.full_like(targets, -1)
    own[told] = logits.detach().argmax(-1)
    return Told(F.cross_entropy(logits, targets[told]), own)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(plan: WordsPlan, source: Path, paths: common.Paths, seed: int, until: float = float("inf")) -> None:
    """Train or resume."""
    torch.manual_seed(seed)
    clerk, model = Clerk(AutoTokenizer.from_pretrained(source)), grown(source).to(device())
    for parameter in model.model.visual.parameters():
        parameter.requires_grad_(False)
    optimizer, curve = common.adamw([(model, plan.rate)]), paths.curve(STAGE)
    first, tokens = 0, 0
    if state := common.load(paths.checkpoint(STAGE)):
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        first, tokens = state["step"], state["tokens"]
        for group in optimizer.param_groups:
            group["peak"] = plan.rate
    sums: dict[str, float] = {}
    for step in range(first, plan.steps):
        common.set_rate(optimizer, common.cosine(step, plan.steps, warmup=60))
        batch = draw_batch(clerk, plan, seed, step)
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
                paths.checkpoint(STAGE), model=model.state_dict(), optimizer=optimizer.state_dict(), step=done, tokens=tokens
            )
            curve.add(done, **evaluate(model, clerk))
        if time.time() > until:
            break


@torch.no_grad()
def evaluate(model: nn.Module, clerk: Clerk) -> dict[str, float]:
    """Unmistaken lessons: rows in which every generated token would be right, what is seen being given, and first letters."""
    found = {}
    for level in (Level(2, 0, 0, 0), Level(3, 0, 0, 0), Level(5, 0, 0, 0), Level(5, 1, 0, 0)):
        batch = comparisons(clerk, level, 6000, np.random.default_rng(987))
        shares = tell(model, clerk, batch).shares(batch)
        found |= {f"{name}_{level.options}{'s' * level.strangers}": value for name, value in shares.items()}
    return found
