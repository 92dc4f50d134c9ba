"""Watching a pool: samples, watermarks, alerts, clean-up. Real pools of fakes on a simulated device; the clock is turned by hand."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import fgvr
from fgvr.errors import ConfigError
from fgvr.runtime import machine
from fgvr.runtime.alerts import Alert, Alerts, Webhook
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.mlx import MlxDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.machine import Host, ProcessMemory
from fgvr.runtime.monitor import Monitor, watch
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pressure import HostMarks, MonitorSettings, Watermarks, pressure
from fgvr.runtime.timeline import read
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, JOINT, MIB, MLLM, PoolMaker
from .helpers import Inside

ROOMY = Host(total=16 << 30, free=12 << 30, physical=16 << 30, swap_total=0, swap_used=0)
FULL = Host(total=16 << 30, free=1 << 30, physical=16 << 30, swap_total=0, swap_used=0)


class Clock:
    def __init__(self) -> None:
        self.now = int(time.monotonic() * 1024) / 1024  # exact sums: else adding 60 may give less than 60 where a power of two is crossed

    def __call__(self) -> float:
        return self.now


class Watched:
    """A pool with a monitor that works when it is told to, and what it has told."""

    def __init__(self, pool: ModelPool, settings: MonitorSettings | None = None) -> None:
        self.clock, self.host, self.told = Clock(), ROOMY, list[Alert]()
        self.spent = 0.0  # processor seconds that measuring takes
        self.pool = pool
        alerts = Alerts([self.told.append], clock=self.clock)
        self.monitor = Monitor(
            pool, settings, alerts=alerts, host=lambda: self.host, clock=self.clock, spent=lambda: self.spent, thread=False
        )

    def kinds(self) -> list[str]:
        return [alert.kind for alert in self.told]

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.monitor.step()


def use(pool: ModelPool, *roles: str) -> None:
    for role in roles:
        with pool.lease(role):
            pass


# --- levels and pressure -----------------------------------------------------------------------------------------------------


def test_a_level_begins_at_its_mark_and_ends_below_its_margin() -> None:
    marks, level, seen = Watermarks(), "ok", []
    for share in (0.79, 0.80, 0.76, 0.74, 0.90, 0.86, 0.84, 0.97, 1.2, 0.93, 0.91, 0.5):
        level = marks.level(share, level)
        seen.append(level)
    assert seen == ["ok", "low", "low", "ok", "high", "high", "low", "critical", "critical", "critical", "high", "ok"]


@pytest.mark.parametrize("wrong", [{"low": 0.95}, {"critical": 1.1}, {"low": 0.0}, {"margin": 0.9}])
def test_watermarks_out_of_order_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"low < high < critical"):
        Watermarks(**wrong)


def test_pressure_names_what_would_go_in_the_policys_order(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=95 * MIB)
    use(pool, "encoder", "mllm", "joint")
    pool.pin("mllm")
    found = pressure(pool.status(), pool.settings.policy, Watermarks())
    assert (found.level, found.pressure) == ("high", True)  # 90 of 95
    assert found.recommended == (ENCODER.key,), "the encoder is the longest unused, and 60 MiB are below every mark"
    low = pressure(pool.status(), pool.settings.policy, Watermarks(), host_low="1 GiB free")
    assert low.recommended == (ENCODER.key, JOINT.key), "a machine without memory wants all of it back; what is pinned stays"
    with pool.lease("encoder"):
        assert pressure(pool.status(), pool.settings.policy, Watermarks()).recommended == (JOINT.key,), "what is leased cannot go"


def test_no_pressure_names_nothing(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=1000 * MIB)
    use(pool, "mllm")
    found = pressure(pool.status(), pool.settings.policy, Watermarks())
    assert not found.pressure and found.recommended == () and found.level == "ok"


def test_what_the_device_counts_matters_when_it_is_more_than_the_ledger(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    pool = make_pool()
    watched = Watched(pool)
    others = device.allocate(98 * MIB)
    assert watched.monitor.pressure().level == "critical"
    del others
    assert watched.monitor.pressure().level == "ok"


def test_the_host_is_low_by_bytes_or_by_share_and_gets_well_with_a_margin() -> None:
    marks = HostMarks(free=2 << 30, used=0.85)
    assert marks.why_low(ROOMY) == ""
    assert "1.00 GiB" in marks.why_low(FULL)
    small = Host(total=100 << 30, free=12 << 30, physical=100 << 30, swap_total=0, swap_used=0)
    assert "88%" in marks.why_low(small)
    better = Host(total=100 << 30, free=17 << 30, physical=100 << 30, swap_total=0, swap_used=0)
    assert marks.why_low(better) == "" and marks.why_low(better, before=True)


# --- samples -----------------------------------------------------------------------------------------------------------------


def test_a_sample_holds_the_books_beside_what_is_measured(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    pool = make_pool()
    watched = Watched(pool)
    with pool.lease("mllm"):
        busy = watched.monitor.sample()
    rest = watched.monitor.sample()
    assert busy.weights == rest.weights == {MLLM.key: 40 * MIB}
    assert (busy.ledger, busy.work, busy.settled) == (41 * MIB, MIB, False)
    assert (rest.ledger, rest.work, rest.settled) == (40 * MIB, 0, True)
    assert rest.storage_bytes == rest.device_allocated == 40 * MIB and rest.limit == 100 * MIB
    assert rest.uss and rest.uss <= rest.rss and rest.base_uss
    pool.evict("mllm")
    gone = watched.monitor.sample()
    assert (gone.storage_bytes, gone.ledger, gone.weights) == (0, 0, {})


def test_the_base_is_taken_after_the_libraries_of_a_role_have_come(make_pool: PoolMaker, intercept) -> None:
    pool = make_pool()
    watched = Watched(pool)
    brought: list[str] = []
    # Said, not measured: a process that has freed much takes 8 MiB from what it kept.
    intercept(machine, "memory_of", lambda _: machine.ProcessMemory(*[(100 + 8 * len(brought)) * MIB] * 2))

    def prepare(role: str) -> None:
        brought.append(role)

    watched.monitor.prepare = prepare
    assert watched.monitor.sample().base_uss is None
    use(pool, "encoder")
    first = watched.monitor.sample().base_uss
    use(pool, "mllm", "encoder")
    second = watched.monitor.sample().base_uss
    assert brought == ["encoder", "mllm"]
    assert first and second and second - first == 8 * MIB, "what later libraries take is no model's"


def test_a_resting_process_gives_back_what_its_allocator_keeps(intercept) -> None:
    class Sloppy(SimulatedDevice):
        """Like main memory: counts the process, and freed blocks stay until asked for."""

        exact = False
        kept = 0

        def empty_cache(self) -> None:
            super().empty_cache()
            self.kept = 0

    device, loader = Sloppy(1000 * MIB), FakeLoader(work=MIB)
    pool = ModelPool(device, budget=100 * MIB, loaders=lambda spec: loader)
    pool.register(MLLM)
    base = 500 * MIB
    intercept(machine, "memory_of", lambda _: machine.ProcessMemory(base + device.allocated() + device.kept, base))
    watched = Watched(pool)
    with pool.lease("mllm"):
        device.kept = 30 * MIB
        assert watched.monitor.sample().uss == base + 70 * MIB, "nothing is trimmed under a running batch"
    assert watched.monitor.sample().uss == base + 40 * MIB
    device.kept = 4 * MIB
    assert watched.monitor.sample().uss == base + 44 * MIB, "a little is left for the next batch"
    pool.close()


def test_a_record_that_follows_another_at_once_begins_with_its_last_figure(make_pool: PoolMaker, tmp_path, intercept) -> None:
    pool = make_pool()
    watched, walks = Watched(pool), list[int]()
    intercept(machine, "memory_of", lambda _: (walks.append(1), machine.ProcessMemory(len(walks) * MIB, 0))[1])

    def record(name: str) -> list[int | None]:
        with watched.monitor.record(tmp_path / name):
            pass
        return [sample.uss for sample in read(tmp_path / name).samples]

    assert record("first") == [MIB, 2 * MIB]
    assert record("at once") == [2 * MIB, 3 * MIB]
    watched.clock.now += 5
    assert record("later") == [4 * MIB, 5 * MIB]
    use(pool, "mllm")
    assert record("after a load")[0] > 5 * MIB


def test_every_load_and_eviction_is_followed_by_a_sample_but_not_every_lease(make_pool: PoolMaker, tmp_path) -> None:
    pool = make_pool()
    watched = Watched(pool, MonitorSettings(check_interval=60, sample_gap=1.0))
    with watched.monitor.record(tmp_path / "m.jsonl"):
        use(pool, "mllm")
        watched.monitor.step()
        for _ in range(20):
            use(pool, "mllm")
            watched.monitor.step()
        watched.later(1.5)
        watched.later(30)
        watched.later(31)
    reasons = [sample.reason for sample in read(tmp_path / "m.jsonl").samples]
    assert reasons == ["start", "loaded", "return", "interval", "end"]


def test_the_thread_samples_by_itself_and_ends_with_the_pool(device: SimulatedDevice, tmp_path, new_threads) -> None:
    loader = FakeLoader()
    pool = ModelPool(device, budget=100 * MIB, loaders=lambda spec: loader)
    pool.register(MLLM)
    monitor = watch(pool)
    assert watch(pool) is monitor, "one monitor per pool"
    assert not new_threads(), "nothing runs before something happens"
    with monitor.record(tmp_path / "m.jsonl"):
        use(pool, "mllm")
        assert _until(lambda: any(s.reason == "loaded" for s in read(tmp_path / "m.jsonl").samples))
    assert len(new_threads()) == 1
    pool.close()
    gone = weakref.ref(pool)
    del pool
    # The thread may be measuring the eviction just now; it lets go when it is done.
    assert _until(lambda: gc.collect() >= 0 and gone() is None), "watching keeps no pool alive"
    assert _until(lambda: not new_threads())


def test_a_monitor_that_fails_once_goes_on(make_pool: PoolMaker, caplog) -> None:
    pool = make_pool()
    failures, asked = iter([OSError("no /proc today")]), list[int]()

    def host() -> Host:
        asked.append(1)
        for failure in failures:
            raise failure
        return ROOMY

    monitor = Monitor(pool, MonitorSettings(check_interval=0.05), host=host)
    use(pool, "mllm")
    assert _until(lambda: "goes on" in caplog.text)
    before = len(asked)
    assert _until(lambda: len(asked) > before)
    monitor.close()


def _monitor_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "fgvr-monitor" and t.is_alive()}


@pytest.fixture
def new_threads() -> Callable[[], set[threading.Thread]]:
    """Monitors of this test; earlier ones may watch the pool of this process."""
    before = _monitor_threads()
    return lambda: _monitor_threads() - before


def _until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


# --- alerts ------------------------------------------------------------------------------------------------------------------


def test_crossing_a_watermark_upwards_is_told_once(make_pool: PoolMaker) -> None:
    watched = Watched(make_pool(budget=92 * MIB))
    use(watched.pool, "mllm", "encoder")
    watched.monitor.step()
    assert watched.told == []
    use(watched.pool, "joint")  # 90 of 92
    watched.later(2)
    assert [(a.kind, a.subject) for a in watched.told] == [("watermark", "critical")]
    assert MLLM.key in watched.told[0].text, "it names what it would drop"
    watched.pool.evict("joint")
    watched.later(2)
    use(watched.pool, "joint")
    watched.later(2)
    assert watched.kinds().count("watermark") == 1, "swaps at the border are no news for a while"
    watched.pool.evict("joint")
    watched.later(400)
    use(watched.pool, "joint")
    watched.later(2)
    assert watched.kinds().count("watermark") == 2


def test_memory_that_does_not_come_back_is_told_with_who_holds_it(make_pool: PoolMaker) -> None:
    pool = make_pool()
    watched = Watched(pool)
    with pool.lease("mllm") as face:
        leaked = face.model
    assert pool.evict("mllm") == 0
    watched.monitor.step()
    assert watched.kinds() == ["not_returned"] and "still referred to" in watched.told[0].text
    del leaked
    assert pool.evict("mllm") == 40 * MIB


def test_a_lease_nobody_gives_back_is_told(make_pool: PoolMaker) -> None:
    watched = Watched(make_pool(), MonitorSettings(lease_seconds=100, check_interval=10))
    with watched.pool.lease("mllm"):
        watched.later(50)
        assert watched.told == []
        watched.later(60)
        watched.later(10)
        assert watched.kinds() == ["old_lease"] and "MainThread" in watched.told[0].text
    watched.later(400)
    assert watched.kinds() == ["old_lease"]


def test_a_device_that_holds_something_else_than_the_ledger_has_drifted(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    watched = Watched(make_pool())
    watched.monitor.sample()
    watched.later(60)
    use(watched.pool, "mllm")
    watched.later(2)
    assert watched.told == []
    foreign = device.allocate(20 * MIB)
    watched.later(61)
    assert watched.kinds() == ["drift"] and "20.0 MiB more" in watched.told[0].text
    del foreign


def test_a_failed_load_is_told(make_pool: PoolMaker) -> None:
    def broken(spec) -> None:
        raise ValueError("file is torn")

    watched = Watched(make_pool(loader=FakeLoader(on_load=broken)))
    with pytest.raises(Exception, match="torn"):
        use(watched.pool, "mllm")
    watched.monitor.step()
    assert watched.kinds() == ["load_failed"]
    watched.pool.reset("mllm")


def test_a_callback_that_raises_stops_neither_the_others_nor_the_monitor(caplog) -> None:
    told: list[Alert] = []

    def broken(alert: Alert) -> None:
        raise RuntimeError("no pager")

    alerts = Alerts([broken, told.append], repeat=0.0)
    for subject in "ab":
        alerts.tell(Alert("drift", subject, "text"))
    assert [a.subject for a in told] == ["a", "b"]
    assert caplog.text.count("is said only once") == 1


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict], dict[str, int]]]:
    """An HTTP server that keeps what it is sent; its answer can be chosen."""
    got: list[dict] = []
    answer = {"code": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answer["code"])
            if answer["code"] == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got, answer
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_a_webhook_gets_each_alert_as_json_and_its_failures_are_said_once(receiver, caplog) -> None:
    url, got, answer = receiver
    hook = Webhook(f"{url}?token=secret")
    hook(Alert("thrash", "mllm-1", "too fast", when=5.0))
    assert _until(lambda: len(got) == 1)
    assert got[0] == {"kind": "thrash", "subject": "mllm-1", "text": "too fast", "when": 5.0}
    with caplog.at_level("INFO", logger="fgvr"):
        answer["code"] = 500
        hook(Alert("thrash", "a", ""))
        hook(Alert("thrash", "b", ""))
        assert _until(lambda: len(got) == 3)
        answer["code"] = 200
        hook(Alert("thrash", "c", ""))
        hook.close()
    assert caplog.text.count("HTTP 500") == 1 and "again" in caplog.text
    assert "secret" not in caplog.text, "an address may hold a token"


def test_a_webhook_follows_no_redirect(receiver, caplog) -> None:
    url, got, answer = receiver
    answer["code"] = 302
    hook = Webhook(url)
    hook(Alert("drift", "device", ""))
    hook.close()
    assert len(got) == 1 and "HTTP 302" in caplog.text


def test_a_webhook_that_hangs_holds_up_nobody() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hook = Webhook(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=0.2, room=2)
        began = time.monotonic()
        for number in range(50):
            hook(Alert("drift", str(number), ""))
        assert time.monotonic() - began < 0.2 and hook.dropped > 40
        hook.close(3)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "host/x", "http://"])
def test_a_webhook_takes_web_addresses_only(url: str) -> None:
    with pytest.raises(ConfigError, match="http"):
        Webhook(url)


# --- clean-up ----------------------------------------------------------------------------------------------------------------


def idle_for(pool: ModelPool, seconds: float) -> None:
    """Let all models have been unused for so long."""
    with Inside(pool).condition:
        for entry in Inside(pool).ledger.entries.values():
            entry.last_used -= seconds


def test_at_the_critical_mark_what_has_rested_is_dropped_in_the_policys_order(make_pool: PoolMaker) -> None:
    watched = Watched(make_pool(budget=92 * MIB))
    use(watched.pool, "encoder", "mllm", "joint")
    watched.later(2)
    assert watched.pool.status().used == 90 * MIB, "just used: dropping it would only mean loading it again"
    idle_for(watched.pool, 40)
    watched.later(61)
    assert [m.key for m in watched.pool.status() if m.state == "resident"] == [MLLM.key, JOINT.key]
    assert watched.monitor.pressure().level == "ok"


def test_nothing_leased_or_pinned_is_dropped(make_pool: PoolMaker) -> None:
    watched = Watched(make_pool(budget=92 * MIB))
    use(watched.pool, "encoder", "joint", "mllm")
    watched.pool.pin("encoder")
    idle_for(watched.pool, 1000)
    with watched.pool.lease("joint"):
        watched.host = FULL
        watched.later(61)
        assert [m.key for m in watched.pool.status() if m.state == "resident"] == [ENCODER.key, JOINT.key]
    assert "host_low" in watched.kinds()


def test_clean_up_can_be_switched_off(make_pool: PoolMaker) -> None:
    watched = Watched(make_pool(budget=92 * MIB), MonitorSettings(auto_cleanup=False, cleanup_interval=None))
    use(watched.pool, "encoder", "mllm", "joint")
    idle_for(watched.pool, 10_000)
    watched.host = FULL
    watched.later(10_000)
    assert watched.pool.status().used == 90 * MIB
    assert {"watermark", "host_low"} <= set(watched.kinds())


def test_periodic_clean_up_drops_what_was_unused_all_the_while(make_pool: PoolMaker) -> None:
    watched = Watched(make_pool(budget=1000 * MIB), MonitorSettings(cleanup_interval=1800))
    use(watched.pool, "encoder")
    idle_for(watched.pool, 1900)
    use(watched.pool, "mllm")
    watched.later(1000)
    assert watched.pool.status().used == 70 * MIB
    watched.later(801)
    assert [m.key for m in watched.pool.status() if m.state == "resident"] == [MLLM.key]


# --- settings ----------------------------------------------------------------------------------------------------------------

RUNTIME = {
    "check_interval": 60,
    "watermarks": {"low": 0.8, "high": 0.9, "critical": 0.97},
    "auto_cleanup": True,
    "cleanup_idle": 30,
    "cleanup_interval": "auto",
    "host_low": {"free": "2GiB", "used": 0.85},
    "alerts": {"log": True, "webhook": None, "timeout": 5, "repeat": 300, "lease_seconds": 600},
}


def test_settings_come_from_plain_values_and_apply_live(make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool()
    told: list[Alert] = []
    monitor = watch(pool)
    monitor.configure(RUNTIME, prepare=print)
    monitor.alerts.sinks.append(told.append)
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9/x")
    monitor.configure(RUNTIME | {"check_interval": 5, "alerts": RUNTIME["alerts"] | {"log": False, "webhook": "HOOK"}}, prepare=print)
    assert monitor.settings.check_interval == 5
    assert [type(sink).__name__ for sink in monitor.alerts.sinks] == ["Webhook", "builtin_function_or_method"]
    assert MonitorSettings.of(RUNTIME, cleanup_seconds=MlxDevice.cleanup_seconds).cleanup_interval == 300
    assert MonitorSettings.of(RUNTIME).cleanup_interval == 1800
    assert MonitorSettings.of(RUNTIME | {"cleanup_interval": None}).cleanup_interval is None


@pytest.mark.parametrize(
    "change,message",
    [
        ({"check_interval": 0}, "check_interval"),
        ({"check_interval": "often"}, "must be a number from 0.1 up"),
        ({"cleanup_interval": "sometimes"}, "cleanup_interval"),
        ({"host_low": {"free": "much", "used": 0.85}}, "2GiB"),
        ({"host_low": {"free": 0, "used": 2}}, "host_low"),
        ({"watermarks": {"low": 0.9, "high": 0.8, "critical": 0.97}}, "low < high"),
        ({"alerts": RUNTIME["alerts"] | {"webhook": "ftp://x/y"}}, "http"),
        ({"alerts": RUNTIME["alerts"] | {"lease_seconds": -1}}, "lease_seconds"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        fgvr.load_config().derive({f"runtime.{key}": value for key, value in change.items()})


def test_a_webhook_variable_that_is_not_there_is_refused(make_pool: PoolMaker) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_HOOK"):
        watch(make_pool()).configure(RUNTIME | {"alerts": RUNTIME["alerts"] | {"webhook": "NO_SUCH_HOOK"}}, prepare=print)


# --- the machine -------------------------------------------------------------------------------------------------------------


def test_the_base_is_measured_anew_when_a_model_comes_and_no_other_is_there(make_pool: PoolMaker, intercept) -> None:
    """A process grows by pictures and results, too: that is no model's."""
    loader = FakeLoader(work=MIB)
    pool = ModelPool(CpuDevice(), budget=100 * MIB, loaders=lambda spec: loader)
    pool.register(ENCODER)
    pool.register(MLLM)
    held = [500 * MIB]
    intercept(machine, "memory_of", lambda _, process=None: ProcessMemory(held[0], held[0]))
    monitor = Monitor(pool, alerts=Alerts(), thread=False)
    bases = []
    for role in ("encoder", "mllm", "encoder"):
        with pool.lease(role):
            bases.append(monitor.sample().base_uss)
        held[0] += 10 * MIB
    assert bases == [500 * MIB] * 3, "while another is there, growth is nobody's to tell"
    pool.cleanup()
    with pool.lease("encoder"):
        assert monitor.sample().base_uss == 530 * MIB
    pool.close()


def test_watching_takes_a_small_share_of_the_time_however_large_the_process(make_pool: PoolMaker, intercept) -> None:
    pool = make_pool()
    watched, walks = Watched(pool, MonitorSettings(check_interval=600, sample_gap=1.0)), list[int]()

    def slow_walk(_: object) -> ProcessMemory:
        watched.spent += 0.05
        walks.append(1)
        return ProcessMemory(MIB, MIB)

    use(pool, "mllm")
    intercept(machine, "memory_of", slow_walk)
    watched.monitor.sample()
    before = len(walks)
    for _ in range(10):  # ten leases, a second apart
        use(pool, "mllm")
        watched.later(1.0)
    assert len(walks) - before == 3, "every two and a half seconds, at the next lease: not every second"
