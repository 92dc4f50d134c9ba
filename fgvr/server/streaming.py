"""Chat answers as server-sent events while they grow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fgvr.runtime.conversation import Answer, Conversation, Token
from fgvr.server.batching import Job
from fgvr.server.engine import InferenceEngine
from fgvr.server.http_errors import HttpError, body, to_http_error

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Stream(StreamingResponse):
    """Lets go of its jobs and its place however it ends, also when it never begins."""

    def __init__(self, content: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=HEADERS)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def stream_chat(
    request: Request,
    engine: InferenceEngine,
    asks: Sequence[Conversation],
    tokens: Sequence[int],
    head: dict[str, Any],
    place: ExitStack,
    *,
    usage: bool,
) -> StreamingResponse:
    """The response; its head is sent when the first token is there, so that a refusal still is an HTTP status. `place` ends with it."""
    news: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
    jobs: list[Job] = []
    try:
        jobs = engine.submit(request, "converse", asks, tokens=tokens, told=lambda i: lambda found: news.put_nowait((i, found)))
        for i, job in enumerate(jobs):
            job.future.add_done_callback(lambda future, i=i: news.put_nowait((i, _outcome(future))))
        first = await _first(request, engine, news)
    except BaseException:
        _leave(jobs, place)
        raise
    writer = _Chunks(head, len(jobs), with_logprobs=[ask.sampling.top_logprobs is not None for ask in asks])

    async def chunks() -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + engine.settings.deadline
        for line in writer.begin():
            yield line
        answers: dict[int, Answer] = {}
        found = first
        while True:
            i, what = found
            if isinstance(what, Exception):
                yield writer.error(request.url.path, to_http_error(what))
                return
            for line in writer.take(i, what):
                yield line
            if isinstance(what, Answer):
                answers[i] = what
                if len(answers) == len(jobs):
                    break
            try:
                found = await asyncio.wait_for(news.get(), deadline - loop.time())
            except TimeoutError:
                engine.metrics.refused.labels("deadline").inc()
                yield writer.error(request.url.path, HttpError(504, f"not done within {engine.settings.deadline:g} s", code="deadline"))
                return
        if usage:
            yield writer.usage(list(answers.values()))
        yield b"data: [DONE]\n\n"

    return _Stream(chunks(), lambda: _leave(jobs, place))


def _leave(jobs: Sequence[Job], place: ExitStack) -> None:
    for job in jobs:
        if not job.future.done():
            job.cancel()
    place.close()


def _outcome(future: asyncio.Future[Any]) -> Any:
    if future.cancelled():
        return HttpError(499, "cancelled", code="left")
    return future.exception() or future.result()


async def _first(request: Request, engine: InferenceEngine, news: asyncio.Queue[tuple[int, Any]]) -> tuple[int, Any]:
    """The first news, unless the client leaves or the deadline passes. Raises what the computation raised."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting, gone = asyncio.ensure_future(news.get()), asyncio.ensure_future(left())
    try:
        done, _ = await asyncio.wait({waiting, gone}, timeout=engine.settings.deadline, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done:
            i, found = waiting.result()
            if isinstance(found, Exception):
                raise found
            return i, found
        if gone in done:
            raise HttpError(499, "the client has left", code="left")
        engine.metrics.refused.labels("deadline").inc()
        raise HttpError(504, f"not done within {engine.settings.deadline:g} s (server.deadline)", code="deadline", retry=engine.patience())
    finally:
        waiting.cancel()
        gone.cancel()


class _Chunks:
    """News -> the bytes of `chat.completion.chunk` events; each text is told as what is new in it."""

    def __init__(self, head: dict[str, Any], count: int, with_logprobs: Sequence[bool]) -> None:
        self._head = head | {"object": "chat.completion.chunk"}
        self._sent, self._tokens = [0] * count, [0] * count
        self._with_logprobs = with_logprobs

    def begin(self) -> list[bytes]:
        return [self._event(i, {"role": "assistant", "content": ""}) for i in range(len(self._sent))]

    def take(self, i: int, what: Any) -> list[bytes]:
        text, tokens = (what.text, what.tokens) if isinstance(what, Answer) else what
        piece, new = text[self._sent[i] :], list(tokens[self._tokens[i] :])
        lines = []
        if piece or new:
            self._sent[i], self._tokens[i] = max(len(text), self._sent[i]), max(len(tokens), self._tokens[i])
            lines.append(self._event(i, {"content": piece}, self._logprobs(i, new)))
        if isinstance(what, Answer):
            lines.append(self._event(i, {}, finish="length" if what.finish == "length" else "stop"))
        return lines

    def usage(self, answers: Sequence[Answer]) -> bytes:
        from fgvr.server.openai import usage_of

        return _line(self._head | {"choices": [], "usage": usage_of(answers).model_dump()})

    def error(self, path: str, refusal: HttpError) -> bytes:
        return _line(body(path, refusal))

    def _logprobs(self, i: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        from fgvr.server.openai import logprobs_of

        return logprobs_of(tokens).model_dump() if self._with_logprobs[i] else None

    def _event(self, i: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, finish: str | None = None) -> bytes:
        return _line(self._head | {"choices": [{"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]})


def _line(record: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n".encode()
