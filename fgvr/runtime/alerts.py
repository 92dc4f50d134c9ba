"""Telling somebody: alerts and where they go. Nothing here blocks the pool: a webhook has a thread and a bounded queue of its own."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from fgvr import __version__
from fgvr.errors import ConfigError, log_failure
from fgvr.utils.service import NoRedirects

log = logging.getLogger(__name__)

Kind = Literal["watermark", "not_returned", "old_lease", "thrash", "drift", "host_low", "out_of_memory", "load_failed"]
_QUIET = ("low", "high")  # levels of a watermark that are news, not trouble


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing somebody may want to know. `subject`: the model, lease or level it is about; `text` says all in words."""

    kind: Kind  # of alert
    subject: str  # the model, lease or level
    text: str  # all in words
    when: float = field(default_factory=time.time)  # seconds since 1970


Sink = Callable[[Alert], None]


class Alerts:
    """Hands each alert to every sink; the same one (kind and subject) again only after `repeat` seconds."""

    def __init__(self, sinks: Sequence[Sink] = (), *, repeat: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.sinks: list[Sink] = list(sinks)
        self.repeat, self._clock = repeat, clock
        self._told: dict[tuple[str, str], float] = {}
        self._broken: set[int] = set()

    def tell(self, alert: Alert) -> bool:
        """Whether it went out, that is, was no repetition."""
        key, now = (alert.kind, alert.subject), self._clock()
        if key in self._told and now - self._told[key] < self.repeat:
            return False
        self._told[key] = now
        for sink in tuple(self.sinks):
            try:
                sink(alert)
            except Exception:  # a sink is somebody else's code; it must stop neither the monitor nor the other sinks
                if id(sink) not in self._broken:
                    self._broken.add(id(sink))
                    log_failure(log, "the alert callback %r failed; it will be called again, but this is said only once", sink)
        return True

    def configure(self, *, log: bool, webhook: str | None, timeout: float, repeat: float) -> None:
        """The sinks of `runtime.alerts`; others stay, and a webhook that stays the same keeps its queue. Raises ConfigError."""
        url = address(webhook)
        hooks = [sink for sink in self.sinks if isinstance(sink, Webhook)]
        kept = [hook for hook in hooks if (hook.url, hook.timeout) == (url, timeout)]
        others: list[Sink] = [sink for sink in self.sinks if sink is not log_alert and sink not in hooks]
        if url is not None and not kept:
            kept = [Webhook(url, timeout=timeout)]
        self.sinks, self.repeat = [*([log_alert] if log else []), *kept, *others], repeat
        for hook in hooks:
            if hook not in kept:
                hook.close()

    def over(self, kind: Kind, subject: str) -> None:
        """It has ended: should it begin again, that is news at once."""
        self._told.pop((kind, subject), None)


def log_alert(alert: Alert) -> None:
    """The sink that writes to the log: watermarks below critical as information, all else as a warning."""
    level = logging.INFO if alert.kind == "watermark" and alert.subject in _QUIET else logging.WARNING
    log.log(level, "%s: %s", alert.kind.replace("_", " "), alert.text)


class Webhook:
    """A sink that POSTs each alert as JSON to one address, in the background. Failures are logged once until it works again.

    At most `room` alerts wait; when the other side is that slow, the newest are dropped and counted. Redirects are not followed: where
    alerts go is decided by the configuration alone.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, room: int = 100) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"runtime.alerts.webhook={url}: must be an address that begins with http:// or https://")
        self.url, self.timeout = url, timeout
        self._shown = parts._replace(query="", netloc=parts.hostname).geturl()  # what may stand in a log: no password, no token
        self._queue: queue.Queue[Alert | None] = queue.Queue(room)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._failing = False
        self.dropped = 0

    def __call__(self, alert: Alert) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fgvr-webhook", daemon=True)
                self._thread.start()
                atexit.register(self.close, 2.0)  # what the last moments had to say shall go out, too
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, for `timeout` seconds at most."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            atexit.unregister(self.close)
            try:
                self._queue.put(None, timeout=timeout)
            except queue.Full:
                return
            thread.join(timeout)

    def _run(self) -> None:
        while (alert := self._queue.get()) is not None:
            self._send(alert)

    def _send(self, alert: Alert) -> None:
        body = json.dumps(asdict(alert)).encode()
        headers = {"Content-Type": "application/json", "User-Agent": f"fgvr/{__version__}"}
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            with urllib.request.build_opener(NoRedirects).open(request, timeout=self.timeout) as answer:
                answer.read(1)
        except (OSError, ValueError) as error:  # URLError, timeouts and refused connections are OSErrors
            if not self._failing:
                self._failing = True
                why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else f"{type(error).__name__}: {error}"
                log.warning("alerts do not reach %s (%s); said once, tried again with the next alert", self._shown, why)
        else:
            if self._failing:
                self._failing = False
                log.info("alerts reach %s again", self._shown)


def address(given: str | None) -> str | None:
    """An address as it is; else the name of an environment variable that holds one, so that a token in it stays out of run files.

    Raises ConfigError for neither.
    """
    if given is None or "://" in given:
        return given
    if not (found := os.environ.get(given)):
        raise ConfigError(f"runtime.alerts.webhook={given}: neither an http(s):// address nor an environment variable that holds one")
    return found
