"""Which models a configuration uses, and whether they fit. Imports neither numpy nor torch, so that `mode=plan` answers at once."""

from collections.abc import Iterator
from dataclasses import replace

from fgvr.agents.targets import Target
from fgvr.config.configuration import Config
from fgvr.runtime import offload
from fgvr.runtime.budget import as_bytes, parse_budget, parse_bytes
from fgvr.runtime.devices import ALL, AUTO, device_class, device_names, fastest_dtype, pick_devices
from fgvr.runtime.devices.base import held_by_others
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.plan import plan as plan_memory
from fgvr.runtime.probe import FOLDER, Probes
from fgvr.types import MemoryPlan, ModelSpec
from fgvr.utils.paths import user_path
from fgvr.utils.text import format_bytes

HELD_PIXELS = 8_000_000
"""Of a picture at most, once it is read: `utils.images.REDUCE_ABOVE`, whose module imports numpy."""


def plan(config: Config) -> MemoryPlan:
    """What would be resident at once on each device, and whether it fits the budget of the smallest one. Loads nothing.

    Raises ModelLoadError for a size that nobody knows.
    """
    devices = _budgets(config)
    device, budget = min(devices, key=lambda one: one[1])
    needed, optional = ([spec(config, role) for role in roles] for roles in (used(config), optional_roles(config)))
    found = plan_memory(
        needed,
        budget,
        reserve=as_bytes(config.runtime.reserve),
        device=device,
        optional=optional,
        offload=config.runtime.offload,
        probes=probes(config),
    )
    each = ", ".join(f"{name} {format_bytes(own)}" for name, own in devices)
    of_devices = [f"{len(devices)} devices, each with a copy of every model and a budget of its own: {each}"] * (len(devices) > 1)
    of_workers = [] if config.engine.name == "local" else [_of_workers(config, found)]
    return replace(found, facts=(*found.facts, *_of_target(config), _of_pictures(config), *of_devices, *of_workers))


def probes(config: Config) -> Probes:
    """What was measured of working memory on this machine."""
    return Probes(user_path(config.paths.home) / FOLDER)


def _of_workers(config: Config, one: MemoryPlan) -> str:
    """What a plan of one worker means for all of them."""
    workers = config.engine.workers
    each = f"needs {format_bytes(one.needed)} on a device of its own, and 0.8 GiB of main memory for libraries"
    if workers is None:
        return f"engine=ray: a worker for each GPU, or for each {config.engine.cpus} cores; each {each}"
    shared = "" if one.needed * workers <= one.budget else ", more than the budget: lower engine.workers, or give them more machines"
    return f"engine=ray: each of {workers} workers {each}; all on one device {format_bytes(one.needed * workers)}{shared}"


def _of_pictures(config: Config) -> str:
    size = config.evaluation.batch_size
    most = format_bytes(2 * size * HELD_PIXELS * 4)  # Pillow keeps four bytes for each pixel of RGB
    less = f"a picture of more than {HELD_PIXELS:,} pixels is reduced on reading, and a smaller evaluation.batch_size holds fewer"
    return f"pictures take main memory: two batches of {size} for each device, 4 bytes a pixel, at most {most}; {less}"


def _of_target(config: Config) -> Iterator[str]:
    """What the trigger's target needs of photographs; nothing for a trigger without one."""
    if "target" not in config.trigger:
        return
    yield "the trigger learns from support images that were left out, so it needs dataset.shots=2 or more of each class"
    targets = [Target.parse(text) for key in ("target", "abstain") if key in config.trigger and (text := config.trigger[key])]
    risk = next((target for target in targets if target.kind == "risk"), None)
    kept = config.dataset.calibration if "calibration" in config.dataset else 0
    if risk is None:
        yield (
            f"trigger.target={config.trigger.target} promises nothing about errors; trigger.target=risk:0.1@0.1 does, and needs "
            f"{Target('risk', 0.1).fewest} calibration images or more, all classes together (dataset.calibration=4: four of each class)"
        )
        return
    without = "dataset.calibration=0 sets none apart, so there is an estimate and no promise: write dataset.calibration=4"
    held = f"dataset.calibration={kept} sets {kept} of each class apart" if kept else without
    yield (
        f"risk:{risk.value:g}@{risk.delta:g} needs {risk.fewest} calibration images or more, all classes together, and more for each "
        f"that is answered wrongly. {held}; mode=doctor says what they can certify"
    )


def used(config: Config) -> tuple[str, ...]:
    """Which models a run may load; the matcher only where the fusion asks it."""
    return tuple(role for role in config.models.present if role != "joint" or config.fusion.joint)


def optional_roles(config: Config) -> tuple[str, ...]:
    """Which only a lease of their own brings in."""
    return tuple(role for role in config.models.present if role not in used(config))


def spec(config: Config, role: str) -> ModelSpec:
    device = device_names(config.runtime.device)[0]
    found = on_device(ModelSpec(**config.models[role].arguments), device)
    offload.check(found, config.runtime.offload, device)
    return found


def on_device(spec: ModelSpec, device: str = "auto") -> ModelSpec:
    """The spec, its dtype what this device (a `runtime.device`) computes in: what `fastest` means there, and float32 where a small model's
    float16 would be emulated. So key and fingerprint tell the two apart."""
    if spec.dtype == "fastest":
        return replace(spec, dtype=fastest_dtype(device))
    loader = find_loader(spec)
    emulated = loader.widens_half and loader.is_half(spec) and device_class(device).emulates_half(chosen_by_auto=device in (AUTO, ALL))
    return replace(spec, dtype="float32") if emulated else spec


def _budgets(config: Config) -> list[tuple[str, int]]:
    """(device, budget) of each. Devices are only asked (and torch, on a GPU machine, only imported) where the answer depends on them."""
    asked, names = config.runtime.budget, device_names(config.runtime.device)
    if isinstance(asked, str) and (size := parse_bytes(asked)) and names != (ALL,):
        return [(name if name != AUTO else device_class(name).name, size) for name in names]
    devices = pick_devices(names)
    return [(one.name, parse_budget(asked, one.total, held=held_by_others(one) if asked == "auto" else 0)) for one in devices]
