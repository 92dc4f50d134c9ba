"""One file over HTTP: resumed where an earlier attempt stopped, and compared with its published hash before anybody reads it."""

import hashlib
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from fgvr import __version__
from fgvr.errors import RemoteError
from fgvr.utils.files import file_lock
from fgvr.utils.network import route_to
from fgvr.utils.progress import track_bytes
from fgvr.utils.text import format_bytes

log = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row that bring no byte


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`checksum`: algorithm:hex digits, as its publisher or torchvision gives it. `inner`: an archive inside it. `token`: a secret."""

    url: str
    checksum: str
    inner: str = ""
    token: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return Path(urlsplit(self.url).path).name


def announced_size(file: RemoteFile) -> int | None:
    """Bytes of the file as its server announces them; None where it does not say.

    Raises RemoteError when the server does not answer or does not have the file.
    """
    try:
        with _client(file) as client, _explained(file, 0):
            answer = client.head(file.url)
            answer.raise_for_status()
    except httpx.TransportError as error:
        raise RemoteError(f"{file.url} does not answer{route_to(file.url)} ({error or type(error).__name__})") from error
    size = answer.headers.get("Content-Length", "")
    return int(size) if size.isdecimal() else None


def download(file: RemoteFile, target: Path) -> Path:
    """The file, complete and verified, as `target`. An interrupted attempt leaves TARGET.part, from which the next one goes on.

    Raises RemoteError: the server does not answer, refuses, or breaks off, and what has arrived is kept; or the content is not the
    published one, and it is removed.
    """
    part = part_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            _complete(file, part)
            _verify(file, part)
            part.rename(target)
    return target


def part_of(target: Path) -> Path:
    """What an interrupted download has left."""
    return target.with_name(f"{target.name}.part")


def _complete(file: RemoteFile, part: Path) -> None:
    """Append to `part` until the server has no more; try again from where it stopped while each attempt brings something."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _append(file, part)
        except httpx.TransportError as error:
            here = part.stat().st_size if part.exists() else 0
            failures = 0 if here > before else failures + 1
            if failures == ATTEMPTS:
                raise _broken(file, here, error) from error
            log.info("%s broke off after %s; going on from there", file.url, format_bytes(here))


def _append(file: RemoteFile, part: Path) -> None:
    here = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={here}-"} if here else {}
    with _client(file) as client, _explained(file, here), client.stream("GET", file.url, headers=headers) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing beyond what is here; the hash decides
            return
        answer.raise_for_status()
        resumed = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        begin = here if resumed else 0
        length = answer.headers.get("Content-Length", "")
        total = begin + int(length) if length.isdecimal() else None
        with open(part, "ab" if resumed else "wb") as stream:
            for chunk in track_bytes(answer.iter_raw(), file.name, total, done=begin):
                stream.write(chunk)


def _verify(file: RemoteFile, part: Path) -> None:
    algorithm, _, expected = file.checksum.partition(":")
    with open(part, "rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if found != expected:
        part.unlink()
        raise RemoteError(
            f"{file.url} is not the file that was published: its {algorithm} is {found}, and {expected} was expected. "
            "What arrived was removed. Try again; if it stays so, get the file from its page by hand"
        )


def _client(file: RemoteFile) -> httpx.Client:
    route = route_to(file.url)
    verify: ssl.SSLContext | bool = route.certificates() if file.url.startswith("https") else True
    headers = {"User-Agent": f"fgvr/{__version__}", "Accept-Encoding": "identity"}
    headers |= {"Authorization": f"Bearer {file.token}"} if file.token else {}  # httpx drops it where another host is redirected to
    return httpx.Client(proxy=route.proxy, verify=verify, trust_env=False, follow_redirects=True, timeout=60, headers=headers)


@contextmanager
def _explained(file: RemoteFile, here: int) -> Iterator[None]:
    """Refusals in our words; a broken connection goes through, because `_complete` tries again."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise RemoteError(f"{file.url} was refused ({code} {error.response.reason_phrase})", code) from None
    except httpx.TransportError as error:
        if not here and isinstance(error, httpx.ConnectError):
            raise RemoteError(f"{file.url} cannot be reached{route_to(file.url)} ({error})") from error
        raise


def _broken(file: RemoteFile, here: int, error: Exception) -> RemoteError:
    return RemoteError(f"{file.url} broke off after {format_bytes(here)} ({error}); the same command goes on from there")
