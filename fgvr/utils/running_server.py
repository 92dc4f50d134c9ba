"""Where this machine's server is: a file in the home that only its owner can read, there while the server runs."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fgvr.utils.files import atomic_write
from fgvr.utils.paths import user_path

_NAME = "server.json"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """`token`: the admin's."""

    url: str  # where it listens
    token: str
    pid: int  # of its process


def default_home() -> Path:
    """As configs/paths/default.yaml has it."""
    return user_path(os.environ.get("FGVR_HOME") or "fgvr_home")


@contextmanager
def announced(home: Path, url: str, token: str) -> Iterator[None]:
    """The file is there inside; a later server's file is left alone."""
    mine = RunningServer(url, token, os.getpid())
    before = os.umask(0o077)  # the file has its mode from the first byte on
    try:
        file = atomic_write(home / _NAME, json.dumps(asdict(mine)))
    finally:
        os.umask(before)
    try:
        yield
    finally:
        if _read(file) == mine:
            file.unlink(missing_ok=True)


def find_server(home: Path) -> RunningServer | None:
    """The server that says it runs here; None: there is none, its process has ended, or the file is not this user's alone."""
    file = home / _NAME
    found = _read(file)
    return found if found is not None and _lives(found.pid) else None


def _read(file: Path) -> RunningServer | None:
    try:
        status = file.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077):  # Windows has neither
            return None
        found = RunningServer(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if isinstance(found.url, str) and isinstance(found.token, str) and isinstance(found.pid, int) else None


def _lives(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError):
        return False
    return pid > 0
