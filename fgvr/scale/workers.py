"""Hands out calls to workers. A call whose worker dies is made again by another one; the dead one is replaced, on any node with room."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from fgvr.config.configuration import Config
from fgvr.errors import ConfigError, FgvrError, ModelLoadError
from fgvr.scale.worker import Worker, versions

log = logging.getLogger(__name__)

IN_FLIGHT = 2  # calls per worker: the next one is there when one is done
_ATTEMPTS = 5  # deaths that one call may cause before it is taken for their reason


@dataclass(eq=False)
class _Member:
    """A place among the workers; the actor that holds it may change."""

    number: int
    actor: Any
    rows: int = 0
    seconds: float = 0.0
    deaths: int = 0
    last: Mapping[str, Any] = field(default_factory=lambda: {"node": "", "device": "", "model_loads": {}, "peak_device_bytes": 0})
    """Its status when that was last known."""


class Workers:
    """The workers of one command. Threads may call at once."""

    def __init__(self, ray: ModuleType, config: Config) -> None:
        self.ray, self._config = ray, config
        self._patience, self._cpus = float(config.engine.patience), config.engine.cpus
        device = str(config.runtime.device)
        self._gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        if self._gpus and device != "auto":
            self._config = config.derive({"runtime.device": "cuda"})  # a worker sees one of them, its own
        self._lock, self._closed = threading.Lock(), False
        self._slots: queue.Queue[tuple[_Member, Any]] = queue.Queue()
        self._needed: tuple[Sequence[str], Mapping[str, str]] = ((), {})
        self._reviving: list[threading.Thread] = []
        self._pools: list[ThreadPoolExecutor] = []
        self._members = [_Member(number, self._start()) for number in range(self._count())]
        self._began = time.monotonic()

    def __len__(self) -> int:
        return len(self._members)

    def _count(self) -> int:
        """How many there shall be. Raises ConfigError where the cluster has no room for them."""
        cores = int(self.ray.cluster_resources().get("CPU", 0))
        room = min(self._gpus or cores, cores // self._cpus)
        wanted = self._config.engine.workers or max(room, 1)
        if wanted > room:
            has = f"{cores} cores" + (f" and {self._gpus} GPUs" if self._gpus else "")
            raise ConfigError(f"engine.workers={wanted}: this cluster has {has}, room for {room} workers with engine.cpus={self._cpus}")
        return wanted

    def _start(self) -> Any:
        actor = self.ray.remote(Worker).options(num_cpus=self._cpus, num_gpus=1 if self._gpus else 0, max_restarts=0)
        return actor.remote(self._config.to_dict(), os.getcwd())

    # --- before work begins ------------------------------------------------------------------------------------------------------

    def check(self, files: Sequence[str], fingerprints: Mapping[str, str]) -> None:
        """Whether every worker has the versions, the files and the models that this process has. Raises ConfigError, ModelLoadError."""
        self._needed = (files, fingerprints)
        begun = [(member, member.actor.versions.remote()) for member in self._members]  # all at once
        for member, versions_of in begun:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    if not self.ray.wait([versions_of], timeout=self._patience)[0]:
                        seconds = f"engine.patience={self._patience:g} s"
                        raise ConfigError(f"engine=ray: no worker within {seconds}; `ray status` says what it waits for")
                    self._vet(member)
                    break
                except self.ray.exceptions.RayActorError as error:
                    if error.actor_init_failed or not left:
                        said = " ".join(str(error).split())
                        raise ConfigError(
                            f"engine=ray: a worker cannot begin; is fgvr installed on every node? (...{said[-300:]})"
                        ) from error
                member.actor = self._start()  # its node has left meanwhile
                versions_of = member.actor.versions.remote()
        for member in self._members:
            self._open(member)

    def _vet(self, member: _Member) -> None:
        """Raises ConfigError, ModelLoadError, and Ray's errors where the worker dies over it."""
        files, fingerprints = self._needed
        mine, where, actor = versions(), f"engine=ray: worker {member.number}", member.actor
        theirs = self.ray.get(actor.versions.remote())
        if other := [f"{name} {theirs.get(name)} (here {mine[name]})" for name in mine if theirs.get(name) != mine[name]]:
            raise ConfigError(f"{where} has other versions: {', '.join(other)}; install the same on every node")
        if absent := self.ray.get(actor.missing.remote(list(files))):
            raise ConfigError(f"{where} does not see {', '.join(absent[:3])}; every node needs the images at the same path")
        try:
            known = self.ray.get(actor.fingerprints.remote(list(fingerprints)))
        except self.ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, FgvrError):
                raise
            raise type(error.cause)(f"{where}: {error.cause}") from error
        if changed := [role for role, value in fingerprints.items() if known[role] != value]:
            raise ModelLoadError(f"{where} has other model files for {', '.join(changed)}; copy them, or run fgvr fetch, on every node")

    def _open(self, member: _Member) -> None:
        for _ in range(IN_FLIGHT):
            self._slots.put((member, member.actor))

    # --- work --------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        """As many as there may be calls in flight. What is not begun when the block ends never begins."""
        pool = ThreadPoolExecutor(len(self) * IN_FLIGHT, thread_name_prefix="fgvr-ray")
        self._pools.append(pool)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def call(self, method: str, *arguments: Any, rows: Callable[[Any], int] = lambda found: 0) -> Any:
        """What a worker answers. Raises what it raised. Args: rows: how many rows an answer counts for."""
        for _ in range(_ATTEMPTS):
            member, actor = self._slot()
            began = time.monotonic()
            try:
                found = self.ray.get(getattr(actor, method).remote(*arguments))
            except self.ray.exceptions.RayTaskError as error:
                self._slots.put((member, actor))
                raise (error.cause if isinstance(error.cause, FgvrError) else error) from None
            except self.ray.exceptions.RayError:  # it died, or its node did with the answer
                self._replace(member, actor)
                continue
            with self._lock:
                member.rows += rows(found)
                member.seconds += time.monotonic() - began
            self._slots.put((member, actor))
            return found
        raise FgvrError(
            f"engine=ray: {_ATTEMPTS} workers died over the same piece of work, perhaps for lack of memory; finished work is kept"
        )

    def _slot(self) -> tuple[_Member, Any]:
        """A worker with a free hand."""
        lost = time.monotonic()
        while not self._closed:
            try:
                member, actor = self._slots.get(timeout=1.0)
            except queue.Empty:
                if any(member.actor is not None for member in self._members):
                    lost = time.monotonic()
                elif time.monotonic() - lost > self._patience:
                    break
                continue
            if member.actor is actor:  # else it died while it had a free hand
                return member, actor
        raise FgvrError(
            f"engine=ray: no worker is left, and none came within {self._patience:g} s; the same command goes on where this one ends"
        )

    def _replace(self, member: _Member, actor: Any) -> None:
        with self._lock:
            if member.actor is not actor or self._closed:
                return
            member.actor, member.deaths = None, member.deaths + 1
        log.warning("worker %d has died; its work is done again, and another one is started where there is room", member.number)
        thread = threading.Thread(target=self._revive, args=(member, actor), name=f"fgvr-worker-{member.number}", daemon=True)
        self._reviving.append(thread)
        thread.start()

    def _revive(self, member: _Member, former: Any) -> None:
        """Waits for as long as it takes: a node may come back."""
        self.ray.kill(former)  # it may be away only, and must not come back
        failures = 0
        while not self._closed:
            actor = self._start()
            begun = actor.versions.remote()
            while not self._closed and not self.ray.wait([begun], timeout=1.0)[0]:
                pass
            if self._closed:
                return
            try:
                self._vet(replace(member, actor=actor))
            except FgvrError as error:
                log.error("%s; it gets no work", error)  # a node that came later
                break
            except self.ray.exceptions.RayError as error:  # it died, too
                failures += 1
                log.warning("worker %d could not begin again: %s", member.number, " ".join(str(error).split())[-200:])
                if failures == _ATTEMPTS:
                    break
                continue
            member.actor = actor
            self._open(member)
            return

    # --- afterwards --------------------------------------------------------------------------------------------------------------

    def figures(self) -> list[dict[str, Any]]:
        """What each has done and holds. One that is gone counts with what was last known of it."""
        for member in self._members:
            if member.actor is not None:
                try:
                    member.last = self.ray.get(member.actor.status.remote(), timeout=self._patience)
                except self.ray.exceptions.RayError:
                    continue
        return [
            {
                "worker": m.number,
                "rows": m.rows,
                "rows_per_second": round(m.rows / (m.seconds / IN_FLIGHT), 2) if m.seconds else 0.0,
                "deaths": m.deaths,
                **m.last,
            }
            for m in self._members
        ]

    def pace(self) -> str:
        """Rows per second since the beginning, by worker."""
        seconds = time.monotonic() - self._began
        return ", ".join(f"worker {m.number}: {m.rows:,} ({m.rows / seconds:.1f}/s)" for m in self._members)

    def close(self) -> None:
        """Ends the workers, then waits for the threads that may ask Ray something: after its end that would end this process."""
        self._closed = True
        for member in self._members:
            if member.actor is not None:
                self.ray.kill(member.actor)
        for thread in self._reviving:
            thread.join()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
