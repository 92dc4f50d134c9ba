"""runtime.offload: a model larger than its budget answers as the whole one does, and the ledger counts what is on the device."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr.cli import main
from fgvr.errors import ConfigError, OutOfBudget
from fgvr.planning import plan
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders.transformers import LOADER, TransformersLoader
from fgvr.runtime.monitor import watch
from fgvr.runtime.offload import divide
from fgvr.runtime.plan import footprint
from fgvr.runtime.plan import plan as plan_specs
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.runtime.timeline import read
from fgvr.types import ModelSpec, PlanPart

from .tiny_families import write_family
from .tiny_random import write_mllm

MIB, GIB = 1 << 20, 1 << 30
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), dtype=np.uint8))
QUESTION = ([PICTURE], ["describe this bird"])
SCORED = (*QUESTION, [["a red crown", "black wing"]])
SEVEN = ("mode=plan", "models=qwen2_5_vl_7b")


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec("mllm", "qwen", str(folder), dtype="float32", max_pixels=4 * 784, batch_size=1)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Four layers, of which each is a fifth of the weights."""
    return spec_of(write_mllm(tmp_path_factory.mktemp("mllm"), dtype="float32", num_hidden_layers=4))


def test_layers_go_until_the_rest_fits() -> None:
    found = Footprint((PlanPart("language layers", 100), PlanPart("embeddings", 20)), (), layers=(25, 25, 25, 25))
    assert divide(found, "auto", 120) is None and divide(found, "none", 0) is None
    two = divide(found, "auto", 119)  # one layer less would still leave 95, and 25 for the turn of that layer
    assert two is not None and (two.layers, two.of, two.beside, two.largest) == (2, 4, 50, 25)
    assert divide(found, "auto", 0) == divide(found, 1.0, 0), "all of them, where nothing is enough"
    half = divide(found, 0.5, 0)
    assert half is not None and half.layers == 3


@pytest.mark.parametrize("make", [CpuDevice, lambda: SimulatedDevice(GIB)])
def test_an_offloaded_model_answers_as_the_whole_one(spec: ModelSpec, make: Callable[[], Device]) -> None:
    device = make()
    whole = LOADER.load(spec, device)
    with ModelPool(device, budget=GIB, offload=0.5).lease(spec) as model:
        assert model.generate(*QUESTION, max_new_tokens=6)[0] == whole.generate(*QUESTION, max_new_tokens=6)[0]
        np.testing.assert_allclose(model.score(*SCORED)[0].log_likelihoods, whole.score(*SCORED)[0].log_likelihoods, rtol=1e-5)
        assert model.nbytes < 0.6 * whole.nbytes
        assert model.model.movable is None


def test_converted_layers_leave_the_disk_with_their_model(tmp_path: Path) -> None:
    folder = write_family("qwen3_vl_moe", tmp_path / "mllm")
    spec = ModelSpec("mllm", "transformers", str(folder), batch_size=1, offloaded=1)

    def there() -> list[Path]:
        return list(Path(tempfile.gettempdir()).glob(f"fgvr-offload-{os.getpid()}-*"))

    gc.collect()
    before, model = there(), LOADER.load(spec, CpuDevice())
    (own,) = set(there()) - set(before)
    assert any(own.iterdir())
    del model
    gc.collect()
    assert own not in there()


def test_what_is_on_the_device_is_charged_and_comes_back(spec: ModelSpec) -> None:
    device = SimulatedDevice(GIB)
    pool = ModelPool(device, budget=GIB, offload=0.5, host_budget=GIB)
    whole = footprint(spec).weight_bytes
    with pool.lease(spec) as model:
        status = pool.status()[0]
        assert status.bytes == model.nbytes == device.allocated() < 0.6 * whole
        assert not status.error, "the forecast was right"
    pool.evict(spec.key, park=True)
    assert device.allocated() == 0
    assert pool.status()[0].state == "absent", "it cannot be parked"


class Interrupted(TransformersLoader):
    """Memory runs out once in the middle of a layer."""

    def build(self, spec: ModelSpec, folder: Path, config: dict[str, Any], dtype: str, device: Device) -> Any:
        self.module = super().build(spec, folder, config, dtype, device)
        faults = [MemoryError("full")]

        def fail(*_: object) -> None:
            if faults:
                raise faults.pop()

        self.module.model.language_model.layers[2].mlp.act_fn.register_forward_hook(fail)
        return self.module


def test_memory_that_runs_out_in_the_middle_leaves_no_layer_behind(spec: ModelSpec) -> None:
    loader, whole = Interrupted(), LOADER.load(spec, CpuDevice())
    with ModelPool(CpuDevice(), budget=GIB, offload=1.0, loaders=lambda _: loader).lease(spec) as model:
        assert model.generate(*QUESTION, max_new_tokens=2) == whole.generate(*QUESTION, max_new_tokens=2), "tried again"
        layers = list(loader.module.model.language_model.layers.parameters())
        assert layers and all(parameter.is_meta for parameter in layers)


def test_a_budget_that_changes_divides_anew(spec: ModelSpec) -> None:
    found = footprint(spec)
    pool = ModelPool(CpuDevice(), budget=GIB, offload="auto")
    with pool.lease(spec) as model:
        assert model.nbytes >= found.weight_bytes
    pool.evict(spec.key)
    pool.set_budget(found.work_bytes + found.weight_bytes - 1)
    with pool.lease(spec) as model:
        assert model.nbytes < found.weight_bytes
    pool.evict(spec.key)
    pool.set_budget(found.work_bytes // 2)
    with pytest.raises(OutOfBudget, match="can never fit"), pool.lease(spec):
        pass


def test_what_cannot_be_offloaded_is_refused_with_a_cure(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("models.mllm.quantization=nf4", "runtime.offload=auto"), "quantised weights stay on their device"),
        (("runtime.device=mps", "runtime.offload=auto"), "nothing would be gained"),
        (("models/mllm=fake", "runtime.offload=0.5"), "stay whole"),
        (("runtime.offload=1.5",), "runtime.offload"),
        (("runtime.offload=much",), "runtime.offload"),
    ):
        assert main([*SEVEN, "runtime.budget=8GiB", *words]) == 2
        assert said in capsys.readouterr().err
    with (
        pytest.raises(ConfigError, match="quantised"),
        ModelPool(CpuDevice(), budget=GIB, offload=0.5).lease(ModelSpec("mllm", "qwen", "tiny", quantization="nf4")),
    ):
        pass


@pytest.mark.parametrize("card", [8, 12, 16])
def test_the_7b_fits_on_small_cards_and_the_plan_says_the_price(card: int) -> None:
    words = (*SEVEN, f"runtime.device=simulated:{card}GiB", f"runtime.budget={card}GiB")
    small = plan(fgvr.load_config(*words, "runtime.offload=auto"))
    assert small.in_turns <= card * GIB
    whole = plan(fgvr.load_config(*words))
    assert whole.in_turns > card * GIB and any("runtime.offload=auto" in line for line in whole.advice)
    assert any("GB per token" in fact for fact in small.facts)
    beside = next(part for part in small.host if "offloaded" in part.name)
    weights = {part.name: part.bytes for part in small.parts}["mllm weights"]
    assert beside.bytes + weights == footprint(ModelSpec("mllm", "qwen", "Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16")).weight_bytes


def test_offload_leaves_room_for_the_encoder() -> None:
    mllm = ModelSpec("mllm", "qwen", "Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16", max_pixels=1003520, batch_size=4)
    encoder = ModelSpec("encoder", "clip", "ViT-B-32/openai", batch_size=32)
    alone, both = (plan_specs(specs, 12 * GIB, offload="auto") for specs in ([mllm], [mllm, encoder]))
    layer = footprint(mllm).layers[0]
    assert alone.in_turns > 12 * GIB - layer and 12 * GIB >= both.in_turns > 12 * GIB - layer


@pytest.mark.slow
def test_a_model_of_480_mib_answers_within_200(tmp_path: Path) -> None:
    """Must show 5 of issue 21."""
    sizes = dict(hidden_size=1024, num_hidden_layers=10, num_attention_heads=64, num_key_value_heads=8, intermediate_size=3072)
    spec = spec_of(write_mllm(tmp_path / "mllm", dtype="float32", spread=0.05, **sizes))
    whole = LOADER.load(spec, CpuDevice())
    assert whole.nbytes > 430 * MIB
    expected, scores = whole.generate(*QUESTION, max_new_tokens=8)[0], whole.score(*SCORED)[0].log_likelihoods
    del whole
    pool = ModelPool(CpuDevice(), budget=200 * MIB, offload="auto")
    monitor = watch(pool)
    with monitor.record(tmp_path / "memory.jsonl"), pool.lease(replace(spec)) as model:
        began = time.perf_counter()
        reply = model.generate(*QUESTION, max_new_tokens=8)[0]
        seconds = (time.perf_counter() - began) / 8
        monitor.sample()
        assert reply == expected
        np.testing.assert_allclose(model.score(*SCORED)[0].log_likelihoods, scores, rtol=1e-4)
    samples = read(tmp_path / "memory.jsonl").samples
    assert len(samples) >= 3 and all(sample.ledger <= 200 * MIB for sample in samples)
    assert all(sample.storage_bytes <= sample.ledger for sample in samples)
    assert max(sample.uss or 0 for sample in samples) - (samples[0].uss or 0) < 350 * MIB, "the process, libraries' growth included"
    told = plan_specs([spec], 200 * MIB, offload="auto").facts
    passing = next(float(found[1]) for fact in told if (found := re.search(r"about ([\d.]+) s", fact)))
    assert passing / 20 < seconds < 5 * passing, "the plan says 1 GB/s of a disk; files that are in the page cache come quicker"
