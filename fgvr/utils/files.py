"""Files that are whole or absent, and the hashes they are known by."""

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fgvr.errors import StoreError

if TYPE_CHECKING:
    from filelock import BaseFileLock


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that readers see the old content or the new, never a half; folders are made.

    Text is UTF-8; bytes of a file name that are none (lone surrogates) become the escapes that JSON reads back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with open(partial, "xb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None and error.filename2 is None:  # a failing write does not say where
            error.filename = os.fspath(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut. Windows does so by itself, and opens no folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_size(path: str | Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no blanks. Paths, tuples and other leaves are written as JSON would or by `str`."""
    return _CANONICAL(value)


def short_hash(value: Any) -> str:
    """12 hex digits that name a configuration."""
    return sha256_bytes(canonical_json(value).encode("utf-8", "backslashreplace"))[:12]


def write_json(path: str | Path, value: Any) -> Path:
    """Sorted, indented, atomic: equal values give equal bytes."""
    return atomic_write(path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; a missing or damaged file is a StoreError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete it, it will be written again") from error


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class HeldError(StoreError):
    """Another process or thread holds the lock."""


def acquire_lock(path: str | Path, *, timeout: float = 0.0) -> "BaseFileLock":
    """Lock `path` (an empty file, which stays behind) until `release()`; the system frees it when the holder dies. Not reentrant.

    Raises HeldError after `timeout` seconds of waiting, StoreError where the file system has no locks.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)  # a marker file would outlive a killed holder
    try:
        lock.acquire(timeout=-1 if timeout == math.inf else timeout, poll_interval=0.02)
    except Timeout:
        raise HeldError(f"another process has held {path} for {timeout:g} s; wait for it or end it, then try again") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        raise StoreError(
            f"the file system of {path.parent} has no file locks ({error}), so two processes could write there at once; "
            "choose a folder on a local disk, such as paths.home=/tmp/fgvr (or FGVR_HOME)"
        ) from error
    return lock


@contextmanager
def file_lock(path: str | Path, *, timeout: float = 600.0) -> Iterator[None]:
    """Hold `path` for this thread alone, as `acquire_lock` does."""
    lock = acquire_lock(path, timeout=timeout)
    try:
        yield
    finally:
        lock.release()
