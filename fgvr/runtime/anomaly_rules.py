"""What in a pool's events and samples is worth an alert: leases never given back, memory that did not come back, drift.

Models that are evicted and loaded again too fast are an alert of the scraped metrics (`docs/ops/alerts.yml`).

Only bookkeeping over what it is told; one caller at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.runtime.timeline import Sample
from fgvr.utils.text import format_bytes

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
        self._base: int | None = None  # allocated on the device while nothing was loaded

    def hear(self, event: Event) -> Iterator[Alert]:
        """Take note of one event."""
        match event.kind:
            case "lease":
                self._open.append(OpenLease(event.thread, event.models, event.work, event.monotonic))
            case "return":
                self._close(event)
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
        since = event.monotonic - event.seconds
        same = [o for o in self._open if (o.thread, o.models, o.work) == (event.thread, event.models, event.work)]
        if same:  # none when the lease began before we listened
            self._open.remove(min(same, key=lambda o: abs(o.since - since)))
