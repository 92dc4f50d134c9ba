"""Watches one pool: samples memory, judges pressure, raises alerts, cleans up, and lets runs record what happened.

One daemon thread per pool, begun by the first event and ended with the pool. It sleeps `check_interval` seconds, or until something
happens. The pool only ever puts an event into its queue: it never waits for a measurement, a sink or a file.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgvr.errors import RuntimeConflict
from fgvr.runtime import machine
from fgvr.runtime.alerts import Alert, Alerts, log_alert
from fgvr.runtime.background import Background
from fgvr.runtime.events import Event
from fgvr.runtime.machine import Host, ProcessMemory
from fgvr.runtime.policy import choose
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pressure import LEVELS, Level, MonitorSettings, Pressure, idle_models, pressure
from fgvr.runtime.status import PoolStatus
from fgvr.runtime.timeline import MemorySample, Recorder, Start
from fgvr.utils.text import format_bytes

log = logging.getLogger(__name__)

SLACK = 0.05  # of the ledger: what a resting process may hold beyond it before its allocator is asked to give it back,
SLACK_LEAST = 24 << 20  # but at least these bytes: with tiny models every look would be a page fault per page of their next batch
DRIFT = 0.03  # of the ledger's weights: a device that counts tensors and holds so much more or less is worth an alert,
DRIFT_LEAST = 16 << 20  # but at least these bytes: libraries' own small blocks on a device are no drift
_FREQUENT = ("lease", "return")  # too many to measure after each
_COMING = ("loaded", "restored")
_GOING = ("evicted", "parked", "failed")
_MOVING = ("loading", "evicting")
_PARTS = 50
_STILL = 1.0  # seconds for which a figure stands where nothing has happened; the kernel walks all pages for it


class Monitor:
    """`watch(pool)` makes it, one per pool. `prepare(role)` is called before the first load of a role: libraries, tokenizers."""

    def __init__(
        self,
        pool: ModelPool,
        settings: MonitorSettings | None = None,
        *,
        alerts: Alerts | None = None,
        host: Callable[[], Host] = machine.host,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
        thread: bool = True,
    ) -> None:
        self.settings = settings or MonitorSettings()
        self.alerts = alerts or Alerts([log_alert])
        self.prepare: Callable[[str], None] = lambda role: None
        self._host, self._clock, self._spent = host, clock, spent
        self._thread = background = Background(self._round, "fgvr-monitor") if thread else None
        self._working = threading.RLock()  # one step, or one sample, at a time
        self._queue: deque[Event] = deque()
        self._recorders: list[Recorder] = []
        self._storages: dict[str, int] = {}  # key -> bytes under its tensors, as counted when it came
        self._prepared: set[str] = set()
        self._base_uss: int | None = None
        self._allocated_when_empty: int | None = None  # allocated on the device while nothing was loaded
        self._level: Level = "ok"
        self._low = ""
        self._sampled = self._cleaned = clock()
        self._process: ProcessMemory | None = None  # as last measured
        self._cost = 0.0  # seconds it took
        # The pool owns its listeners: from here nothing may lead to it, or neither would ever go.
        self._pool = weakref.ref(pool, lambda _: background.stop() if background else None)
        pool.subscribe(self.hear)

    def close(self) -> None:
        """The thread ends after the step it is in."""
        if self._thread:
            self._thread.stop()

    def configure(self, runtime: Mapping[str, Any], *, prepare: Callable[[str], None]) -> None:
        """Watch with these values of `configs/runtime/` from now on; sinks that were added by hand stay. Raises ConfigError."""
        settings = MonitorSettings.of(runtime, cleanup_seconds=self._living().device.cleanup_seconds)
        self.alerts.configure(**{key: value for key, value in runtime["alerts"].items() if key != "lease_seconds"})
        self.settings, self.prepare = settings, prepare

    # --- what others ask ---------------------------------------------------------------------------------------------------

    def pressure(self) -> Pressure:
        """How it stands now."""
        pool = self._living()
        with self._working:
            return self._pressure(pool, pool.status(), self._host())

    def sample(self, reason: str = "asked") -> MemorySample:
        """Measure now; recorders get it, too."""
        pool = self._living()
        with self._working:
            return self._sample(pool, reason)

    @contextmanager
    def record(self, path: str | Path) -> Iterator[Recorder]:
        """Inside, what happens is written to `path`."""
        recorder = Recorder(path, Start.of(self._living()), monotonic=self._clock())
        try:
            with self._working:
                quiet = not self._take_events()  # what happened before is not this recorder's
                self._recorders.append(recorder)
                just_seen = quiet and self._clock() - self._sampled < _STILL  # the job of a sweep before this one has ended with a sample
                self._sample(self._living(), "start", measured=self._process if just_seen else None)
            yield recorder
        finally:
            with self._working:
                if (pool := self._pool()) is not None:
                    self._sample(pool, "end")
                self._recorders = [other for other in self._recorders if other is not recorder]
            recorder.close(self._clock())

    def step(self) -> None:
        """Take note of what has happened; sample, alert and clean up where that is due. The thread's work; others may do it as well."""
        pool = self._pool()
        if pool is None:
            return
        with self._working:
            since = self._clock() - self._sampled
            frequent = all(event.kind in _FREQUENT for event in tuple(self._queue))
            events = [] if frequent and since < self._gap else self._take_events()
            if events or since >= self.settings.check_interval:
                telling = [event.kind for event in events if event.kind not in _FREQUENT] or [event.kind for event in events]
                self._check(pool, self._sample(pool, telling[-1] if telling else "interval"))

    # --- hearing -----------------------------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        """In the pool's threads. Quick, but for the first load of a role: libraries and tokenizers come here instead of a moment later."""
        self._queue.append(event)
        if self._thread and (event.kind not in _FREQUENT or len(self._queue) == 1):  # later leases wait with the first: no wake-up each
            self._thread.start()
        if event.kind == "loading":
            if event.role not in self._prepared:
                self._measure_base(event.role)
            elif event.used == event.bytes:  # nothing else is there, and this one not yet: all that the process holds is its base
                self._measure_base_anew()

    def _measure_base(self, role: str) -> None:
        """Keep the base: USS before the first load, plus what libraries and tokenizers have added since."""
        self._prepared.add(role)
        before = machine.memory_of().uss
        try:
            self.prepare(role)
        except Exception as error:  # the load will meet it, too, and says it with the cure
            log.debug("%s could not be prepared: %s", role, error)
        after = machine.memory_of().uss
        if before is not None and after is not None:
            self._base_uss = after if self._base_uss is None else self._base_uss + max(0, after - before)

    def _measure_base_anew(self) -> None:
        """A process grows for other reasons than models (pictures, results, what libraries make when first used)."""
        pool = self._pool()
        if pool is not None and not pool.device.exact:
            pool.device.empty_cache()
            self._base_uss = machine.memory_of().uss or self._base_uss

    def _round(self) -> float:
        """A step; seconds until there is something to do without any event."""
        self.step()
        due = min(self.settings.check_interval, self._gap) if self._queue else self.settings.check_interval
        return max(0.05, self._sampled + due - self._clock())

    @property
    def _gap(self) -> float:
        """Seconds between samples after frequent events: watching may take one part in `_PARTS` of the time, however large the process."""
        return max(self.settings.sample_gap, _PARTS * self._cost)

    def _take_events(self) -> list[Event]:
        events = [self._queue.popleft() for _ in range(len(self._queue))]
        for event in events:
            if event.kind in _COMING:
                self._storages[event.key] = event.bytes
            elif event.kind in _GOING:
                self._storages.pop(event.key, None)
            for recorder in self._recorders:
                recorder.event(event)
            if event.kind in ("failed", "oom"):
                self._tell(Alert("load_failed" if event.kind == "failed" else "out_of_memory", event.key, event.text, event.when))
            elif event.kind == "alert":  # an estimate that was wrong; all else is memory that stayed
                kind = "drift" if event.text.startswith("measured") else "not_returned"
                self._tell(Alert(kind, event.key, f"{event.key} {event.text}", event.when))
        return events

    # --- measuring ---------------------------------------------------------------------------------------------------------

    def _sample(self, pool: ModelPool, reason: str, *, measured: ProcessMemory | None = None) -> MemorySample:
        self._take_events()  # what is written before the sample is what the sample has seen
        before = pool.status()
        began = self._spent()
        process = self._process = measured or self._measured(pool, before)
        if measured is None:
            self._cost = self._spent() - began
        host, now = self._host(), self._clock()
        allocated = reserved = process.uss if process.uss is not None else process.rss
        if pool.device.exact:  # else it is the process itself, and the kernel would walk all its pages again
            allocated, reserved = pool.device.allocated(), pool.device.reserved()
        after = pool.status()
        moving = any(m.state in _MOVING for status in (before, after) for m in status) or _residents(before) != _residents(after)
        weights = {m.key: m.bytes for m in after if m.placed}
        sample = MemorySample(
            t=now,
            when=round(time.time(), 6),
            reason=reason,
            limit=after.budget,
            ledger=after.used,
            weights=weights,
            work=after.used - sum(weights.values()),
            storage_bytes=sum(self._storages.values()),
            uss=process.uss,
            rss=process.rss,
            base_uss=self._base_uss,
            device_allocated=allocated,
            device_reserved=reserved,
            host_free=host.free,
            host_total=host.total,
            settled=not any(m.leases for s in (before, after) for m in s) and not moving and before.used == after.used,
            moving=moving,
        )
        self._sampled = now
        for recorder in self._recorders:
            recorder.sample(sample)
        return sample

    def _measured(self, pool: ModelPool, status: PoolStatus) -> ProcessMemory:
        """Of this process. At rest, blocks that were freed and that the C library keeps go back first when they are worth it.

        After a batch on the CPU that may be as much as the weights (measured: 440 MiB beside 480), and the ledger knows nothing of it.
        """
        process = machine.memory_of()
        resting = not pool.device.exact and not any(m.leases or m.state in _MOVING for m in status)
        if resting and process.uss is not None and self._base_uss is not None:
            kept = process.uss - self._base_uss - status.used
            if kept > max(SLACK * status.used, SLACK_LEAST):
                pool.device.empty_cache()
                process = machine.memory_of()
        return process

    # --- judging -----------------------------------------------------------------------------------------------------------

    def _check(self, pool: ModelPool, sample: MemorySample) -> None:
        status, now = pool.status(), self._clock()
        found = self._pressure(pool, status, Host(sample.host_total, sample.host_free, sample.host_total, 0, 0))
        self._level_changed(found)
        self._low = found.host_low
        for lease, since in pool.held():
            if now - since > self.settings.lease_seconds:
                held = f"{lease} for {now - since:.0f} s (runtime.alerts.lease_seconds={self.settings.lease_seconds:g})"
                self._tell(Alert("old_lease", lease, held))
        if pool.device.exact and sample.settled:
            self._check_drift(sample)
        if self.settings.auto_cleanup and (found.level == "critical" or found.host_low):
            self._drop(pool, found.recommended, self.settings.cleanup_idle, found.host_low or f"{found.share:.0%} of the budget in use")
        every = self.settings.cleanup_interval
        if every and now - self._cleaned >= every:
            self._cleaned = now
            unused = choose(pool.settings.policy, idle_models(status.models), status.used)
            self._drop(pool, unused, every, f"unused for {every:g} s")
            pool.device.empty_cache()

    def _check_drift(self, sample: MemorySample) -> None:
        """Alerts when a device that counts tensors, and rests, holds something else than the ledger says."""
        if not sample.weights:
            self._allocated_when_empty = sample.device_allocated
        elif self._allocated_when_empty is not None:
            beyond, weights = sample.device_allocated - self._allocated_when_empty - sample.weights_bytes, sample.weights_bytes
            if abs(beyond) > max(DRIFT * weights, DRIFT_LEAST):
                figures = f"{format_bytes(abs(beyond))} {'more' if beyond > 0 else 'less'} than the {format_bytes(weights)}"
                self._tell(Alert("drift", "device", f"the device holds {figures} on the ledger", sample.when))

    def _pressure(self, pool: ModelPool, status: PoolStatus, host: Host) -> Pressure:
        low = self.settings.host_low.why_low(host, before=bool(self._low))
        allocated = pool.device.allocated() if pool.device.exact else 0
        return pressure(status, pool.settings.policy, self.settings.watermarks, host_low=low, before=self._level, allocated=allocated)

    def _level_changed(self, found: Pressure) -> None:
        names = ", ".join(found.recommended) or "nothing idle"
        rising = LEVELS.index(found.level) > LEVELS.index(self._level)
        self._level = found.level
        if rising:
            amount = f"{format_bytes(found.used)} of {format_bytes(found.limit)}"
            self._tell(Alert("watermark", found.level, f"{amount} in use, {found.share:.0%}; would drop: {names}"))
        if found.host_low:
            self._tell(Alert("host_low", "host", f"{found.host_low}; would drop: {names}"))
        elif self._low:
            self.alerts.over("host_low", "host")

    def _drop(self, pool: ModelPool, keys: tuple[str, ...], least: float, why: str) -> None:
        """Evict of `keys` what nobody has used for `least` seconds."""
        rested = {m.key for m in idle_models(pool.status().models, least=least)}
        for key in keys:
            if key in rested:
                try:
                    released = pool.evict(key)
                except RuntimeConflict as busy:  # leased since we looked
                    log.debug("clean-up leaves %s: %s", key, busy)
                else:
                    log.info("clean-up (%s): dropped %s, %s came back", why, key, format_bytes(released))

    def _tell(self, alert: Alert) -> None:
        if self.alerts.tell(alert):
            for recorder in self._recorders:
                recorder.alert(alert, self._clock())

    def _living(self) -> ModelPool:
        pool = self._pool()
        if pool is None:
            raise RuntimeConflict("the pool that was watched is gone")
        return pool


_monitors: weakref.WeakKeyDictionary[ModelPool, Monitor] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def watch(pool: ModelPool) -> Monitor:
    """The monitor of a pool of one device; made when first asked for. Of several devices each member has its own."""
    with _making:
        return _monitors.get(pool) or _monitors.setdefault(pool, Monitor(pool))


def tightest(pool: ModelPool) -> Monitor:
    """The monitor of the device that has least to spare; of one device its own."""
    return max(map(watch, pool.members), key=lambda monitor: monitor.pressure().share)


def _residents(status: PoolStatus) -> set[str]:
    return {m.key for m in status if m.here}
