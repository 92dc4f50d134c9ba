"""The knowledge base that classifies: opened in the background, replaced by a newer one only when that one is whole."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request

from fgvr.pipeline import Recognizer
from fgvr.server.auth import CHANGE, READ
from fgvr.server.background import in_daemon, result_of
from fgvr.server.batching import Job
from fgvr.server.engine import InferenceEngine
from fgvr.server.http_errors import HttpError, to_http_error
from fgvr.server.schemas import Success, codes
from fgvr.types import Prediction

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", tags=["recognition"])
PATIENCE = 10.0  # seconds a request waits for the knowledge base before it is told to come again


@dataclass(frozen=True, slots=True)
class Knowledge:
    """A recognizer over an open base, and what that base holds. Equal content hashes mean equal bases."""

    recognizer: Recognizer
    classes: tuple[dict[str, Any], ...]  # id, name, and photographs: how many support images it has
    content_hash: str

    def summary(self) -> Success:
        return Success(data={"content_hash": self.content_hash, "classes": self.classes})


class Classifier:
    """The base in use, and the queue of images. A base is opened when first asked for; it may have to be built, whoever waits."""

    def __init__(
        self, engine: InferenceEngine, open_knowledge: Callable[[], Knowledge], to_row: Callable[[Prediction], dict[str, Any]]
    ) -> None:
        self._open, self._to_row = open_knowledge, to_row
        self._lock = threading.Lock()
        self._knowledge: Knowledge | None = None
        self._opening: Future[Knowledge] | None = None
        engine.add_queue("classify", self._classify, most=lambda: 32)

    def begin(self, report: Callable[[str], None] = log.info) -> Future[Knowledge]:
        """Opens the base on disk in a thread; one that is being opened is waited for. `report`: hears how that goes."""
        with self._lock:
            if self._opening is None or self._opening.done():
                self._opening = in_daemon(lambda: self._open_knowledge(report), "fgvr-knowledge")
            return self._opening

    @property
    def is_starting(self) -> bool:
        """The first base is being built or opened."""
        return self._knowledge is None and self._opening is not None and not self._opening.done()

    async def ready(self, timeout: float) -> Knowledge:
        """The base in use. Raises HttpError: it cannot be opened (the next request tries again), or not in time (503)."""
        return self._knowledge or await self._wait(self.begin(), timeout)

    async def reload(self, timeout: float) -> Knowledge:
        """The base on disk as it is now; the one before answers until then, and stays when this one cannot be opened."""
        if self._opening is not None and not self._opening.done():  # what it has read may be older than this wish
            with suppress(HttpError):
                await self._wait(self._opening, timeout)
        return await self._wait(self.begin(), timeout)

    async def _wait(self, opening: Future[Knowledge], timeout: float) -> Knowledge:
        try:
            return await result_of(opening, timeout)
        except TimeoutError:
            raise HttpError(503, "the knowledge base is being built or opened; come again", code="starting", retry=5) from None
        except Exception as error:
            raise to_http_error(error) from error

    def _open_knowledge(self, report: Callable[[str], None]) -> Knowledge:
        report("the knowledge base is being built or opened ...")
        try:
            found = self._open()
        except Exception as error:
            kept = "the one before is kept" if self._knowledge else "the next classification tries again"
            report(f"the knowledge base cannot be opened; {kept}: {error}")
            raise
        self._knowledge = found
        report("ready: images are classified")
        return found

    def _classify(self, jobs: Sequence[Job]) -> Sequence[Any]:
        knowledge = self._knowledge  # one for the whole batch
        assert knowledge is not None, "requests wait for it before they come here"
        rows = []
        for p in knowledge.recognizer.batch([job.payload for job in jobs]):
            named = {c.category: p.names.get(c.category, c.category) for c in p.fast.candidates}
            rows.append(self._to_row(p) | {"name": p.name, "answer": p.answer, "names": named})
        return rows


@router.get("/classes", dependencies=READ, responses=codes(401, 503))
async def classes(request: Request) -> Success:
    """The classes that images are told apart by, with the number of their photographs, and the base's content hash."""
    return (await classifier_of(request).ready(PATIENCE)).summary()


@router.post("/knowledge/reload", dependencies=CHANGE, responses=codes(401, 409, 503))
async def reload(request: Request) -> Success:
    """Takes the base on disk anew. The one before answers until the new one is whole, and stays when that one cannot be opened."""
    return (await classifier_of(request).reload(request.app.state.settings.deadline)).summary()


def classifier_of(request: Request) -> Classifier:
    return request.app.state.classifier
