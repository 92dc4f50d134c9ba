"""Who does the work of a session: this process, or workers elsewhere (`fgvr.scale`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fgvr.data.pictures import open_picture
from fgvr.errors import ImageError
from fgvr.pipeline import Recognizer
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec, Picture, Prediction, Sample
from fgvr.utils.batches import map_in_order

T = TypeVar("T")
R = TypeVar("R")


class Engine:
    """This process and its pool, whose devices work at once. Subclasses have others do it; answers do not depend on which engine it is,
    since batches begin at the same positions."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def lend(self, spec: ModelSpec) -> Any:
        """A model by the methods of its role."""
        return self._pool.leased(spec)

    def look(self, sample: Sample) -> Picture:
        """The picture as this engine's models take it. Raises ImageError."""
        return open_picture(sample.image)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The function's results in the order of the items. It asks models, and several calls may run at once."""
        return map_in_order(function, items, len(self._pool.members))

    def predictions(
        self, recognizer: Recognizer, job: Callable[[], Any], samples: Sequence[Sample], *, done: int = 0, unreadable: list[ImageError]
    ) -> Iterator[list[Prediction]]:
        """`recognizer.stream(...)`. Args: job: says how another process makes the same recognizer."""
        return recognizer.stream(samples, done=done, unreadable=unreadable)

    @property
    def loads(self) -> Mapping[str, int]:
        """Loads so far, by role."""
        return self._pool.loads

    @property
    def peak_bytes(self) -> int:
        """The most that one device held."""
        return self._pool.peak_bytes

    @property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        """What each worker has done so far; empty where there are none."""
        return ()
