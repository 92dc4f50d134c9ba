"""`/health`: ready only when a real lease can be had in time, and no queue has been stuck in one batch."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from fgvr.errors import FgvrError
from fgvr.runtime.pool import ModelPool
from fgvr.server.engine import InferenceEngine
from fgvr.types import ModelSpec

router = APIRouter(tags=["health"])
_FRESH = 1.0  # seconds a finding may be old: whoever asks oftener gets the same


class Health(BaseModel):
    status: str
    reason: str = ""


class ReadinessProbe:
    """Borrows the model in a thread of its own; whoever asks meanwhile waits for the same try."""

    def __init__(self, pool: ModelPool, spec: ModelSpec, engine: InferenceEngine, making: Callable[[], bool]) -> None:
        """Args: making: whether the knowledge base is being built or opened."""
        self._pool, self._spec, self._engine, self._making = pool, spec, engine, making
        self._trying: Future[str] | None = None
        self._tried = -math.inf

    async def reason(self, timeout: float) -> str:
        """What is wrong; "" when nothing is."""
        if self._engine.draining:
            return "stopping"
        if self._making():
            return "the knowledge base is being built or opened"
        stuck = [
            f"{name} ({seconds:.0f} s)" for name, queue in self._engine.queues.items() if (seconds := queue.running[1]) > self._patience
        ]
        if stuck:
            return f"stuck in one batch: {', '.join(stuck)}"
        if self._trying is None or (self._trying.done() and time.monotonic() - self._tried > _FRESH):
            self._trying = Future()
            self._trying.set_running_or_notify_cancel()  # so that whoever stops waiting stops only that
            threading.Thread(target=self._try, args=(self._trying,), name="fgvr-health", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._trying)), timeout)
        except TimeoutError:
            return f"no lease of {self._spec.key} within {timeout:g} s"

    @property
    def _patience(self) -> float:
        """A batch may take as long as a request may, and once more for a load."""
        return 2 * self._engine.settings.deadline

    def _try(self, found: Future[str]) -> None:
        wrong = ""
        try:
            with self._pool.lease(self._spec, work=0, timeout=self._engine.settings.deadline):
                pass
        except FgvrError as error:
            wrong = str(error).splitlines()[0]
        except Exception as error:  # a loader's own failure: not ready, whatever it was
            wrong = f"{type(error).__name__}: {error}"
        self._tried = time.monotonic()
        found.set_result(wrong)


@router.get("/health", responses={503: {"model": Health, "description": "Starting, stopping or stuck; the reason is given"}})
async def health(request: Request) -> JSONResponse:
    """Asks the pool for a real lease. Needs no token, tells no secrets."""
    readiness: ReadinessProbe = request.app.state.readiness
    settings = request.app.state.settings
    wrong = await readiness.reason(settings.health_seconds)
    found = Health(status="ok" if not wrong else "unavailable", reason=wrong)
    headers = {"Retry-After": "1"} if wrong else {}
    return JSONResponse(found.model_dump(), 503 if wrong else 200, headers)
