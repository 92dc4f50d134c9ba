"""Models larger than the device: how many language layers lie beside it (`runtime.offload`), and what that costs. Arithmetic only.

A layer that lies beside the device comes for its turn in every forward pass, and goes. Answers stay the same; time does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from fgvr.errors import ConfigError
from fgvr.runtime.devices import device_class
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

NONE, AUTO = "none", "auto"
Asked = str | float
"""`none`, `auto` (as many layers as the budget demands), or the share of the weights that lies beside the device."""
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Offload:
    """`layers` of a model's `of` language layers, the last ones, lie beside the device."""

    layers: int
    of: int
    beside: int  # their bytes: what each forward pass moves
    largest: int  # of one of them, which is on the device for its turn

    def facts(self, spec: ModelSpec, device: type[Device]) -> tuple[str, ...]:
        """The price, in words."""
        where = "main memory" if device.offload_place == "cpu" else "files"
        moved, batch, seconds = self.beside / _GB, spec.batch_size, self.beside / device.offload_rate
        away = f"{self.layers} of {self.of} language layers ({format_bytes(self.beside)}) stay in {where}"
        return (
            f"{away}: every forward pass moves {moved:.2f} GB (about {seconds:.2f} s at {device.offload_rate / _GB:g} GB/s)",
            f"a token of a batch of {batch} costs one pass, so {moved / batch:.2f} GB per token of an image; scoring an image costs two: "
            f"{2 * moved / batch:.2f} GB per image",
        )


def check(spec: ModelSpec, asked: Asked, device: str) -> None:
    """Raises ConfigError for an MLLM, or a device, that layers cannot be kept beside."""
    if asked == NONE or spec.role != "mllm" or spec.loader == "none":
        return
    key, kind, loader = f"runtime.offload={asked}", device_class(device), find_loader(spec)
    if loader.elsewhere or (not loader.offloads and asked == AUTO):
        return  # nothing of it is here, or it is as small as it gets
    if not loader.offloads:
        raise ConfigError(f"{key}: models of the loader {spec.loader} stay whole; write runtime.offload=none")
    if spec.quantization:
        raise ConfigError(
            f"{key} with models.mllm.quantization={spec.quantization}: quantised weights stay on their device. Write runtime.offload=none, "
            "or models.mllm.quantization=null"
        )
    if not kind.offload_place:
        raise ConfigError(
            f"{key}: on {kind.name} main memory is the device's own memory, so nothing would be gained. Write runtime.offload=none, and "
            "take a smaller or quantised model (models=qwen2_5_vl_7b_mlx)"
        )


def can_offload(spec: ModelSpec, device: str) -> bool:
    return find_loader(spec).offloads and not spec.quantization and bool(device_class(device).offload_place)


def divide(found: Footprint, asked: Asked, room: int) -> Offload | None:
    """What lies beside the device so that the rest fits into `room` bytes, the largest layer's turn included. None: nothing has to.

    Where even all layers are too few, all of them: whoever admits the model then says what is missing.
    """
    if asked == NONE or not found.layers:
        return None
    largest = max(found.layers)
    for count, beside in enumerate(accumulate(reversed(found.layers), initial=0)):
        enough = found.weight_bytes - beside + (largest if count else 0) <= room if asked == AUTO else beside >= asked * found.weight_bytes  # type: ignore[operator]
        if enough:
            break
    return Offload(count, len(found.layers), beside, largest) if count else None


def room_for(found: Footprint, others: Sequence[Footprint], budget: int) -> int:
    """Bytes for the weights of a model beside the `others` of a run, while one batch computes at a time."""
    work = max((other.work_bytes for other in (found, *others)), default=0)
    return budget - sum(other.weight_bytes for other in others) - work


def apply(found: Footprint, divided: Offload, spec: ModelSpec, device: type[Device]) -> Footprint:
    """The footprint on the device, of what is left there."""
    layers, place = f"{divided.of - divided.layers} of {divided.of}", "main memory" if device.offload_place == "cpu" else "its files"
    weights = tuple(_less(part, divided.beside, layers) if part.name == "language layers" else part for part in found.weights)
    if weights == found.weights:  # its parts are not told apart
        weights = (_less(found.weights[0], divided.beside, layers), *found.weights[1:])
    host = [part for part in found.host if part.name != "weights"]  # it cannot be parked
    return replace(
        found,
        weights=weights,
        work=(*found.work, PlanPart("one layer, for its turn", divided.largest)),
        facts=(*found.facts, *divided.facts(spec, device)),
        host=(*host, PlanPart("offloaded layers", divided.beside, f"in {place}")) if device.offload_place == "cpu" else tuple(host),
    )


def _less(part: PlanPart, size: int, note: str) -> PlanPart:
    return replace(part, bytes=part.bytes - size, note=", ".join(filter(None, (part.note, f"{note} on the device"))))
