"""One card, two pipelines: the one whose parts each build their own models, and ours on the shared pool. No GPU needed.

    python scripts/memory_story.py [--picture docs/memory-story.svg] [--json FILE] [--measure FOLDER]

Every model has its real size (shapes on torch's meta device; the planner's arithmetic must agree to the byte) and takes, call by call, the
working memory that its real forward pass takes (runtime/sizes), as blocks of a simulated device that refuses what does not fit with torch's
own error. Ours is the real command's code: real configuration, real pool, real recognizer; only the arithmetic of the models is left out.
`--measure` adds the planner's forecast against a real run of models made by scripts/make_random_models.py 150m, on this CPU.

Ends non-zero when one of ours exceeds its budget, when the naive one survives, when a refusal evicts something or has no plan, when a
size disagrees with its meta-device shape, or when the forecast is off by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgvr import build_knowledge_base, evaluate, load_config
from fgvr.errors import OutOfBudget
from fgvr.runtime import pool as pools
from fgvr.runtime.devices.simulated import Block, SimulatedDevice
from fgvr.runtime.loaders.base import Loader
from fgvr.runtime.loaders.fake import FakeEncoder, FakeMLLM
from fgvr.runtime.plan import footprint
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.sizes import qwen, towers
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.files import atomic_write
from fgvr.utils.text import format_bytes

sys.path.insert(0, str(Path(__file__).resolve().parent))
from story.picture import draw
from story.shapes import SHAPES, check_shapes

GIB = 1 << 30
CARD = int(47.4 * GIB)
BUDGET = 18 * GIB
PHOTO = (2560, 1920)  # a five-megapixel photograph, not scaled down by anybody
_PIECE = 256 << 20  # how finely the naive pipeline's loads arrive


class Card(SimulatedDevice):
    """A simulated device that remembers every level it was at."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.levels: list[int] = [0]
        self.highest = 0

    def allocate(self, nbytes: int) -> Block:
        block = super().allocate(nbytes)
        level = self.allocated()
        self.highest = max(self.highest, level)
        self.levels.append(level)
        return block


# --- models of real sizes ----------------------------------------------------------------------------------------------------


class StoryLoader(Loader):
    """The real family's sizes, a fake's answers."""

    def estimate(self, spec: ModelSpec) -> int:
        return footprint(spec, "cuda:0").weight_bytes

    def work_bytes(self, spec: ModelSpec) -> int:
        return footprint(spec, "cuda:0").work_bytes

    def fingerprint(self, spec: ModelSpec) -> str:
        return f"story-{spec.key}"

    def logit_scale(self, spec: ModelSpec) -> float:
        return FakeEncoder.logit_scale

    def load(self, spec: ModelSpec, device: Any) -> StoryEncoder | StoryMLLM:
        kind = StoryMLLM if spec.role == "mllm" else StoryEncoder
        return kind(spec, self.fingerprint(spec), self.estimate(spec), device)


class _Sized:
    """Takes what each moment of a real call takes, one moment after the other."""

    _device: Any

    def _live(self, *moments: Sequence[PlanPart]) -> None:
        for moment in moments:
            blocks = [self._device.allocate(part.bytes) for part in moment]
            del blocks


class StoryEncoder(_Sized, FakeEncoder):
    def __init__(self, spec: ModelSpec, fingerprint: str, nbytes: int, device: Any) -> None:
        FakeEncoder.__init__(self, fingerprint, nbytes, 0, device)
        self._device, self._towers = device, towers.KNOWN[spec.source.split("/")[0]]

    def _work(self, count: int) -> Any:
        assert self._towers.image is not None
        return towers.work(self._towers, count, self._towers.image.values * 4, 4)

    def encode(self, images: Any) -> Any:
        self._live(self._work(len(images)))
        return super().encode(images)

    def encode_text(self, texts: Any) -> Any:
        self._live(self._work(1))
        return super().encode_text(texts)


class StoryMLLM(_Sized, FakeMLLM):
    def __init__(self, spec: ModelSpec, fingerprint: str, nbytes: int, device: Any) -> None:
        FakeMLLM.__init__(self, fingerprint, nbytes, 0, device)
        self._device, self._spec, self._shape = device, spec, qwen.KNOWN[spec.source]

    def generate(self, images: Any, prompts: Any, **options: Any) -> Any:
        batch = self._batch(len(prompts))
        self._live(qwen.tower(self._shape, batch), qwen.prefill(self._shape, batch))
        return super().generate(images, prompts, **options)

    def score(self, images: Any, prompts: Any, continuations: Any, **options: Any) -> Any:
        batch = self._batch(len(prompts))
        self._live(qwen.tower(self._shape, batch), qwen.prefill(self._shape, batch), qwen.score(self._shape, batch))
        return super().score(images, prompts, continuations, **options)

    def _batch(self, count: int) -> qwen.Batch:
        return qwen.Batch(count, self._spec.max_pixels or qwen.SANE_PIXELS, 2, unpacked=bool(self._spec.quantization))


# --- the two pipelines -------------------------------------------------------------------------------------------------------


@dataclass
class Chapter:
    """One line of the story: what was done, the highest level, how it ended."""

    name: str
    peak: int = 0
    outcome: str = ""
    good: bool = True
    levels: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Habits:
    """What the naive pipeline does, so that each habit can be dropped alone."""

    size: int = 4  # bytes per value
    second_encoder: bool = True
    blip2: bool = True
    pixels: int = PHOTO[0] * PHOTO[1]


NAIVE = [
    ("as found: fp32, two encoders, unused BLIP-2, no pixel cap, eager attention", Habits(), True),
    ("without the BLIP-2 that nobody calls", Habits(blip2=False), True),
    ("and in bf16", Habits(blip2=False, size=2), True),
    ("and with 1,280 tokens per image", Habits(blip2=False, size=2, pixels=qwen.SANE_PIXELS), False),
]


def naive(name: str, habits: Habits, *, dies: bool) -> Chapter:
    """Everything is built at the start and kept; then one photograph is described."""
    card, held, doing = Card(CARD), [], ""
    models = [("Qwen2.5-VL-7B", SHAPES["qwen"] * habits.size), ("CLIP ViT-B/32", SHAPES["vit_b_32"] * habits.size)]
    models += [("a second CLIP, ViT-L/14", SHAPES["vit_l_14"] * habits.size)] if habits.second_encoder else []
    models += [("BLIP-2, never called", SHAPES["blip2"] * habits.size)] if habits.blip2 else []
    try:
        for name_of, size in models:
            doing = name_of
            for start in range(0, size, _PIECE):
                held.append(card.allocate(min(_PIECE, size - start)))
        shape, batch = qwen.KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"], qwen.Batch(1, habits.pixels, habits.size)
        patches = habits.pixels // shape.patch**2
        scores = shape.tower_heads * patches**2
        doing = (
            f"one attention over {patches:,} patches, {format_bytes(scores * habits.size)} of scores, {format_bytes(scores * 4)} of shares"
        )
        tower = [card.allocate(part.bytes) for part in qwen.tower(shape, batch)]
        for size in (habits.size, 4):  # eager attention: all scores, then their softmax in float32 beside them
            tower.append(card.allocate(scores * size))
        del tower
        doing = "the prompt"
        held += [card.allocate(part.bytes) for part in qwen.prefill(shape, batch)]
        outcome, died = "lives", False
    except Exception as error:
        if not card.is_oom(error):
            raise
        outcome, died = f"dies at {format_bytes(card.highest)}: {doing}", True
    return Chapter(f"naive, {name}", card.highest, outcome, died == dies, card.levels)


WORLD = (
    "logging=quiet",
    "store.enabled=false",
    "dataset=birds",
    "dataset.genera=[4,4]",
    "dataset.test_per_class=6",
    "dataset.calibration=1",
)
OURS = ("models=qwen2_5_vl_7b", f"runtime.device=simulated:{CARD / GIB}GiB", f"runtime.budget={BUDGET}")


@contextmanager
def pool_of(budget: int, *, total: int = CARD, **settings: Any) -> Iterator[tuple[ModelPool, Card]]:
    """The process's shared pool, on a card, with models of the story."""
    pools.close_shared()
    card = Card(total)
    made = pools.shared(lambda: ModelPool(card, budget=budget, loaders=lambda spec: StoryLoader(), **settings))  # type: ignore[arg-type]
    try:
        yield made, card
    finally:
        pools.close_shared()


def ours() -> list[Chapter]:
    """Build, fast, slow and mixed, one after the other on one pool, as a session of an hour would do it."""
    chapters = []
    runs = (("build", None), ("fast", "never"), ("slow", "always"), ("mixed", "calibrated"))
    with tempfile.TemporaryDirectory() as home, pool_of(BUDGET) as (pool, card):
        os.environ["FGVR_HOME"] = home
        for name, trigger in runs:
            card.highest, card.levels = card.allocated(), [card.allocated()]
            cfg = load_config(*WORLD, *OURS, *([f"trigger={trigger}"] if trigger else []))
            if trigger is None:
                base = build_knowledge_base(cfg)
                told = f"{len(base.classes)} classes, {len(base.support)} images"
            else:
                report = evaluate(cfg)
                told = f"{report.n} images, {report.slow_rate:.0%} thought over slowly"
            good = 0 < card.highest <= BUDGET and pool.status().peak <= BUDGET
            chapters.append(Chapter(f"ours, {name}", card.highest, f"{told}; loads so far {_loads(pool)}", good, card.levels))
        chapters[-1].good &= dict(pool.loads) == {"mllm": 1, "encoder": 1, "joint": 0}
    return chapters


def _loads(pool: ModelPool) -> str:
    return ", ".join(f"{role} {count}" for role, count in pool.loads.items())


# --- smaller cards -----------------------------------------------------------------------------------------------------------

SETTINGS = [
    ("7B bf16, batch 8", ("models.mllm.batch_size=8",), {}),
    ("7B bf16, batch 4", (), {}),
    ("7B bf16, batch 1, one model at a time", ("models.mllm.batch_size=1",), {"max_models": 1}),
    ("7B bf16, batch 1, 256 tokens per image", ("models.mllm.batch_size=1", f"models.mllm.max_pixels={256 * 784}"), {}),
    ("7B int8, batch 4", ("models.mllm.quantization=int8",), {}),
    ("7B nf4, batch 8", ("models.mllm.quantization=nf4", "models.mllm.batch_size=8"), {}),
    ("3B bf16, batch 4", ("models=qwen2_5_vl_3b", "models.mllm.batch_size=4"), {}),
]


def fits(budget: int, name: str, overrides: Sequence[str], settings: dict[str, Any]) -> Chapter:
    """Encode, then describe and choose for a full batch. A refusal must come with a plan and evict nothing."""
    from PIL import Image

    cfg = load_config(*WORLD, *OURS[:1], *overrides)
    encoder, mllm = (_spec(cfg, role) for role in ("encoder", "mllm"))
    image = Image.new("RGB", (64, 64), "red")
    with pool_of(budget, total=budget, **settings) as (pool, card):
        with pool.lease(encoder) as model:
            model.encode([image] * encoder.batch_size)
        before = [(m.key, m.state, m.loads) for m in pool.status() if m.role == "encoder"]
        count = mllm.batch_size
        try:
            with pool.lease(mllm) as model:
                model.generate([image] * count, ["describe"] * count)
                model.score([image] * count, ["which?"] * count, [["a", "b"]] * count)
            kept = any(m.here for m in pool.status() if m.role == "encoder")
            outcome, good = "both stay" if kept else "they take turns", True
        except OutOfBudget as error:
            after = [(m.key, m.state, m.loads) for m in pool.status() if m.role == "encoder"]
            plan = error.plan
            good = plan is not None and not plan.fits and bool(plan.advice) and after == before
            outcome = f"refused, {format_bytes(plan.needed - budget)} short: {_cure(plan.advice)}" if plan else "refused without a plan"
        return Chapter(f"{budget // GIB} GiB: {name}", card.highest, outcome, good and card.highest <= budget)


def _cure(advice: Sequence[str]) -> str:
    return next((line for line in advice if "enough" in line), advice[0])


def _spec(cfg: Any, role: str) -> ModelSpec:
    from fgvr.planning import spec

    return spec(cfg, role)


# --- told --------------------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="where the picture goes (SVG)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="models made by scripts/make_random_models.py 150m")
    args = parser.parse_args()
    wrong = check_shapes()
    before = [naive(name, habits, dies=dies) for name, habits, dies in NAIVE]
    after = ours()
    small = [fits(gib * GIB, *setting) for gib in (24, 16, 12) for setting in SETTINGS]
    chapters = [*before, *after, *small]
    if args.measure:
        from story.forecast import measure

        chapters += [Chapter(name, peak, text, good) for name, peak, text, good in measure(args.measure)]
    _print(chapters)
    if args.json:
        atomic_write(args.json, json.dumps([{k: v for k, v in vars(c).items() if k != "levels"} for c in chapters], indent=1) + "\n")
    if args.picture:
        atomic_write(args.picture, draw(before[0].levels, [(c.name, c.levels) for c in after], card=CARD, budget=BUDGET))
    wrong += [f"{c.name}: {c.outcome} ({format_bytes(c.peak)})" for c in chapters if not c.good]
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _print(chapters: Sequence[Chapter]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "peak", "what happened", title=f"a card of {CARD / GIB:.1f} GiB; ours has a budget of {BUDGET / GIB:.0f} GiB")
    for chapter in chapters:
        table.add_row(chapter.name, format_bytes(chapter.peak), chapter.outcome, style="" if chapter.good else "red")
    Console(width=None if sys.stdout.isatty() else 170).print(table)


if __name__ == "__main__":
    sys.exit(main())
