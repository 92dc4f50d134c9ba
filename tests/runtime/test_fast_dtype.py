"""`dtype=fastest` asks the processor and never guesses; float16 is what a model is really computed in, or it is not called so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import fgvr
from fgvr import modes
from fgvr.planning import on_device
from fgvr.runtime.devices import cpu, cuda, fastest_dtype
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.base import find_loader
from fgvr.session import Session
from fgvr.types import ModelSpec

from .helpers import module_of


def flags_are(monkeypatch: pytest.MonkeyPatch, file: Path, *flags: str) -> None:
    file.write_text(f"model name\t: a processor\nflags\t\t: fpu {' '.join(flags)} sse\n")
    monkeypatch.setattr(cpu, "_CPUINFO", file)


@pytest.mark.parametrize("flags,wanted", [(("avx2", "avx512f"), "float32"), (("avx512_bf16",), "bfloat16"), (("amx_bf16",), "bfloat16")])
def test_a_cpu_is_asked_for_its_flags(monkeypatch, tmp_path, flags, wanted):
    flags_are(monkeypatch, tmp_path / "cpuinfo", *flags)
    assert fastest_dtype("cpu") == wanted
    spec = Session(fgvr.load_config("models.encoder.dtype=fastest", "runtime.device=cpu")).specs["encoder"]
    assert spec.dtype == wanted


def test_where_the_system_tells_nothing_it_is_float32(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "absent")
    assert fastest_dtype("cpu") == fastest_dtype("mps") == fastest_dtype("simulated:24GiB") == "float32"


@pytest.mark.parametrize("capability,wanted", [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_is_asked_for_its_generation(monkeypatch, capability, wanted):
    asked = []
    monkeypatch.setattr(cuda, "_capability", lambda index: asked.append(index) or capability)
    assert fastest_dtype("cuda:1") == wanted and asked == [1]


def test_a_gpu_that_pytorch_cannot_use_leaves_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "_capability", lambda index: None)
    flags_are(monkeypatch, tmp_path / "cpuinfo", "amx_bf16")
    assert fastest_dtype("cuda") == "bfloat16"
    flags_are(monkeypatch, tmp_path / "cpuinfo", "avx2")
    assert fastest_dtype("cuda") == "float32"


def test_the_doctor_says_what_it_means_here(monkeypatch, tmp_path):
    flags_are(monkeypatch, tmp_path / "cpuinfo", "avx2", "amx_bf16")
    words = " ".join(f"{one.topic} {one.detail}" for one in modes.perform(fgvr.load_config("mode=doctor", "models=fake")).findings)
    assert "dtype=fastest is bfloat16" in words


# --- float16 -----------------------------------------------------------------------------------------------------------------


def computed_in(spec: ModelSpec) -> str:
    """The type of the weights that a CPU would load for this spec."""
    module = module_of(find_loader(spec).load(spec, CpuDevice()))
    return str(next(module.parameters()).dtype).removeprefix("torch.")


@pytest.fixture(params=["encoder", "joint"])
def small(request: pytest.FixtureRequest, encoder_folder: Path, joint_folder: Path) -> ModelSpec:
    if request.param == "encoder":
        return ModelSpec("encoder", "clip", str(encoder_folder))
    return ModelSpec("joint", "blip", str(joint_folder))


def test_half_precision_on_a_cpu_is_float32_in_name_too(small: ModelSpec) -> None:
    """Under one fingerprint vectors of a GPU and of a CPU would be remembered as the same."""
    fingerprint = find_loader(small).fingerprint
    half = replace(small, dtype="float16")
    on_cpu, on_gpu = on_device(half, "cpu"), on_device(half, "cuda:0")
    assert fingerprint(on_cpu) == fingerprint(replace(small, dtype="float32")) != fingerprint(on_gpu)
    assert (on_gpu, on_device(half, "mps")) == (half, half)
    assert computed_in(on_cpu) == "float32"
    assert computed_in(on_gpu) == "float16", "whoever loads it loads what the fingerprint says"


@pytest.fixture
def from_here_all_files_are_large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Of a large file only the header is hashed."""
    return lambda: monkeypatch.setattr(files, "HASH_WHOLE", 0)


def test_large_files_of_half_precision_are_told_apart_likewise(
    encoder_folder: Path, from_here_all_files_are_large: Callable[[], None]
) -> None:
    """The encoder's file has float16; small ones are computed in float32 anywhere."""
    asked = ModelSpec("encoder", "clip", str(encoder_folder))
    assert on_device(asked, "cpu") is on_device(asked, "cuda:0") is asked
    from_here_all_files_are_large()
    assert on_device(asked, "cpu").dtype == computed_in(on_device(asked, "cpu")) == "float32"
    assert on_device(asked, "simulated:1GiB").dtype == "float32"
    assert on_device(asked, "cuda:0") is asked and computed_in(asked) == "float16"


def test_fingerprints_of_other_types_stay_what_they_were(
    small: ModelSpec, joint_folder: Path, tmp_path: Path, from_here_all_files_are_large: Callable[[], None]
) -> None:
    for dtype in ("float32", "bfloat16"):
        assert on_device(replace(small, dtype=dtype), "cpu") == replace(small, dtype=dtype)
    mllm = ModelSpec("mllm", "transformers", "tiny", dtype="float16")
    assert on_device(mllm, "cpu") is mllm, "an MLLM is loaded as asked"
    from_here_all_files_are_large()
    joint = ModelSpec("joint", "blip", str(joint_folder))  # bfloat16 or float32 in its file
    assert on_device(joint, "cpu") is joint
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"no header")
    assert on_device(replace(joint, source=str(tmp_path)), "cpu").dtype == "auto", "loading says that, and the doctor"


@pytest.mark.parametrize("capability,dtype", [(None, "float32"), ((8, 0), "float16")])
def test_auto_asks_whether_there_is_a_gpu_that_can_be_used(small: ModelSpec, monkeypatch, capability, dtype) -> None:
    monkeypatch.setattr(cuda.CudaDevice, "may_be_here", lambda: True)
    monkeypatch.setattr(cuda, "_capability", lambda index: capability)
    assert on_device(replace(small, dtype="float16"), "auto").dtype == dtype
