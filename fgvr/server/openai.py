"""`/v1`: the OpenAI API over the shared models, and two calls it has no word for (`score`, `match`)."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from fgvr.errors import FgvrError
from fgvr.runtime.conversation import Answer, Conversation, Sampling
from fgvr.server import prompt_checks, request_images, schemas
from fgvr.server.auth import READ
from fgvr.server.background import in_thread
from fgvr.server.engine import EncoderSlot, InferenceEngine, JointSlot, MllmSlot, RequestSlot, engine_of, single, unsupported
from fgvr.server.http_errors import HttpError, bad_request, body, to_http_error
from fgvr.server.schemas import Logprobs, Usage, finish_reason
from fgvr.server.settings import Settings

router = APIRouter(prefix="/v1", dependencies=READ, tags=["OpenAI"])
_COMPUTED = schemas.codes(400, 401, 404, 413, 429, 503, 504, 507, openai=True)
DEFAULT_NEW_TOKENS = 128


@router.get("/models", responses=schemas.codes(401, openai=True))
async def list_models(request: Request) -> schemas.ModelList:
    """The shared models, by role, with what identifies their answers."""
    return schemas.ModelList(data=await asyncio.to_thread(_rows, engine_of(request)))


@router.get("/models/{model:path}", responses=schemas.codes(401, 404, openai=True))
async def get_model(request: Request, model: str) -> schemas.ModelRow:
    """One of them, by key, role or source."""
    for row in await asyncio.to_thread(_rows, engine_of(request)):
        if model in (row.id, row.role, row.source):
            return row
    raise HttpError(404, f"no model {model[:80]!r}", param="model", code="model_not_found")


def _rows(engine: InferenceEngine) -> list[schemas.ModelRow]:
    states = {m.key: m.state for m in engine.pool.status()}
    rows = []
    for role, spec in engine.specs.items():
        state, fingerprint, scale = states[spec.key], "", None
        try:
            fingerprint = engine.fingerprint(role)
            scale = engine.pool.loader(spec).logit_scale(spec) if role == "encoder" else None
        except FgvrError as missing:
            state = f"missing: {str(missing).splitlines()[0]}"
        rows.append(schemas.ModelRow(id=spec.key, role=role, source=spec.source, state=state, fingerprint=fingerprint, logit_scale=scale))
    return rows


# --- chat ----------------------------------------------------------------------------------------------------------------------


@router.post("/chat/completions", response_model=schemas.ChatAnswer, responses=_COMPUTED)
async def chat(request: Request, asked: schemas.ChatRequest, slot: MllmSlot) -> schemas.ChatAnswer | Response:
    """An answer of the shared MLLM; with `stream`, as server-sent events."""
    engine = slot.engine
    spec, sampling = engine.named(asked.model, "mllm"), _sampling(asked, engine.settings)
    request.state.user = asked.user
    turns = await in_thread(prompt_checks.turns_of, asked.messages, slot)
    if not engine.converses():
        single(turns)
        if lacking := unsupported(sampling):
            message = f"{lacking} is not supported by the {spec.loader} engine; leave it out"
            raise bad_request(message, lacking, "unsupported_parameter")
    # Of `n` answers each draws its own way, and the same way again.
    seeds = [None if sampling.seed is None else sampling.seed + i for i in range(asked.n or 1)]
    asks = [Conversation(turns, replace(sampling, seed=seed)) for seed in seeds]
    await in_thread(prompt_checks.check_length, asks[0], engine, param="messages")
    tokens = [prompt_checks.tokens_of(turns) + sampling.max_new_tokens] * len(asks)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": spec.key}
    head |= {"system_fingerprint": engine.fingerprint("mllm")}
    if asked.stream:
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        return await stream_chat(slot, asks, tokens, head, usage=usage)
    answers = await slot.compute("converse", asks, tokens=tokens)
    choices = [schemas.Choice.of(i, answer, logprobs=bool(asked.logprobs)) for i, answer in enumerate(answers)]
    return schemas.ChatAnswer(**head, choices=choices, usage=schemas.Usage.of(answers))


def _sampling(asked: schemas.ChatRequest, settings: Settings) -> Sampling:
    if asked.max_tokens is not None and asked.max_completion_tokens is not None and asked.max_tokens != asked.max_completion_tokens:
        raise bad_request("max_tokens and max_completion_tokens differ; give one", "max_tokens")
    name = "max_tokens" if asked.max_tokens is not None else "max_completion_tokens"
    most = asked.max_tokens or asked.max_completion_tokens or min(DEFAULT_NEW_TOKENS, settings.max_new_tokens)
    if most > settings.max_new_tokens:
        raise bad_request(f"{name}={most}, at most {settings.max_new_tokens} (server.max_new_tokens)", name)
    if (asked.n or 1) > settings.max_n:
        raise bad_request(f"n={asked.n}, at most {settings.max_n} (server.max_n)", "n")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise bad_request("stream_options needs stream: true", "stream_options")
    stop = tuple(asked.stop or ())
    if len(stop) > 4 or any(not 0 < len(word) <= 200 for word in stop):
        raise bad_request("stop: at most 4 texts of 1 to 200 characters", "stop")
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    return Sampling(most, asked.temperature or 0.0, 1.0 if asked.top_p is None else asked.top_p, asked.seed, stop, top)


# --- embeddings ------------------------------------------------------------------------------------------------------------------


@router.post("/embeddings", responses=_COMPUTED)
async def embeddings(request: Request, asked: schemas.EmbeddingRequest, slot: EncoderSlot) -> schemas.EmbeddingAnswer:
    """Unit vectors of texts and images, in one space."""
    spec, settings = slot.engine.named(asked.model, "encoder"), slot.engine.settings
    request.state.user = asked.user
    items = asked.input
    _check_items(len(items), settings, param="input")
    shown = {i: item for i, item in enumerate(items) if item[:5].lower() == "data:"}
    said = {i: item for i, item in enumerate(items) if i not in shown}
    request_images.check_count(len(shown), settings, param="input")
    prompt_checks.check_characters(list(said.values()), settings, param="input")
    texts = [prompt_checks.check_text(text, f"input.{i}") for i, text in said.items()]
    opened = await in_thread(request_images.open_pictures, list(shown.values()), slot, param="input")
    # One after the other: both listen for the client's leaving, and only one may at a time.
    seen = await slot.compute("embed_images", opened) if opened else []
    read = await slot.compute("embed_texts", texts) if texts else []
    rows: dict[int, np.ndarray] = dict(zip([*shown, *said], [*seen, *read], strict=True))
    if asked.dimensions is not None and asked.dimensions != len(rows[0]):
        message = f"dimensions={asked.dimensions} is not supported: this encoder has {len(rows[0])}"
        raise bad_request(message, "dimensions", "unsupported_parameter")
    data = [schemas.Embedding(index=i, embedding=_written(rows[i], asked.encoding_format)) for i in range(len(items))]
    return schemas.EmbeddingAnswer(model=spec.key, data=data, usage=schemas.EmbeddingUsage())


def _written(row: np.ndarray, form: str | None) -> list[float] | str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") if form == "base64" else [float(value) for value in row]


def _check_items(count: int, settings: Settings, *, param: str) -> None:
    if not 0 < count <= settings.max_items:
        raise bad_request(f"{param}: 1 to {settings.max_items} items (server.max_items)", param)


# --- what OpenAI has no word for -------------------------------------------------------------------------------------------------


@router.post("/score", responses=_COMPUTED)
async def score(asked: schemas.ScoreRequest, slot: MllmSlot) -> schemas.ScoreAnswer:
    """Log-likelihood of each continuation as the whole answer."""
    engine = slot.engine
    engine.named(asked.model, "mllm")
    _check_items(len(asked.continuations), engine.settings, param="continuations")
    texts = prompt_checks.check_texts(asked.continuations, engine.settings, param="continuations")
    turns = await in_thread(prompt_checks.turns_of, asked.messages, slot)
    images, prompt, system = single(turns)
    await in_thread(prompt_checks.check_length, Conversation(turns, Sampling(0)), engine, param="messages")
    size = prompt_checks.tokens_of(turns) + sum(map(len, texts)) // 2
    (found,) = await slot.compute("score", [(images, prompt, texts)], group=system, tokens=[size])
    return schemas.ScoreAnswer(log_likelihoods=list(found.log_likelihoods), tokens=list(found.tokens), prompt_tokens=found.prompt_tokens)


@router.post("/match", responses=_COMPUTED)
async def match(asked: schemas.MatchRequest, slot: JointSlot) -> schemas.MatchAnswer:
    """Probability that image i shows text i."""
    settings = slot.engine.settings
    slot.engine.named(asked.model, "joint")
    if len(asked.images) != len(asked.texts):
        raise bad_request(f"{len(asked.images)} images and {len(asked.texts)} texts: one of each per pair", "texts")
    _check_items(len(asked.texts), settings, param="texts")
    distinct = list(dict.fromkeys(asked.images))
    request_images.check_count(len(distinct), settings, param="images")
    texts = prompt_checks.check_texts(asked.texts, settings, param="texts")
    opened = await in_thread(request_images.open_pictures, distinct, slot, param="images")
    shown = dict(zip(distinct, opened, strict=True))
    pairs = [(shown[url], text) for url, text in zip(asked.images, texts, strict=True)]
    return schemas.MatchAnswer(probabilities=await slot.compute("match", pairs))


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
