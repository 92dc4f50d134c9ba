"""Is this machine fit to run the configured models? Looks at libraries, device, model files, budget and disk; loads nothing."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from packaging.requirements import Requirement

from fgvr.errors import FgvrError
from fgvr.runtime import allocator
from fgvr.runtime.devices import Device, device_class, fastest_dtype
from fgvr.runtime.devices.cpu import BF16_FLAGS, cpu_flags
from fgvr.runtime.loaders import files, quantized
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.offload import AUTO, NONE, Asked, can_offload
from fgvr.runtime.plan import OPTIONAL, Reduction, footprint, need, offload_needs, reductions
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.probe import Probes
from fgvr.types import Finding, ModelSpec
from fgvr.utils.text import format_bytes

_ROOM = 2 << 30  # bytes a home should have left
_FLAGS = ("avx2", "avx512f", *BF16_FLAGS)


def libraries() -> Iterator[Finding]:
    """Every dependency this package declares, with the version that is installed."""
    for line in requires("fgvr") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):  # of an extra, or of another system
            continue
        cure = f"pip install -U '{needed.name}{needed.specifier}'"
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            yield Finding(needed.name, False, "not installed", cure)
            continue
        fits = needed.specifier.contains(found, prereleases=True)
        yield Finding(needed.name, fits, found, "" if fits else f"needs {needed.specifier}: {cure}")


def machine(pool: ModelPool) -> Iterator[Finding]:
    """The device models would live on, and what the processor has for bf16."""
    for device in (member.device for member in pool.members):
        yield Finding("device", True, f"{device.name}: {format_bytes(device.total)} in all, {format_bytes(device.free())} free")
    yield _allocator(pool.device)
    flags = cpu_flags()
    fast = ", ".join(flag for flag in _FLAGS if flag in flags) or "no vector flags known"
    yield Finding("processor", True, f"{os.cpu_count()} cores, {fast}; dtype=fastest is {fastest_dtype('cpu')} on it")


def _allocator(device: Device) -> Finding:
    """Settings of PyTorch's allocator for this device, as the environment has them."""
    kind = device.allocator
    settings = allocator.in_force(kind)
    detail = ", ".join(map(str, settings)) or ("nothing to set" if kind not in allocator.PRESETS else "PyTorch's defaults")
    unlimited = any(map(allocator.means_no_limit, settings))
    cure = f"{allocator.HIGH_WATERMARK}=0 lets macOS swap without end: unset it" if unlimited else ""
    return Finding("allocator", not unlimited, detail, cure)


def models(
    pool: ModelPool, specs: Sequence[ModelSpec], optional: Sequence[ModelSpec] = (), *, reserve: int = 0, max_models: int | None = None
) -> Iterator[Finding]:
    """Model files present and whole, and all of them within the budget at once. `optional` models need not be here."""
    complete = True
    for spec in specs:
        found = _files(spec)
        complete &= found.well
        yield found
        if spec.quantization:
            lacks = quantized.lacks(spec.quantization, type(pool.device))
            detail = quantized.needs(spec.quantization, type(pool.device))
            yield Finding(f"{spec.role} quantization", not lacks, detail, quantized.CURE if lacks else "")
    yield from map(_optional, optional)
    if complete:
        for member in pool.members:
            device, settings = member.device, member.settings
            room = Room(tuple(specs), member.budget, reserve, max_models, device.name, settings.offload, settings.probes, device.total)
            yield budget_finding(room)


def _files(spec: ModelSpec) -> Finding:
    """Whether a model's files are all here, readable, and of a family that is supported; of an engine, what it can do."""
    topic = f"{spec.role} files"
    try:
        loader = find_loader(spec)
        loader.check(spec)
        footprint(spec)  # reads every header
        return Finding(topic, True, loader.describe(spec))
    except FgvrError as error:
        what, _, cure = str(error).partition("\n")
        return Finding(topic, False, what, cure.strip() or f"{files.OFFLINE} works offline")


def _optional(spec: ModelSpec) -> Finding:
    try:
        find_loader(spec).check(spec)
        detail = f"{spec.source}, {format_bytes(footprint(spec).weight_bytes)}"
    except FgvrError as error:
        detail = str(error).replace("\n", " ")
    return Finding(f"{spec.role} files", True, f"{OPTIONAL}: {detail}")


# --- the budget: a cure is named only after the changed plan was computed and fits ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """The models of a run and where they have to fit."""

    specs: tuple[ModelSpec, ...]
    budget: int
    reserve: int = 0
    max_models: int | None = None
    device: str = "cpu"
    offload: Asked = NONE
    probes: Probes = field(default_factory=Probes)
    most: int = 0  # bytes the device has: no budget can be larger

    @property
    def needed(self) -> int:
        """Bytes while one batch computes at a time, with as many models at once as may be."""
        needs = offload_needs([need(spec, self.device, self.probes) for spec in self.specs], self.offload, self.budget - self.reserve)
        needs = sorted(needs, key=lambda n: -n.weights - n.work)[: self.max_models]
        return sum(n.weights for n in needs) + max((n.work for n in needs), default=0) + self.reserve

    @property
    def fits(self) -> bool:
        return self.needed <= self.budget


def budget_finding(room: Room) -> Finding:
    """Whether the models fit while one batch computes at a time; if not, the first change that is enough."""
    needed = room.needed
    detail = f"{format_bytes(needed)} needed of {format_bytes(room.budget)}, one batch computing at a time"
    return Finding("budget", room.fits, detail, "" if room.fits else cure(room))


def cure(room: Room) -> str:
    """One change, or several together, with which the models fit. Says so when nothing known is enough."""
    for word, changed in _changes(room):
        try:
            if changed.fits and changed.budget <= max(room.most, room.budget):
                return f"write {word} (needs {format_bytes(changed.needed)})"
        except FgvrError:  # the size of the changed model is not known here
            continue
    return f"nothing known is enough here, not even the smallest models: a device with {format_bytes(room.needed)} is needed"


def _changes(room: Room) -> Iterator[tuple[str, Room]]:
    """Overrides as they are written, and what they mean: alone, from what changes no answer to what changes the models; then together."""
    words, together = [], room
    if len(room.specs) > 1 and room.max_models != 1:
        words, together = ["runtime.max_models=1"], replace(room, max_models=1)
        yield words[0], together
    device = device_class(room.device)
    known = [reduction for spec in room.specs for reduction in reductions(spec)]
    found = [one for one in known if one.key != "quantization" or not quantized.lacks(one.values[-1], device)]
    found.sort(key=lambda reduction: reduction.key != "batch_size")
    for reduction in found:
        yield from ((reduction.word(value), _with(room, reduction, value)) for value in reduction.few)
    if room.offload == NONE and any(can_offload(spec, room.device) for spec in room.specs):
        yield f"runtime.offload={AUTO}", replace(room, offload=AUTO)
    for reduction in found:
        if reduction.key:  # a shipped model is small enough alone, or nothing is
            words, together = [*words, reduction.word(reduction.values[-1])], _with(together, reduction, reduction.values[-1])
            yield " ".join(words), together
    hundredths = math.ceil(room.needed / 2**30 * 100)
    yield f"runtime.budget={hundredths / 100:.2f}GiB", replace(room, budget=math.ceil(hundredths * 2**30 / 100))


def _with(room: Room, reduction: Reduction, value: Any) -> Room:
    return replace(room, specs=tuple(replace(reduction, spec=s).applied(value) if s.role == reduction.spec.role else s for s in room.specs))


# --- disk ----------------------------------------------------------------------------------------------------------------------


def disk(home: Path) -> Finding:
    """Room and permission where bases, caches and runs will lie."""
    place = next(folder for folder in (home.resolve(), *home.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    detail = f"{home}: {format_bytes(free)} free"
    if not writable(home):
        return Finding("home", False, f"{home} cannot be written", "set paths.home=FOLDER or FGVR_HOME to a folder of yours")
    return Finding("home", free > _ROOM, detail, "" if free > _ROOM else "free some space, or set paths.home=FOLDER on another disk")


def writable(home: Path) -> bool:
    """Whether something can be written in this folder, which need not exist yet. Leaves nothing behind."""
    place = next(folder for folder in (home.resolve(), *home.resolve().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        return False
    try:
        with TemporaryFile(dir=place):  # permissions alone say nothing of a read-only file system
            return True
    except OSError:
        return False
