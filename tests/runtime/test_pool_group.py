"""Several devices as one pool: each within its budget, batches spread, the same answers, and a device that fails is left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgvr.errors import ConfigError, ModelLoadError, OutOfBudget, RuntimeConflict
from fgvr.runtime.devices import device_names, pick_devices
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.events import Event
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pool_group import PoolGroup
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

GIB = 1 << 30
BUDGET = 18 * GIB
ENCODER = ModelSpec("encoder", "fake", "encoder 4GiB", batch_size=2)
MLLM = ModelSpec("mllm", "fake", "mllm 13GiB", batch_size=2)
JOINT = ModelSpec("joint", "fake", "joint 6GiB", batch_size=2)  # the three do not fit one device together
NOISE = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)) for i in range(24)]
PROMPTS = [" ".join(["word"] * (1 + i % 5)) for i in range(24)]


class Loader(FakeLoader):
    """Remembers what each device computes. `fail(device, call)` may raise in it."""

    def __init__(self, fail: Callable[[str, int], None] = lambda device, call: None, **settings: Any) -> None:
        super().__init__(work=GIB >> 1, **settings)
        self.batches: dict[str, list[int]] = {}
        self._fail = fail

    def load(self, spec: ModelSpec, device: Device) -> Any:
        model = super().load(spec, device)
        for method in ("encode", "score", "match"):
            if (compute := getattr(model, method, None)) is not None:
                setattr(model, method, self._watched(compute, device.name))
        return model

    def _watched(self, compute: Callable[..., Any], device: str) -> Callable[..., Any]:
        def call(items: Sequence[Any], *columns: Any, **settings: Any) -> Any:
            done = self.batches.setdefault(device, [])
            done.append(len(items))
            time.sleep(0.002)  # the other device has its turn
            self._fail(device, len(done))
            return compute(items, *columns, **settings)

        return call


Maker = Callable[..., ModelPool]


@pytest.fixture
def make() -> Iterator[Maker]:
    """A pool over so many simulated devices; nothing may stay leased, and no device may have held more than its budget."""
    made: list[ModelPool] = []

    def group(loader: Loader, devices: int = 2) -> ModelPool:
        pools = [
            ModelPool(device, budget=BUDGET, loaders=lambda spec: loader, lease_timeout=20.0)
            for device in pick_devices(["simulated:24GiB"] * devices)
        ]
        found = pools[0] if devices == 1 else PoolGroup(pools)
        for spec in (ENCODER, MLLM, JOINT):
            found.register(spec)
        made.append(found)
        return found

    yield group
    for pool in made:
        assert all(model.leases == 0 for model in pool.status())
        for member in pool.members:
            assert member.device.peak() <= BUDGET
        pool.close()


def everything(pool: ModelPool) -> list[Any]:
    """All three models at once from several threads; their answers."""
    answers: list[Any] = [None] * 3
    calls = (
        lambda: pool.leased(ENCODER).encode(NOISE).tolist(),
        lambda: [s.log_likelihoods for s in pool.leased(MLLM).score(NOISE, PROMPTS, [["yes", "no it is not"]] * len(NOISE))],
        lambda: pool.leased(JOINT).match(NOISE, PROMPTS).tolist(),
    )

    def run(i: int) -> None:
        answers[i] = calls[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_two_devices_answer_like_one_within_the_budget_of_each(make: Maker) -> None:
    alone, both = Loader(), Loader()
    expected = everything(make(alone, 1))
    pool, seen = make(both), []

    def hear(event: Event) -> None:
        seen.append(event.used <= event.limit == BUDGET and all(m.device.allocated() <= BUDGET for m in pool.members))

    pool.subscribe(hear)
    assert everything(pool) == expected
    assert len(seen) > 20 and all(seen)
    shares = [len(batches) for batches in both.batches.values()]
    assert len(shares) == 2 and min(shares) >= 5, shares
    assert sorted(n for batches in both.batches.values() for n in batches) == sorted(alone.batches["simulated"])  # the same borders
    assert pool.counters.snapshot().encoder_forwards == len(NOISE)
    assert pool.loads["encoder"] == sum(member.loads["encoder"] for member in pool.members) >= 1


def test_single_calls_stay_on_one_device(make: Maker) -> None:
    """Where nothing else computes, a second copy would be loaded for nothing."""
    loader = Loader()
    pool = make(loader)
    for image in NOISE[:4]:
        pool.leased(ENCODER).encode([image])
    assert list(loader.batches) == ["simulated:0"]
    assert pool.loads["encoder"] == 1


def test_a_device_that_fails_is_left_out_and_the_other_finishes(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    def fail(device: str, call: int) -> None:
        if device == "simulated:1" and call > 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    loader = Loader(fail)
    pool = make(loader)
    found = pool.leased(ENCODER).encode(NOISE)
    assert np.array_equal(found, make(Loader(), 1).leased(ENCODER).encode(NOISE))
    (note,) = pool.notes
    assert note.startswith("simulated:1 is not used any more") and "illegal memory access" in note and "TORCH_USE" not in note
    assert caplog.text.count(note) == 1
    failed = len(loader.batches["simulated:1"])
    pool.leased(ENCODER).encode(NOISE)
    assert len(loader.batches["simulated:1"]) == failed  # never asked again


def test_a_batch_that_fails_everywhere_is_to_blame_and_no_device(make: Maker) -> None:
    def fail(device: str, call: int) -> None:
        if call == 2:
            raise ValueError(f"not an image, says {device}")

    loader = Loader(fail)
    pool = make(loader)
    pool.leased(ENCODER).encode(NOISE[:1])
    loader.batches["simulated:1"] = [1]
    with pytest.raises(ValueError, match="says simulated:0"):
        pool.leased(ENCODER).encode(NOISE[:2])
    assert not pool.notes
    assert len(pool.leased(ENCODER).encode(NOISE)) == len(NOISE)


def test_a_model_that_one_device_cannot_load_is_computed_by_the_other(make: Maker) -> None:
    loads: list[str] = []

    class OneDisk(Loader):
        def load(self, spec: ModelSpec, device: Device) -> Any:
            loads.append(device.name)
            if device.name == "simulated:0" and spec == MLLM:
                raise OSError("no room for kernels")
            return super().load(spec, device)

    pool = make(OneDisk())
    assert len(pool.leased(MLLM).score(NOISE, PROMPTS, [["a"]] * len(NOISE))) == len(NOISE)
    assert pool.notes[0].startswith("mllm mllm 13GiB is not used on simulated:0")
    pool.leased(ENCODER).encode(NOISE)
    assert pool.members[0].loads["encoder"] == 1  # all else still is


def test_what_no_device_can_do_raises_the_first_error(make: Maker) -> None:
    def missing(spec: ModelSpec) -> None:
        raise OSError("no such file")

    with pytest.raises(ModelLoadError, match="no such file"):
        make(Loader(on_load=missing)).leased(ENCODER).encode(NOISE)
    with pytest.raises(OutOfBudget):
        make(Loader()).leased(ModelSpec("joint", "fake", "joint 19GiB")).match(NOISE[:1], ["a"])


def test_controls_reach_every_device(make: Maker) -> None:
    pool = make(Loader())
    pool.leased(ENCODER).encode(NOISE)
    row = next(model for model in pool.status() if model.key == ENCODER.key)
    assert (row.state, row.loads, row.bytes) == ("resident", 2, 4 * GIB)
    assert [status.device for status in pool.status().devices] == ["simulated:0", "simulated:1"]
    assert repr(pool).count(" of 18.00 GiB in use") == 2
    pool.pin("encoder")
    with pytest.raises(RuntimeConflict, match="pinned"):
        pool.evict("encoder")
    pool.unpin("encoder")
    assert pool.evict("encoder") == 8 * GIB
    assert pool.set_budget("5GiB") == 10 * GIB
    with pool.lease("encoder"):
        with pytest.raises(OutOfBudget):
            pool.set_budget("1GiB")
        assert [member.budget for member in pool.members] == [5 * GIB, 5 * GIB]  # on all or on none
    assert pool.plan("encoder").budget == 5 * GIB
    assert pool.cleanup() == 4 * GIB


def test_settings_apply_to_every_device_or_to_none(make: Maker) -> None:
    pool = make(Loader())
    first, second = pool.members
    smaller = replace(pool.settings, budget=2 * GIB, asked="2GiB", max_concurrency=3)
    with second.lease(ENCODER):  # 4 GiB cannot go
        with pytest.raises(OutOfBudget):
            pool.configure(smaller)
        assert [member.budget for member in pool.members] == [BUDGET, BUDGET]
        assert first.settings.max_concurrency == second.settings.max_concurrency == pool.settings.max_concurrency != 3
    pool.configure(smaller)
    assert [(member.budget, member.settings.max_concurrency) for member in pool.members] == [(2 * GIB, 3)] * 2


def test_a_group_answers_all_that_a_pool_does() -> None:
    """What it inherited would look for the books of one device."""
    said = {name for name, value in vars(ModelPool).items() if not name.startswith("_")}
    assert said <= set(vars(PoolGroup)) | {"prioritise"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ([], "write the name of a device"),
        (3, "write the name of a device"),
        (["simulated:1GiB", ""], "write the name of a device"),
        (["cpu", "simulated:1GiB"], "of one kind"),
        (["all", "all"], "of one kind"),
        (["cpu", "cpu"], "named twice"),
        (["simulated:1GiB", "simulated:much"], "a size follows the colon"),
    ],
)
def test_a_list_of_devices_that_makes_no_sense_is_refused(asked: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pick_devices(device_names(asked))


def test_all_are_those_of_the_machine() -> None:
    found = pick_devices("all")
    assert found and not isinstance(found[0], SimulatedDevice)
    assert len({device.name for device in found}) == len(found)


@pytest.mark.parametrize("called", ["encoder", ENCODER.key])
def test_a_reset_lets_a_device_have_a_model_again(called: str, make: Maker) -> None:
    broken = [True]

    class Loads(Loader):
        def load(self, spec: ModelSpec, device: Device) -> Any:
            if device.name == "simulated:1" and broken[0]:
                raise ModelLoadError("its files cannot be read")
            return super().load(spec, device)

    loader = Loads()
    pool = make(loader)
    pool.leased(ENCODER).encode(NOISE)
    assert len(pool.notes) == 1 and "simulated:1" not in loader.batches
    broken[0] = False
    pool.reset(called)
    pool.leased(ENCODER).encode(NOISE)
    assert not pool.notes and "simulated:1" in loader.batches
