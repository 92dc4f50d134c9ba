"""Device, main memory, disk: what leaves the device is parked where there is a host tier, and comes back without being loaded again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from fgvr.errors import ModelLoadError, OutOfBudget, RuntimeConflict
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.events import Event
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pool_settings import PoolSettings
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, JOINT, MIB, MLLM, PoolMaker
from .helpers import PICTURE, state, status, used
from .storm import OutOfMemoryError


class Faults:
    """Raises what is next in the list when a model moves that way."""

    def __init__(self) -> None:
        self.park: list[BaseException] = []
        self.restore: list[BaseException] = []
        self.prepare: list[BaseException] = []

    def __call__(self, spec: ModelSpec, way: str) -> None:
        waiting = getattr(self, way)
        if waiting:
            raise waiting.pop(0)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def tiered(make_pool: PoolMaker, faults: Faults) -> ModelPool:
    """Room for one or two of the three on the device, 75 MiB of main memory."""
    return make_pool(budget=60 * MIB, host_budget=75 * MIB, loader=FakeLoader(work=MIB, movable=True, on_move=faults))


def test_what_yields_is_parked_and_comes_back_without_a_load(tiered: ModelPool, device: SimulatedDevice) -> None:
    heard: list[Event] = []
    tiered.subscribe(heard.append)
    with tiered.lease("mllm") as mllm:
        before = mllm.generate([PICTURE], ["look"])
        model = id(mllm.model)
    with tiered.lease("encoder"):
        assert (state(tiered, MLLM), status(tiered, MLLM).host_bytes) == ("parked", 40 * MIB)
        assert device.allocated() == 30 * MIB and used(tiered) == 31 * MIB
    with tiered.lease("mllm") as mllm:
        assert mllm.generate([PICTURE], ["look"]) == before
        assert id(mllm.model) == model
        assert (state(tiered, ENCODER), state(tiered, MLLM)) == ("parked", "resident")
    assert tiered.loads == {"mllm": 1, "encoder": 1, "joint": 0}
    moves = [(e.kind, e.role) for e in heard if e.kind in ("loaded", "restored", "parked", "evicted")]
    assert moves == [("loaded", "mllm"), ("parked", "mllm"), ("loaded", "encoder"), ("parked", "encoder"), ("restored", "mllm")]
    assert "in main memory" in repr(tiered.status())


def test_main_memory_has_a_budget_too_and_the_longest_unused_copy_yields(tiered: ModelPool) -> None:
    for role in ("mllm", "encoder", "joint"):
        with tiered.lease(role):
            pass
    tiered.evict("encoder", park=True)
    assert [state(tiered, s) for s in (MLLM, ENCODER, JOINT)] == ["parked", "parked", "resident"]
    assert tiered.status().host_used == 70 * MIB
    tiered.evict("joint", park=True)  # 90 MiB would be too much: the MLLM's copy goes
    assert [state(tiered, s) for s in (MLLM, ENCODER, JOINT)] == ["absent", "parked", "parked"]
    assert tiered.status().host_used == 50 * MIB


@pytest.mark.parametrize("settings", [{"host_budget": 0}, {"host_budget": 30 * MIB}])
def test_without_room_in_main_memory_what_yields_goes_away(make_pool: PoolMaker, settings: dict) -> None:
    pool = make_pool(budget=60 * MIB, loader=FakeLoader(work=MIB, movable=True), **settings)
    for role in ("mllm", "encoder"):
        with pool.lease(role):
            pass
    assert (state(pool, MLLM), pool.status().host_used) == ("absent", 0)


def test_a_model_that_cannot_be_moved_goes_away(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB, host_budget=200 * MIB, loader=FakeLoader(work=MIB))  # as a quantised one
    for role in ("mllm", "encoder"):
        with pool.lease(role):
            pass
    assert state(pool, MLLM) == "absent"


def test_eviction_by_hand_and_cleanup_empty_both_tiers(tiered: ModelPool) -> None:
    with tiered.lease("mllm"):
        pass
    with tiered.lease("encoder"):
        pass
    assert tiered.evict("mllm") == 40 * MIB  # was parked
    assert state(tiered, MLLM) == "absent"
    tiered.evict("encoder", park=True)
    tiered.pin("encoder")
    with pytest.raises(RuntimeConflict, match="pinned"):
        tiered.evict("encoder")
    tiered.unpin("encoder")
    tiered.cleanup()
    assert tiered.status().host_used == 0 and used(tiered) == 0


def test_memory_that_runs_out_while_restoring_evicts_the_idle_and_tries_again(tiered: ModelPool, faults: Faults) -> None:
    with tiered.lease("encoder"), tiered.lease("joint"):
        pass
    tiered.evict("encoder", park=True)
    faults.restore.append(OutOfMemoryError("out of memory"))
    with tiered.lease("encoder"):
        assert state(tiered, JOINT) == "parked"
    assert tiered.loads["encoder"] == 1


def test_a_restore_that_fails_twice_keeps_the_copy_and_says_why(tiered: ModelPool, faults: Faults, device: SimulatedDevice) -> None:
    with tiered.lease("encoder"):
        pass
    tiered.evict("encoder", park=True)
    faults.restore += [OutOfMemoryError("out of memory"), OutOfMemoryError("out of memory")]
    with pytest.raises(OutOfBudget, match="ran out of memory"), tiered.lease("encoder"):
        pass
    assert (state(tiered, ENCODER), used(tiered), device.allocated()) == ("failed", 0, 0)
    tiered.reset("encoder")
    assert state(tiered, ENCODER) == "parked"
    with tiered.lease("encoder"):
        pass
    assert tiered.loads["encoder"] == 1


def test_parking_that_fails_drops_the_model_and_an_interrupt_leaves_it_resident(tiered: ModelPool, faults: Faults) -> None:
    with tiered.lease("encoder"):
        pass
    faults.park.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tiered.evict("encoder", park=True)
    assert (state(tiered, ENCODER), used(tiered), tiered.status().host_used) == ("resident", 30 * MIB, 0)
    faults.park.append(MemoryError("no pinned memory"))
    assert tiered.evict("encoder", park=True) == 30 * MIB
    assert (state(tiered, ENCODER), tiered.status().host_used) == ("absent", 0)


def test_an_interrupt_while_parking_keeps_no_weights_that_another_thread_drops(
    tiered: ModelPool, device: SimulatedDevice, faults: Faults
) -> None:
    """It is still on its way out there; a debugger may keep it for long. A storm found it."""
    with tiered.lease("encoder"):
        pass
    faults.park.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as on_its_way:
        tiered.evict("encoder", park=True)
    assert tiered.evict("encoder", park=False) == 30 * MIB
    assert (used(tiered), device.allocated(), on_its_way.type) == (0, 0, KeyboardInterrupt)


def test_an_interrupted_restore_leaves_the_copy_parked(tiered: ModelPool, faults: Faults) -> None:
    with tiered.lease("encoder"):
        pass
    tiered.evict("encoder", park=True)
    faults.restore.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), tiered.lease("encoder"):
        pass
    assert (state(tiered, ENCODER), used(tiered)) == ("parked", 0)
    with tiered.lease("encoder"):
        pass
    assert tiered.loads["encoder"] == 1


def test_a_smaller_host_budget_applies_live(tiered: ModelPool, device: SimulatedDevice) -> None:
    for role in ("mllm", "encoder"):
        with tiered.lease(role):
            pass
    tiered.evict("encoder", park=True)
    tiered.configure(PoolSettings(budget=60 * MIB, host_budget=35 * MIB))
    assert [state(tiered, s) for s in (MLLM, ENCODER)] == ["absent", "parked"]


def test_a_copy_made_with_the_load_is_there_before_the_first_eviction(make_pool: PoolMaker, faults: Faults) -> None:
    pool = make_pool(budget=60 * MIB, host_budget=75 * MIB, preallocate=True, loader=FakeLoader(work=MIB, movable=True, on_move=faults))
    for role in ("mllm", "encoder", "joint"):
        with pool.lease(role):
            pass
    assert [status(pool, s).host_bytes // MIB for s in (MLLM, ENCODER, JOINT)] == [40, 30, 0]  # 90 MiB would be too much
    faults.prepare.append(MemoryError("no pinned memory"))
    pool.evict("encoder")
    with pool.lease("encoder"):  # loaded all the same
        assert status(pool, ENCODER).host_bytes == 0


def test_a_copy_that_somebody_keeps_stays_the_one_copy_and_who_is_told(tiered: ModelPool) -> None:
    with tiered.lease("mllm") as mllm:
        keeper = {"kept by me": mllm.model}
    tiered.evict("mllm", park=True)
    assert tiered.evict("mllm") == 0
    assert (state(tiered, MLLM), tiered.status().host_used) == ("parked", 40 * MIB)
    assert status(tiered, MLLM).error == "not released, still referred to by a dictionary under kept by me"
    with tiered.lease("mllm") as mllm:
        assert mllm.model is keeper["kept by me"]
    assert tiered.loads["mllm"] == 1
    del mllm
    keeper.clear()
    tiered.evict("mllm", park=True)
    assert tiered.evict("mllm") == 40 * MIB and tiered.status().host_used == 0


class SlowToGo:
    """Part of a model whose memory takes its time to be freed."""

    def __init__(self) -> None:
        self.going, self.gone = threading.Event(), threading.Event()

    def part(self) -> object:
        class Part:
            def __del__(part) -> None:
                self.going.set()
                self.gone.wait(10)

        return Part()


@pytest.mark.parametrize("way", ["by hand", "to make room", "not whole after a restore"])
def test_a_copy_is_gone_before_the_model_is_loaded_again(tiered: ModelPool, faults: Faults, way: str) -> None:
    """Its bytes count until then, and nobody brings in a second copy beside it (seen by one storm of 1,600 on a busy machine)."""
    slow = SlowToGo()
    tiered.set_budget(70 * MIB)  # room for it beside the one that is parked just then
    with tiered.lease("mllm") as mllm:
        mllm.model.part = slow.part()
    tiered.evict("mllm", park=True)
    if way == "to make room":
        for role in ("encoder", "joint"):
            with tiered.lease(role):
                pass
        tiered.evict("encoder", park=True)
    drop = {"by hand": lambda: tiered.evict("mllm"), "to make room": lambda: tiered.evict("joint", park=True)}.get(way, lambda: use(tiered))
    if way == "not whole after a restore":
        faults.restore.append(ValueError("torn"))
    with ThreadPoolExecutor(2) as others:
        dropping = others.submit(drop)
        assert slow.going.wait(10)
        tiered.reset("mllm")
        asking = others.submit(use, tiered)
        assert not wait([asking], 0.1).done
        assert tiered.loads["mllm"] == 1 and tiered.status().host_used >= 40 * MIB
        slow.gone.set()
        failed = ModelLoadError if way == "not whole after a restore" else type(None)
        assert isinstance(dropping.exception(10), failed) and isinstance(asking.exception(10), failed)
    tiered.reset("mllm")
    use(tiered)
    assert tiered.loads["mllm"] == 2


def use(pool: ModelPool) -> None:
    with pool.lease("mllm"):
        pass


# --- real models on the simulated device: they compute on the CPU, and the device counts their flat buffers --------------------


@pytest.mark.parametrize("role", ["encoder", "mllm", "joint"])
def test_a_real_model_answers_bit_equal_after_each_way_back(role: str, request: pytest.FixtureRequest, images: list) -> None:
    folder = request.getfixturevalue(f"{role}_folder")
    spec = ModelSpec(role, {"encoder": "clip", "mllm": "transformers", "joint": "blip"}[role], str(folder), batch_size=2)  # type: ignore[arg-type]
    device = SimulatedDevice(1 << 30)
    pool = ModelPool(device, budget=1 << 30, host_budget=1 << 30)
    key = pool.register(spec)

    def answer() -> list:
        with pool.lease(role) as model:
            if role == "encoder":
                return [*model.encode(images).ravel(), *model.encode_text(["a red bird"]).ravel()]
            if role == "joint":
                return list(model.match(images, ["a red bird"] * len(images)))
            scores = model.score(images, ["look"] * len(images), [["red", "blue"]] * len(images))
            return [*model.generate(images, ["look"] * len(images), max_new_tokens=4), *(s.log_likelihoods for s in scores)]

    first = answer()
    held = device.allocated()
    assert held == status(pool, spec).bytes > 0
    for _ in range(2):
        assert pool.evict(key, park=True) == held
        assert (state(pool, spec), device.allocated(), status(pool, spec).host_bytes) == ("parked", 0, held)
        assert answer() == first
    assert pool.loads[role] == 1
    assert pool.evict(key) == held
    assert (state(pool, spec), device.allocated(), pool.status().host_used) == ("absent", 0, 0)
    assert answer() == first
    assert pool.loads[role] == 2
    assert "not released" not in repr(pool.status()) and "did not come back" not in repr(pool.status())
    pool.close()
    assert device.allocated() == 0
