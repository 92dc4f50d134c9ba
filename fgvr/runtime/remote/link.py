"""Requests to one engine that survive its bad moments: a busy engine is obeyed, one that is away is waited for, a refusal is final."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from fgvr.errors import ConfigError, RemoteError
from fgvr.utils.network import header_value, route_to
from fgvr.utils.service import QUOTED, reason

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

log = logging.getLogger(__name__)
T = TypeVar("T")
KEYS = ("FGVR_API_KEY", "FGVR_TOKEN", "OPENAI_API_KEY")  # the first that is set
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds; doubled with each failure in a row
READ_SECONDS = 600.0  # a long batch on a slow machine
_AWAY = (502, 503, 504)
_FAULTS = 3  # times that an engine's own error (500) is tried


class Link:
    """`address`: ends in /v1. `patience`: seconds from a request's first failure until it is given up.

    `verify` is called before the first request after the engine was away, by its own word or without one: who came back may be another.
    """

    def __init__(self, address: str, patience: float, verify: Callable[[OpenAI], None] | None = None) -> None:
        self.address, self._patience, self._verify = address, patience, verify
        self._lock = threading.Lock()
        self._made: OpenAI | None = None
        self._away = False

    def ask(self, call: Callable[[OpenAI], T], stop: threading.Event | None = None) -> T:
        """What `call` returns. Raises RemoteError: refused, or nobody there for too long."""
        import openai

        stop = stop or threading.Event()
        deadline, failures, faults = None, 0, 0
        while True:
            try:
                if self._away and self._verify is not None:
                    self._verify(self._client)
                    self._away = False
                return call(self._client)
            except openai.APIStatusError as error:
                faults += error.status_code == 500
                if not _passing(error.status_code) or faults >= _FAULTS:
                    raise RemoteError(f"{self.address} answered {error.status_code}: {_words(error)}", error.status_code) from None
                self._away |= error.status_code in _AWAY
                told, why = _retry_after(error), f"answered {error.status_code}: {_words(error)}"
            except openai.APIConnectionError as error:
                self._away = True
                told, why = None, f"does not answer{route_to(self.address)} ({error.__cause__ or error})"
            now = time.monotonic()
            deadline = deadline or now + self._patience
            pause = told if told is not None else min(LONGEST_PAUSE, FIRST_PAUSE * 2**failures) * random.uniform(0.75, 1.0)
            failures += 1
            if now + pause > deadline:
                raise RemoteError(f"{self.address} {why}; gave up after {self._patience:g} s (models.*.patience)")
            log.log(
                logging.WARNING if failures == 3 else logging.DEBUG, "%s %s; trying again for %.0f s", self.address, why, deadline - now
            )
            if stop.wait(pause):
                raise RemoteError(f"{self.address}: given up, as another request of the same batch failed")

    def each(self, calls: Sequence[Callable[[OpenAI], T]]) -> list[T]:
        """All at the same time, so that the engine can batch them; answers in order. The first failure ends the others' waiting."""
        if len(calls) < 2:
            return [self.ask(call) for call in calls]
        stop = threading.Event()
        threads = ThreadPoolExecutor(len(calls), thread_name_prefix="fgvr-remote")
        try:
            asked = [threads.submit(self.ask, call, stop) for call in calls]
            done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            for future in asked:  # the cause, not those it stopped
                if future in done and (error := future.exception()) is not None:
                    raise error
            return [future.result() for future in asked]
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Let go of the connections; the next request makes new ones."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    @property
    def _client(self) -> OpenAI:
        with self._lock:
            if self._made is None:
                self._made = client(self.address)
            return self._made


def client(address: str) -> OpenAI:
    """The openai client, without retries of its own. Redirects are not followed: the key would go with them.

    Raises ConfigError: the client is not installed, or a proxy, certificate or key variable cannot work.
    """
    try:
        import openai
    except ImportError:
        raise ConfigError("models=remote needs the openai client: pip install 'fgvr[remote]'") from None
    key = next((header_value(name, os.environ[name]) for name in KEYS if os.environ.get(name)), "none")
    timeout = openai.Timeout(READ_SECONDS, connect=5.0)
    route = route_to(address)
    verified: dict[str, Any] = {"verify": route.certificates()} if address.startswith("https") else {}
    transport = openai.DefaultHttpxClient(trust_env=False, proxy=route.proxy, follow_redirects=False, **verified)
    return openai.OpenAI(base_url=address, api_key=key, max_retries=0, timeout=timeout, http_client=transport)


def _passing(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 429, 500, *_AWAY)


def _retry_after(error: APIStatusError) -> float | None:
    """Seconds the engine asks for, or until the date it names; None when it says neither (then our own pauses serve)."""
    said = error.response.headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _words(error: APIStatusError) -> str:
    if error.response.is_redirect:
        return f"it redirects to {error.response.headers.get('location')}, and redirects are not followed: name the right address"
    words = reason(error.response.content)[:QUOTED] or "no reason given"
    return f"{words}; set {KEYS[0]}" if error.status_code in (401, 403) else words
