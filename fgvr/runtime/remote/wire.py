"""Images and prompts as the OpenAI API takes them. Pixels go as PNG: what the other side decodes is what was here."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fgvr.errors import ConfigError
from fgvr.runtime.loaders.base import pil
from fgvr.types import ModelSpec
from fgvr.utils.network import port_is_valid

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike

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
