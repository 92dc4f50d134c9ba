"""The shared models as requests use them: each kind of work has its queue; each batch borrows its model from the pool and gives it back."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from fgvr.runtime.conversation import Answer, Conversation, Sampling, Turn
from fgvr.runtime.pool import ModelPool
from fgvr.server.batching import BatchQueue, Compute, Job, Unwanted
from fgvr.server.decode_pool import Decoders
from fgvr.server.http_errors import HttpError, bad_request, stopping
from fgvr.server.metrics import Metrics
from fgvr.server.settings import Settings
from fgvr.types import ROLES, ModelSpec, Picture

T = TypeVar("T")


class InferenceEngine:
    """`specs`: the model of each role there is. Queues may be added (classification has its own)."""

    def __init__(self, pool: ModelPool, specs: Mapping[str, ModelSpec], settings: Settings, metrics: Metrics) -> None:
        self.pool, self.specs, self.settings, self.metrics = pool, dict(specs), settings, metrics
        self.queues: dict[str, BatchQueue] = {}
        self.decoders = Decoders(settings)
        self.draining = False
        self._inflight = Counter[str]()  # by role; changed by the loop's thread only
        self._fingerprints: dict[str, str] = {}
        for name, role, compute in (
            ("converse", "mllm", self._converse),
            ("score", "mllm", self._score),
            ("embed_images", "encoder", lambda jobs: list(self._leased("encoder", jobs).encode([job.payload for job in jobs]))),
            ("embed_texts", "encoder", lambda jobs: list(self._leased("encoder", jobs).encode_text([job.payload for job in jobs]))),
            ("match", "joint", self._match),
        ):
            if role in self.specs:
                self.add_queue(name, compute, most=lambda role=role: max(1, self.specs[role].batch_size))
        metrics.watch_requests(lambda: self.inflight, lambda: {name: queue.queued for name, queue in self.queues.items()})

    def add_queue(self, name: str, compute: Compute, *, most: Callable[[], int]) -> None:
        tokens, wait = self.settings.batch_tokens, self.settings.batch_wait
        self.queues[name] = BatchQueue(
            name, compute, most=most, most_tokens=tokens, wait=wait, on_batch=self.metrics.on_batch, at_once=len(self.pool.members)
        )

    # --- which model -------------------------------------------------------------------------------------------------------

    def spec_of(self, role: str) -> ModelSpec:
        """Raises HttpError (404): this server has none."""
        if role not in self.specs:
            message = f"this server has no {role}; it was started with models/{role}=none"
            raise HttpError(404, message, param="model", code="model_not_found")
        return self.specs[role]

    def named(self, name: str, role: str) -> ModelSpec:
        """The model of a role by role, key or source. Raises HttpError (404)."""
        spec = self.spec_of(role)
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
        """Of the models that requests with a slot need."""
        return [role for role in ROLES if self._inflight[role]]

    def why_full(self) -> HttpError | None:
        """Why no request gets a slot now; None: one does."""
        if self.draining:
            return stopping()
        if self.inflight >= self.settings.max_inflight:
            self.metrics.refused.labels("busy").inc()
            message = f"{self.inflight} requests are being served (server.max_inflight)"
            return HttpError(429, message, code="busy", retry=self.retry_after())
        return None

    @contextmanager
    def slot(self, request: Request, role: str) -> Iterator["RequestSlot"]:
        """For work with this model. Raises HttpError: 404 without one, 429 when all are taken, 503 while draining."""
        self.spec_of(role)
        if (error := self.why_full()) is not None:
            raise error
        self._inflight[role] += 1
        slot = RequestSlot(self, request)
        try:
            yield slot
        finally:
            for job in slot.jobs:
                job.future.cancel()
            slot.jobs.clear()
            self.decoders.leave(slot)
            self._inflight[role] -= 1

    def retry_after(self) -> int:
        """Seconds after which what waits now may be done, at least 1."""
        waits = [queue.seconds * (1 + queue.queued / max(1.0, queue.size)) for queue in self.queues.values()]
        return min(60, max(1, math.ceil(max(waits, default=0.0) / 2)))

    def close(self) -> None:
        """All are told first; then they have three seconds together."""
        self.decoders.close()
        until = time.monotonic() + 3.0
        for queue in self.queues.values():
            queue.close(0.0)
        for queue in self.queues.values():
            queue.close(max(0.0, until - time.monotonic()))

    # --- computing, in the queues' threads ---------------------------------------------------------------------------------

    def _leased(self, role: str, jobs: Sequence[Job]) -> Any:
        """A lease for each call, on the least busy device, which ends when nobody waits for these jobs any more."""
        return self.pool.leased(self.specs[role], timeout=self.settings.deadline, stop=Unwanted(jobs))

    def _converse(self, jobs: Sequence[Job]) -> Sequence[Answer]:
        def watch(index: int, text: str, tokens: Sequence[Any]) -> bool:
            jobs[index].report_text((text, tokens))
            return not jobs[index].gone

        mllm = self._leased("mllm", jobs)
        if self.converses():
            answers = mllm.converse([job.payload for job in jobs], watch)
        else:
            answers = [_generate(mllm, job.payload) for job in jobs]
        self.metrics.on_tokens(sum(a.prompt_tokens for a in answers), sum(a.new_tokens for a in answers))
        return answers

    def _score(self, jobs: Sequence[Job]) -> Sequence[Any]:
        images, prompts, continuations = zip(*(job.payload for job in jobs), strict=True)
        scores = self._leased("mllm", jobs).score(list(images), list(prompts), list(continuations), system=jobs[0].group)
        self.metrics.on_tokens(sum(s.prompt_tokens for s in scores), 0)
        return scores

    def _match(self, jobs: Sequence[Job]) -> Sequence[Any]:
        images, texts = zip(*(job.payload for job in jobs), strict=True)
        return [float(p) for p in self._leased("joint", jobs).match(list(images), list(texts))]


@dataclass(eq=False)
class RequestSlot:
    """One of `server.max_inflight`: a request that is being served, what it waits for, and the pixels it has had decoded."""

    engine: InferenceEngine
    request: Request
    jobs: list[Job] = field(default_factory=list)
    pixels: int = 0

    async def compute(self, queue: str, payloads: Sequence[Any], *, group: Any = None, tokens: Sequence[int] | None = None) -> list[Any]:
        """Results in order. Raises HttpError as `wait`."""
        return await self.wait(asyncio.gather(*map(asyncio.wrap_future, self.submit(queue, payloads, group=group, tokens=tokens))))

    def submit(
        self,
        queue: str,
        payloads: Sequence[Any],
        *,
        group: Any = None,
        tokens: Sequence[int] | None = None,
        on_text: Callable[[int, Any], None] | None = None,
    ) -> list[Future[Any]]:
        """`on_text`: gets, in the loop, the place of a payload and its text while it grows."""
        loop, client = asyncio.get_running_loop(), client_of(self.request)
        begun = len(self.jobs)
        for i, payload in enumerate(payloads):
            told = partial(loop.call_soon_threadsafe, partial(on_text, i)) if on_text else None
            job = Job(payload, client, group, tokens[i] if tokens else 1, told)
            self.jobs.append(job)
            self.engine.queues[queue].submit(job)
        return [job.future for job in self.jobs[begun:]]

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Its result, unless the client leaves (HttpError, 499) or `server.deadline` passes (504)."""
        wanted, left = asyncio.ensure_future(awaitable), asyncio.ensure_future(_disconnected(self.request))
        wanted.add_done_callback(lambda done: done.cancelled() or done.exception())  # one that nobody waits for is no news for the log
        try:
            await asyncio.wait({wanted, left}, timeout=self.engine.settings.deadline, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            if left.done():
                self.engine.metrics.refused.labels("left").inc()
                raise HttpError(499, "the client has left", code="left")
            raise self.too_late()
        finally:
            left.cancel()
            wanted.cancel()
            del wanted, awaitable  # an error of theirs would keep this frame, and the pictures of its callers, until a garbage collection

    def too_late(self) -> HttpError:
        self.engine.metrics.refused.labels("deadline").inc()
        message = f"not done within {self.engine.settings.deadline:g} s (server.deadline)"
        return HttpError(504, message, code="deadline", retry=self.engine.retry_after())


def engine_of(request: Request) -> InferenceEngine:
    return request.app.state.engine


def _slot_for(role: str) -> Any:
    """A parameter of a handler; FastAPI leaves the slot when the answer is sent, a stream's end included."""

    async def take(request: Request) -> AsyncIterator[RequestSlot]:
        with engine_of(request).slot(request, role) as slot:
            yield slot

    return Depends(take)


MllmSlot = Annotated[RequestSlot, _slot_for("mllm")]
EncoderSlot = Annotated[RequestSlot, _slot_for("encoder")]
JointSlot = Annotated[RequestSlot, _slot_for("joint")]


def _generate(mllm: Any, ask: Conversation) -> Answer:
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
        raise bad_request(message, "messages", "unsupported_messages")
    return images, texts[0], system


def unsupported(sampling: Sampling) -> str | None:
    """The first parameter that `MLLM.generate` alone cannot honour."""
    asked = {"temperature": sampling.temperature, "stop": sampling.stop, "logprobs": sampling.top_logprobs is not None}
    return next((name for name, value in asked.items() if value), None)


def client_of(request: Request) -> str:
    """Whose turn it is: by address, token and the request's `user`. (Only ever compared, never logged.)"""
    sent = request.headers.get("authorization", "")
    return f"{request.client.host if request.client else ''} {hash(sent)} {getattr(request.state, 'user', None) or ''}"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
