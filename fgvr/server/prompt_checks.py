"""Prompts of requests: decoded, counted and measured before a model sees them."""

import re
from collections.abc import Sequence

from fgvr.errors import ConfigError
from fgvr.runtime.conversation import Conversation, Turn
from fgvr.server import request_images
from fgvr.server.engine import InferenceEngine, RequestSlot
from fgvr.server.http_errors import bad_request
from fgvr.server.schemas import ImagePart, Message, RefusalPart
from fgvr.server.settings import Settings
from fgvr.types import Picture

_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>")
_ROLES = {"developer": "system"}


def turns_of(messages: Sequence[Message], slot: RequestSlot) -> tuple[Turn, ...]:
    """Decoded and checked. Raises HttpError naming the message."""
    settings = slot.engine.settings
    count = sum(max(1, len(message.parts)) for message in messages)
    if count > settings.max_messages:
        message = f"{count:,} messages and parts, at most {settings.max_messages:,} (server.max_messages)"
        raise bad_request(message, "messages", "prompt_too_long")
    parts = [part for message in messages for part in message.parts]
    request_images.check_count(sum(isinstance(part, ImagePart) for part in parts), settings, param="messages")
    check_characters([part.text for part in parts if not isinstance(part, ImagePart)], settings, param="messages")
    for i, message in enumerate(messages):
        _check_role(message, f"messages.{i}")
    if messages[-1].role != "user":
        raise bad_request("the last message must be the user's", "messages", "unsupported_messages")
    turns = []
    for i, message in enumerate(messages):
        read: list[Picture | str] = []
        for j, part in enumerate(message.parts):
            where = f"messages.{i}.content" + (f".{j}" if len(message.parts) > 1 else "")
            if isinstance(part, ImagePart):
                read.append(request_images.open_picture(part.image_url.url, slot, param=where))
            else:
                read.append(check_text(part.text, where))
        turns.append(Turn(_ROLES.get(message.role, message.role), tuple(read)))  # type: ignore[arg-type]
    return tuple(turns)


def check_length(ask: Conversation, engine: InferenceEngine, *, param: str) -> None:
    """Whether the model's context and the memory plan have room for it. Raises HttpError with the numbers."""
    spec = engine.specs["mllm"]
    try:
        engine.pool.loader(spec).check_prompt(spec, ask)
    except ConfigError as error:
        raise bad_request(f"{param}: {error}", param, "prompt_too_long") from None


def check_characters(texts: Sequence[str], settings: Settings, *, param: str) -> None:
    if (count := sum(map(len, texts))) > settings.max_prompt_chars:
        message = f"{count:,} characters, at most {settings.max_prompt_chars:,} (server.max_prompt_chars)"
        raise bad_request(message, param, "prompt_too_long")


def check_texts(texts: Sequence[str], settings: Settings, *, param: str) -> list[str]:
    """Their length together, and each by itself."""
    check_characters(texts, settings, param=param)
    return [check_text(text, f"{param}.{i}") for i, text in enumerate(texts)]


def check_text(text: str, where: str) -> str:
    """Texts are data: what a tokenizer would read as a control mark (the end of a turn, a place for an image) is refused."""
    if found := _CONTROL.search(text):
        raise bad_request(f"{where}: {found[0]!r} is a control mark of the model and may not stand in a text", where, "control_mark")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request(f"{where}: half of a surrogate pair is no text", where) from None
    return text


def tokens_of(turns: Sequence[Turn]) -> int:
    """A guess from above, for the batch's budget: two characters a token, one per 28 x 28 pixels."""
    parts = [part for turn in turns for part in turn.parts]
    return sum(len(p) for p in parts if isinstance(p, str)) // 2 + request_images.tokens_of([p for p in parts if isinstance(p, Picture)])


def _check_role(message: Message, where: str) -> None:
    """What only an assistant, or only a user, may say."""
    if message.role != "assistant":
        for name in ("refusal", "annotations", "tool_calls"):
            if getattr(message, name) is not None:
                raise bad_request(f"{where}.{name}: only an assistant has it", f"{where}.{name}", "unsupported_messages")
        if message.content is None:
            raise bad_request(f"{where}.content: null is only for an assistant", f"{where}.content")
    for j, part in enumerate(message.parts):
        place = f"{where}.content.{j}"
        if isinstance(part, ImagePart) and message.role != "user":
            raise bad_request(f"{place}: only the user shows images", place, "unsupported_messages")
        if isinstance(part, RefusalPart) and message.role != "assistant":
            raise bad_request(f"{place}: only an assistant refuses", place, "unsupported_messages")
