"""Modes that look at the machine: plan, doctor, memory, cache. No model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from fgvr import assembly, planning
from fgvr.data.health import diagnose
from fgvr.errors import ConfigError, FgvrError
from fgvr.runtime import admin_client, health, status_records
from fgvr.runtime.monitor import watch
from fgvr.store import cache_maintenance, stale_files
from fgvr.types import Finding, MemoryPlan
from fgvr.utils.service import Service

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkup:
    """What the doctor found."""

    findings: tuple[Finding, ...]

    @property
    def ill(self) -> tuple[Finding, ...]:
        """What is to be mended."""
        return tuple(finding for finding in self.findings if not finding.well)


@dataclass(frozen=True, slots=True)
class MemoryAnswer:
    """What `mode=memory` has to say: one of the records of runtime.answers, rows of models, or stale files."""

    action: str
    found: Any
    server: str | None = None  # its address; None: of this machine


def plan(cfg: DictConfig) -> MemoryPlan:
    """What would be resident at once, and whether it fits the budget. Loads nothing."""
    return planning.plan(cfg)


def doctor(cfg: DictConfig) -> Checkup:
    """What is well on this machine with this configuration, and the cure for what is not. Loads no model."""
    pool = assembly.shared_pool(cfg)
    specs, optional = ([assembly.spec(cfg, role) for role in roles] for roles in (planning.used(cfg), planning.optional_roles(cfg)))
    sized = health.models(pool, specs, optional, reserve=pool.settings.reserve, max_models=pool.settings.max_models)
    found = [*health.libraries(), *health.machine(pool), *sized, health.disk(assembly.home(cfg)), *_decoder(cfg)]
    hashes = assembly.perceptual_hash(cfg) if health.writable(assembly.home(cfg)) else None
    found += diagnose(lambda: assembly.open_dataset(cfg), hashes)
    return Checkup(tuple(found))


def _decoder(cfg: DictConfig) -> Iterator[Finding]:
    """Whether an MLLM behind an engine can be asked as `slow` says; one that does not answer is found with its files."""
    if not assembly.asks_mllm(cfg):
        return
    try:
        assembly.check_decoder(cfg)
    except ConfigError as error:
        yield Finding("slow", False, f"slow={cfg.slow.decoder}", str(error))
    except FgvrError as error:
        log.debug("%s", error)


def memory(cfg: DictConfig) -> MemoryAnswer:
    """A running server's figures and levers where `server.url` names one. Else figures of this machine and of a pool with this
    configuration; `cleanup` then removes what dead runs left. Loads nothing."""
    if cfg.action not in MEMORY_ACTIONS:
        raise ConfigError(f"action={cfg.action}: must be one of {', '.join(MEMORY_ACTIONS)}")
    if cfg.server.url is not None:
        return _asked_of_a_server(cfg)
    if cfg.action == "limit":
        raise ConfigError(
            "action=limit: only a running server has a limit to change (server.url=...); a run of your own takes runtime.budget=18GiB"
        )
    if cfg.action == "cleanup":
        return MemoryAnswer(cfg.action, stale_files.remove_stale_files(assembly.home(cfg)))
    pool = assembly.shared_pool(cfg)
    monitor = watch(pool)
    actions: dict[str, Callable[[], Any]] = {
        "stats": lambda: status_records.stats(pool, monitor),
        "pressure": lambda: status_records.pressure(monitor),
        "models": lambda: status_records.models(pool, [assembly.spec(cfg, role) for role in assembly.present(cfg)]),
        "system": lambda: status_records.system(pool.device),
    }
    return MemoryAnswer(cfg.action, actions[cfg.action]())


def _asked_of_a_server(cfg: DictConfig) -> MemoryAnswer:
    server = Service.at(cfg.server.url)
    if cfg.action == "limit" and cfg.limit is None:
        raise ConfigError("action=limit needs a size: limit=18GiB")
    match cfg.action:
        case "limit":
            found = admin_client.limit(server, cfg.limit)
        case "cleanup":
            found = admin_client.cleanup(server)
        case action:
            found = admin_client.figures(server, action)
    return MemoryAnswer(cfg.action, found, server.url)


MEMORY_ACTIONS = ("stats", "pressure", "models", "system", "cleanup", "limit")


def cache(cfg: DictConfig) -> cache_maintenance.MaintenanceReport:
    """The store of this home: figures, room made down to `store.limit`, or every value compared with its hash."""
    return cache_maintenance.maintain(assembly.store_path(cfg), cfg.action, assembly.store_limit(cfg))
