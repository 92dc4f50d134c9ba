"""What in a pool's events and samples is worth an alert: thrash, leases never given back, memory that did not come back, drift.

Only bookkeeping over what it is told; one caller at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.runtime.timeline import Sample
from fgvr.utils.text import format_bytes

THRASH = 2.0  # evicted before it had been unused for so many times its own load time, and wanted back
THRASH_LEAST = 0.1  # seconds; a load nobody notices is no thrash
DRIFT = 0.03  # of the ledger's weights
DRIFT_LEAST = 16 << 20  # bytes; libraries' own small blocks on a device are no drift


@dataclass(frozen=True, slots=True)
class OpenLease:
    """Borrowed and not yet given back."""

    thread: str
    models: tuple[str, ...]
    work: int
    since: float


class AnomalyRules:
    """Remembers what alerts need to know of the past."""

    def __init__(self) -> None:
        self._open: list[OpenLease] = []
        self._seconds: dict[str, float] = {}  # key -> how long bringing it in took the last time
        self._returned: dict[str, float] = {}  # key -> when it was last in use
        self._rested: dict[str, float] = {}  # evicted key -> how long it had been unused
        self._base: int | None = None  # allocated on the device while nothing was loaded

    def hear(self, event: Event) -> Iterator[Alert]:
        """Take note of one event."""
        match event.kind:
            case "lease":
                self._open.append(OpenLease(event.thread, event.models, event.work, event.monotonic))
            case "return":
                self._close(event)
            case "loaded" | "restored":
                self._seconds[event.key] = event.seconds
                self._returned[event.key] = event.monotonic
            case "evicting":
                self._rested[event.key] = event.monotonic - self._returned.get(event.key, event.monotonic)
            case "loading":
                yield from self._thrash(event)
            case "failed":
                yield Alert("load_failed", event.key, event.text, event.when)
            case "oom":
                yield Alert("out_of_memory", event.key, event.text, event.when)
            case "alert":
                drift = event.text.startswith("measured")  # an estimate that was wrong; all else is memory that stayed
                yield Alert("drift" if drift else "not_returned", event.key, f"{event.key} {event.text}", event.when)

    def old_leases(self, now: float, seconds: float) -> Iterator[Alert]:
        """Leases held longer than `seconds`."""
        for lease in self._open:
            if now - lease.since > seconds:
                models = ", ".join(lease.models)
                text = f"{lease.thread} has held {models} for {now - lease.since:.0f} s (runtime.alerts.lease_seconds={seconds:g})"
                yield Alert("old_lease", f"{lease.thread} {models}", text)

    def drift(self, sample: Sample) -> Iterator[Alert]:
        """Whether a device that counts tensors holds something else than the ledger says. For settled samples of such a device."""
        if self._base is None or not sample.weights:
            self._base = sample.device_allocated if not sample.weights else self._base
            return
        beyond = sample.device_allocated - self._base - sample.weights_bytes
        if abs(beyond) > max(DRIFT * sample.weights_bytes, DRIFT_LEAST):
            direction = "more" if beyond > 0 else "less"
            text = f"the device holds {format_bytes(abs(beyond))} {direction} than the {format_bytes(sample.weights_bytes)} on the ledger"
            yield Alert("drift", "device", text, sample.when)

    def _close(self, event: Event) -> None:
        for key in event.models:
            self._returned[key] = event.monotonic
        since = event.monotonic - event.seconds
        same = [o for o in self._open if (o.thread, o.models, o.work) == (event.thread, event.models, event.work)]
        if same:  # none when the lease began before we listened
            self._open.remove(min(same, key=lambda o: abs(o.since - since)))

    def _thrash(self, event: Event) -> Iterator[Alert]:
        rested, seconds = self._rested.pop(event.key, None), self._seconds.get(event.key)
        if rested is not None and seconds is not None and seconds >= THRASH_LEAST and rested < THRASH * seconds:
            yield Alert(
                "thrash",
                event.key,
                f"{event.key} was evicted {rested:.1f} s after its last use and is loaded again, which took {seconds:.1f} s: "
                f"the budget of {format_bytes(event.limit)} is small for models that take turns so fast",
                event.when,
            )
