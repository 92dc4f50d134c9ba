"""The shared models as requests use them: each kind of work has its queue, each batch borrows its model from the pool and gives it back."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fgvr.runtime.conversation import Answer, Conversation, Sampling, Turn
from fgvr.runtime.pool import ModelPool
from fgvr.server.batching import Batch, BatchQueue, Job
from fgvr.server.decoding import DECODERS, Hold
from fgvr.server.http_errors import HttpError
from fgvr.server.metrics import Metrics
from fgvr.server.settings import Settings
from fgvr.types import ModelSpec, Picture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Request

ROLES = ("mllm", "encoder", "joint")


class InferenceEngine:
    """`specs`: the model of each role. `queues` may be extended (classification has its own)."""

    def __init__(self, pool: ModelPool, specs: Mapping[str, ModelSpec], settings: Settings, metrics: Metrics) -> None:
        self.pool, self.specs, self.settings, self.metrics = pool, dict(specs), settings, metrics
        self.queues: dict[str, BatchQueue] = {}
        self.draining = False
        self._inflight, self._lock = Counter[str](), threading.Lock()
        self._fingerprints: dict[str, str] = {}
        for name, role, compute in (
            ("converse", "mllm", self._converse),
            ("score", "mllm", self._score),
            ("embed_images", "encoder", self._embed_images),
            ("embed_texts", "encoder", self._embed_texts),
            ("match", "joint", self._match),
        ):
            self.add_queue(name, compute, most=self._batch_size(role))

    def add_queue(self, name: str, compute: Callable[[Batch], Sequence[Any]], *, most: Callable[[], int]) -> BatchQueue:
        settings = self.settings
        queue = BatchQueue(
            name, compute, most=most, most_tokens=settings.batch_tokens, wait=settings.batch_wait, done=self.metrics.batch_done
        )
        self.queues[name] = queue
        return queue

    # --- which model -------------------------------------------------------------------------------------------------------

    def named(self, name: str, role: str) -> ModelSpec:
        """The model of a role by role, key or source. Raises HttpError (404)."""
        spec = self.specs[role]
        if name in (role, spec.key, spec.source):
            return spec
        raise HttpError(404, f"no model {name[:80]!r} for this; it is {role!r} ({spec.key})", param="model", code="model_not_found")

    def fingerprint(self, role: str) -> str:
        """Read from the files once: a server lends one model per role, all its life. Raises ModelLoadError while they are not there."""
        if role not in self._fingerprints:
            self._fingerprints[role] = self.pool.loader(self.specs[role]).fingerprint(self.specs[role])
        return self._fingerprints[role]

    def converses(self) -> bool:
        return bool(getattr(self.pool.loader(self.specs["mllm"]), "converses", False))

    # --- how many at once --------------------------------------------------------------------------------------------------

    @property
    def inflight(self) -> int:
        return self._inflight.total()

    def busy_roles(self) -> list[str]:
        """Of the models that requests with a place need."""
        with self._lock:
            return [role for role in ROLES if self._inflight[role]]

    def full(self) -> HttpError | None:
        """Why no request gets a place now."""
        if self.draining:
            return HttpError(503, "the server is stopping", code="draining", retry=5)
        if self.inflight >= self.settings.max_inflight:
            self.metrics.refused.labels("busy").inc()
            return HttpError(429, f"{self.inflight} requests are being served (server.max_inflight)", code="busy", retry=self.patience())
        return None

    @contextmanager
    def place(self, role: str) -> Iterator[Hold]:
        """One of `server.max_inflight` places, for work with this model, and what holds its pictures.

        Raises HttpError: 429 when all are taken, 503 while draining."""
        with self._lock:
            if (refusal := self.full()) is not None:
                raise refusal
            self._inflight[role] += 1
        try:
            with DECODERS.hold() as hold:
                yield hold
        finally:
            with self._lock:
                self._inflight[role] -= 1

    def patience(self) -> int:
        """Seconds after which what waits now may be done, at least 1."""
        waits = [queue.seconds * (1 + queue.queued / max(1.0, queue.size)) for queue in self.queues.values()]
        return min(60, max(1, math.ceil(max(waits, default=0.0) / 2)))

    def close(self) -> None:
        """All are told first; then they have three seconds together."""
        until = time.monotonic() + 3.0
        for queue in self.queues.values():
            queue.close(0.0)
        for queue in self.queues.values():
            queue.close(max(0.0, until - time.monotonic()))

    # --- one request -------------------------------------------------------------------------------------------------------

    async def compute(
        self, request: Request, queue: str, payloads: Sequence[Any], *, group: Any = None, tokens: Sequence[int] | None = None
    ) -> list[Any]:
        """Results in order. Raises HttpError (504 after the deadline); a client that leaves cancels what it asked for."""
        jobs = self.submit(request, queue, payloads, group=group, tokens=tokens)
        return await self.results(request, jobs)

    def submit(
        self,
        request: Request,
        queue: str,
        payloads: Sequence[Any],
        *,
        group: Any = None,
        tokens: Sequence[int] | None = None,
        told: Callable[[int], Callable[[Any], None]] | None = None,
    ) -> list[Job]:
        loop, client = asyncio.get_running_loop(), client_of(request)
        sizes = tokens or [1] * len(payloads)
        jobs = [Job(p, loop, client, group, n, told(i) if told else None) for i, (p, n) in enumerate(zip(payloads, sizes, strict=True))]
        for job in jobs:
            self.queues[queue].submit(job)
        return jobs

    async def results(self, request: Request, jobs: Sequence[Job]) -> list[Any]:
        everything = asyncio.gather(*(job.future for job in jobs))
        gone = asyncio.ensure_future(_gone(request))
        try:
            done, _ = await asyncio.wait({everything, gone}, timeout=self.settings.deadline, return_when=asyncio.FIRST_COMPLETED)
            if everything in done:
                return list(everything.result())
            if gone in done:
                self.metrics.refused.labels("left").inc()
                raise HttpError(499, "the client has left", code="left")
            self.metrics.refused.labels("deadline").inc()
            raise HttpError(504, f"not done within {self.settings.deadline:g} s (server.deadline)", code="deadline", retry=self.patience())
        finally:
            gone.cancel()
            everything.cancel()
            for job in jobs:
                if not job.future.done() or job.future.cancelled():
                    job.cancel()

    # --- computing, in the queues' threads ----------------------------------------------------------------------------------

    def _lease(self, role: str, batch: Batch) -> Any:
        return self.pool.lease(self.specs[role], timeout=self.settings.deadline, stop=batch.stop)

    def _batch_size(self, role: str) -> Callable[[], int]:
        return lambda: max(1, self.specs[role].batch_size)

    def _converse(self, batch: Batch) -> Sequence[Answer]:
        jobs = batch.jobs

        def watch(index: int, text: str, tokens: Sequence[Any]) -> bool:
            jobs[index].tell((text, tokens))
            return not jobs[index].gone.is_set()

        with self._lease("mllm", batch) as mllm:
            if self.converses():
                answers = mllm.converse([job.payload for job in jobs], watch)
            else:
                answers = [_plainly(mllm, job.payload) for job in jobs]
        self.metrics.tokens(sum(a.prompt_tokens for a in answers), sum(a.new_tokens for a in answers))
        return answers

    def _score(self, batch: Batch) -> Sequence[Any]:
        images, prompts, continuations = zip(*(job.payload for job in batch.jobs), strict=True)
        with self._lease("mllm", batch) as mllm:
            scores = mllm.score(list(images), list(prompts), list(continuations), system=batch.jobs[0].group)
        self.metrics.tokens(sum(s.prompt_tokens for s in scores), 0)
        return scores

    def _embed_images(self, batch: Batch) -> Sequence[Any]:
        with self._lease("encoder", batch) as encoder:
            return list(encoder.encode([job.payload for job in batch.jobs]))

    def _embed_texts(self, batch: Batch) -> Sequence[Any]:
        with self._lease("encoder", batch) as encoder:
            return list(encoder.encode_text([job.payload for job in batch.jobs]))

    def _match(self, batch: Batch) -> Sequence[Any]:
        images, texts = zip(*(job.payload for job in batch.jobs), strict=True)
        with self._lease("joint", batch) as joint:
            return [float(p) for p in joint.match(list(images), list(texts))]


def _plainly(mllm: Any, ask: Conversation) -> Answer:
    """By `MLLM.generate`, for engines that cannot do more; the request was checked for that."""
    images, prompt, system = single(ask.turns)
    (reply,) = mllm.generate([images], [prompt], system=system, max_new_tokens=ask.sampling.max_new_tokens)
    finish = "length" if reply.new_tokens >= ask.sampling.max_new_tokens else "stop"
    return Answer(str(reply), finish, reply.prompt_tokens, reply.new_tokens)


def single(turns: Sequence[Turn]) -> tuple[list[Picture], str, str]:
    """(images, prompt, system) of one user turn, images before the text. Raises HttpError for any other conversation."""
    *before, last = turns
    system = " ".join(part for turn in before for part in turn.parts if isinstance(part, str))
    images = [part for part in last.parts if isinstance(part, Picture)]
    texts = [part for part in last.parts if isinstance(part, str)]
    ordered = list(last.parts[: len(images)]) == images
    if len(before) > 1 or any(turn.role != "system" for turn in before) or last.role != "user" or len(texts) != 1 or not ordered:
        message = "this needs one user turn (images, then one text), after at most one system turn"
        raise HttpError(400, message, param="messages", code="unsupported_messages")
    return images, texts[0], system


def plain_only(sampling: Sampling) -> str | None:
    """The first parameter that `MLLM.generate` alone cannot honour."""
    asked = {"temperature": sampling.temperature, "stop": sampling.stop, "logprobs": sampling.top_logprobs is not None}
    return next((name for name, value in asked.items() if value), None)


def client_of(request: Request) -> str:
    """Whose turn it is: by address, token and the request's `user`. (Only ever compared, never logged.)"""
    sent = request.headers.get("authorization", "")
    return f"{request.client.host if request.client else ''} {hash(sent)} {getattr(request.state, 'user', None) or ''}"


async def _gone(request: Request) -> None:
    """Until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
