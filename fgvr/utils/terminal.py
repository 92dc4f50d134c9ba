"""The standard streams as a command finds them: closed, full, read by nobody, or with an encoding that lacks some characters."""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from fgvr.errors import ConfigError, FgvrError

_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}  # Windows has no quota
PIPE_CLOSED = 141  # what a shell reports of a program that SIGPIPE ended


def on_terminal(command: Callable[[], int]) -> int:
    """Run a command, flush what it said, and return its exit code: 141 where the reader of a pipe has gone, 3 where stdout is full."""
    _usable_streams()
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return PIPE_CLOSED
    except OSError as error:
        _discard_output()
        return tell(f"error: standard output: {error.strerror or error}", 3)
    return code


def answer(error: BaseException) -> int | None:
    """Say what the surroundings of a program did wrong and return the exit code; None for what is no such error.

    Raises OSError again where standard output has failed: `on_terminal` answers that.
    """
    if isinstance(error, FgvrError):
        return tell(f"error: {error}", 2 if isinstance(error, ConfigError) else 3)
    if isinstance(error, KeyboardInterrupt):
        return tell(str(error) or "Interrupted. What is done is saved; the same command resumes.", 130)
    if isinstance(error, MemoryError):
        return tell("error: main memory is full; write a smaller batch size (models.mllm.batch_size=1), or close other programs", 3)
    if isinstance(error, OSError):
        if isinstance(error, BrokenPipeError) or (error.filename is None and _output_failed()):
            raise error
        where = error.filename or "standard output, or a file of this run"  # a failing write does not say where
        cure = "; make room, then run the same command again" if error.errno in _FULL else ""
        return tell(f"error: {where}: {error.strerror or error}{cure}", 3)
    return None


def tell(message: str, code: int) -> int:
    """One line on stderr. Where even that cannot be written, the exit code has to do."""
    with suppress(OSError):
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    return code


def _usable_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it lives as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _output_failed() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _discard_output() -> None:
    """Python flushes stdout again at exit, which would fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
