"""The monitor's settings, from the plain values of `configs/runtime/`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from fgvr.errors import ConfigError
from fgvr.runtime.alerts import Alerts, Sink, Webhook, log_alert
from fgvr.runtime.budget import parse_bytes
from fgvr.runtime.devices.base import HALF_AN_HOUR
from fgvr.runtime.monitor import Monitor, watch
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pressure import HostMarks, MonitorSettings, Watermarks


def adopt(pool: ModelPool, runtime: Mapping[str, Any], *, prepare: Callable[[str], None] | None = None) -> Monitor:
    """Watch the pool with these settings from now on; sinks that were added by hand stay. Raises ConfigError."""
    monitor = watch(pool)
    monitor.settings = settings(runtime, cleanup_seconds=pool.device.cleanup_seconds)
    monitor.prepare = prepare
    alerts = runtime["alerts"]
    monitor.alerts.repeat = _seconds(alerts, "repeat", "runtime.alerts")
    url, timeout = _address(alerts["webhook"]), _seconds(alerts, "timeout", "runtime.alerts")
    _set_sinks(monitor.alerts, log=alerts["log"], url=url, timeout=timeout)
    return monitor


def settings(runtime: Mapping[str, Any], *, cleanup_seconds: float = HALF_AN_HOUR) -> MonitorSettings:
    """Raises ConfigError naming the key."""
    marks, host = runtime["watermarks"], runtime["host_low"]
    every = runtime["cleanup_interval"]
    if every == "auto":
        every = cleanup_seconds
    elif every is not None:
        every = _seconds(runtime, "cleanup_interval", "runtime", least=0.0)
    free = host["free"] if isinstance(host["free"], int) else parse_bytes(str(host["free"]))
    if free is None or isinstance(host["free"], bool):
        raise ConfigError(f"runtime.host_low.free={host['free']}: write bytes, or a size such as 2GiB")
    shares = {name: _number(marks, name, "runtime.watermarks") for name in ("low", "high", "critical")}
    _address(runtime["alerts"]["webhook"], look_up=False)
    for key in ("repeat", "timeout"):
        _seconds(runtime["alerts"], key, "runtime.alerts")
    return MonitorSettings(
        check_interval=_seconds(runtime, "check_interval", "runtime", least=0.1),
        watermarks=Watermarks(**shares),
        host_low=HostMarks(free=free, used=_number(host, "used", "runtime.host_low")),
        auto_cleanup=bool(runtime["auto_cleanup"]),
        cleanup_idle=_seconds(runtime, "cleanup_idle", "runtime", least=0.0),
        cleanup_interval=every or None,
        lease_seconds=_seconds(runtime["alerts"], "lease_seconds", "runtime.alerts"),
    )


def _set_sinks(alerts: Alerts, *, log: bool, url: str | None, timeout: float) -> None:
    """The configured sinks; a webhook that stays the same keeps its queue."""
    hooks = [sink for sink in alerts.sinks if isinstance(sink, Webhook)]
    kept = [hook for hook in hooks if (hook.url, hook.timeout) == (url, timeout)]
    others: list[Sink] = [sink for sink in alerts.sinks if sink is not log_alert and sink not in hooks]
    if url is not None and not kept:
        kept = [Webhook(url, timeout=timeout)]
    alerts.sinks = [*([log_alert] if log else []), *kept, *others]
    for hook in hooks:
        if hook not in kept:
            hook.close()


def _address(given: str | None, *, look_up: bool = True) -> str | None:
    """An address as it is; else the name of an environment variable that holds one, so that a token in it stays out of run files."""
    if given is None:
        return None
    if "://" in str(given):
        Webhook(given)  # raises for what is no http(s) address; makes no thread before the first alert
        return given
    if not look_up:
        return None
    found = os.environ.get(str(given))
    if not found:
        raise ConfigError(f"runtime.alerts.webhook={given}: neither an http(s):// address nor an environment variable that holds one")
    return found


def _number(values: Mapping[str, Any], key: str, group: str) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{group}.{key}={value}: must be a number")
    return float(value)


def _seconds(values: Mapping[str, Any], key: str, group: str, *, least: float = 0.01) -> float:
    value = _number(values, key, group)
    if value < least:
        raise ConfigError(f"{group}.{key}={value:g}: must be at least {least:g} seconds")
    return value
