"""Models in 8 and 4 bits: bytes counted to the last scale, forecast before loading, never moved, never mixed up, cures named."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from fgvr import load_config
from fgvr.errors import ConfigError, ModelLoadError, RuntimeConflict
from fgvr.planning import plan as plan_of
from fgvr.runtime.conversation import Conversation
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders import movable, tensors
from fgvr.runtime.loaders.transformers import LOADER
from fgvr.runtime.loaders.transformers_mllm import TransformersMLLM
from fgvr.runtime.plan import footprint, plan
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.sizes import qwen as sizes
from fgvr.session import Session
from fgvr.store.cache import MemoryCache
from fgvr.store.cached_models import CachedMLLM
from fgvr.types import ModelSpec, Picture

from .helpers import module_of

TINY = ModelSpec("mllm", "transformers", "tiny", batch_size=4)
SEVEN = ModelSpec("mllm", "transformers", "Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16")
LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(find_spec(library) is None, reason=f"no {library}: pip install 'fgvr[quant]'"))
    for kind, library in LIBRARIES.items()
]


def quantised(kind: str | None, dtype: str = "auto") -> ModelSpec:
    return replace(TINY, quantization=kind, dtype=dtype)


@pytest.fixture(scope="module")
def models() -> Iterator[Callable[[str | None], TransformersMLLM]]:
    """The tiny MLLM in each form, loaded once."""
    loaded: dict[str | None, TransformersMLLM] = {}

    def get(kind: str | None) -> TransformersMLLM:
        if kind not in loaded:
            loaded[kind] = LOADER.load(quantised(kind), CpuDevice())
        return loaded[kind]

    yield get
    loaded.clear()


@pytest.fixture(scope="module")
def birds() -> tuple[list[Image.Image], list[list[str]]]:
    """24 birds, and of each the descriptions of its own kind first, then of its world."""
    from fgvr.data.birds import make_world, render

    world = make_world(9000, (4, 4))
    texts = [species.describe() for species in world.species]
    shown = [(number, shot) for number in range(len(texts)) for shot in range(3)]
    candidates = [[texts[number], *(text for text in texts if text != texts[number])] for number, _ in shown]
    return [render(world, number, "test", shot) for number, shot in shown], candidates


# --- bytes -------------------------------------------------------------------------------------------------------------------


def storages() -> dict[int, int]:
    """Every plain tensor that is alive in this process, by the address of its bytes; wrappers have none of their own."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not hasattr(type(thing), "__tensor_flatten__") and not thing.is_meta:
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_accounted_bytes_are_those_of_all_tensors_and_were_forecast(kind: str, dtype: str, birds) -> None:
    LOADER.load(quantised(kind, dtype), CpuDevice())  # what a library keeps for itself is there from here on
    gc.collect()
    before = storages()
    pool = ModelPool(CpuDevice(), budget=1 << 30)
    pool.register(quantised(kind, dtype))
    with pool.lease("mllm") as mllm:
        mllm.score(birds[0][:2], ["Describe the bird."] * 2, [["red"]] * 2)  # a first pass must change nothing
        gc.collect()
        real = sum(size for address, size in storages().items() if address not in before)
        (status,) = pool.status()
        assert status.bytes == pytest.approx(real, rel=0.01)
    assert LOADER.estimate(quantised(kind, dtype)) == pytest.approx(status.bytes, rel=0.001)  # but for the rotary tables, in no file
    assert status.bytes < 0.85 * LOADER.estimate(quantised(None, dtype))
    assert pool.status().used == status.bytes
    pool.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tower_the_words_and_the_head_stay_whole(kind: str, models) -> None:
    module, plain = module_of(models(kind)), module_of(models(None))
    changed = [name for name, part in plain.named_parameters() if type(module.get_parameter(name)) is not type(part)]
    layers = [name for name, _ in plain.named_parameters() if ".layers." in name and name.endswith("proj.weight")]
    assert sorted(changed) == sorted(layers) and len(layers) == 6 * 7
    assert torch.equal(module.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    assert torch.equal(module.lm_head.weight, plain.lm_head.weight)
    for name, part in plain.model.visual.named_parameters():
        assert torch.equal(module.model.visual.get_parameter(name), part), name


def test_the_7b_is_planned_by_its_matrices_scales_and_rest() -> None:
    matrices = 28 * (2 * 3584**2 + 2 * 512 * 3584 + 3 * 3584 * 18944)
    rows = 28 * (3 * 3584 + 2 * 512 + 2 * 18944)
    whole = {part.name: part.bytes for part in footprint(SEVEN).weights}
    for kind, expected in (("int8", matrices + 5 * rows), ("nf4", matrices // 2 + 4 * matrices // 64 + 64 * 7 * 28)):
        found = {part.name: part.bytes for part in footprint(replace(SEVEN, quantization=kind)).weights}
        assert found["language layers"] == expected + whole["language layers"] - 2 * matrices
        assert {name: size for name, size in found.items() if name != "language layers"} == {
            name: size for name, size in whole.items() if name != "language layers"
        }


@pytest.mark.parametrize("action", ["generate", "score"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_takes_what_the_formula_says_one_unpacked_matrix_included(kind: str, action: str, models, birds) -> None:
    model, images = models(kind), birds[0][:4]
    prompts = ["Describe the bird. " * 6, "bird", "bird", "Describe the wing."]
    asks = [Conversation.single(*pair) for pair in zip(images, prompts, strict=True)]
    tokens = model.inputs(asks)["input_ids"].shape[1]
    pixels = 112 * 140  # as the processor scales 112 x 112
    batch = sizes.Batch(4, pixels, 4, prompt=tokens - pixels // 784, new=8, unpacked=True)
    shape = sizes.read_dimensions(json.loads((Path(tensors.__file__).parents[2] / "models_tiny/mllm/config.json").read_text()))
    if action == "generate":
        peak = CpuDevice().measure(lambda: model.generate(images, prompts, max_new_tokens=8))
        moments = (sizes.prepare, sizes.tower, sizes.prefill)
    else:
        texts = [["A bird with red crown and"] * sizes.CANDIDATES] * 4
        peak = CpuDevice().measure(lambda: model.score(images, prompts, texts))
        moments = (sizes.prepare, sizes.tower, sizes.prefill, sizes.score)
    forecast = max(sum(part.bytes for part in moment(shape, batch)) for moment in moments)
    assert 0.5 * forecast < peak <= 1.02 * forecast


# --- answers -----------------------------------------------------------------------------------------------------------------


def right(model: TransformersMLLM, birds) -> float:
    """Share of birds whose own description is the likeliest of eight."""
    images, candidates = birds
    scores = model.score(images, ["Describe the bird."] * len(images), candidates)
    return sum(max(s.log_likelihoods) == s.log_likelihoods[0] for s in scores) / len(scores)


@pytest.fixture(scope="module")
def right_in_full(models, birds) -> float:
    return right(models(None), birds)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_recognise_as_many_birds_and_four_nearly(kind: str, models, birds, right_in_full: float) -> None:
    """24 birds here; docs/benchmarks.md has 4,000."""
    lost = right_in_full - right(models(kind), birds)
    assert right_in_full > 0.8
    assert lost <= (0.03 if kind == "int8" else 0.15)


# --- in the pool -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_dropped_not_parked_and_comes_back_from_disk_as_it_was(kind: str, birds) -> None:
    device = SimulatedDevice(1 << 30)
    images, prompts = birds[0][:2], ["Describe the bird."] * 2
    pool = ModelPool(device, budget=1 << 30, host_budget=1 << 30, max_models=1)
    for spec in (quantised(kind), ModelSpec("encoder", "clip", "tiny", batch_size=1)):
        pool.register(spec)
    with pool.lease("mllm") as mllm:
        said = mllm.generate(images, prompts, max_new_tokens=24)
        (size,) = (status.bytes for status in pool.status() if status.role == "mllm")
        assert device.allocated() == size
    with pool.lease("encoder"):
        pass
    states = {status.role: status.state for status in pool.status()}
    assert states == {"mllm": "absent", "encoder": "resident"}
    assert pool.status().host_used == 0 and device.allocated() < size
    with pool.lease("mllm") as mllm:
        assert mllm.generate(images, prompts, max_new_tokens=24) == said
    assert pool.loads["mllm"] == 2
    assert {status.role: status.state for status in pool.status()} == {"mllm": "resident", "encoder": "parked"}
    pool.close()
    assert device.allocated() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_arena_refuses_to_move_it(kind: str, models) -> None:
    with pytest.raises(RuntimeConflict, match="no plain bytes"):
        movable.place(module_of(models(kind)), SimulatedDevice(1 << 30))


# --- never mixed up ----------------------------------------------------------------------------------------------------------


def test_keys_and_fingerprints_differ_by_quantisation() -> None:
    specs = [quantised(kind) for kind in (None, "int8", "nf4")]
    assert len({spec.key for spec in specs}) == len({LOADER.fingerprint(spec) for spec in specs}) == 3


def test_the_store_asks_each_form_for_itself(birds) -> None:
    """A fake answers, under the fingerprint of the real one."""
    asked = []

    class Fake:
        def __init__(self, kind: str | None) -> None:
            self.fingerprint, self.kind = LOADER.fingerprint(quantised(kind)), kind

        def generate(self, images, prompts, **settings):
            from fgvr.types import Reply

            asked.append(self.kind)
            return [Reply(f"{self.kind}", prompt_tokens=1, new_tokens=1)] * len(prompts)

    picture = Picture(birds[0][0], "one bird")
    cache = MemoryCache()
    for _ in range(2):
        for kind in (None, "int8", "nf4"):
            (reply,) = CachedMLLM(Fake(kind), cache).generate([picture], ["Describe the bird."])
            assert reply == f"{kind}"
    assert asked == [None, "int8", "nf4"]


def test_a_command_and_a_pool_mean_the_same_model_by_int4_and_nf4() -> None:

    specs = [Session(load_config(f"models.mllm.quantization={kind}")).specs["mllm"] for kind in ("null", "int8", "nf4", "int4")]
    assert [spec.quantization for spec in specs] == [None, "int8", "nf4", "nf4"]


# --- cures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("found", "told"), [(None, "is not installed"), ("0.2", "0.2 is installed")])
@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_missing_or_old_library_is_named_with_its_cure(kind: str, found: str | None, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name != LIBRARIES[kind]:
            return real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ModelLoadError, match=r"pip install 'fgvr\[quant\]'") as caught:
        LOADER.load(quantised(kind), CpuDevice())
    assert told in str(caught.value) and LIBRARIES[kind] in str(caught.value)
    told_by_plan = plan([replace(SEVEN, quantization=kind)], 24 << 30, device="cuda:0").facts
    assert any("cannot be loaded here" in fact and told in fact for fact in told_by_plan)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_cannot_do_it_is_refused_with_a_cure(kind: str) -> None:
    class Metal(CpuDevice):
        name = torch_name = "mps"
        quantizes = False

    with pytest.raises(ModelLoadError, match="models=qwen2_5_vl_7b_mlx"):
        LOADER.load(quantised(kind), Metal())
    assert any("not on mps" in fact for fact in plan([quantised(kind)], 1 << 30, device="mps").facts)


def test_weights_that_were_saved_in_fewer_bits_are_refused_with_a_cure(mllm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mllm_folder, tmp_path / "awq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq", "bits": 4}}))
    spec = ModelSpec("mllm", "transformers", str(folder))
    for attempt in (LOADER.check, LOADER.estimate, lambda spec: LOADER.load(spec, CpuDevice())):
        with pytest.raises(ModelLoadError, match="quantised by awq.*\n.*models.mllm.quantization=int8 or nf4"):
            attempt(spec)


def test_only_known_kinds_and_only_the_mllm() -> None:
    assert load_config("models.mllm.quantization=int4").models.mllm["quantization"] == "nf4"
    for word, told in (("mllm.quantization=int3", "int8, nf4"), ("mllm.dtype=fp8", "auto, fastest, float32")):
        with pytest.raises(ConfigError, match=f"{word}.* must be .*{told}"):
            load_config(f"models.{word}")
    with pytest.raises(ConfigError, match=r"only models\.mllm can be quantised"):
        load_config("+models.encoder.quantization=int8")
    with pytest.raises(ModelLoadError, match="known are int8, nf4"):
        LOADER.estimate(quantised("int2"))


def test_the_4_bit_bundle_plans_and_says_what_it_needs() -> None:
    found = plan_of(load_config("mode=plan", "models=qwen2_5_vl_7b_int4", "runtime.budget=12GiB", "runtime.device=cuda:0"))
    assert found.fits and found.needed > 10 << 30
    assert any("bitsandbytes 0.50 or newer (pip install 'fgvr[quant]')" in fact for fact in found.facts)
    short = plan_of(load_config("mode=plan", "models=qwen2_5_vl_7b", "runtime.budget=12GiB", "runtime.device=cuda:0"))
    assert any("models.mllm.quantization=nf4" in line and "enough" in line for line in short.advice)
    eight = plan_of(load_config("mode=plan", "models=qwen2_5_vl_7b", "models.mllm.quantization=int8", "runtime.budget=9GiB"))
    assert any("models.mllm.quantization=nf4" in line for line in eight.advice)
