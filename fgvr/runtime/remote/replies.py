"""What an engine answered, read with care: optional fields may be absent, and an answer that is none is quoted in a RemoteError."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from fgvr.errors import RemoteError
from fgvr.types import Choice, Reply
from fgvr.utils.service import excerpt

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")
_AROUND = " \t\r\n*_`'\"()[]{}.:#<>\u0120\u2581"  # what a token of one letter may have around it, the tokenizers' own spaces included


def get(path: str, read: Callable[[Any], T]) -> Callable[[OpenAI], T]:
    """A request whose answer is read by `read`; raises RemoteError that quotes an answer which cannot be read."""
    return lambda client: _read(client, path, client.get(path, cast_to=_response_type()), read)


def post(path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> Callable[[OpenAI], T]:
    """The same for a request with a JSON body."""
    return lambda client: _read(client, path, client.post(path, body=body, cast_to=_response_type()), read)


def _read(client: OpenAI, path: str, response: Any, read: Callable[[Any], T]) -> T:
    try:
        return read(response.json())
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        address = f"{str(client.base_url).rstrip('/')}{path}"
        raise RemoteError(f"{address} gave an answer that is none: {excerpt(response.content)}", response.status_code) from error


@lru_cache(maxsize=1)
def _response_type() -> Any:
    """Of the HTTP library that the openai client uses: httpx, or from its release 3 on httpx2."""
    import openai

    package = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
    return importlib.import_module(package).Response


# --- chat completions --------------------------------------------------------------------------------------------------------


def reply(found: Any) -> Reply:
    """The text of the first choice; missing figures of usage are 0, and no text at all is an empty reply."""
    content = found["choices"][0]["message"].get("content")
    if isinstance(content, list):
        content = "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    if not isinstance(content, str | None):
        raise TypeError(type(content).__name__)
    return Reply((content or "").strip(), usage(found, "prompt_tokens"), usage(found, "completion_tokens"))


def usage(found: Any, name: str) -> int:
    """One figure of an answer's usage; 0 where the engine does not tell."""
    used = found.get("usage")
    value = used.get(name) if isinstance(used, dict) else None
    return value if isinstance(value, int) else 0


def choice(found: Any, options: Sequence[str], marker: str) -> Choice:
    """A reply, and log-probabilities of the options where the reply names one, if the engine gave any."""
    return Choice(reply(found), option_nats(token_rows(found), options, marker))


def token_rows(found: Any) -> list[Any]:
    """One row per generated token, each with its `top_logprobs`; empty where the engine gives none."""
    logprobs = found["choices"][0].get("logprobs")
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [row for row in rows or () if isinstance(row, dict) and row.get("top_logprobs")]


PROMPT_LOGPROBS = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0, "add_generation_prompt": False}
"""Settings of a request for the log-likelihoods of its own turns (vLLM)."""


def prompt_row(found: Any) -> list[Any] | None:
    """One entry per token of the request's turns; None where the engine tells none."""
    row = found["choices"] and found.get("prompt_logprobs")
    return row if isinstance(row, list) else None


def option_nats(rows: Sequence[Mapping[str, Any]], options: Sequence[str], marker: str) -> dict[str, float]:
    """At the first option that is named after the last marker; without a marker, at the first token if it is an option.

    An option outside the likeliest tokens gets the least of their values: an upper bound of its own.
    """
    written = [str(row.get("token") or "") for row in rows]
    after = "".join(written).rfind(marker)
    begins = after + len(marker) if after >= 0 else 0
    position = 0
    for token, row in zip(written, rows, strict=True):
        named = position >= begins and token.strip(_AROUND) in options
        if named:
            return _spread(row["top_logprobs"], options)
        if after < 0 and token.strip(_AROUND):
            return {}
        position += len(token)
    return {}


def _spread(likeliest: Sequence[Mapping[str, Any]], options: Sequence[str]) -> dict[str, float]:
    listed = [(str(entry["token"]).strip(_AROUND), float(entry["logprob"])) for entry in likeliest]
    listed = [(text, nats) for text, nats in listed if math.isfinite(nats)]
    if not listed:
        return {}
    least = min(nats for _, nats in listed)
    each = {option: [math.exp(nats) for text, nats in listed if text == option] for option in options}
    return {option: math.log(total) if (total := math.fsum(shares)) > 0 else least for option, shares in each.items()}
