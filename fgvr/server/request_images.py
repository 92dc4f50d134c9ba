"""Images of requests: judged by count, bytes and header before a pixel is unpacked. Nothing is fetched that no list names."""

import base64
import binascii
import io
import re
import warnings
from collections.abc import Sequence
from urllib.parse import urlsplit

from PIL import Image

from fgvr.errors import ImageError
from fgvr.server.engine import RequestSlot
from fgvr.server.http_errors import bad_request
from fgvr.server.settings import Settings
from fgvr.types import Picture

_HEAD = re.compile(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64,", re.IGNORECASE)
_PLAIN = re.compile(r"[^\s\\@\x00-\x1f\x7f]{1,2000}")  # what two readers of an address could read differently is in none of ours
_FETCH_SECONDS = 10.0
Image.init()
_ACCEPTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "TGA")
FORMATS = tuple(form for form in _ACCEPTED if form in Image.OPEN)
"""Those of the command line that this Pillow has."""


def open_picture(source: str | bytes, slot: RequestSlot, *, param: str) -> Picture:
    """From an encoded image, a data URL, or a host that `server.image_hosts` names; upright RGB, the hash is of the file's bytes.

    Raises HttpError (400), also when the request has had too many pixels with this one.
    """
    settings = slot.engine.settings
    data = _content(source, settings, param) if isinstance(source, str) else source
    size, mode = _check_header(data, settings, param)
    try:
        picture = slot.engine.decoders.decode(slot, data, size, mode)
    except ImageError as error:
        raise bad_request(f"{param}: {error}", param, "unreadable_image") from None
    slot.pixels += picture.image.width * picture.image.height
    if slot.pixels > settings.max_pixels:
        message = f"the images have more than {settings.max_pixels:,} pixels together (server.max_pixels)"
        raise bad_request(message, param.split(".")[0], "image_too_large")
    return picture


def open_pictures(sources: Sequence[str], slot: RequestSlot, *, param: str) -> list[Picture]:
    return [open_picture(source, slot, param=f"{param}.{i}") for i, source in enumerate(sources)]


def check_count(count: int, settings: Settings, *, param: str) -> None:
    if count > settings.max_images:
        raise bad_request(f"{count} images, at most {settings.max_images} in one request", param, "too_many_images")


def tokens_of(pictures: Sequence[Picture]) -> int:
    """Vision tokens at most: one per 28 x 28 pixels, capped as the processor caps it."""
    return sum(min(1280, (p.image.width // 28 + 1) * (p.image.height // 28 + 1)) for p in pictures)


def _content(url: str, settings: Settings, param: str) -> bytes:
    """The encoded image."""
    if (head := _HEAD.match(url[:256])) is not None:
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except binascii.Error:
            raise bad_request(f"{param}: the data URL's base64 is damaged", param, "unreadable_image") from None
    if url[:5].lower() == "data:":
        raise bad_request(f"{param}: a data URL of an image begins with data:image/png;base64,", param, "unreadable_image")
    return _fetch(url, settings, param)


def _check_header(data: bytes, settings: Settings, param: str) -> tuple[tuple[int, int], str]:
    """Size and mode, from the first bytes. Raises HttpError: no image, or more pixels than allowed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the smaller one
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                mode = image.mode if image.format != "WEBP" and "transparency" not in image.info else ""
    except Image.DecompressionBombError:
        raise bad_request(f"{param}: more than {settings.max_pixels:,} pixels", param, "image_too_large") from None
    except Exception:  # Pillow's plugins raise nearly anything on damaged headers
        raise bad_request(f"{param}: not an image in a known format ({', '.join(FORMATS)})", param, "unreadable_image") from None
    if width * height > settings.max_pixels:
        message = f"{param}: {width} x {height} pixels, more than server.max_pixels={settings.max_pixels:,}"
        raise bad_request(message, param, "image_too_large")
    return (width, height), mode


def _fetch(url: str, settings: Settings, param: str) -> bytes:
    """Only http(s), only hosts that are named, no redirects, no more bytes than a body may have."""
    try:
        parts = urlsplit(url if _PLAIN.fullmatch(url) else "")
        host, scheme = (parts.hostname or "").lower(), parts.scheme.lower()
    except ValueError:
        host, scheme = "", ""
    if scheme not in ("http", "https") or host not in settings.image_hosts:
        cure = "images are taken as data URLs (data:image/png;base64,...) or uploads; this server fetches nothing from elsewhere"
        raise bad_request(f"{param}: {cure}", param, "url_not_allowed")
    import httpx

    data = bytearray()
    try:
        with httpx.stream("GET", url, follow_redirects=False, timeout=_FETCH_SECONDS) as reply:
            if reply.status_code != 200:
                raise bad_request(f"{param}: {host} answered {reply.status_code}", param, "url_not_fetched")
            for chunk in reply.iter_bytes():
                data += chunk
                if len(data) > settings.max_body:
                    raise bad_request(f"{param}: more than {settings.max_body:,} bytes", param, "image_too_large")
    except httpx.HTTPError as error:
        raise bad_request(f"{param}: {host} could not be asked ({type(error).__name__})", param, "url_not_fetched") from None
    return bytes(data)
