"""Multimodal families, tiny and random, two of them without a profile: answers against transformers, memory planned and taken."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.race import Races

if TYPE_CHECKING:
    from PIL.Image import Image

    from fgvr.types import ModelSpec

_COLUMNS = "family | class | generate | score | several images | batched = single | left padding | parked and returned | forecast / peak"
_EXACT = 1e-3  # nats: sums of float32 in another order
PROBED, TRIED = 4, (2, 3, 6, 8)  # prompts in a batch
CANDIDATES, NEW_TOKENS = 5, 256


def measure(*, models: str, repeat: int, size: int = 0) -> Races:
    """`models`, `repeat` and `size` play no part: each family is made here, and each figure is exact."""
    from tests.runtime.tiny_families import FAMILIES, write_family

    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in FAMILIES:
            try:
                rows[name] = row(write_family(name, Path(folder) / name))
            except ImportError as error:  # SmolVLM's processor asks for num2words
                rows[name] = {"missing": str(error).splitlines()[0]}
    notes = [f"| {_COLUMNS} |", "|" + "---|" * (_COLUMNS.count("|") + 1)]
    notes += [f"| {name} | " + " | ".join(map(str, found.values())) + " |" for name, found in rows.items()]
    return Races({}, notes, {"families": rows})


def row(folder: Path) -> dict[str, Any]:
    from fgvr.runtime.devices.simulated import SimulatedDevice
    from fgvr.runtime.loaders.base import find_loader
    from fgvr.types import ModelSpec
    from tests.runtime.tiny_families import ANSWERS, PROMPTS, SYSTEM, Plain

    spec, device, plain = ModelSpec("mllm", "transformers", str(folder), batch_size=3), SimulatedDevice(100 << 20), Plain(folder)
    loader, shown = find_loader(spec), pictures()
    model = loader.load(spec, device)
    model.place(device)
    cases = list(zip(shown, PROMPTS, ANSWERS, strict=True))

    def score() -> list[Any]:
        return model.score(shown, PROMPTS, ANSWERS, system=SYSTEM)

    scores, replies = score(), model.generate(shown, PROMPTS, system=SYSTEM, max_new_tokens=6)
    alone = [model.score([images], [prompt], [answers], system=SYSTEM)[0] for images, prompt, answers in cases]
    expected = [[plain.score(images, prompt, answer) for answer in answers] for images, prompt, answers in cases]
    model.movable.park()
    model.movable.restore(device)
    apart = [far(score.log_likelihoods, found) for score, found in zip(scores, expected, strict=True)]
    lengths = [score.prompt_tokens for score in scores]
    return {
        "class": type(plain.module).__name__,
        "generate": said(replies == [plain.generate(images, prompt, 6) for images, prompt, _ in cases]),
        "score": nats(max(apart)),
        "several_images": nats(apart[1]),
        "batched": nats(max(far(a.log_likelihoods, b.log_likelihoods) for a, b in zip(scores, alone, strict=True))),
        "left_padding": f"{min(lengths)} to {max(lengths)} tokens: {nats(apart[lengths.index(min(lengths))])}",
        "parked": "bit-equal" if score() == scores else "CHANGED",
        "memory": memory(model, spec, folder),
    }


def memory(model: Any, spec: ModelSpec, folder: Path) -> str:
    found = forecasts(model, spec, folder, probed=PROBED, tried=TRIED)
    return "; ".join(f"batch of {size}: estimate {estimate:.2f}, probed {probed:.3f}" for size, estimate, probed in found)


def forecasts(model: Any, spec: ModelSpec, folder: Path, *, probed: int, tried: Sequence[int]) -> list[tuple[int, float, float]]:
    """Size of a batch; estimate, and forecast from a probe of batches of up to `probed`, over the measured peak of other inputs."""
    from fgvr.runtime.devices.cpu import CpuDevice
    from fgvr.runtime.loaders.base import find_loader
    from fgvr.runtime.probe import Probes, take

    loader, device, probes = find_loader(spec), CpuDevice(), Probes(folder / "probes")
    measured = replace(spec, batch_size=probed)
    probes.keep(loader, measured, device.name, take(model, measured, device, loader.most_pixels(measured)))
    found = []
    for size in tried:
        one, peak = replace(spec, batch_size=size), max(device.measure(call) for call in widest_calls(model, size))
        found.append((size, loader.work_bytes(one) / peak, (probes.work(loader, one, device.name) or 0) / peak))
    return found


def widest_calls(model: Any, size: int) -> list[Callable[[], object]]:
    """Answers and scores for prompts as long as the plan allows, with a picture of one megapixel each."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(7)
    shown = [Image.fromarray(random.integers(0, 256, (768, 1365, 3), dtype=np.uint8)) for _ in range(size)]
    words = "red "
    few, more = (model.score(shown[:1], [words * count], [["a"]])[0].prompt_tokens for count in (10, 20))
    each = (more - few) / 10
    prompts = [words * (10 + int((model.tokens_per_item - few) / each))] * size
    return [
        lambda: model.generate(shown, prompts, max_new_tokens=NEW_TOKENS),
        lambda: model.score(shown, prompts, [[f"a bird {i}" for i in range(CANDIDATES)]] * size),
        lambda: model.score(shown, prompts, [[words * int(NEW_TOKENS / each)] * CANDIDATES] * size),
    ]


def pictures() -> list[list[Image]]:
    """One, two and none, of three sizes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    made = [Image.fromarray(random.integers(0, 255, (high, wide, 3), dtype=np.uint8)) for high, wide in ((84, 84), (60, 150), (120, 70))]
    return [made[:1], made[1:], []]


def far(ours: Any, theirs: Any) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def nats(apart: float) -> str:
    return f"equal ({apart:.0e})" if apart < _EXACT else f"APART by {apart:.2g}"


def said(equal: bool) -> str:
    return "equal" if equal else "DIFFERS"
