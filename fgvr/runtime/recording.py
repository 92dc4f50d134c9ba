"""A run's record while it is being written."""

from __future__ import annotations

from collections.abc import Callable

from fgvr.runtime.timeline import Recorder


class Recording:
    """A run's `memory.jsonl` being written: `with monitor.record(path, ...)`, or `flush` and `close`."""

    def __init__(self, recorder: Recorder, *, flush: Callable[[], object], close: Callable[[], None]) -> None:
        self.mine = recorder.writing  # False: another process records this run
        self._flush, self._close = flush, close

    def flush(self) -> None:
        """Write what has happened until now, and one more sample."""
        self._flush()

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
