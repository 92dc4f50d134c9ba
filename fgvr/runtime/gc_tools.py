"""Who still holds a model that should be gone, and how to make an exception let go of it."""

from __future__ import annotations

import contextlib
import gc
import threading
import traceback
import weakref
from itertools import takewhile
from types import FrameType, TracebackType
from typing import Any

from fgvr.errors import causes


def clear_frames(error: BaseException, *, outer: BaseException | None = None) -> None:
    """Let go of everything the frames of an error and its causes hold; of `outer`, which was there before, nothing."""
    _Frames(error, outer).clear()


class ErrorFrames:
    """Frames of errors that left a model's calls. A debugger sees them until the memory that they hold is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: weakref.WeakSet[_Frames] = weakref.WeakSet()

    def add(self, error: BaseException, *, outer: BaseException | None = None) -> None:
        """Remember the frames of an error and its causes, but not of `outer`, for as long as the error itself lives."""
        frames = _Frames(error, outer)
        error.__dict__["_fgvr_frames"] = frames
        with self._lock:
            self._kept.add(frames)

    def clear(self) -> None:
        """Let go of everything that these frames hold."""
        with self._lock:
            kept = tuple(self._kept)
            self._kept.clear()
        for frames in kept:
            frames.clear()


class _Frames:
    """Tracebacks of an error and its causes, without the errors: the error owns this, and a circle would outlive it."""

    def __init__(self, error: BaseException | None = None, outer: BaseException | None = None) -> None:
        inner = takewhile(lambda cause: cause is not outer, causes(error))
        self._tracebacks: list[TracebackType] = [cause.__traceback__ for cause in inner if cause.__traceback__ is not None]

    def __reduce__(self) -> tuple[type[_Frames], tuple[()]]:
        """An error may be sent to another process; its frames stay here."""
        return _Frames, ()

    def clear(self) -> None:
        for entry in self._tracebacks:
            for frame, _ in traceback.walk_tb(entry):
                with contextlib.suppress(RuntimeError):  # it still runs
                    frame.clear()
                    _ = frame.f_locals  # Python 3.11 and 3.12 keep a copy for a debugger that looked; asking again empties it


def drop_reference(entry: Any) -> weakref.ref[Any]:
    """Drop an entry's reference to its model, cycles included; what is returned says whether somebody else still has one."""
    watch = weakref.ref(entry.model)
    entry.model = None
    if watch() is not None:
        gc.collect()
    if watch() is not None:  # it was there when another one's libraries came, and was set aside with them (`loaders.libraries`)
        gc.unfreeze()
        gc.collect()
    return watch


def still_held(survivor: Any) -> str:
    """The alert about a model that should be gone; empty when it is (None)."""
    return f"not released, still referred to by {referrers(survivor)}" if survivor is not None else ""


def referrers(target: Any) -> str:
    """Names of what still refers to an object: function frames, containers, instances; at most three."""
    found, mark = [], id(target)  # by its number: a comprehension over `target` itself would be one more holder
    gc.unfreeze()  # what is set aside would not be found
    for holder in gc.get_referrers(target):
        if isinstance(holder, FrameType):
            if "fgvr/runtime/" not in holder.f_code.co_filename.replace("\\", "/"):
                found.append(f"{holder.f_code.co_name}() in {holder.f_code.co_filename}")
        elif isinstance(holder, dict):
            names = [str(name) for name, value in holder.items() if id(value) == mark]
            found.append(f"a dictionary under {', '.join(names)}")
        else:
            found.append(f"a {type(holder).__name__}")
    return "; ".join(found[:3]) or "something that Python cannot name"
