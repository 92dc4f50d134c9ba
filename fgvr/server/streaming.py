"""Chat answers as server-sent events while they grow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from fgvr.runtime.conversation import Answer, Conversation
from fgvr.server.engine import RequestSlot
from fgvr.server.http_errors import HttpError, body, to_http_error
from fgvr.server.schemas import Logprobs, Usage, finish_reason

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def stream_chat(
    slot: RequestSlot, asks: Sequence[Conversation], tokens: Sequence[int], head: dict[str, Any], *, usage: bool
) -> StreamingResponse:
    """The response. Its head is sent when the first token is there, so that an error still is an HTTP status."""
    news: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
    futures = slot.submit("converse", asks, tokens=tokens, on_text=lambda i, text: news.put_nowait((i, text)))
    for i, future in enumerate(futures):
        asyncio.wrap_future(future).add_done_callback(lambda done, i=i: news.put_nowait((i, _outcome(done))))
    first = await slot.wait(news.get())
    if isinstance(first[1], Exception):
        raise first[1]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + slot.engine.settings.deadline

    async def lines() -> AsyncIterator[bytes]:
        writer = _Chunks(head, [ask.sampling.top_logprobs is not None for ask in asks])
        for line in writer.begin():
            yield line
        answers: list[Answer] = []
        i, found = first
        while not isinstance(found, Exception):
            for line in writer.take(i, found):
                yield line
            if isinstance(found, Answer):
                answers.append(found)
            if len(answers) == len(asks):
                break
            try:
                i, found = await asyncio.wait_for(news.get(), deadline - loop.time())
            except TimeoutError:
                found = slot.too_late()
        else:
            yield _line(body(slot.request.url.path, to_http_error(found)))
            return
        if usage:
            yield _line(writer.head | {"choices": [], "usage": Usage.of(answers).model_dump()})
        yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers=HEADERS)


def _outcome(future: asyncio.Future[Any]) -> Any:
    if future.cancelled():
        return HttpError(499, "cancelled", code="left")
    return future.exception() or future.result()


class _Chunks:
    """News -> `chat.completion.chunk` events; of each text what is new in it."""

    def __init__(self, head: dict[str, Any], with_logprobs: Sequence[bool]) -> None:
        """Args: with_logprobs: of each answer."""
        self.head = head | {"object": "chat.completion.chunk"}
        self._with_logprobs = with_logprobs
        self._letters, self._tokens = [0] * len(with_logprobs), [0] * len(with_logprobs)  # sent so far

    def begin(self) -> Iterator[bytes]:
        return (self._event(i, {"role": "assistant", "content": ""}) for i in range(len(self._letters)))

    def take(self, i: int, found: Any) -> Iterator[bytes]:
        """`found`: an answer, or its text and tokens so far."""
        text, tokens = (found.text, found.tokens) if isinstance(found, Answer) else found
        piece, new = text[self._letters[i] :], list(tokens[self._tokens[i] :])
        if piece or new:
            self._letters[i], self._tokens[i] = max(len(text), self._letters[i]), max(len(tokens), self._tokens[i])
            yield self._event(i, {"content": piece}, Logprobs.of(new).model_dump() if self._with_logprobs[i] else None)
        if isinstance(found, Answer):
            yield self._event(i, {}, finish=finish_reason(found))

    def _event(self, i: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, finish: str | None = None) -> bytes:
        return _line(self.head | {"choices": [{"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]})


def _line(record: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n".encode()
