"""`/api/v1/classify`: the whole pipeline, images of concurrent requests in one batch. `/api/v1/query`: one question to the shared MLLM."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from fgvr.runtime.conversation import Conversation, Sampling, Turn
from fgvr.server import pictures
from fgvr.server.admin import Success, success
from fgvr.server.auth import may_read
from fgvr.server.batching import Batch
from fgvr.server.bodies import JsonRoute, read_json
from fgvr.server.engine import InferenceEngine
from fgvr.server.http_errors import HttpError, invalid_request, to_http_error
from fgvr.server.openai import engine_of
from fgvr.server.prompts import check_length, check_text, tokens_of
from fgvr.server.schemas import ClassifyRequest, QueryAnswer, QueryRequest, codes
from fgvr.server.settings import Settings
from fgvr.types import Picture, Prediction, Sample

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", route_class=JsonRoute, dependencies=[Depends(may_read)], tags=["recognition"])
_COMPUTED = codes(400, 401, 413, 429, 503, 504, 507)
_WAIT = 10.0  # seconds a request waits for the knowledge base before it is told to come again


class Recognizes(Protocol):
    """What is used of a pipeline.Recognizer, built by a session."""

    @property
    def batch_size(self) -> int: ...

    def batch(self, images: Sequence[Sample]) -> list[Prediction]: ...


class Classifier:
    """The recognizer, made when first asked for (a knowledge base may have to be built: that goes on, whoever waits), and its queue."""

    def __init__(self, engine: InferenceEngine, build: Callable[[], Recognizes], to_row: Callable[[Prediction], dict[str, Any]]) -> None:
        self._engine, self._build, self._to_row = engine, build, to_row
        self._lock = threading.Lock()
        self._made: Future[Recognizes] | None = None
        engine.add_queue("classify", self._classify, most=lambda: 32)

    def begin(self, told: Callable[[str], None] | None = None) -> Future[Recognizes]:
        """Makes it in a thread, once. `told`: hears how that goes."""
        with self._lock:
            if self._made is None:
                self._made = Future()
                self._made.set_running_or_notify_cancel()  # so that whoever stops waiting stops only that
                threading.Thread(target=self._make, args=(self._made, told), name="fgvr-recognizer", daemon=True).start()
            return self._made

    @property
    def making(self) -> bool:
        """Begun, and neither made nor failed."""
        made = self._made
        return made is not None and not made.done()

    async def ready(self, timeout: float) -> None:
        """Raises HttpError (503) while it is being made; a failure is told, and the next request tries again."""
        made = self.begin()
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(made)), timeout)
        except TimeoutError:
            raise HttpError(503, "the knowledge base is being built or opened; come again", code="starting", retry=5) from None
        except Exception as error:
            with self._lock:
                if self._made is made:
                    self._made = None
            raise to_http_error(error) from error

    def _make(self, made: Future[Recognizes], told: Callable[[str], None] | None) -> None:
        tell = told or log.info
        tell("the knowledge base is being built or opened ...")
        try:
            recognizer = self._build()
        except Exception as error:  # whoever asked is told
            made.set_exception(error)
            tell(f"the knowledge base could not be had; the next classification tries again: {error}")
        else:
            made.set_result(recognizer)
            tell("ready: images are classified")

    def _classify(self, batch: Batch) -> Sequence[Any]:
        made = self._made
        assert made is not None, "requests wait for it before they come here"
        recognizer = made.result(0)
        predictions = recognizer.batch([job.payload for job in batch.jobs])
        rows = []
        for p in predictions:
            named = {c.category: p.names.get(c.category, c.category) for c in p.fast.candidates}
            rows.append(self._to_row(p) | {"name": p.name, "answer": p.answer, "names": named})
        return rows


_FIELDS = ("images", "image", "file")
_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {"type": "array", "minItems": 1, "items": _FILE},
                        "image": _FILE | {"description": "the only one"},
                        "file": _FILE | {"description": "likewise"},
                    },
                }
            },
            "application/json": {"schema": ClassifyRequest.model_json_schema(), "example": {"images": ["data:image/png;base64,..."]}},
        },
    }
}


@router.post("/classify", responses=_COMPUTED | codes(413), openapi_extra=_BODY)
async def classify(request: Request) -> Success:
    """Predictions with all their reasons (rows of predictions.jsonl, and names), in the order of the images."""
    engine, settings = engine_of(request), request.app.state.settings
    classifier: Classifier = request.app.state.classifier
    with engine.place("encoder") as hold:
        named = await _images(request, settings)
        pictures.check_count(len(named), settings, param="images")
        samples, seen = [], 0
        for name, param, data in named:
            if isinstance(data, str):
                data = await pictures.aside(pictures.content, data, settings, param=param)
            picture: Picture = await pictures.aside(pictures.decoded, data, settings, hold, param=param)
            seen += picture.image.width * picture.image.height
            if seen > settings.max_pixels:
                message = f"the images have more than {settings.max_pixels:,} pixels together (server.max_pixels)"
                raise HttpError(400, message, param="images", code="image_too_large")
            samples.append(Sample(picture, key=name))  # type: ignore[arg-type] (a recognizer looks at a Picture as it is)
        await classifier.ready(min(_WAIT, settings.deadline))
        rows = await engine.compute(request, "classify", samples)
    return success({"predictions": rows})


async def _images(request: Request, settings: Settings) -> list[tuple[str, str, bytes | str]]:
    """(name, parameter, encoded image or URL) of either kind of body. Raises HttpError."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            form = await request.form(max_files=settings.max_images, max_fields=16)
        except MultiPartException as error:
            raise HttpError(400, f"images: {error.message}", param="images", code="bad_request") from None
        try:
            for name, value in form.multi_items():
                if name not in _FIELDS or not isinstance(value, UploadFile):
                    message = f"{name[:80]}: only files under the name images (one also as image or file)"
                    raise HttpError(400, message, param=name[:80], code="unsupported_parameter")
            files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files:
                raise HttpError(400, "images: no file", param="images", code="invalid_parameter")
            if len({name for name, _ in files}) > 1 or (files[0][0] != "images" and len(files) > 1):
                raise HttpError(400, "give images (any number), or image, or file (the only one)", param="images", code="invalid_parameter")
            params = [f"images.{i}" if name == "images" else name for i, (name, _) in enumerate(files)]
            names = [(file.filename or f"image {i}")[:200] for i, (_, file) in enumerate(files)]
            return [(name, param, await file.read()) for name, param, (_, file) in zip(names, params, files, strict=True)]
        finally:
            await form.close()
    try:
        asked = ClassifyRequest.model_validate(await read_json(request, settings))
    except ValidationError as error:
        raise invalid_request(error.errors()) from None
    if (asked.images is None) == (asked.image is None):
        raise HttpError(400, "give images (a list), or image (the only one)", param="images", code="invalid_parameter")
    urls = [("image", asked.image)] if asked.image is not None else [(f"images.{i}", url) for i, url in enumerate(asked.images or ())]
    names = asked.names or [f"image {i}" for i in range(len(urls))]
    if len(names) != len(urls):
        raise HttpError(400, f"{len(names)} names for {len(urls)} images", param="names", code="invalid_parameter")
    return [(name[:200], param, url) for name, (param, url) in zip(names, urls, strict=True)]


@router.post("/query", responses=_COMPUTED)
async def query(request: Request, asked: QueryRequest) -> Success:
    """The shared MLLM's answer to one question, with or without an image; greedy."""
    engine = engine_of(request)
    settings = engine.settings
    if asked.max_tokens > settings.max_new_tokens:
        message = f"max_tokens={asked.max_tokens}, at most {settings.max_new_tokens} (server.max_new_tokens)"
        raise HttpError(400, message, param="max_tokens", code="invalid_parameter")
    if len(asked.question) > settings.max_prompt_chars:
        message = f"more than {settings.max_prompt_chars} characters (server.max_prompt_chars)"
        raise HttpError(400, message, param="question", code="prompt_too_long")
    text = check_text(asked.question, "question")
    with engine.place("mllm") as hold:
        shown = [await pictures.aside(pictures.picture, asked.image, settings, hold, param="image")] if asked.image is not None else []
        turns = (Turn("user", (*shown, text)),)
        ask = Conversation(turns, Sampling(max_new_tokens=asked.max_tokens))
        await pictures.aside(check_length, ask, engine, param="question")
        (found,) = await engine.compute(request, "converse", [ask], tokens=[tokens_of(turns) + asked.max_tokens])
    answer = QueryAnswer(
        answer=found.text.strip(),
        finish=found.finish,
        model=engine.specs["mllm"].key,
        prompt_tokens=found.prompt_tokens,
        new_tokens=found.new_tokens,
    )
    return success(answer.model_dump())
