"""Figures for Prometheus, named by its conventions. What the pool knows is read when it is asked for; the rest is counted as it happens."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from fgvr.runtime import machine
from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import WAS_PARKED, Event
from fgvr.runtime.pool import ModelPool

if TYPE_CHECKING:
    from fgvr.server.engine import InferenceEngine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_JOBS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """`memory/cache-stats`: the pool as a cache of models. A hit is a lease of a model that was there."""

    hits: int
    misses: int
    hit_rate: float
    evictions: int
    reload_seconds: float


class Metrics:
    """One server's."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = registry = CollectorRegistry()
        self._pool = pool
        self.requests = Counter("fgvr_http_requests", "Answers by route and status", ("method", "route", "status"), registry=registry)
        self.duration = Histogram(
            "fgvr_http_request_duration_seconds",
            "From the request's head to the answer's end",
            ("route",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.refused = Counter("fgvr_requests_refused", "Refused or given up: busy, deadline, left", ("reason",), registry=registry)
        self._batch_jobs = Histogram("fgvr_batch_jobs", "Requests computed together", ("lane",), registry=registry, buckets=_JOBS)
        self._batch_seconds = Histogram(
            "fgvr_batch_duration_seconds", "Of one batch, lease included", ("lane",), registry=registry, buckets=_SECONDS
        )
        self._tokens = Counter("fgvr_tokens", "Of the MLLM", ("kind",), registry=registry)
        self._lease_wait = Histogram(
            "fgvr_lease_wait_seconds", "From asking for models to having them", registry=registry, buckets=_SECONDS
        )
        self._load_seconds = Histogram(
            "fgvr_model_load_seconds", "Bringing a model in", ("role", "tier"), registry=registry, buckets=_SECONDS
        )
        self._evictions = Counter("fgvr_model_evictions", "Models that left the device", ("role",), registry=registry)
        self._oom = Counter("fgvr_out_of_memory", "Times memory ran out in a load or in use", ("role",), registry=registry)
        self._alerts = Counter("fgvr_alerts", "Alerts of the memory monitor", ("kind",), registry=registry)
        Gauge("fgvr_up", "1 while the server runs", registry=registry).set(1)
        self._lock = threading.Lock()
        self._evicted, self._missed, self._reloading, self._seen = 0, 0, 0.0, set[str]()
        ProcessCollector(registry=registry)

    def attach(self, engine: InferenceEngine) -> None:
        self.registry.register(_PoolCollector(self._pool, engine))  # type: ignore[arg-type]

    def page(self) -> bytes:
        return generate_latest(self.registry)

    # --- told ------------------------------------------------------------------------------------------------------------

    def batch_done(self, queue: str, jobs: int, seconds: float) -> None:
        self._batch_jobs.labels(queue).observe(jobs)
        self._batch_seconds.labels(queue).observe(seconds)

    def tokens(self, prompt: int, new: int) -> None:
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("new").inc(new)

    def hear(self, event: Event) -> None:
        """A listener of the pool."""
        match event.kind:
            case "lease":
                self._lease_wait.observe(event.seconds)
            case "loaded" | "restored":
                self._load_seconds.labels(event.role, "disk" if event.kind == "loaded" else "host").observe(event.seconds)
                with self._lock:
                    self._missed += 1
                    self._reloading += event.seconds if event.key in self._seen else 0.0
                    self._seen.add(event.key)
            case "evicted" | "parked" if event.text != WAS_PARKED:
                self._evictions.labels(event.role).inc()
                with self._lock:
                    self._evicted += 1
            case "oom":
                self._oom.labels(event.role).inc()

    def alert(self, alert: Alert) -> None:
        """A sink of the monitor's alerts."""
        self._alerts.labels(alert.kind).inc()

    def cache_stats(self) -> CacheStats:
        hits = sum(m.hits for m in self._pool.status())
        with self._lock:
            asked = hits + self._missed
            return CacheStats(hits, self._missed, round(hits / asked, 6) if asked else 0.0, self._evicted, round(self._reloading, 6))


class _PoolCollector:
    """What the pool, its queues and the machine say at this moment."""

    def __init__(self, pool: ModelPool, engine: InferenceEngine) -> None:
        self._pool, self._engine = pool, engine

    def collect(self) -> Iterable[Any]:
        status, host = self._pool.status(), machine.host()
        yield _gauge("fgvr_memory_limit_bytes", "The budget", status.budget)
        yield _gauge("fgvr_memory_used_bytes", "Weights, working memory of leases and reserve, by the ledger", status.used)
        yield _gauge("fgvr_memory_peak_bytes", "The most that was in use", status.peak)
        yield _gauge("fgvr_host_memory_free_bytes", "Of main memory, or of the control group", host.free)
        yield _gauge("fgvr_host_memory_total_bytes", "Of main memory, or of the control group", host.total)
        yield _gauge("fgvr_requests_in_flight", "Requests that have a place", self._engine.inflight)
        queues = {name: float(queue.queued) for name, queue in self._engine.queues.items()}
        yield _labelled("fgvr_queue_jobs", "Waiting for a batch", "lane", queues)
        names = [(m.key, m.role) for m in status]
        for name, text, values in (
            ("fgvr_model_resident", "1 = on the device", [m.here for m in status]),
            ("fgvr_model_bytes", "Weights, measured or estimated", [m.bytes for m in status]),
            ("fgvr_model_leases", "Now", [m.leases for m in status]),
            ("fgvr_model_pinned", "1 = never evicted", [m.pinned for m in status]),
            ("fgvr_model_idle_seconds", "Since its last use", [m.idle_seconds for m in status]),
        ):
            family = GaugeMetricFamily(name, text, labels=("model", "role"))
            for labels, value in zip(names, values, strict=True):
                family.add_metric(labels, float(value))
            yield family
        for name, text, counts in (
            ("fgvr_model_hits", "Leases of a model that was there", [m.hits for m in status]),
            ("fgvr_model_loads", "Loads from disk", [m.loads for m in status]),
        ):
            counter = CounterMetricFamily(name, text, labels=("model", "role"))
            for labels, value in zip(names, counts, strict=True):
                counter.add_metric(labels, float(value))
            yield counter


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
