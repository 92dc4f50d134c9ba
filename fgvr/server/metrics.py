"""Figures for Prometheus, named by its conventions. What the pool knows is read when it is asked for; the rest is counted as it happens."""

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fgvr.runtime import machine
from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import WAS_PARKED, Event
from fgvr.runtime.pool import ModelPool

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_JOBS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = CollectorRegistry()
        self._pool = pool
        counter, timer = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry, buckets=_SECONDS)
        self.requests = counter("fgvr_http_requests", "Answers by route and status", ("method", "route", "status"))
        self.duration = timer("fgvr_http_request_duration_seconds", "From the request's head to the answer's end", ("route",))
        self.refused = counter("fgvr_requests_refused", "Refused or given up: busy, deadline, left", ("reason",))
        self._batch_jobs = Histogram("fgvr_batch_jobs", "Requests computed together", ("queue",), registry=self.registry, buckets=_JOBS)
        self._batch_seconds = timer("fgvr_batch_duration_seconds", "Of one batch, lease included", ("queue",))
        self._tokens = counter("fgvr_tokens", "Of the MLLM", ("kind",))
        self._lease_wait = timer("fgvr_lease_wait_seconds", "From asking for models to having them")
        self._load_seconds = timer("fgvr_model_load_seconds", "Bringing a model in", ("role", "tier"))
        self._evictions = counter("fgvr_model_evictions", "Models that left the device", ("role",))
        self._oom = counter("fgvr_out_of_memory", "Times memory ran out in a load or in use", ("role",))
        self._alerts = counter("fgvr_alerts", "Alerts of the memory monitor", ("kind",))
        Gauge("fgvr_up", "1 while the server runs", registry=self.registry).set(1)
        self._lock = threading.Lock()
        self._evicted, self._missed, self._reloading, self._seen = 0, 0, 0.0, set[str]()
        ProcessCollector(registry=self.registry)

    def watch_requests(self, inflight: Callable[[], int], queued: Callable[[], Mapping[str, int]]) -> None:
        """Args: inflight: requests that have a slot; queued: jobs that wait, by queue."""
        self.registry.register(_PoolCollector(self._pool, inflight, queued))  # type: ignore[arg-type]

    def page(self) -> bytes:
        return generate_latest(self.registry)

    # --- listeners -------------------------------------------------------------------------------------------------------

    def on_batch(self, queue: str, jobs: int, seconds: float) -> None:
        self._batch_jobs.labels(queue).observe(jobs)
        self._batch_seconds.labels(queue).observe(seconds)

    def on_tokens(self, prompt: int, new: int) -> None:
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("new").inc(new)

    def on_event(self, event: Event) -> None:
        """Of the pool."""
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

    def on_alert(self, alert: Alert) -> None:
        self._alerts.labels(alert.kind).inc()

    def cache_stats(self) -> dict[str, float]:
        """The pool as a cache of models. A hit is a lease of a model that was there."""
        hits = sum(m.hits for m in self._pool.status())
        with self._lock:
            rate = round(hits / (hits + self._missed), 6) if hits + self._missed else 0.0
            found = {"hits": hits, "misses": self._missed, "hit_rate": rate, "evictions": self._evicted}
            return found | {"reload_seconds": round(self._reloading, 6)}


class _PoolCollector:
    """What the pool, the queues and the machine say at this moment."""

    def __init__(self, pool: ModelPool, inflight: Callable[[], int], queued: Callable[[], Mapping[str, int]]) -> None:
        self._pool, self._inflight, self._queued = pool, inflight, queued

    def collect(self) -> Iterable[Metric]:
        status, host = self._pool.status(), machine.host()
        for name, text, value in (
            ("fgvr_memory_limit_bytes", "The budget", status.budget),
            ("fgvr_memory_used_bytes", "Weights, working memory of leases and reserve, by the ledger", status.used),
            ("fgvr_memory_peak_bytes", "The most that was in use", status.peak),
            ("fgvr_host_memory_free_bytes", "Of main memory, or of the control group", host.free),
            ("fgvr_host_memory_total_bytes", "Of main memory, or of the control group", host.total),
            ("fgvr_requests_in_flight", "Requests that have a slot", self._inflight()),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        of_device = GaugeMetricFamily("fgvr_device_memory_used_bytes", "By the ledger of each device", labels=("device",))
        for one in status.devices or (status,):
            of_device.add_metric((one.device,), float(one.used))
        yield of_device
        waiting = GaugeMetricFamily("fgvr_queue_jobs", "Waiting for a batch", labels=("queue",))
        for queue, count in self._queued().items():
            waiting.add_metric((queue,), float(count))
        yield waiting
        for family, name, text, values in (
            (GaugeMetricFamily, "fgvr_model_resident", "1 = on the device", [m.here for m in status]),
            (GaugeMetricFamily, "fgvr_model_bytes", "Weights, measured or estimated", [m.bytes for m in status]),
            (GaugeMetricFamily, "fgvr_model_leases", "Now", [m.leases for m in status]),
            (GaugeMetricFamily, "fgvr_model_pinned", "1 = never evicted", [m.pinned for m in status]),
            (GaugeMetricFamily, "fgvr_model_idle_seconds", "Since its last use", [m.idle_seconds for m in status]),
            (CounterMetricFamily, "fgvr_model_hits", "Leases of a model that was there", [m.hits for m in status]),
            (CounterMetricFamily, "fgvr_model_loads", "Loads from disk", [m.loads for m in status]),
        ):
            metric = family(name, text, labels=("model", "role"))
            for model, value in zip(status, values, strict=True):
                metric.add_metric((model.key, model.role), float(value))
            yield metric
