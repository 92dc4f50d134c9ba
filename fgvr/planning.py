"""mode=plan: from configuration to a table without any other part of the house, so that the answer comes at once.

Sizes need neither numpy nor torch, and this file imports neither; recognizers, datasets and knowledge stay outside.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgvr import keys
from fgvr.runtime import allocator
from fgvr.runtime.budget import as_bytes, parse_budget, parse_bytes
from fgvr.runtime.devices import device_class, pick_device
from fgvr.runtime.devices.base import held_by_others
from fgvr.runtime.plan import plan as plan_memory
from fgvr.runtime.spec import checked
from fgvr.types import ROLES, MemoryPlan, ModelSpec
from fgvr.utils.text import format_bytes


def plan(cfg: DictConfig) -> MemoryPlan:
    """What would be resident at once, and whether it fits the budget. Loads nothing.

    Raises ConfigError (any key) and ModelLoadError (a size that cannot be known).
    """
    keys.check(_plain(cfg, resolve=False))  # as written: a reference may lead to a server
    runtime = _plain(cfg.runtime)
    keys.check({"runtime": runtime})
    allocator.check(runtime["allocator"])
    reserve = as_bytes(runtime["reserve"])
    specs = [spec(cfg, role) for role in used(cfg)]
    device, budget = _device_and_budget(cfg)
    optional = [spec(cfg, role) for role in optional_roles(cfg)]
    return plan_memory(specs, budget, reserve=reserve, device=device, optional=optional)


def used(cfg: DictConfig) -> tuple[str, ...]:
    """Which models a run may load; the matcher only where the fusion asks it."""
    return tuple(role for role in (ROLES if cfg.fusion.joint else ROLES[:2]) if cfg.models[role].loader != "none")


def optional_roles(cfg: DictConfig) -> tuple[str, ...]:
    """Which only a lease of their own brings in."""
    return tuple(role for role in ROLES if role not in used(cfg) and cfg.models[role].loader != "none")


def spec(cfg: DictConfig, role: str) -> ModelSpec:
    fields = _plain(cfg.models[role])
    fields.pop("_target_")
    return checked(ModelSpec(**fields), cfg.runtime.device)


def _plain(cfg: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=resolve)  # type: ignore[return-value]


def _device_and_budget(cfg: DictConfig) -> tuple[str, int]:
    """The device is only asked (and torch, on a GPU machine, only imported) when the budget depends on its size."""
    asked, name = cfg.runtime.budget, str(cfg.runtime.device)
    if isinstance(asked, str) and (size := parse_bytes(asked)):
        return (name if name != "auto" else device_class(name).name), size
    device = pick_device(name)
    return device.name, parse_budget(asked, device.total, held=held_by_others(device) if asked == "auto" else 0)


# --- shown -------------------------------------------------------------------------------------------------------------------


def show(result: MemoryPlan, *, as_json: bool = False) -> None:
    """On stdout: a table for people, or one JSON line."""
    if as_json:
        sys.stdout.write(json.dumps(as_record(result), ensure_ascii=False) + "\n")
        return
    from fgvr.utils.logging import stdout_console

    console = stdout_console()
    for part in _renderables(result):
        console.print(part)


def as_record(result: MemoryPlan) -> dict[str, Any]:
    return asdict(result) | {"needed": result.needed, "in_turns": result.in_turns, "fits": result.fits, "verdict": result.verdict}


def _renderables(result: MemoryPlan) -> Iterator[Any]:
    from rich.table import Table

    table = Table(title=f"memory plan, budget {format_bytes(result.budget)}", title_justify="left")
    table.add_column("part")
    table.add_column("bytes", justify="right")
    table.add_column("")
    bold = {part.name for part in result.parts}
    for name, size, note in result.rows:
        if name == "needed":
            table.add_section()
            table.add_row(name, format_bytes(size), result.verdict, style="green" if result.fits else "yellow")
            table.add_section()
        else:
            table.add_row(name, format_bytes(size), note, style="bold" if name in bold else "dim")
    table.add_section()
    for part in result.host:
        table.add_row(f"main memory: {part.name}", format_bytes(part.bytes), part.note, style="dim")
    yield table
    yield from (f"* {fact}" for fact in result.facts)
    if result.advice:
        yield "What to change:"
        yield from (f"- {line}" for line in result.advice)
