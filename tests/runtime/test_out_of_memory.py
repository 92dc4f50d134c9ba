"""Promise 5 in use: when memory runs out in a forward pass, all idle models go, the batch is tried again, then halved and remembered."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fgvr.errors import OutOfBudget, RuntimeConflict
from fgvr.runtime.devices.simulated import Block, SimulatedDevice
from fgvr.runtime.events import Event
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeEncoder, FakeLoader

from .conftest import ENCODER, JOINT, MIB, MLLM, PoolMaker
from .helpers import PICTURE, Inside, state, status, used
from .storm import OutOfMemoryError, quick_gc


class Hungry(FakeEncoder):
    """Needs `per_image` bytes for each image of a batch."""

    per_image, sizes = 0, ()

    def encode(self, images: Sequence) -> np.ndarray:
        Hungry.sizes = (*Hungry.sizes, len(images))
        ballast = self._allocate(len(images) * self.per_image)
        answer = super().encode(images)
        del ballast
        return answer


def loader_of(encoder: type[FakeEncoder]) -> FakeLoader:
    loader = FakeLoader(work=1024)
    loader.kinds["encoder"] = encoder
    return loader


@pytest.fixture
def hungry(make_pool: PoolMaker) -> ModelPool:
    """100 MiB, an encoder of 30 MiB that handles 8 images at once and needs 15 MiB for each: 4 fit with nothing else there."""
    Hungry.sizes, Hungry.per_image = (), 15 * MIB
    return make_pool(loader=loader_of(Hungry))


def test_memory_that_runs_out_in_use_evicts_the_idle_and_tries_the_same_batch_again(hungry: ModelPool) -> None:
    Hungry.per_image = 8 * MIB  # 64 MiB for the batch: too much beside an idle model, not without it
    with hungry.lease("mllm"):
        pass
    with hungry.lease("encoder") as encoder:
        assert encoder.encode([PICTURE] * 8).shape == (8, 64)
    assert Hungry.sizes == (8, 8)
    assert state(hungry, MLLM) == "absent"
    assert status(hungry, ENCODER).working_sizes == ()


def test_memory_that_runs_out_in_use_halves_the_batch_and_the_size_is_remembered(hungry: ModelPool) -> None:
    heard: list[Event] = []
    hungry.subscribe(heard.append)
    with hungry.lease("encoder") as encoder:
        vectors = encoder.encode([PICTURE] * 10)
    assert vectors.shape == (10, 64)
    np.testing.assert_allclose(vectors, vectors[:1].repeat(10, 0))
    assert Hungry.sizes == (8, 8, 4, 4, 2)  # 8 twice, then halves of it
    assert [e.key for e in heard if e.kind == "oom"] == [ENCODER.key] * 2
    assert status(hungry, ENCODER).working_sizes == (("encode", 4),)
    assert "encode in batches of 4" in repr(hungry.status())
    with hungry.lease("encoder") as encoder:
        encoder.encode([PICTURE] * 8)
        encoder.encode_text(["red"] * 8)
    assert Hungry.sizes[5:] == (4, 4)
    assert hungry.counters.snapshot().encoder_forwards == 18


def test_a_learned_size_is_forgotten_by_a_reset_and_by_a_larger_budget(hungry: ModelPool) -> None:
    for forget in (lambda: hungry.reset("encoder"), lambda: hungry.set_budget("200MiB")):
        with hungry.lease("encoder") as encoder:
            encoder.encode([PICTURE] * 8)
        assert status(hungry, ENCODER).working_sizes
        forget()
        assert not status(hungry, ENCODER).working_sizes


def test_a_single_item_that_does_not_fit_is_a_clear_error_and_the_lease_lives_on(hungry: ModelPool, device: SimulatedDevice) -> None:
    Hungry.per_image = 80 * MIB
    with hungry.lease("encoder") as encoder:
        with pytest.raises(OutOfBudget, match="single item ran out of memory") as caught:
            encoder.encode([PICTURE] * 8)
        assert caught.value.plan is not None and caught.value.plan.budget == 100 * MIB
        assert device.allocated() == 30 * MIB  # kept exception or not
        Hungry.per_image = 1
        assert encoder.encode([PICTURE] * 8).shape == (8, 64)
    assert Hungry.sizes[:5] == (8, 8, 4, 2, 1)


def test_an_error_that_is_not_about_memory_passes_at_once(hungry: ModelPool) -> None:
    Hungry.per_image = 1
    with hungry.lease("encoder") as encoder:
        encoder.model.fault = ValueError("bad picture")
        with pytest.raises(ValueError, match="bad picture"):
            encoder.encode([PICTURE] * 8)
    assert Hungry.sizes == (8,)


class Buggy(FakeEncoder):
    """Fails when `clue` is set, with working memory that its frame still holds."""

    clue = ""

    def encode(self, images: Sequence) -> np.ndarray:
        ballast, clue = self._allocate(60 * MIB), self.clue
        if clue:
            raise ValueError(clue)
        del ballast
        return super().encode(images)


def failed(pool: ModelPool) -> ValueError:
    """An error in an encoder's forward pass, as a notebook keeps it."""
    with pool.lease("encoder") as encoder:
        Buggy.clue = "bad picture"
        try:
            encoder.encode([PICTURE])
        except ValueError as error:
            return error
        finally:
            Buggy.clue = ""
    raise AssertionError("it did not fail")


def seen(error: BaseException) -> str | None:
    """The variable `clue` as a debugger shows it where the error was raised."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place.tb_frame.f_locals.get("clue") if place is not None else None


@pytest.fixture
def buggy(make_pool: PoolMaker) -> ModelPool:
    return make_pool(loader=loader_of(Buggy))


def test_a_debugger_sees_the_frames_of_a_failing_model_call_until_the_model_is_evicted(buggy: ModelPool, device: SimulatedDevice) -> None:
    error = failed(buggy)
    assert seen(error) == "bad picture"
    assert str(pickle.loads(pickle.dumps(error))) == "bad picture", "it may go to another process"
    buggy.evict("encoder")
    assert (device.allocated(), seen(error), state(buggy, ENCODER)) == (0, None, "absent")


def test_frames_that_a_notebook_keeps_give_their_memory_back_when_it_runs_out(buggy: ModelPool, device: SimulatedDevice) -> None:
    device.limit(100 * MIB)  # 30 for the weights, 60 for a batch: the batch of the error and another one do not fit
    error = failed(buggy)
    assert device.allocated() == 90 * MIB
    with buggy.lease("encoder") as encoder:
        assert encoder.encode([PICTURE] * 2).shape == (2, 64)
    assert (device.allocated(), seen(error), status(buggy, ENCODER).working_sizes) == (30 * MIB, None, ())


def test_an_error_that_nobody_keeps_holds_nothing(buggy: ModelPool, device: SimulatedDevice) -> None:
    failed(buggy)
    assert device.allocated() == 30 * MIB


def test_the_error_of_an_outer_handler_keeps_its_frames(hungry: ModelPool) -> None:
    """Clearing frames stops at what was being handled before the call."""

    def broken() -> None:
        clue = "seen in a debugger"
        raise KeyError(clue)

    try:
        broken()
    except KeyError as outer:
        with hungry.lease("encoder") as encoder:
            encoder.model.fault = ValueError("bad picture")
            with pytest.raises(ValueError):
                encoder.encode([PICTURE])
        assert outer.__traceback__ and outer.__traceback__.tb_next
        assert outer.__traceback__.tb_next.tb_frame.f_locals["clue"] == "seen in a debugger"


class Exhaustible(SimulatedDevice):
    """Memory runs out in `left[place]` loads, restores and forward passes, at random moments."""

    def __init__(self, total: int, left: dict[str, int]) -> None:
        super().__init__(total)
        self.left, self._random = left, random.Random(0)

    def maybe(self, place: str) -> None:
        with self._lock:
            hit = self.left[place] > 0 and self._random.random() < 0.3
            self.left[place] -= hit
        if hit:
            raise OutOfMemoryError(f"injected into a {place}: out of memory")

    def allocate(self, nbytes: int) -> Block:
        if nbytes == MIB:  # the working memory of a forward pass
            self.maybe("forward")
        return super().allocate(nbytes)


def test_two_hundred_exhaustions_over_load_restore_and_forward_leave_right_results_or_clear_errors() -> None:
    """Eight threads, three models, room for two and a host tier, until memory has run out two hundred times."""
    device = Exhaustible(75 * MIB, {"load": 60, "restore": 60, "forward": 80})
    loader = FakeLoader(
        on_load=lambda spec: device.maybe("load"),
        on_move=lambda spec, way: device.maybe(way) if way == "restore" else None,
        work=MIB,
        movable=True,
    )
    pool = ModelPool(device, budget=75 * MIB, host_budget=95 * MIB, lease_timeout=60, loaders=lambda spec: loader)
    for spec in (MLLM, ENCODER, JOINT):
        pool.register(spec)
    answers: list[bool] = []
    errors: list[str] = []

    def work(number: int) -> None:
        rng, deadline = random.Random(number), time.monotonic() + 90
        while any(device.left.values()) and time.monotonic() < deadline:
            role = rng.choice(("mllm", "encoder", "joint"))
            pool.reset(role)
            try:
                with pool.lease(role) as model:
                    answers.append(_right(role, model))
                pool.evict(role, park=rng.random() < 0.6)
            except OutOfBudget as error:
                errors.append(str(error))
            except RuntimeConflict:  # leased by another
                pass

    with quick_gc(), ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, n) for n in range(8)]:
            done.result(100)
    assert device.left == {"load": 0, "restore": 0, "forward": 0}
    assert all(answers) and len(answers) > 100
    assert errors and all("ran out of memory" in error for error in errors)
    assert device.allocated() == used(pool)
    copies = [e.model.movable.host_nbytes for e in Inside(pool).ledger.entries.values() if e.model is not None]
    assert sum(copies) == pool.status().host_used <= 95 * MIB
    del copies
    assert device.peak() <= 75 * MIB
    assert not Inside(pool).waiting and not Inside(pool).ledger.grants
    assert all(e.mover is None and e.drain_for is None and not e.leases for e in Inside(pool).ledger.entries.values())
    pool.close()
    assert device.allocated() == 0


def _right(role: str, model) -> bool:
    if role == "encoder":
        return model.encode([PICTURE] * 3).shape == (3, 64)
    if role == "mllm":
        return model.generate([PICTURE] * 3, ["look"] * 3) == [_ANSWER] * 3
    return np.ptp(model.match([PICTURE] * 3, ["red"] * 3)) == 0


_ANSWER = FakeLoader().load(ModelSpec("mllm", "fake", "x"), SimulatedDevice(1 << 40)).generate([PICTURE], ["look"])[0]
