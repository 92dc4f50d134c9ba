"""Requests to the engine at one or more addresses. A busy engine is obeyed, an absent one is waited for, a refusal is final.

Each request goes to the address with the fewest open requests. An address that does not answer is left out and tried again later.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fgvr.errors import ConfigError, RemoteError
from fgvr.utils.network import header_value, route_to
from fgvr.utils.service import QUOTED, reason

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

log = logging.getLogger(__name__)
T = TypeVar("T")
KEYS = ("FGVR_API_KEY", "FGVR_TOKEN", "OPENAI_API_KEY")  # the first that is set; the other way round for OpenAI itself
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds; doubled with each failure in a row
READ_SECONDS = 600.0  # a long batch on a slow machine
_AWAY = (502, 503, 504)
_PASSING = (408, 429, 500, *_AWAY)  # the same request may succeed later
_FAULTS = 3  # times that an engine's own error (500) is tried


@dataclass(eq=False)
class _Place:
    """One address. `away`: who answers next must be verified. `left_out`: until then the other addresses are preferred."""

    address: str
    client: OpenAI | None = None
    busy: int = 0  # open requests
    away: bool = False
    failures: int = 0  # in a row
    left_out: float = 0.0

    def leave_out(self) -> None:
        self.away, self.failures = True, self.failures + 1
        self.left_out = time.monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.failures)

    def avoided(self, now: float) -> bool:
        """Left out, or being tried again by another request: one that waits for a dead machine is enough."""
        return self.left_out > now or (self.away and self.busy > 0)


class Link:
    """`addresses`: each ends in /v1. `patience`: seconds from a request's first failure until it is given up.

    `verify` is called before the first request to an address that was away, by its own word or without one: who came back may be another.
    """

    def __init__(self, addresses: Sequence[str], patience: float, verify: Callable[[OpenAI], None]) -> None:
        self._places, self._patience, self._verify = [_Place(address) for address in addresses], patience, verify
        self._lock = threading.Lock()

    def everywhere(self, call: Callable[[Callable[..., Any]], T]) -> dict[str, T]:
        """What `call` finds at each address that answers now; it is given what to ask with. Where none answers, one is waited for."""
        if len(self._places) == 1:
            return {self._places[0].address: call(self.ask)}
        found: dict[str, T] = {}
        for place in self._places:
            try:
                found[place.address] = call(partial(self.ask, only=place))
            except RemoteError as error:
                if not place.away:
                    raise
                log.warning("%s; it is left out until it answers", error)
        return found or {self._places[0].address: call(self.ask)}

    @property
    def absent(self) -> list[str]:
        """The addresses that did not answer when they were last asked."""
        return [place.address for place in self._places if place.away]

    def ask(self, call: Callable[[OpenAI], T], stop: threading.Event | None = None, only: _Place | None = None) -> T:
        """What `call` returns. Raises RemoteError: refused, or nobody there for too long; `only` this address is not waited for."""
        import openai

        stop, places = stop or threading.Event(), self._places if only is None else [only]
        resting: dict[_Place, float] = {}  # when this request may go there again
        deadline, failures, faults, why = math.inf, 0, 0, ""
        while True:
            place = self._take(places, resting)
            try:
                if (pause := resting.get(place, 0.0) - time.monotonic()) > 0:
                    self._rest(place, why, pause, deadline, stop, failures)
                made = self._client(place)
                if place.away:
                    self._verify(made)
                    place.away = False
                answer = call(made)
                place.failures, place.left_out = 0, 0.0
                return answer
            except openai.APIStatusError as error:
                faults += error.status_code == 500
                why, told = f"answered {error.status_code}: {_words(error, place.address)}", _retry_after(error)
                if error.status_code not in _PASSING or faults >= _FAULTS:
                    raise RemoteError(f"{place.address} {why}", error.status_code) from None
                away = error.status_code in _AWAY
            except openai.APIConnectionError as error:
                why, told = f"does not answer{route_to(place.address)} ({error.__cause__ or error})", None
                away = True
            finally:
                with self._lock:
                    place.busy -= 1
            if away:
                place.leave_out()
                if only is not None:
                    raise RemoteError(f"{place.address} {why}")
            now = time.monotonic()
            deadline = min(deadline, now + self._patience)
            resting[place] = now + (told or min(LONGEST_PAUSE, FIRST_PAUSE * 2**failures) * random.uniform(0.75, 1.0))
            failures += 1

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
        for place in self._places:
            with self._lock:
                made, place.client = place.client, None
            if made is not None:
                made.close()

    def _take(self, places: Sequence[_Place], resting: dict[_Place, float]) -> _Place:
        """The least busy address: of those where this request need not rest, and of those that are not left out, if there are any."""
        with self._lock:
            now = time.monotonic()
            place = min(places, key=lambda place: (max(0.0, resting.get(place, 0.0) - now), place.avoided(now), place.busy))
            place.busy += 1
            return place

    def _rest(self, place: _Place, why: str, pause: float, deadline: float, stop: threading.Event, failures: int) -> None:
        left = deadline - time.monotonic()
        if pause > left:
            raise RemoteError(f"{place.address} {why}; gave up after {self._patience:g} s (models.*.patience)")
        log.log(logging.WARNING if failures == 3 else logging.DEBUG, "%s %s; trying again for %.0f s", place.address, why, left)
        if stop.wait(pause):
            raise RemoteError(f"{place.address}: given up, as another request of the same batch failed")

    def _client(self, place: _Place) -> OpenAI:
        with self._lock:
            if place.client is None:
                place.client = client(place.address)
            return place.client


def client(address: str) -> OpenAI:
    """The openai client, without retries of its own. Redirects are not followed: the key would go with them.

    Raises ConfigError: the client is not installed, or a proxy, certificate or key variable cannot work.
    """
    try:
        import openai
    except ImportError:
        raise ConfigError("models=remote needs the openai client: pip install 'fgvr[remote]'") from None
    key = next((header_value(name, os.environ[name]) for name in _keys(address) if os.environ.get(name)), "none")
    timeout = openai.Timeout(READ_SECONDS, connect=5.0)
    route = route_to(address)
    verified: dict[str, Any] = {"verify": route.certificates()} if address.startswith("https") else {}
    transport = openai.DefaultHttpxClient(trust_env=False, proxy=route.proxy, follow_redirects=False, **verified)
    return openai.OpenAI(base_url=address, api_key=key, max_retries=0, timeout=timeout, http_client=transport)


def _keys(address: str) -> Sequence[str]:
    return KEYS[::-1] if (urlsplit(address).hostname or "").endswith("openai.com") else KEYS


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


def _words(error: APIStatusError, address: str) -> str:
    if error.response.is_redirect:
        return f"it redirects to {error.response.headers.get('location')}, and redirects are not followed: name the right address"
    words = reason(error.response.content)[:QUOTED] or "no reason given"
    return f"{words}; set {_keys(address)[0]}" if error.status_code in (401, 403) else words
