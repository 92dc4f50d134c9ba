"""Which models a configuration uses, and whether they fit. Imports neither numpy nor torch, so that `mode=plan` answers at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fgvr.config.configuration import Config
from fgvr.runtime import offload
from fgvr.runtime.budget import as_bytes, parse_budget, parse_bytes
from fgvr.runtime.devices import device_class, pick_device
from fgvr.runtime.devices.base import held_by_others
from fgvr.runtime.plan import plan as plan_memory
from fgvr.runtime.probe import FOLDER, Probes
from fgvr.runtime.spec import checked
from fgvr.types import MemoryPlan, ModelSpec
from fgvr.utils.text import format_bytes


def plan(config: Config) -> MemoryPlan:
    """What would be resident at once, and whether it fits the budget. Loads nothing. Raises ModelLoadError for a size that nobody knows."""
    device, budget = _device_and_budget(config)
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
    return found if config.engine.name == "local" else replace(found, facts=(*found.facts, _of_workers(config, found)))


def probes(config: Config) -> Probes:
    """What was measured of working memory on this machine."""
    return Probes(Path(config.paths.home).expanduser() / FOLDER)


def _of_workers(config: Config, one: MemoryPlan) -> str:
    """What a plan of one worker means for all of them."""
    workers, each = config.engine.workers, f"needs {format_bytes(one.needed)} on a device of its own, and 0.3 to 0.8 GiB of libraries"
    if workers is None:
        return f"engine=ray: a worker for each GPU, or for each {config.engine.cpus} cores; each {each}"
    shared = "" if one.needed * workers <= one.budget else ", more than the budget: lower engine.workers, or give them more machines"
    return f"engine=ray: each of {workers} workers {each}; all on one device {format_bytes(one.needed * workers)}{shared}"


def used(config: Config) -> tuple[str, ...]:
    """Which models a run may load; the matcher only where the fusion asks it."""
    return tuple(role for role in config.models.present if role != "joint" or config.fusion.joint)


def optional_roles(config: Config) -> tuple[str, ...]:
    """Which only a lease of their own brings in."""
    return tuple(role for role in config.models.present if role not in used(config))


def spec(config: Config, role: str) -> ModelSpec:
    found = checked(ModelSpec(**config.models[role].arguments), config.runtime.device)
    offload.check(found, config.runtime.offload, str(config.runtime.device))
    return found


def _device_and_budget(config: Config) -> tuple[str, int]:
    """The device is only asked (and torch, on a GPU machine, only imported) when the budget depends on its size."""
    asked, name = config.runtime.budget, str(config.runtime.device)
    if isinstance(asked, str) and (size := parse_bytes(asked)):
        return (name if name != "auto" else device_class(name).name), size
    device = pick_device(name)
    return device.name, parse_budget(asked, device.total, held=held_by_others(device) if asked == "auto" else 0)
