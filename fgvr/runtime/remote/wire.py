"""What goes over the wire: images and prompts as the OpenAI API takes them, and answers, read with care.

Pixels go as PNG: what the other side decodes is what was here. Optional fields of an answer may be absent; one that is none is quoted in a
RemoteError.
"""

from __future__ import annotations

import base64
import importlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fgvr.errors import ConfigError, RemoteError
from fgvr.runtime.conversation import Likeliest, option_nats
from fgvr.runtime.loaders.base import pil
from fgvr.types import Choice, ModelSpec, Reply
from fgvr.utils.network import port_is_valid
from fgvr.utils.service import excerpt

if TYPE_CHECKING:
    from openai import OpenAI

    from fgvr.protocols import ImageLike

T = TypeVar("T")
Message = dict[str, Any]
_TOGETHER, _PIXELS = 8, 6_000_000  # of one request; as PNG and base64 at most 24 MB
_BETWEEN = re.compile(r",\s*(?=https?://)")
_QUICK = 1  # of zlib's levels: the network here is memory, the processor is not idle


def data_url(image: ImageLike) -> str:
    """`data:image/png;base64,...`"""
    buffer = io.BytesIO()
    pil(image).convert("RGB").save(buffer, "PNG", compress_level=_QUICK)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def parcels(images: Sequence[ImageLike]) -> Iterator[slice]:
    """Which images go into one request: servers limit count, pixels and bytes of each. One huge image goes alone, as it is."""
    start, pixels = 0, 0
    for i, image in enumerate(images):
        size = pil(image).size
        pixels += size[0] * size[1]
        if i > start and (i - start >= _TOGETHER or pixels > _PIXELS):
            yield slice(start, i)
            start, pixels = i, size[0] * size[1]
    if start < len(images):
        yield slice(start, len(images))


def messages(images: ImageLike | Sequence[ImageLike], prompt: str, system: str = "") -> list[Message]:
    """One user turn, images before the text, after a system turn if there is one."""
    shown = list(images) if isinstance(images, Sequence) else [images]
    content = [*({"type": "image_url", "image_url": {"url": data_url(image)}} for image in shown), {"type": "text", "text": prompt}]
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": content}]


def parse_source(spec: ModelSpec) -> tuple[list[str], str]:
    """The addresses (`http://host:port[/v1]#model`, joined by commas), each ending in its path, and the model's name there.

    `models.*.model` names the model, else the part after #, else it is the role's name. Raises ConfigError.
    """
    sources = _BETWEEN.split(spec.source)
    parts = [urlsplit(source) for source in sources]
    if any(p.scheme not in ("http", "https") or not p.hostname or not port_is_valid(s) for p, s in zip(parts, sources, strict=True)):
        raise ConfigError(
            f"models.{spec.role}.source={spec.source}: no address of a server. Give server.url=http://127.0.0.1:8000 (or set "
            f"FGVR_SERVER_URL), or models.{spec.role}.source=http://host:port/v1 models.{spec.role}.model=NAME"
        )
    names = {p.fragment or spec.role for p in parts}
    if spec.model is None and len(names) > 1:
        raise ConfigError(f"models.{spec.role}.source={spec.source}: {', '.join(sorted(names))} are different models; name one for all")
    addresses = [f"{p.scheme}://{p.netloc}{p.path.rstrip('/') or '/v1'}" for p in parts]
    return list(dict.fromkeys(addresses)), spec.model or names.pop()


# --- requests ------------------------------------------------------------------------------------------------------------------


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
