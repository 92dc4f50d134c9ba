"""Stage `vision`: the MLLM's vision tower learns to see the ten attributes, before any language."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tiny import common, mllm
from tiny.world import CARDINALITIES, HeldOut, TrainingWorld, held_out

STAGE = "vision"
GRIDS = ((84, 112), (112, 84), (84, 140), (140, 84), (112, 140), (140, 112))
"""Picture sizes (h, w) beside 112 x 112 that odd aspect ratios become."""
OTHER_GRID_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class VisionPlan:
    """Schedule of the vision stage."""

    steps: int = 1400
    batch: int = 96
    rate: float = 1.5e-3
    report: int = 50
    evaluate: int = 300


class QueryHeads(nn.Module):
    """Ten learned queries look at the merged tokens, one per attribute: what a language model must be able to do, too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(10, width) * 0.05)
        self.norm, self.key, self.value = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.classify = nn.Parameter(torch.randn(10, width, max(CARDINALITIES)) * 0.05)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Merged tokens [n, t, width] to one tensor of logits per attribute."""
        tokens = self.norm(tokens)
        seen = F.scaled_dot_product_attention(self.queries.expand(len(tokens), -1, -1), self.key(tokens), self.value(tokens))
        logits = torch.einsum("naw,awv->nav", seen, self.classify)
        return [logits[:, i, :count] for i, count in enumerate(CARDINALITIES)]


class Objective(nn.Module):
    """The tower with two kinds of heads; the flat ones know where, learn fast, and work on the square grid only."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.query_heads = QueryHeads(128)
        self.flat_norm = nn.LayerNorm(128)
        self.flat_heads = common.AttributeHeads(16 * 128)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = mllm.look(self.visual, pixels)
        query = common.attribute_loss(self.query_heads(tokens), labels)
        if pixels.shape[2:] != (112, 112):
            return query, query, query.detach()
        flat = common.attribute_loss(self.flat_heads(self.flat_norm(tokens).flatten(1)), labels)
        return query + flat, query, flat


def make_batch(world: TrainingWorld, plan: VisionPlan, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures float32 [n, 3, h, w] of one size and labels int64 [n, 10]."""
    rng = np.random.default_rng((seed, 1, step))
    where = (
        np.sort(rng.choice(len(world.labels), plan.batch, replace=False)),
        rng.integers(0, 4, plan.batch),
        rng.integers(0, 3, plan.batch),
    )
    pictures, labels = world.pictures[where], world.labels[where[:2]]
    flip = rng.random(len(pictures)) < 0.5
    pictures[flip] = pictures[flip, :, ::-1]
    return resize(common.to_tensor(pictures), rng), torch.from_numpy(labels)


def resize(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Now and then to one of the other grids."""
    if rng.random() >= OTHER_GRID_SHARE:
        return pixels
    size = GRIDS[int(rng.integers(len(GRIDS)))]
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


def initialise(visual: nn.Module, world: TrainingWorld) -> None:
    """Patch filters = whitened principal components, half in each temporal slice."""
    rng = np.random.default_rng(0)
    some = common.to_tensor(world.pictures[np.sort(rng.choice(len(world.labels), 400, replace=False)), 0, 0])
    weight = visual.patch_embed.proj.weight
    filters = common.whitening_filters(mllm.patches(some).flatten(0, 1), len(weight)).view(-1, 3, 1, 14, 14)
    with torch.no_grad():
        weight.copy_((filters / 2).expand_as(weight))


def train(world: TrainingWorld, plan: VisionPlan, paths: common.Paths, seed: int, until: float = float("inf")) -> None:
    """Train or resume; the tower's weights end in the stage's checkpoint under `visual`."""
    torch.manual_seed(seed)
    model, _ = mllm.build(paths.work / "mllm-scratch")
    initialise(model.model.visual, world)
    objective, curve = Objective(model.model.visual), paths.curve(STAGE)
    optimizer = common.adamw([(objective, plan.rate)])
    first = 0
    if state := common.load(paths.checkpoint(STAGE)):
        objective.load_state_dict(state["objective"]), optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    held = held_out(9000, shots=1, tests=10)
    sums, count = torch.zeros(3), 0
    for step, (pixels, labels) in enumerate(common.prefetch(lambda s: make_batch(world, plan, seed, s), first, plan.steps), first):
        common.set_rate(optimizer, common.cosine(step, plan.steps))
        with sdpa_kernel([SDPBackend.MATH]):
            losses = objective(pixels, labels)
            optimizer.zero_grad(set_to_none=True)
            losses[0].backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        sums, count, done = sums + torch.stack([x.detach() for x in losses]), count + 1, step + 1
        if done % plan.report == 0 or done == 20:
            total, query, flat = (sums / count).tolist()
            curve.add(done, loss=total, query=query, flat=flat)
            sums, count = torch.zeros(3), 0
        if done % plan.evaluate == 0 or done == plan.steps or time.time() > until:
            common.save_atomic(
                paths.checkpoint(STAGE),
                objective=objective.state_dict(),
                visual=objective.visual.state_dict(),
                optimizer=optimizer.state_dict(),
                step=done,
            )
            curve.add(done, **evaluate(objective, held))
        if time.time() > until:
            break


@torch.no_grad()
def evaluate(objective: Objective, held: HeldOut) -> dict[str, float]:
    """Attribute accuracy of the query heads on a development world, and their mean on one other grid."""
    pixels = common.to_tensor(held.test.reshape(-1, 112, 112, 3))
    labels = torch.from_numpy(held.labels).repeat_interleave(held.test.shape[1], 0)

    def mean_and_parts(x: torch.Tensor) -> tuple[float, dict[str, float]]:
        logits = [objective.query_heads(mllm.look(objective.visual, part)) for part in x.split(100)]
        hits = common.attribute_hits([torch.cat(parts) for parts in zip(*logits, strict=True)], labels)
        return sum(hits.values()) / 10, hits

    mean, hits = mean_and_parts(pixels)
    other, _ = mean_and_parts(F.interpolate(pixels, (112, 84), mode="bilinear", antialias=True, align_corners=False))
    return {f"a_{n.replace(' ', '_')}": v for n, v in hits.items()} | {"attributes": mean, "attributes_112x84": other}
