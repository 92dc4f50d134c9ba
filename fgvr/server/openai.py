"""`/v1`: the OpenAI API over the shared models, and two calls it has no word for (`score`, `match`)."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from fgvr.errors import FgvrError
from fgvr.runtime.conversation import Answer, Conversation, Sampling, Token, Turn
from fgvr.server import pictures
from fgvr.server.auth import may_read
from fgvr.server.bodies import JsonRoute
from fgvr.server.decoding import Hold
from fgvr.server.engine import InferenceEngine, plain_only, single
from fgvr.server.http_errors import HttpError
from fgvr.server.prompts import check_length, check_text, tokens_of, turns_of
from fgvr.server.schemas import (
    ChatAnswer,
    ChatMessage,
    ChatRequest,
    Choice,
    Embedding,
    EmbeddingAnswer,
    EmbeddingRequest,
    EmbeddingUsage,
    Logprobs,
    MatchAnswer,
    MatchRequest,
    ModelList,
    ModelRow,
    ScoreAnswer,
    ScoreRequest,
    TokenLogprob,
    TopLogprob,
    Usage,
    codes,
)
from fgvr.server.streaming import stream_chat
from fgvr.types import Picture

router = APIRouter(prefix="/v1", route_class=JsonRoute, dependencies=[Depends(may_read)], tags=["OpenAI"])
_COMPUTED = codes(400, 401, 404, 413, 429, 503, 504, 507, openai=True)
DEFAULT_NEW_TOKENS = 128


def engine_of(request: Request) -> InferenceEngine:
    return request.app.state.engine


@router.get("/models", responses=codes(401, openai=True))
async def list_models(request: Request) -> ModelList:
    """The shared models, by role, with what identifies their answers."""
    engine = engine_of(request)
    return ModelList(data=await asyncio.to_thread(_rows, engine))


@router.get("/models/{model:path}", responses=codes(401, 404, openai=True))
async def get_model(request: Request, model: str) -> ModelRow:
    """One of them, by key, role or source."""
    for row in await asyncio.to_thread(_rows, engine_of(request)):
        if model in (row.id, row.role, row.source):
            return row
    raise HttpError(404, f"no model {model[:80]!r}", param="model", code="model_not_found")


def _rows(engine: InferenceEngine) -> list[ModelRow]:
    states = {m.key: m.state for m in engine.pool.status()}
    rows = []
    for role, spec in engine.specs.items():
        loader = engine.pool.loader(spec)
        try:
            fingerprint, scale = engine.fingerprint(role), loader.logit_scale(spec) if role == "encoder" else None
        except FgvrError as missing:
            fingerprint, scale = "", None
            states[spec.key] = f"missing: {str(missing).splitlines()[0]}"
        rows.append(
            ModelRow(id=spec.key, role=role, source=spec.source, state=states[spec.key], fingerprint=fingerprint, logit_scale=scale)
        )
    return rows


# --- chat ----------------------------------------------------------------------------------------------------------------------


@router.post("/chat/completions", response_model=ChatAnswer, responses=_COMPUTED)
async def chat(request: Request, asked: ChatRequest) -> Response:
    """An answer of the shared MLLM; with `stream`, as server-sent events."""
    engine = engine_of(request)
    spec = engine.named(asked.model, "mllm")
    sampling = _sampling(asked, engine)
    request.state.user = asked.user
    with ExitStack() as place:
        hold = place.enter_context(engine.place("mllm"))
        turns = await pictures.aside(turns_of, asked.messages, engine, hold)
        _check_engine(engine, turns, sampling)
        asks = [Conversation(turns, _numbered(sampling, i)) for i in range(asked.n or 1)]
        await pictures.aside(check_length, asks[0], engine, param="messages")
        tokens = [tokens_of(turns) + sampling.max_new_tokens] * len(asks)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": spec.key}
        fingerprint = engine.fingerprint("mllm")
        if asked.stream:
            usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
            head |= {"system_fingerprint": fingerprint}
            return await stream_chat(request, engine, asks, tokens, head, place.pop_all(), usage=usage)
        answers: list[Answer] = await engine.compute(request, "converse", asks, tokens=tokens)
    body = ChatAnswer(
        **head,
        system_fingerprint=fingerprint,
        choices=[
            Choice(
                index=i,
                message=ChatMessage(content=answer.text),
                logprobs=logprobs_of(answer.tokens) if asked.logprobs else None,
                finish_reason="length" if answer.finish == "length" else "stop",
            )
            for i, answer in enumerate(answers)
        ],
        usage=usage_of(answers),
    )
    return JSONResponse(body.model_dump())


def _sampling(asked: ChatRequest, engine: InferenceEngine) -> Sampling:
    settings = engine.settings
    if asked.max_tokens is not None and asked.max_completion_tokens is not None and asked.max_tokens != asked.max_completion_tokens:
        raise HttpError(400, "max_tokens and max_completion_tokens differ; give one", param="max_tokens", code="invalid_parameter")
    name = "max_tokens" if asked.max_tokens is not None else "max_completion_tokens"
    most = asked.max_tokens or asked.max_completion_tokens or min(DEFAULT_NEW_TOKENS, settings.max_new_tokens)
    if most > settings.max_new_tokens:
        raise HttpError(
            400, f"{name}={most}, at most {settings.max_new_tokens} (server.max_new_tokens)", param=name, code="invalid_parameter"
        )
    if (asked.n or 1) > settings.max_n:
        raise HttpError(400, f"n={asked.n}, at most {settings.max_n} (server.max_n)", param="n", code="invalid_parameter")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise HttpError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_parameter")
    if asked.stream_options is not None and not asked.stream:
        raise HttpError(400, "stream_options needs stream: true", param="stream_options", code="invalid_parameter")
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stop) > 4 or any(not 0 < len(word) <= 200 for word in stop):
        raise HttpError(400, "stop: at most 4 texts of 1 to 200 characters", param="stop", code="invalid_parameter")
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    return Sampling(most, asked.temperature or 0.0, 1.0 if asked.top_p is None else asked.top_p, asked.seed, stop, top)


def _numbered(sampling: Sampling, i: int) -> Sampling:
    """Of `n` answers each draws its own way, and the same way again."""
    if sampling.seed is None or i == 0:
        return sampling
    return replace(sampling, seed=sampling.seed + i)


def _check_engine(engine: InferenceEngine, turns: tuple[Turn, ...], sampling: Sampling) -> None:
    """An engine that only generates cannot be asked for more. Raises HttpError naming the parameter."""
    if engine.converses():
        return
    single(turns)
    lacking = plain_only(sampling)
    if lacking is not None:
        loader = engine.specs["mllm"].loader
        raise HttpError(
            400, f"{lacking} is not supported by the {loader} engine; leave it out", param=lacking, code="unsupported_parameter"
        )


def usage_of(answers: Sequence[Answer]) -> Usage:
    prompt, new = answers[0].prompt_tokens if answers else 0, sum(answer.new_tokens for answer in answers)
    return Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


def logprobs_of(tokens: Sequence[Token]) -> Logprobs:
    return Logprobs(
        content=[
            TokenLogprob(
                token=t.text,
                logprob=t.logprob,
                bytes=list(t.text.encode()),
                top_logprobs=[TopLogprob(token=text, logprob=value, bytes=list(text.encode())) for text, value in t.top],
            )
            for t in tokens
        ]
    )


# --- embeddings ------------------------------------------------------------------------------------------------------------------


@router.post("/embeddings", response_model=EmbeddingAnswer, responses=_COMPUTED)
async def embeddings(request: Request, asked: EmbeddingRequest) -> Response:
    """Unit vectors of texts and images, in one space."""
    engine = engine_of(request)
    spec, settings = engine.named(asked.model, "encoder"), engine.settings
    request.state.user = asked.user
    items = [asked.input] if isinstance(asked.input, str) else asked.input
    if not 0 < len(items) <= settings.max_items:
        raise HttpError(400, f"input: 1 to {settings.max_items} items (server.max_items)", param="input", code="invalid_parameter")
    shown = [i for i, item in enumerate(items) if item[:5].lower() == "data:"]
    said = [i for i in range(len(items)) if i not in set(shown)]
    pictures.check_count(len(shown), settings, param="input")
    if sum(len(items[i]) for i in said) > settings.max_prompt_chars:
        raise HttpError(
            400, f"more than {settings.max_prompt_chars} characters (server.max_prompt_chars)", param="input", code="prompt_too_long"
        )
    texts = [check_text(items[i], f"input.{i}") for i in said]
    with engine.place("encoder") as hold:
        looked = await _opened([items[i] for i in shown], engine, hold, "input")
        # One after the other: both listen for the client's leaving, and only one may at a time.
        seen = await engine.compute(request, "embed_images", looked) if looked else []
        read = await engine.compute(request, "embed_texts", texts) if texts else []
    rows: dict[int, np.ndarray] = dict(zip([*shown, *said], [*seen, *read], strict=True))
    if asked.dimensions is not None and asked.dimensions != len(rows[0]):
        message = f"dimensions={asked.dimensions} is not supported: this encoder has {len(rows[0])}"
        raise HttpError(400, message, param="dimensions", code="unsupported_parameter")
    data = [Embedding(index=i, embedding=_written(rows[i], asked.encoding_format)) for i in range(len(items))]
    return JSONResponse(EmbeddingAnswer(model=spec.key, data=data, usage=EmbeddingUsage()).model_dump())


def _written(row: np.ndarray, form: str | None) -> list[float] | str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") if form == "base64" else [float(value) for value in row]


async def _opened(urls: Sequence[str], engine: InferenceEngine, hold: Hold, name: str) -> list[Picture]:
    """Decoded, few at a time, in threads. Their pixels together count, too."""
    settings, seen, opened = engine.settings, 0, []
    for i, url in enumerate(urls):
        picture = await pictures.aside(pictures.picture, url, settings, hold, param=f"{name}.{i}")
        seen += picture.image.width * picture.image.height
        if seen > settings.max_pixels:
            message = f"the images have more than {settings.max_pixels:,} pixels together (server.max_pixels)"
            raise HttpError(400, message, param=name, code="image_too_large")
        opened.append(picture)
    return opened


# --- what OpenAI has no word for -------------------------------------------------------------------------------------------------


@router.post("/score", responses=_COMPUTED)
async def score(request: Request, asked: ScoreRequest) -> ScoreAnswer:
    """Log-likelihood of each continuation as the whole answer."""
    engine = engine_of(request)
    engine.named(asked.model, "mllm")
    settings = engine.settings
    if len(asked.continuations) > settings.max_items:
        message = f"continuations: at most {settings.max_items} (server.max_items)"
        raise HttpError(400, message, param="continuations", code="invalid_parameter")
    texts = [check_text(text, f"continuations.{i}") for i, text in enumerate(asked.continuations)]
    if sum(map(len, texts)) > settings.max_prompt_chars:
        message = f"more than {settings.max_prompt_chars} characters (server.max_prompt_chars)"
        raise HttpError(400, message, param="continuations", code="prompt_too_long")
    with engine.place("mllm") as hold:
        turns = await pictures.aside(turns_of, asked.messages, engine, hold)
        images, prompt, system = single(turns)
        await pictures.aside(check_length, Conversation(turns, Sampling(0)), engine, param="messages")
        size = tokens_of(turns) + sum(map(len, texts)) // 2
        (found,) = await engine.compute(request, "score", [(images, prompt, texts)], group=system, tokens=[size])
    return ScoreAnswer(log_likelihoods=list(found.log_likelihoods), tokens=list(found.tokens), prompt_tokens=found.prompt_tokens)


@router.post("/match", responses=_COMPUTED)
async def match(request: Request, asked: MatchRequest) -> MatchAnswer:
    """Probability that image i shows text i."""
    engine = engine_of(request)
    engine.named(asked.model, "joint")
    if len(asked.images) != len(asked.texts):
        raise HttpError(
            400, f"{len(asked.images)} images and {len(asked.texts)} texts: one of each per pair", param="texts", code="invalid_parameter"
        )
    if not 0 < len(asked.texts) <= engine.settings.max_items:
        raise HttpError(400, f"1 to {engine.settings.max_items} pairs (server.max_items)", param="texts", code="invalid_parameter")
    distinct = list(dict.fromkeys(asked.images))
    pictures.check_count(len(distinct), engine.settings, param="images")
    texts = [check_text(text, f"texts.{i}") for i, text in enumerate(asked.texts)]
    if sum(map(len, texts)) > engine.settings.max_prompt_chars:
        message = f"more than {engine.settings.max_prompt_chars} characters (server.max_prompt_chars)"
        raise HttpError(400, message, param="texts", code="prompt_too_long")
    with engine.place("joint") as hold:
        opened = dict(zip(distinct, await _opened(distinct, engine, hold, "images"), strict=True))
        pairs = [(opened[url], text) for url, text in zip(asked.images, texts, strict=True)]
        return MatchAnswer(probabilities=await engine.compute(request, "match", pairs))
