"""`/api/v1/memory` and `/api/v1/models`: as docs/server.md lists them."""

from __future__ import annotations

import json
import threading
import time

import pytest

from .conftest import ADMIN, MIB, SPECS, Serve, until

STATS = (
    "total_models total_memory_usage memory_limit memory_pressure system_available system_total "
    "formatted_usage formatted_limit formatted_system_available formatted_system_total"
)
MLLM = SPECS["mllm"].key


def test_stats_have_the_promised_names_and_figures(serve: Serve) -> None:
    served = serve(budget=8 << 30)
    assert served.change("/api/v1/models/mllm/load").status_code == 200
    body = served.get("/api/v1/memory/stats").json()
    assert body["status"] == "success"
    found = body["data"]
    assert set(STATS.split()) <= set(found)
    assert (found["total_models"], found["total_memory_usage"], found["memory_limit"]) == (1, 40 * MIB, 8 << 30)
    assert (found["formatted_limit"], found["formatted_usage"]) == ("8.00 GiB", "40.0 MiB")
    assert found["memory_pressure"] is False


def test_models_tell_state_tier_bytes_leases_and_pins(serve: Serve) -> None:
    served = serve()
    served.change("/api/v1/models/mllm/load")
    served.change("/api/v1/models/encoder/pin")
    rows = {row["role"]: row for row in served.get("/api/v1/memory/models").json()["data"]}
    assert set(rows) == set(SPECS)
    assert (rows["mllm"]["state"], rows["mllm"]["tier"], rows["mllm"]["bytes"], rows["mllm"]["loads"]) == (
        "resident",
        "simulated",
        40 * MIB,
        1,
    )
    assert (rows["encoder"]["state"], rows["encoder"]["pinned"], rows["encoder"]["leases"]) == ("absent", True, 0)


def test_a_model_tells_when_it_was_last_used(serve: Serve) -> None:
    """`idle_seconds` alone is 0 for what is leased now and for what was never used."""
    served, before = serve(), time.time()

    def last_used() -> list[float | None]:
        return [row["last_used"] for row in served.get("/api/v1/memory/models").json()["data"] if row["role"] == "mllm"]

    assert last_used() == [None]
    served.post("/api/v1/query", {"question": "what"}).raise_for_status()
    [first] = last_used()
    assert first is not None and before - 0.1 <= first <= time.time() + 0.1
    with served.pool.lease("mllm"):
        [during] = last_used()
        assert during is not None and during > first
    assert last_used() > [during] and {row.role: row.last_used for row in served.pool.status()}["encoder"] is None


def test_pressure_names_whom_to_drop_in_order(serve: Serve) -> None:
    served = serve(budget=93 * MIB)
    for role in ("joint", "mllm", "encoder"):
        assert served.change(f"/api/v1/models/{role}/load").status_code == 200
    found = served.get("/api/v1/memory/pressure").json()["data"]
    assert (found["pressure"], found["level"]) == (True, "high")
    assert found["recommended"][0] == SPECS["joint"].key


def test_system_and_cache_stats(serve: Serve) -> None:
    served = serve()
    system = served.get("/api/v1/memory/system").json()["data"]
    assert system["ram_total"] > 0 and system["devices"][0]["name"] == "simulated"
    for _ in range(3):
        assert served.post("/api/v1/query", {"question": "what"}).status_code == 200
    served.change("/api/v1/memory/cleanup")
    served.post("/api/v1/query", {"question": "what"})
    for path in ("/api/v1/memory/cache-stats", "/api/v1/query/model-cache-stats"):
        found = served.get(path).json()["data"]
        assert (found["hits"], found["misses"], found["hit_rate"], found["evictions"]) == (2, 2, 0.5, 1)
        assert found["reload_seconds"] >= 0


def test_cleanup_returns_the_bytes_it_says(serve: Serve) -> None:
    served = serve()
    for role in SPECS:
        served.change(f"/api/v1/models/{role}/load")
    before = served.pool.device.allocated()
    one = served.change("/api/v1/memory/cleanup", {"models": ["joint"]}).json()["data"]
    assert one["released_bytes"] == before - served.pool.device.allocated() == 20 * MIB
    assert one["dropped"] == [SPECS["joint"].key]
    before = served.pool.device.allocated()
    down = served.change("/api/v1/memory/cleanup", {"target_bytes": 30 * MIB}).json()["data"]
    assert down["released_bytes"] == before - served.pool.device.allocated() >= 40 * MIB
    assert served.pool.status().used <= 30 * MIB
    served.change("/api/v1/memory/cleanup")
    assert served.pool.device.allocated() == served.pool.device.reserved() == 0


def test_limit_is_changed_live_and_refused_with_the_plan_below_what_is_leased(serve: Serve) -> None:
    served = serve()
    with served.pool.lease("mllm"):
        refused = served.change("/api/v1/memory/limit", params={"limit_gb": 0.01})
        assert refused.status_code == 409
        data = refused.json()["data"]
        assert data["plan"]["needed"] > data["plan"]["budget"] and data["param"] == "limit_gb"
        assert served.pool.budget == 100 * MIB
    accepted = served.change("/api/v1/memory/limit", params={"limit_gb": 0.01})
    assert accepted.status_code == 200
    assert accepted.json()["data"]["memory_limit"] == served.pool.budget == round(0.01 * 2**30)
    assert served.pool.status().used == 0, "what does not fit any more has gone"
    too_large = served.post("/api/v1/query", {"question": "what"})
    assert too_large.status_code == 507
    assert too_large.json()["data"]["plan"]["budget"] == served.pool.budget
    served.change("/api/v1/memory/limit", params={"limit_gb": 1})
    assert served.post("/api/v1/query", {"question": "what"}).status_code == 200, "raised again: it comes back"


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "abc", "1e-12", "1e300", ""])
def test_limits_that_are_none(serve_once: Serve, limit: str) -> None:
    served = serve_once()
    assert served.change("/api/v1/memory/limit", params={"limit_gb": limit}).status_code == 400
    assert served.pool.budget == 100 * MIB


def test_levers_refuse_while_leased(serve: Serve) -> None:
    served = serve()
    with served.pool.lease("mllm"):
        for path in ("/api/v1/models/mllm/evict", f"/api/v1/models/{MLLM}/evict", "/api/v1/models/mllm/reset"):
            answer = served.change(path)
            assert (answer.status_code, answer.json()["data"]["code"]) == (409, "busy")
        assert served.change("/api/v1/memory/cleanup", {"models": ["mllm"]}).status_code == 409
    assert served.change("/api/v1/models/mllm/evict").json()["data"]["released_bytes"] == 40 * MIB


def test_a_pinned_model_stays_until_it_is_unpinned(serve: Serve) -> None:
    served = serve()
    served.change("/api/v1/models/mllm/load")
    assert served.change("/api/v1/models/mllm/pin").json()["data"]["pinned"] is True
    assert served.change("/api/v1/models/mllm/evict").status_code == 409
    assert served.change("/api/v1/memory/cleanup").json()["data"]["dropped"] == []
    assert served.change(f"/api/v1/models/{MLLM}/unpin").json()["data"]["pinned"] is False
    assert served.change("/api/v1/memory/cleanup").json()["data"]["dropped"] == [MLLM]


def test_events_tell_loads_and_evictions_as_they_happen(serve: Serve) -> None:
    served = serve()
    told: list[dict] = []

    def listen() -> None:
        with served.web() as web, web.stream("GET", "/api/v1/memory/events") as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    told.append(json.loads(line[5:]))
                if told and told[-1]["kind"] == "evicted":
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    until(lambda: served.server.broadcast.listeners == 1)
    served.change("/api/v1/models/mllm/load")
    served.change("/api/v1/models/mllm/evict")
    thread.join(10)
    kinds = [event["kind"] for event in told]
    assert [k for k in kinds if k != "asked"] == ["loading", "loaded", "evicting", "evicted"]
    loaded = next(event for event in told if event["kind"] == "loaded")
    assert (loaded["key"], loaded["bytes"], loaded["limit"]) == (MLLM, 40 * MIB, 100 * MIB)
    until(lambda: served.server.broadcast.listeners == 0)


def test_metrics_follow_what_happens(serve: Serve) -> None:
    served = serve()
    served.post("/api/v1/query", {"question": "what"})

    def page() -> str:
        return served.get("/metrics").text.replace("1.048576e+08", str(float(100 * MIB)))

    for line in (
        'fgvr_http_requests_total{method="POST",route="/api/v1/query",status="200"} 1.0',
        f'fgvr_model_resident{{model="{MLLM}",role="mllm"}} 1.0',
        f"fgvr_memory_limit_bytes {float(100 * MIB)}",
        'fgvr_batch_jobs_count{queue="converse"} 1.0',
        "fgvr_lease_wait_seconds_count 1.0",
    ):
        until(lambda line=line: line in page())  # some are counted when the answer is out
    assert served.post("/api/v1/models/mllm/evict", headers=ADMIN).status_code == 200
    until(lambda: 'fgvr_model_evictions_total{role="mllm"} 1.0' in page())
