"""`dtype=fastest` asks the processor and never guesses."""

from __future__ import annotations

from pathlib import Path

import pytest

import fgvr
from fgvr import assembly, modes
from fgvr.runtime.devices import fast_dtype
from fgvr.runtime.devices.fast_dtype import fastest


def processor(monkeypatch: pytest.MonkeyPatch, file: Path, *flags: str) -> None:
    file.write_text(f"model name\t: a processor\nflags\t\t: fpu {' '.join(flags)} sse\n")
    monkeypatch.setattr(fast_dtype, "_CPUINFO", file)


@pytest.mark.parametrize("flags,wanted", [(("avx2", "avx512f"), "float32"), (("avx512_bf16",), "bfloat16"), (("amx_bf16",), "bfloat16")])
def test_a_cpu_is_asked_for_its_flags(monkeypatch, tmp_path, flags, wanted):
    processor(monkeypatch, tmp_path / "cpuinfo", *flags)
    assert fastest("cpu") == wanted
    spec = assembly.spec(fgvr.load_config("models.encoder.dtype=fastest", "runtime.device=cpu"), "encoder")
    assert spec.dtype == wanted


def test_where_the_system_tells_nothing_it_is_float32(monkeypatch, tmp_path):
    monkeypatch.setattr(fast_dtype, "_CPUINFO", tmp_path / "absent")
    assert fastest("cpu") == fastest("mps") == fastest("simulated:24GiB") == "float32"


@pytest.mark.parametrize("capability,wanted", [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_is_asked_for_its_generation(monkeypatch, capability, wanted):
    asked = []
    monkeypatch.setattr(fast_dtype, "_capability", lambda index: asked.append(index) or capability)
    assert fastest("cuda:1") == wanted and asked == [1]


def test_a_gpu_that_pytorch_cannot_use_leaves_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(fast_dtype, "_capability", lambda index: None)
    processor(monkeypatch, tmp_path / "cpuinfo", "amx_bf16")
    assert fastest("cuda") == "bfloat16"
    processor(monkeypatch, tmp_path / "cpuinfo", "avx2")
    assert fastest("cuda") == "float32"


def test_the_doctor_says_what_it_means_here(monkeypatch, tmp_path):
    processor(monkeypatch, tmp_path / "cpuinfo", "avx2", "amx_bf16")
    words = " ".join(f"{one.topic} {one.detail}" for one in modes.doctor(fgvr.load_config("mode=doctor", "models=fake")).findings)
    assert "dtype=fastest is bfloat16" in words
