"""`/api/v1/classes` and `/api/v1/knowledge/reload`: a client asks throughout, and no request of it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from fgvr.errors import KnowledgeError
from fgvr.server.knowledge import Knowledge
from fgvr.types import Prediction, Sample

from .conftest import ADMIN, FakeRecognizer, Serve, Served, png, until

CLASSES, RELOAD = "/api/v1/classes", "/api/v1/knowledge/reload"


class Named(FakeRecognizer):
    """Answers with its own name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def batch(self, images: Sequence[Sample]) -> list[Prediction]:
        return [replace(p, name=self.name) for p in super().batch(images)]


def base(name: str, *photographs: int) -> Knowledge:
    classes = tuple({"id": str(i), "name": f"{name} {i}", "photographs": count} for i, count in enumerate(photographs))
    return Knowledge(Named(name), classes, f"hash of {name}")


class Disk:
    """What lies on disk; opening it waits for `gate`, as a build would."""

    def __init__(self, found: Knowledge) -> None:
        self.found: Knowledge | Exception = found
        self.gate = threading.Event()
        self.gate.set()
        self.opened = 0

    def open(self) -> Knowledge:
        found = self.found
        self.opened += 1
        assert self.gate.wait(20)
        if isinstance(found, Exception):
            raise found
        return found


def classified(served: Served) -> tuple[int, str]:
    answer = served.post("/api/v1/classify", files={"images": ("a.png", png())})
    return answer.status_code, answer.json()["data"]["predictions"][0]["name"] if answer.status_code == 200 else answer.text


@contextmanager
def asking(served: Served, clients: int = 3) -> Iterator[list[tuple[int, str]]]:
    """Clients that classify one image after the other; what each got, in order."""
    answers: list[tuple[int, str]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(classified(served))

    with ThreadPoolExecutor(clients) as threads:
        done = [threads.submit(ask) for _ in range(clients)]
        try:
            until(lambda: len(answers) > clients)
            yield answers
        finally:
            ended.set()
        for one in done:
            one.result(20)


def settled(condition: Callable[[], Any], answers: list[Any], more: int = 6) -> None:
    """Waits for the condition, and then for some more answers."""
    until(condition)
    count = len(answers)
    until(lambda: len(answers) > count + more)


def test_classes_are_listed_with_their_photographs_and_the_bases_hash(serve: Serve) -> None:
    served = serve(recognizer=lambda: base("crow", 3, 5), reader="may-read")
    assert served.get(CLASSES).status_code == 401
    found = served.get(CLASSES, headers={"Authorization": "Bearer may-read"}).json()
    rows = [{"id": "0", "name": "crow 0", "photographs": 3}, {"id": "1", "name": "crow 1", "photographs": 5}]
    assert found == {"status": "success", "data": {"content_hash": "hash of crow", "classes": rows}}


def test_the_old_base_answers_until_the_new_one_is_whole_and_no_request_fails(serve: Serve) -> None:
    disk = Disk(base("crow", 3))
    served = serve(recognizer=disk.open)
    assert classified(served) == (200, "crow")
    disk.found = base("jay", 3, 4)
    disk.gate.clear()
    with asking(served) as answers, ThreadPoolExecutor(1) as threads:
        reload = threads.submit(served.change, RELOAD)
        settled(lambda: disk.opened == 2, answers)
        assert set(answers) == {(200, "crow")} and not reload.done()
        assert served.get(CLASSES).json()["data"]["content_hash"] == "hash of crow"
        assert served.get("/health").status_code == 200, "a reload is no reason to send requests elsewhere"
        disk.gate.set()
        told = reload.result(20)
        settled(lambda: (200, "jay") in answers, answers)
    assert told.status_code == 200 and told.json()["data"]["content_hash"] == "hash of jay" and len(told.json()["data"]["classes"]) == 2
    assert set(answers) == {(200, "crow"), (200, "jay")}
    assert set(answers[-3:]) == {(200, "jay")}


@pytest.mark.parametrize(("error", "status"), [(KnowledgeError("base/manifest.json is damaged; build it anew"), 503), (OSError("x"), 500)])
def test_an_error_leaves_the_old_base_and_is_told(serve: Serve, error: Exception, status: int) -> None:
    disk = Disk(base("crow", 3))
    served = serve(recognizer=disk.open)
    assert classified(served) == (200, "crow")
    disk.found = error
    with asking(served) as answers:
        told = served.change(RELOAD)
        settled(lambda: True, answers)
    assert told.status_code == status and ("damaged" in told.text) is (status == 503)
    assert set(answers) == {(200, "crow")}
    assert served.get(CLASSES).json()["data"]["content_hash"] == "hash of crow"
    disk.found = base("jay", 1)
    assert served.change(RELOAD).status_code == 200 and classified(served) == (200, "jay")


def test_a_reload_that_comes_during_another_reads_the_disk_once_more(serve: Serve) -> None:
    disk = Disk(base("crow", 3))
    served = serve(recognizer=disk.open)
    assert classified(served) == (200, "crow")
    disk.gate.clear()
    disk.found = base("jay", 1)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(served.change, RELOAD)
        until(lambda: disk.opened == 2)
        disk.found = base("owl", 1)
        others = [threads.submit(served.change, RELOAD) for _ in range(2)]
        time.sleep(0.3)  # both are there now
        disk.gate.set()
        assert first.result(20).json()["data"]["content_hash"] == "hash of jay"
        assert {other.result(20).json()["data"]["content_hash"] for other in others} == {"hash of owl"}
    assert disk.opened in (3, 4) and classified(served) == (200, "owl")


def test_reloading_needs_the_admin_token_and_one_that_takes_long_goes_on(serve: Serve) -> None:
    disk = Disk(base("crow", 3))
    served = serve(recognizer=disk.open, deadline=0.5)
    assert served.post(RELOAD).status_code == 401 and disk.opened == 0
    assert classified(served) == (200, "crow")
    disk.found = base("jay", 1)
    disk.gate.clear()
    late = served.change(RELOAD)
    assert (late.status_code, late.json()["data"]["code"], late.headers["Retry-After"]) == (503, "starting", "5")
    disk.gate.set()
    until(lambda: classified(served) == (200, "jay"))


def test_the_first_reload_opens_the_base(serve: Serve) -> None:
    served = serve(recognizer=lambda: base("crow", 3))
    with served.web(headers=ADMIN) as web:
        assert web.post(RELOAD).json()["data"]["content_hash"] == "hash of crow"
