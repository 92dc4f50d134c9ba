"""Prompts of an MLLM go through longest first, within the tokens that were planned for; nobody sees that in the answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvr.errors import OutOfBudget
from fgvr.types import ModelSpec
from fgvr.utils.batches import longest_first, take
from tests.runtime.fakes import FakeLoader, FakeMLLM

from .conftest import MIB, PoolMaker
from .helpers import PICTURE

SPEC = ModelSpec("mllm", "fake", "mllm 40MiB", batch_size=4)


def watching(*, most: int = 99, planned: int = 512) -> tuple[FakeLoader, list[list[int]]]:
    """A loader, and the words of the prompts of each call that reached its MLLM; more than `most` at once exhaust the memory."""
    seen: list[list[int]] = []

    class Watched(FakeMLLM):
        tokens_per_item = planned

        def _note(self, prompts) -> None:
            seen.append([len(prompt.split()) for prompt in prompts])
            if len(prompts) > most:
                raise MemoryError("too much for the test")

        def generate(self, images, prompts, **settings):
            self._note(prompts)
            return super().generate(images, prompts, **settings)

        def score(self, images, prompts, continuations, **settings):
            self._note(prompts)
            return super().score(images, prompts, continuations, **settings)

    loader = FakeLoader(work=MIB)
    loader.kinds["mllm"] = Watched
    return loader, seen


def prompts(*lengths: int) -> list[str]:
    return [f"{i} " + "w " * (n - 1) for i, n in enumerate(lengths)]


def test_prompts_go_longest_first_and_answers_come_in_the_order_asked(make_pool: PoolMaker) -> None:
    loader, batches = watching()
    pool = make_pool(loader=loader)
    asked = prompts(3, 9, 5, 1, 9, 7)
    with pool.lease(SPEC) as mllm:
        together = mllm.generate([PICTURE] * 6, asked)
        assert batches == [[9, 9, 7, 5], [3, 1]]
        assert together == [mllm.generate([PICTURE], [prompt])[0] for prompt in asked]
        batches.clear()
        texts = [[f"{i} red", "blue"] for i in range(6)]
        scored = mllm.score([PICTURE] * 6, asked, texts)
        assert batches == [[9, 9, 7, 5], [3, 1]]
        assert scored == [mllm.score([PICTURE], [p], [t])[0] for p, t in zip(asked, texts, strict=True)]


def test_a_batch_holds_no_more_tokens_than_were_planned_for(make_pool: PoolMaker) -> None:
    loader, batches = watching(planned=10)  # 40 in a batch, padding included
    pool = make_pool(loader=loader)
    with pool.lease(SPEC) as mllm:
        mllm.generate([PICTURE] * 8, prompts(30, 2, 20, 3, 90, 20, 5, 15))
    assert batches == [[90], [30], [20, 20], [15, 5], [3, 2]]


def test_what_runs_out_of_memory_is_split_and_the_size_that_worked_is_kept(make_pool: PoolMaker) -> None:
    loader, batches = watching(most=2)
    pool = make_pool(loader=loader)
    asked = prompts(1, 2, 3, 4, 5)
    with pool.lease(SPEC) as mllm:
        replies = mllm.generate([PICTURE] * 5, asked)
        assert [len(b) for b in batches] == [4, 4, 2, 2, 1]
        assert [r.prompt_tokens for r in replies] == [1, 2, 3, 4, 5]
        batches.clear()
        mllm.generate([PICTURE] * 5, asked)
        assert [len(b) for b in batches] == [2, 2, 1]
    assert next(m for m in pool.status() if m.key == SPEC.key).working_sizes == (("generate", 2),)


def test_one_prompt_that_does_not_fit_alone_says_what_to_change(make_pool: PoolMaker) -> None:
    pool = make_pool(loader=watching(most=0)[0])
    with pool.lease(SPEC) as mllm, pytest.raises(OutOfBudget, match="single item"):
        mllm.generate([PICTURE] * 3, prompts(3, 2, 1))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 200))
def test_batches_cover_all_once_and_keep_both_limits(lengths: list[int], most: int, room: int) -> None:
    order = longest_first(lengths)
    assert sorted(order) == list(range(len(lengths)))
    start, seen = 0, []
    while start < len(order):
        stop = take(lengths, order, start, most, room)
        batch = order[start:stop]
        seen += batch
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= room
        start = stop
    assert seen == order and [lengths[i] for i in seen] == sorted(lengths, reverse=True)
