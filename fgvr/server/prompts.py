"""Prompts of requests: decoded, counted and measured before a model sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fgvr.errors import ConfigError
from fgvr.runtime.conversation import Conversation, Turn
from fgvr.server import pictures
from fgvr.server.decoding import Hold
from fgvr.server.engine import InferenceEngine
from fgvr.server.http_errors import HttpError
from fgvr.server.schemas import ImagePart, Message, RefusalPart, TextPart
from fgvr.types import Picture

_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>")


def turns_of(messages: Sequence[Message], engine: InferenceEngine, hold: Hold) -> tuple[Turn, ...]:
    """Decoded and checked. Raises HttpError naming the message."""
    settings = engine.settings
    count = sum(max(1, len(m.content)) if isinstance(m.content, list) else 1 for m in messages)
    if count > settings.max_messages:
        message = f"{count:,} messages and parts, at most {settings.max_messages:,} (server.max_messages)"
        raise HttpError(400, message, param="messages", code="prompt_too_long")
    parts = [(f"messages.{i}.content" + (f".{j}" if isinstance(m.content, list) else ""), m, part)
             for i, m in enumerate(messages) for j, part in enumerate(m.parts)]  # fmt: skip
    pictures.check_count(sum(isinstance(part, ImagePart) for _, _, part in parts), settings, param="messages")
    letters = sum(len(_text(part)) for _, _, part in parts if not isinstance(part, ImagePart))
    if letters > settings.max_prompt_chars:
        message = f"{letters:,} characters, at most {settings.max_prompt_chars:,} (server.max_prompt_chars)"
        raise HttpError(400, message, param="messages", code="prompt_too_long")
    for i, message in enumerate(messages):
        _check_role(message, f"messages.{i}")
    if messages[-1].role != "user":
        raise HttpError(400, "the last message must be the user's", param="messages", code="unsupported_messages")
    read: dict[int, list[Picture | str]] = {id(message): [] for message in messages}
    seen = 0
    for where, message, part in parts:
        if not isinstance(part, ImagePart):
            read[id(message)].append(check_text(_text(part), where))
            continue
        picture = pictures.picture(part.url, settings, hold, param=where)
        seen += picture.image.width * picture.image.height
        if seen > settings.max_pixels:
            words = f"the images have more than {settings.max_pixels:,} pixels together (server.max_pixels)"
            raise HttpError(400, words, param=where, code="image_too_large")
        read[id(message)].append(picture)
    roles = {"developer": "system"}
    return tuple(Turn(roles.get(m.role, m.role), tuple(read[id(m)])) for m in messages)  # type: ignore[arg-type]


def check_length(ask: Conversation, engine: InferenceEngine, *, param: str) -> None:
    """Whether the model's context and the memory plan have room for it. Raises HttpError with the numbers."""
    spec = engine.specs["mllm"]
    check = getattr(engine.pool.loader(spec), "check_prompt", None)
    if check is None:  # an engine elsewhere knows its own limit
        return
    try:
        check(spec, ask)
    except ConfigError as error:
        raise HttpError(400, f"{param}: {error}", param=param, code="prompt_too_long") from None


def _check_role(message: Message, where: str) -> None:
    """What only an assistant, or only a user, may say."""
    assistant = ("refusal", "annotations", "tool_calls")
    if message.role != "assistant":
        for name in assistant:
            if getattr(message, name) is not None:
                raise HttpError(400, f"{where}.{name}: only an assistant has it", param=f"{where}.{name}", code="unsupported_messages")
        if message.content is None:
            raise HttpError(400, f"{where}.content: null is only for an assistant", param=f"{where}.content", code="invalid_parameter")
    for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
        place = f"{where}.content.{j}"
        if isinstance(part, ImagePart) and message.role != "user":
            raise HttpError(400, f"{place}: only the user shows images", param=place, code="unsupported_messages")
        if isinstance(part, RefusalPart) and message.role != "assistant":
            raise HttpError(400, f"{place}: only an assistant refuses", param=place, code="unsupported_messages")


def _text(part: TextPart | RefusalPart) -> str:
    return part.text if isinstance(part, TextPart) else part.refusal


def check_text(text: str, where: str) -> str:
    """Texts are data: what a tokenizer would read as a control mark (the end of a turn, a place for an image) is refused."""
    if found := _CONTROL.search(text):
        raise HttpError(
            400, f"{where}: {found[0]!r} is a control mark of the model and may not stand in a text", param=where, code="control_mark"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HttpError(400, f"{where}: half of a surrogate pair is no text", param=where, code="invalid_parameter") from None
    return text


def tokens_of(turns: Sequence[Turn]) -> int:
    """A guess from above, for the batch's budget: two characters a token, one per 28 x 28 pixels."""
    parts = [part for turn in turns for part in turn.parts]
    return sum(len(p) for p in parts if isinstance(p, str)) // 2 + pictures.tokens_of([p for p in parts if isinstance(p, Picture)])
