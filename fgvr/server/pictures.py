"""Images of requests: judged by count, bytes and header before a pixel is unpacked. Nothing is fetched that no list names."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from fgvr.errors import ImageError
from fgvr.server.decoding import DECODERS, Hold
from fgvr.server.http_errors import HttpError
from fgvr.server.settings import Settings
from fgvr.types import Picture

T = TypeVar("T")
_HEAD = re.compile(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64,", re.IGNORECASE)
_PLAIN = re.compile(r"[^\s\\@\x00-\x1f\x7f]{1,2000}")  # what two readers of an address could read differently is in none of ours
_FETCH_SECONDS = 10.0
Image.init()
_ACCEPTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "TGA")
FORMATS = tuple(form for form in _ACCEPTED if form in Image.OPEN)
"""Those of the command line that this Pillow has."""
THREADS = ThreadPoolExecutor(4096, thread_name_prefix="fgvr-pictures")
"""They fetch, and wait for the processes that decode: decoding.py. As many as requests have places: were there fewer, the request that
others wait for could be the one that gets none."""


async def aside(call: Callable[..., T], *args: Any, **options: Any) -> T:
    """`call` in one of these threads."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, partial(call, *args, **options))


def picture(url: str, settings: Settings, hold: Hold, *, param: str) -> Picture:
    """From a data URL, or from a host that `server.image_hosts` names. Raises HttpError (400)."""
    return decoded(content(url, settings, param=param), settings, hold, param=param)


def content(url: str, settings: Settings, *, param: str) -> bytes:
    """The encoded image."""
    if (head := _HEAD.match(url[:256])) is not None:
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except binascii.Error:
            raise HttpError(400, f"{param}: the data URL's base64 is damaged", param=param, code="unreadable_image") from None
    if url[:5].lower() == "data:":
        raise HttpError(400, f"{param}: a data URL of an image begins with data:image/png;base64,", param=param, code="unreadable_image")
    return _fetched(url, settings, param)


def decoded(data: bytes, settings: Settings, hold: Hold, *, param: str) -> Picture:
    """Upright RGB; the hash is of the file's bytes, as everywhere. Raises HttpError (400)."""
    size, mode = check_header(data, settings, param=param)
    limits = {"budget": settings.decode_bytes, "seconds": settings.decode_seconds, "patience": settings.deadline}
    try:
        return DECODERS.decode(data, size, mode, hold, max_pixels=settings.max_pixels, **limits)
    except ImageError as error:
        raise HttpError(400, f"{param}: {error}", param=param, code="unreadable_image") from None


def check_header(data: bytes, settings: Settings, *, param: str) -> tuple[tuple[int, int], str]:
    """Size and mode, from the first bytes. Raises HttpError: no image, or more pixels than allowed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the smaller one
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                mode = image.mode if image.format != "WEBP" and "transparency" not in image.info else ""
    except Image.DecompressionBombError:
        raise HttpError(400, f"{param}: more than {settings.max_pixels:,} pixels", param=param, code="image_too_large") from None
    except Exception:  # Pillow's plugins raise nearly anything on damaged headers
        raise HttpError(
            400, f"{param}: not an image in a known format ({', '.join(FORMATS)})", param=param, code="unreadable_image"
        ) from None
    if width * height > settings.max_pixels:
        message = f"{param}: {width} x {height} pixels, more than server.max_pixels={settings.max_pixels:,}"
        raise HttpError(400, message, param=param, code="image_too_large")
    return (width, height), mode


def check_count(count: int, settings: Settings, *, param: str) -> None:
    if count > settings.max_images:
        raise HttpError(400, f"{count} images, at most {settings.max_images} in one request", param=param, code="too_many_images")


def tokens_of(pictures: Sequence[Picture]) -> int:
    """Vision tokens at most: one per 28 x 28 pixels, capped as the processor caps it."""
    return sum(min(1280, (p.image.width // 28 + 1) * (p.image.height // 28 + 1)) for p in pictures)


def _fetched(url: str, settings: Settings, param: str) -> bytes:
    """Only http(s), only hosts that are named, no redirects, no more bytes than a body may have."""
    try:
        parts = urlsplit(url if _PLAIN.fullmatch(url) else "")
        host, scheme = (parts.hostname or "").lower(), parts.scheme.lower()
    except ValueError:
        host, scheme = "", ""
    if scheme not in ("http", "https") or host not in settings.image_hosts:
        message = (
            f"{param}: images are taken as data URLs (data:image/png;base64,...) or uploads; this server fetches nothing from elsewhere"
        )
        raise HttpError(400, message, param=param, code="url_not_allowed")
    import httpx

    chunks, size = [], 0
    try:
        with httpx.stream("GET", url, follow_redirects=False, timeout=_FETCH_SECONDS) as reply:
            if reply.status_code != 200:
                raise HttpError(400, f"{param}: {host} answered {reply.status_code}", param=param, code="url_not_fetched")
            for chunk in reply.iter_bytes():
                size += len(chunk)
                if size > settings.max_body:
                    raise HttpError(400, f"{param}: more than {settings.max_body:,} bytes", param=param, code="image_too_large")
                chunks.append(chunk)
    except httpx.HTTPError as error:
        raise HttpError(400, f"{param}: {host} could not be asked ({type(error).__name__})", param=param, code="url_not_fetched") from None
    return b"".join(chunks)
