"""Working memory is measured once per machine; from then on plans and pools reckon with what was measured."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fgvr
from fgvr.cli import main
from fgvr.planning import plan
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.plan import need
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.probe import Probes, take
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeEncoder, FakeLoader

MIB = 1 << 20
MLLM = ModelSpec("mllm", "fake", "fake 40MiB", batch_size=4)


class Growing(FakeEncoder):
    """Takes a MiB, and two more per item."""

    device: SimulatedDevice

    def encode(self, images: Sequence[Any]) -> Any:
        held = self.device.allocate((1 + 2 * len(images)) * MIB)
        found = super().encode(images)
        del held
        return found


class GrowingLoader(FakeLoader):
    def __init__(self) -> None:
        super().__init__(work=0)
        self.kinds["encoder"] = Growing

    def work_bytes(self, spec: ModelSpec) -> int:
        return 100 * MIB

    def load(self, spec: ModelSpec, device: Any) -> Any:
        model: Any = super().load(spec, device)
        model.device = device
        return model


def pool_of(folder: Path, loader: FakeLoader, budget: int = 500 * MIB) -> ModelPool:
    return ModelPool(SimulatedDevice(1000 * MIB), budget=budget, probe=True, probes=Probes(folder), loaders=lambda _: loader)


def work_of(pool: ModelPool, spec: ModelSpec) -> int:
    return next(part.bytes for part in pool.plan(spec).parts if part.kind == "work")


def test_a_probe_at_the_first_load_replaces_the_estimate_for_every_batch_size(tmp_path: Path) -> None:
    loader, spec = GrowingLoader(), ModelSpec("encoder", "fake", "e 10MiB", batch_size=8)
    pool = pool_of(tmp_path / "probes", loader)
    assert work_of(pool, spec) == 100 * MIB
    with pool.lease(spec):
        assert pool.status().used == 10 * MIB + 100 * MIB, "this lease was admitted by the estimate"
    assert work_of(pool, spec) == 17 * MIB
    later = pool_of(tmp_path / "probes", loader)  # as another process
    assert [work_of(later, ModelSpec("encoder", "fake", "e 10MiB", batch_size=n)) for n in (1, 4, 8, 16)] == [
        n * MIB for n in (3, 9, 17, 33)
    ]
    with later.lease(spec):
        assert later.status().used == 27 * MIB
    assert pool.peak_bytes <= 500 * MIB and pool.status().peak <= 500 * MIB


def test_a_probe_that_has_no_place_or_fails_leaves_the_estimate_and_the_model(tmp_path: Path) -> None:
    class Failing(FakeEncoder):
        def encode_text(self, texts: Sequence[str]) -> Any:
            raise MemoryError("too many")

    class FailingLoader(GrowingLoader):
        def __init__(self) -> None:
            super().__init__()
            self.kinds["encoder"] = Failing

    spec = ModelSpec("encoder", "fake", "e 10MiB", batch_size=8)
    for pool in (pool_of(tmp_path / "a", FailingLoader()), pool_of(tmp_path / "b", GrowingLoader(), budget=111 * MIB)):
        with pool.lease(spec, work=1):
            assert pool.status()[0].state == "resident"
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").exists(), "there was room after all"


def test_a_probe_beside_a_lease_of_another_batch_size_disturbs_neither(tmp_path: Path) -> None:
    encoder, joint = (ModelSpec(role, "fake", f"{role} 10MiB", batch_size=4) for role in ("encoder", "joint"))

    class Meanwhile(GrowingLoader):
        def work_bytes(self, spec: ModelSpec) -> int:
            if spec.role == "joint":  # the encoder's need is known to this lease, and not yet used
                other = threading.Thread(target=lambda: pool.leased(replace(encoder, batch_size=8)).encode([]))
                other.start()
                other.join()
            return 50 * MIB

    pool = pool_of(tmp_path / "probes", Meanwhile())
    with pool.lease(encoder, joint):
        assert pool.status().used == (10 + 10 + 50 + 50) * MIB
    assert work_of(pool, replace(encoder, batch_size=8)) == 17 * MIB


def test_a_measurement_that_cannot_be_kept_is_no_failure_of_the_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "probes").write_text("a file, where a folder should be")
    pool, spec = pool_of(tmp_path / "probes", GrowingLoader()), ModelSpec("encoder", "fake", "e 10MiB", batch_size=8)
    with pool.lease(spec):
        assert pool.status()[0].state == "resident"
    assert "could not be kept" in caplog.text and work_of(pool, spec) == 17 * MIB


def test_other_batches_lie_on_the_lines_through_those_that_were_measured(tmp_path: Path) -> None:
    probes, loader = Probes(tmp_path), FakeLoader()
    probes.keep(loader, MLLM, "cpu", {1: 60, 2: 100, 4: 200})  # preparing its picture is the widest moment of one item
    assert [probes.work(loader, replace(MLLM, batch_size=size), "cpu") for size in (1, 2, 3, 8)] == [60, 100, 150, 400]
    for few in ({1: 60}, {1: 60, 2: 120}):
        probes.keep(loader, MLLM, "cpu", few)
        assert probes.work(loader, MLLM, "cpu") == 240, "too little is known for a line"


def test_damaged_measurements_are_as_none(tmp_path: Path) -> None:
    probes, loader = Probes(tmp_path), FakeLoader()
    probes.keep(loader, MLLM, "cpu", {1: 10, 4: 40})
    assert probes.work(loader, MLLM, "cpu") == 40 and probes.work(loader, MLLM, "cuda:0") is None
    for content in ("", "[]", "{}", '{"1": "x"}', '{"1": null}', '{"8": 10}', '{"0": 1}'):
        next(tmp_path.iterdir()).write_text(content)
        assert probes.work(loader, MLLM, "cpu") is None


def test_the_plan_says_what_is_an_estimate_and_measures_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mode=plan", "models=tiny", f"paths.home={tmp_path}", "runtime.device=cpu", "runtime.budget=2GiB", "models/mllm=none"]
    before = plan(fgvr.load_config(*words))
    assert any("is an estimate; it is measured by mode=plan runtime.probe=true" in fact for fact in before.facts)
    assert main([*words, "runtime.probe=true", "logging.json=true"]) == 0
    shown = json.loads(capsys.readouterr().out)
    works = [part for part in shown["parts"] if part["kind"] == "work"]
    assert [part["parts"][0]["name"] for part in works] == ["measured on this machine"]
    after = plan(fgvr.load_config(*words))
    assert not any("estimate" in fact for fact in after.facts)
    assert {part.name: part.bytes for part in after.parts} == {part["name"]: part["bytes"] for part in shown["parts"]}


def test_what_is_measured_again_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """Tensors of the call are counted, neither its weights nor the process."""
    from fgvr.runtime.loaders.clip import LOADER

    spec, device = ModelSpec("encoder", "clip", "tiny", batch_size=32), CpuDevice()
    model = LOADER.load(spec, device)
    first, second, simulated = (take(model, spec, one) for one in (device, device, SimulatedDevice(1000 * MIB)))
    assert first == second == simulated and 0 < first[1] <= first[32], "64 texts are the widest"
    probes = Probes(tmp_path)
    probes.keep(LOADER, spec, device.name, first)
    assert need(spec, "cpu", probes).work == first[32]


def test_what_makes_no_tensors_is_looked_at_from_outside() -> None:
    blocks: list[int] = []

    class Counting(CpuDevice):
        """Sees these blocks alone: the real one sees the whole process, where the kernel takes back pages at any moment."""

        def allocated(self) -> int:
            return sum(blocks)

    assert Counting().measure(lambda: blocks.append(64 * MIB)) == 64 * MIB


def test_tensors_are_counted_once_and_until_they_are_freed() -> None:
    import torch

    weight, count = torch.ones(MIB), CpuDevice().measure

    def of_pixels() -> None:
        pixels = torch.from_numpy(np.ones(MIB, np.float32))
        seen = pixels * 2  # 4 MiB beside the 4 MiB of the pixels
        del pixels
        seen = seen.view(1024, 1024) @ weight.view(1024, 1024)  # beside the 4 MiB of its factor
        seen.t().add_(1)

    assert count(of_pixels) == 8 * MIB
    assert count(lambda: [torch.ones(MIB) for _ in range(3)]) == 12 * MIB
