"""Modes that look at the machine: doctor, memory, cache. No model is loaded."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fgvr import planning
from fgvr.agents.risk_control import certifiable
from fgvr.data.datasets import Dataset
from fgvr.data.diagnosis import diagnose
from fgvr.errors import ConfigError, FgvrError
from fgvr.evaluation import memory_console
from fgvr.evaluation.console import findings_table
from fgvr.modes.showing import complaint, to_json, to_text
from fgvr.runtime import admin_client, checkup, status_records
from fgvr.runtime.monitor import tightest
from fgvr.session import Session
from fgvr.store import maintenance
from fgvr.types import Finding
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
    """What `mode=memory` has to say, as JSON values."""

    action: str
    found: dict[str, Any]
    server: str | None = None  # its address; None: of this machine


def doctor(session: Session) -> Checkup:
    """What is well on this machine with this configuration, and the cure for what is not. Loads no model."""
    pool, config = session.pool, session.config
    specs, optional = ([session.specs[role] for role in roles] for roles in (planning.used(config), planning.optional_roles(config)))
    sized = checkup.models(pool, specs, optional, reserve=pool.settings.reserve, max_models=pool.settings.max_models)
    found = [*checkup.libraries(), *checkup.machine(pool), *sized, checkup.disk(session.home), *_decoder(session)]
    hashes = session.perceptual_hash if checkup.writable(session.home) else None
    opened = functools.cache(lambda: session.dataset)
    found += [*diagnose(opened, hashes), *_promise(opened)]
    return Checkup(tuple(found))


def _promise(opened: Callable[[], Dataset]) -> Iterator[Finding]:
    """What a promise about risk can reach with this many photographs; nothing where the data set cannot be opened, which is found apart."""
    try:
        dataset = opened()
    except (FgvrError, OSError) as error:
        log.debug("%s", error)
        return
    kept, classes = len(dataset.split.calibration), len(dataset.catalog)
    if kept:
        yield Finding("promise", True, certifiable(kept))
    else:
        each = 4
        yield Finding(
            "promise",
            True,
            f"no image is set aside, so no risk can be promised; with dataset.calibration={each} of each of {classes} classes, "
            + certifiable(each * classes),
        )


def _decoder(session: Session) -> Iterator[Finding]:
    """Whether an MLLM behind an engine can be asked as `slow` says; one that does not answer is found with its files."""
    if not session.config.asks_mllm:
        return
    try:
        session.check_decoder()
    except ConfigError as error:
        yield Finding("slow", False, f"slow={session.config.slow.decoder}", str(error))
    except FgvrError as error:
        log.debug("%s", error)


def memory(session: Session) -> MemoryAnswer:
    """A running server's figures and controls where `server.url` names one. Else figures of this machine and of a pool with this
    configuration; `cleanup` then removes what dead runs left. Loads nothing."""
    config = session.config
    if config.action not in MEMORY_ACTIONS:
        raise ConfigError(f"action={config.action}: must be one of {', '.join(MEMORY_ACTIONS)}")
    if config.server.url is not None:
        server = Service.at(config.server.url)
        return MemoryAnswer(config.action, admin_client.ask(server, config.action, size=config.limit), server.url)
    if config.action == "limit":
        raise ConfigError(
            "action=limit: only a running server has a limit to change (server.url=...); a run of your own takes runtime.budget=18GiB"
        )
    if config.action == "cleanup":
        return MemoryAnswer(config.action, maintenance.told(maintenance.remove_stale_files(session.home)))
    pool = session.pool
    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "stats": lambda: status_records.stats(pool, tightest(pool)),
        "pressure": lambda: asdict(tightest(pool).pressure()),
        "models": lambda: {"models": status_records.models(pool, [session.specs[role] for role in config.models.present])},
        "system": lambda: status_records.system(pool),
    }
    return MemoryAnswer(config.action, actions[config.action]())


MEMORY_ACTIONS = ("stats", "pressure", "models", "system", "cleanup", "limit")


def cache(session: Session) -> maintenance.MaintenanceReport:
    """The store of this home: figures, room made down to `store.limit`, or every value compared with its hash."""
    return maintenance.maintain(session.store_path, session.config.action, session.store_limit)


to_json.register(Checkup, asdict)
to_text.register(Checkup, lambda result: [findings_table(result.findings)])


@complaint.register
def _(result: Checkup) -> str:
    topics = ", ".join(finding.topic for finding in result.ill)
    return f"{len(result.ill)} of {len(result.findings)} checks found something to mend: {topics}" if result.ill else ""


to_json.register(MemoryAnswer, lambda result: {"action": result.action, "server": result.server} | result.found)
to_text.register(MemoryAnswer, lambda result: memory_console.tables(result.found, result.server))
to_json.register(maintenance.MaintenanceReport, maintenance.MaintenanceReport.as_json)
to_text.register(maintenance.MaintenanceReport, lambda result: [str(result)])
