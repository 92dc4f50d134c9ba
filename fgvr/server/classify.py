"""`/api/v1/classify`: the whole pipeline, images of concurrent requests in one batch. `/api/v1/query`: one question to the shared MLLM."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from fgvr.runtime.conversation import Conversation, Sampling, Turn
from fgvr.server import prompt_checks, request_images
from fgvr.server.auth import READ
from fgvr.server.background import in_thread
from fgvr.server.engine import EncoderSlot, MllmSlot
from fgvr.server.http_errors import bad_request, invalid_request
from fgvr.server.knowledge import PATIENCE, classifier_of
from fgvr.server.schemas import Classification, Classified, ClassifyRequest, QueryRequest, Success, codes
from fgvr.server.settings import Settings
from fgvr.types import Sample

router = APIRouter(prefix="/api/v1", dependencies=READ, tags=["recognition"])
_COMPUTED = codes(400, 401, 404, 413, 429, 503, 504, 507)
_FIELDS = ("images", "image", "file")
_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "images": {"type": "array", "minItems": 1, "items": _FILE},
    "image": _FILE | {"description": "the only one"},
    "file": _FILE | {"description": "likewise"},
}
_JSON = {"schema": ClassifyRequest.model_json_schema(), "example": {"images": ["data:image/png;base64,..."]}}
_CONTENT = {"multipart/form-data": {"schema": {"type": "object", "properties": _FORM}}, "application/json": _JSON}
_BODY = {"requestBody": {"required": True, "content": _CONTENT}}


@router.post("/classify", responses=_COMPUTED, openapi_extra=_BODY)
async def classify(request: Request, slot: EncoderSlot) -> Classified:
    """Predictions with all their reasons (rows of predictions.jsonl, and names), in the order of the images."""
    settings = slot.engine.settings
    sources = await _sources(request, settings)
    request_images.check_count(len(sources), settings, param="images")
    samples = []
    while sources:  # an encoded image goes when it is decoded
        name, param, source = sources.pop(0)
        picture = await in_thread(request_images.open_picture, source, slot, param=param)
        samples.append(Sample(picture, key=name))  # type: ignore[arg-type] (a recognizer looks at a Picture as it is)
    await classifier_of(request).ready(min(PATIENCE, settings.deadline))
    found = await slot.compute("classify", samples)
    return Classified(data=Classification(predictions=found, warnings=request.app.state.warnings))


async def _sources(request: Request, settings: Settings) -> list[tuple[str, str, bytes | str]]:
    """(name, parameter, encoded image or URL) of either kind of body. Raises HttpError."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _uploads(request, settings)
    try:
        asked = ClassifyRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid_request(error.errors()) from None
    if (asked.images is None) == (asked.image is None):
        raise bad_request("give images (a list), or image (the only one)", "images")
    urls = [("image", asked.image)] if asked.image is not None else [(f"images.{i}", url) for i, url in enumerate(asked.images or ())]
    names = asked.names or [f"image {i}" for i in range(len(urls))]
    if len(names) != len(urls):
        raise bad_request(f"{len(names)} names for {len(urls)} images", "names")
    return [(name[:200], param, url) for name, (param, url) in zip(names, urls, strict=True)]


async def _uploads(request: Request, settings: Settings) -> list[tuple[str, str, bytes | str]]:
    try:
        form = await request.form(max_files=settings.max_images, max_fields=16)
    except MultiPartException as error:
        raise bad_request(f"images: {error.message}", "images", "bad_request") from None
    try:
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        for name, value in form.multi_items():
            if name not in _FIELDS or not isinstance(value, UploadFile):
                message = f"{name[:80]}: only files under the name images (one also as image or file)"
                raise bad_request(message, name[:80], "unsupported_parameter")
        if not files:
            raise bad_request("images: no file", "images")
        if len({name for name, _ in files}) > 1 or (files[0][0] != "images" and len(files) > 1):
            raise bad_request("give images (any number), or image, or file (the only one)", "images")
        return [
            ((file.filename or f"image {i}")[:200], f"images.{i}" if name == "images" else name, await file.read())
            for i, (name, file) in enumerate(files)
        ]
    finally:
        await form.close()


@router.post("/query", responses=_COMPUTED)
async def query(asked: QueryRequest, slot: MllmSlot) -> Success:
    """The shared MLLM's answer to one question, with or without an image; greedy."""
    engine, settings = slot.engine, slot.engine.settings
    if asked.max_tokens > settings.max_new_tokens:
        raise bad_request(f"max_tokens={asked.max_tokens}, at most {settings.max_new_tokens} (server.max_new_tokens)", "max_tokens")
    prompt_checks.check_characters([asked.question], settings, param="question")
    parts: list[Any] = [prompt_checks.check_text(asked.question, "question")]
    if asked.image is not None:
        parts.insert(0, await in_thread(request_images.open_picture, asked.image, slot, param="image"))
    turns = (Turn("user", tuple(parts)),)
    ask = Conversation(turns, Sampling(max_new_tokens=asked.max_tokens))
    await in_thread(prompt_checks.check_length, ask, engine, param="question")
    (found,) = await slot.compute("converse", [ask], tokens=[prompt_checks.tokens_of(turns) + asked.max_tokens])
    cost = {"prompt_tokens": found.prompt_tokens, "new_tokens": found.new_tokens}
    return Success(data={"answer": found.text.strip(), "finish": found.finish, "model": engine.specs["mllm"].key, **cost})
