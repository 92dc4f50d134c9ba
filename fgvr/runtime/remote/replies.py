"""What an engine answered, read with care: optional fields may be absent, and an answer that is none is quoted in a RemoteError."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from fgvr.errors import RemoteError
from fgvr.runtime.option_tokens import Likeliest, option_nats
from fgvr.types import Choice, Reply
from fgvr.utils.service import excerpt

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")


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
    return Choice(reply(found), option_nats(tokens(found), options, marker))


def tokens(found: Any) -> list[tuple[str, Likeliest]]:
    """Each generated token with the likeliest at its place; empty where the engine tells none."""
    logprobs = found["choices"][0].get("logprobs")
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    told = [row for row in rows or () if isinstance(row, dict) and row.get("top_logprobs")]
    return [(str(r.get("token") or ""), [(str(e["token"]), float(e["logprob"])) for e in r["top_logprobs"]]) for r in told]


PROMPT_LOGPROBS = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0, "add_generation_prompt": False}
"""Settings of a request for the log-likelihoods of its own turns (vLLM)."""


def prompt_row(found: Any) -> list[Any] | None:
    """One entry per token of the request's turns; None where the engine tells none."""
    row = found["choices"] and found.get("prompt_logprobs")
    return row if isinstance(row, list) else None
