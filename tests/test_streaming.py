"""Streaming: each picture opened once, in threads, two batches ahead at most; what is unreadable stops nobody else."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.agents.trigger import Never
from fgvr.data.pictures import DeferredImage
from fgvr.errors import ImageError
from fgvr.pipeline import Recognizer
from fgvr.store.cost_tracking import add_cost
from fgvr.types import Candidate, Cost, Decision, FastResult, History, Picture, Sample, SlowResult
from tests.runtime.helpers import until

SIZE = 4


class Opened:
    """Opens nothing, slowly; remembers what was asked for, and how far ahead of the answers that was."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.keys: list[str] = []
        self.threads: set[str] = set()
        self.answered = self.ahead = 0
        self._seconds, self._lock = seconds, threading.Lock()

    def __call__(self, image: Path) -> Picture:
        with self._lock:
            self.keys.append(image.name)
            self.threads.add(threading.current_thread().name)
            self.ahead = max(self.ahead, len(self.keys) - self.answered)
        time.sleep(self._seconds)
        if image.name.startswith("bad"):
            raise ImageError(f"{image} cannot be read")
        return Picture(None, image.name)  # type: ignore[arg-type]


def recognizer(opened: Opened, *, of: int = 0, **parts: Any) -> Recognizer:
    """`of`: so many images there are; System 1 then thinks until the next batch is open, too. `parts`: other ones than the usual."""

    def fast(pictures):
        assert until(lambda: len(opened.keys) >= min(of, opened.answered + 2 * SIZE))
        one = Candidate("a", 1.0, 1.0, None)
        return [FastResult(p.sha256, (one,), 1.0, 1.0, 0.0, True, History(0, 0, 0)) for p in pictures]

    def learn(predictions) -> None:
        opened.answered += len(predictions)

    usual = {"trigger": Never(), "slow": lambda *_: [], "learn": learn}
    fusion = LogLinearFusion(weight=0.5)
    return Recognizer(look=opened, fast=fast, answer_fusion=fusion, names={"a": "A"}, batch_size=SIZE, **{**usual, **parts})


def first(count: int):
    """A trigger that doubts the first images of each batch."""
    return lambda fast: [Decision(i < count, 0.0, 0.5, {}) for i, _ in enumerate(fast)]


def samples(names: list[str]) -> list[Sample]:
    return [Sample(Path(name), name) for name in names]


def test_every_picture_is_opened_once_in_order_of_the_answers_and_at_most_two_batches_are_held() -> None:
    opened = Opened()
    names = [f"{i:03}" for i in range(42)]
    found = list(recognizer(opened, of=42).stream(samples(names)))
    assert [p.image for batch in found for p in batch] == names and [len(batch) for batch in found] == [4] * 10 + [2]
    assert sorted(opened.keys) == names
    assert opened.ahead == 2 * SIZE
    assert all(name.startswith("fgvr-decode") for name in opened.threads)


def test_a_resumed_run_opens_only_what_is_left() -> None:
    opened = Opened()
    names = [f"{i:03}" for i in range(10)]
    found = list(recognizer(opened).stream(samples(names), done=2))
    assert [p.image for batch in found for p in batch] == sorted(opened.keys) == names[8:]
    assert list(recognizer(opened).stream(samples(names), done=3)) == []


@pytest.mark.parametrize(("rate", "asked"), [(4, [4, 4, 2]), (2, [4, 4, 2]), (1, [4, 4, 2]), (0, [])])
def test_the_doubtful_of_several_batches_are_thought_about_together(rate: int, asked: list[int]) -> None:
    """Every batch of four has `rate` doubtful images: System 2 is asked for a batch's worth at least; borders stay."""
    questions: list[int] = []

    def slow(pictures, fast):
        questions.append(len(pictures))
        for picture in pictures:
            add_cost(picture.sha256, Cost(mllm_calls=1))
        return [SlowResult(None, {}, p.sha256, (), "unreadable") for p in pictures]

    def trigger(fast):
        return [Decision(i < rate, 0.0, 0.5, {}) for i, _ in enumerate(fast)]

    names = [f"{i:03}" for i in range(40 if rate == 1 else 20 if rate == 2 else 10)]
    whole = recognizer(Opened(), learn=None, trigger=trigger, slow=slow)
    found = list(whole.stream(samples(names)))
    assert [p.image for group in found for p in group] == names
    assert all(len(group) % SIZE == 0 for group in found[:-1])
    assert questions == asked
    thought = {p.image: p.slow.rationale for group in found for p in group if p.slow is not None}
    assert thought == {name: name for i, name in enumerate(names) if i % SIZE < rate}, "each answer is with its image"


@pytest.mark.parametrize(("late", "asked"), [(True, [8] * 10), (False, [4] * 20)])
def test_questions_whose_answers_are_remembered_do_not_count_as_a_batchs_worth(late: bool, asked: list[int], tmp_path: Path) -> None:
    """Half of each batch of four is doubtful, and no answer costs a call. Open pictures are kept for a batch's worth at most."""
    questions: list[int] = []

    def slow(pictures, fast):
        questions.append(len(pictures))
        return [SlowResult(None, {}, p.sha256, (), "unreadable") for p in pictures]

    deferred = {"deferred_images": lambda batch: [DeferredImage(tmp_path / s.key, s.key, s.key) for s in batch]} if late else {}
    whole = recognizer(Opened(), learn=None, slow=slow, trigger=first(2), **deferred)
    names = [f"{i:03}" for i in range(160)]
    found = list(whole.stream(samples(names)))
    assert [p.image for group in found for p in group] == names
    assert questions == asked


def test_work_for_equal_pictures_is_counted_once() -> None:
    def slow(pictures, fast):
        add_cost(pictures[0].sha256, Cost(mllm_calls=1))
        return [SlowResult(None, {}, "", (), "unreadable") for _ in pictures]

    whole = recognizer(Opened(), learn=None, slow=slow, trigger=first(1))
    equal = [Sample(Path("same"), f"{i}") for i in range(10)]
    found = [p for group in whole.stream(equal) for p in group]
    assert len(found) == 10 and sum(p.cost.mllm_calls for p in found) == 1


def test_who_learns_from_each_batch_gets_each_alone() -> None:
    names = [f"{i:03}" for i in range(12)]
    learner = recognizer(
        Opened(), trigger=first(1), slow=lambda pictures, fast: [SlowResult(None, {}, "", (), "unreadable") for _ in pictures]
    )
    assert [len(group) for group in learner.stream(samples(names))] == [4, 4, 4]


def test_time_spent_waiting_for_pictures_is_told() -> None:
    (first, *rest) = recognizer(Opened(0.02)).stream(samples(["a", "b", "c", "d"]))
    assert not rest and sum(p.cost.decode_wait for p in first) >= 0.015
    assert all(p.cost.decode_wait == first[0].cost.decode_wait for p in first)


def test_what_cannot_be_read_is_collected_or_raised_and_a_stream_left_early_opens_nothing_more() -> None:
    names = ["a", "bad1", "b", "c", *["bad2"] * 4, "d"]
    unreadable: list[ImageError] = []
    found = [p.image for batch in recognizer(Opened()).stream(samples(names), unreadable=unreadable) for p in batch]
    assert found == ["a", "b", "c", "d"] and len(unreadable) == 5
    with pytest.raises(ImageError, match="bad1"):
        list(recognizer(Opened()).stream(samples(names)))
    opened = Opened()
    stream = recognizer(opened).stream(samples([f"{i:03}" for i in range(100)]))
    next(stream)
    stream.close()
    assert len(opened.keys) <= 2 * SIZE
    assert not any(thread.name.startswith("fgvr-decode") for thread in threading.enumerate())
