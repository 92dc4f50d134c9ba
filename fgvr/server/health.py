"""`/health`: ready only when a real lease can be had in time, and no queue has been stuck in one batch."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from fgvr.errors import FgvrError
from fgvr.server.background import in_daemon, result_of
from fgvr.server.engine import InferenceEngine

router = APIRouter(tags=["health"])
_FRESH = 1.0  # seconds a finding may be old: whoever asks oftener gets the same


class Health(BaseModel):
    status: str
    reason: str = ""


class ReadinessProbe:
    """Borrows `server.health_model` (or what there is) in a thread of its own; whoever asks meanwhile waits for the same try."""

    def __init__(self, engine: InferenceEngine, is_starting: Callable[[], bool]) -> None:
        """Args: is_starting: whether the knowledge base is being built or opened."""
        self._engine, self._is_starting = engine, is_starting
        self._spec = engine.specs.get(engine.settings.health_model) or next(iter(engine.specs.values()))
        self._trying: Future[str] | None = None
        self._tried = -math.inf

    async def reason(self) -> str:
        """What is wrong; "" when nothing is."""
        settings = self._engine.settings
        if self._engine.draining:
            return "stopping"
        if self._is_starting():
            return "the knowledge base is being built or opened"
        patience = 2 * settings.deadline  # a batch may take as long as a request may, and once more for a load
        stuck = [f"{name} ({queue.running[1]:.0f} s)" for name, queue in self._engine.queues.items() if queue.running[1] > patience]
        if stuck:
            return f"stuck in one batch: {', '.join(stuck)}"
        if self._trying is None or (self._trying.done() and time.monotonic() - self._tried > _FRESH):
            self._trying = in_daemon(self._try, "fgvr-health")
        try:
            return await result_of(self._trying, settings.health_seconds)
        except TimeoutError:
            return f"no lease of {self._spec.key} within {settings.health_seconds:g} s"

    def _try(self) -> str:
        try:
            with self._engine.pool.lease(self._spec, work=0, timeout=self._engine.settings.deadline):
                return ""
        except FgvrError as error:
            return str(error).splitlines()[0]
        except Exception as error:  # a loader's own failure: not ready, whatever it was
            return f"{type(error).__name__}: {error}"
        finally:
            self._tried = time.monotonic()


@router.get("/health", responses={503: {"model": Health, "description": "Starting, stopping or stuck; the reason is given"}})
async def health(request: Request) -> JSONResponse:
    """Asks the pool for a real lease. Needs no token, tells no secrets."""
    wrong = await request.app.state.readiness.reason()
    found = Health(status="unavailable" if wrong else "ok", reason=wrong)
    return JSONResponse(found.model_dump(), 503 if wrong else 200, {"Retry-After": "1"} if wrong else None)
