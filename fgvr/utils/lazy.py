"""Values that are computed when they are first needed."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Lazy(Generic[T]):
    """Calling it computes the value once and returns it from then on. Threads that ask at the same time wait for the one computation."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._value: list[T] = []

    def __call__(self) -> T:
        with self._lock:
            if not self._value:
                self._value.append(self._compute())
            return self._value[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the value, not how to compute it."""
        return _known, (self(),)


def _known(value: T) -> Lazy[T]:
    return Lazy(lambda: value)


class LazySequence(Sequence[T]):
    """A sequence that makes each item when it is asked for, so that long ones need not be held in memory."""

    def __init__(self, length: int, item: Callable[[int], T]) -> None:
        self._length, self._item = length, item

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = range(self._length)[index]
        return self._item(found) if isinstance(found, int) else [self._item(i) for i in found]

    def __iter__(self) -> Iterator[T]:
        return map(self._item, range(self._length))
