"""Settings of the allocators under PyTorch. CUDA's and MPS's are read from the environment as torch starts, so they are put there before it
is imported; the C library's, on a CPU, is also told at once.

Each device has its preset; `runtime.allocator.KEY=VALUE` changes one setting; a variable that the user has set always stays as it is.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from fgvr.errors import ConfigError, RuntimeConflict
from fgvr.runtime.budget import parse_bytes

log = logging.getLogger(__name__)

# CUDA and ROCm: segments that grow fight the fragmentation that models of different sizes leave, and old free blocks go before memory is
# short. MPS: shares of the recommended working set above which PyTorch refuses (high) and cleans up (low); what MPS lacks runs on the CPU.
# CPU: glibc gives blocks from `mmap_threshold` on back to the system as they are freed, and free memory at the end of its heap beyond
# `trim_threshold`; left to itself it raises both, to 32 and 64 MiB. Less of either is paid in page faults, up to a third of the processor's
# time of a forward pass (docs/adr/0020). What is kept goes when a model is evicted (CpuDevice.empty_cache).
PRESETS: dict[str, dict[str, Any]] = {
    "cuda": {"expandable_segments": True, "garbage_collection_threshold": 0.6},
    "mps": {"high_watermark": 0.7, "low_watermark": 0.5, "fallback": True},
    "cpu": {"mmap_threshold": "4MiB", "trim_threshold": "32MiB"},
}
KEYS = {kind: tuple(preset) for kind, preset in PRESETS.items()} | {"cuda": (*PRESETS["cuda"], "max_split_size_mb")}
_CUDA, _CUDA_BEFORE = "PYTORCH_ALLOC_CONF", ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # the older names still work
HIGH_WATERMARK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
_MPS = {
    "high_watermark": HIGH_WATERMARK,
    "low_watermark": "PYTORCH_MPS_LOW_WATERMARK_RATIO",
    "fallback": "PYTORCH_ENABLE_MPS_FALLBACK",
}
_HIGHEST = 2.0  # PyTorch refuses larger watermarks
# glibc reads them as a process starts: for children. The numbers are malloc.h's, for this process.
_GLIBC = {"mmap_threshold": ("MALLOC_MMAP_THRESHOLD_", -3), "trim_threshold": ("MALLOC_TRIM_THRESHOLD_", -1)}
_GLIBC_NAMES = tuple(name for name, _ in _GLIBC.values())
_HOLES = 8
_LARGEST_THRESHOLD = 32 << 20  # mallopt(3): DEFAULT_MMAP_THRESHOLD_MAX


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable of the environment, and who decided on it."""

    variable: str
    value: str
    source: Literal["preset", "runtime.allocator", "environment"]

    def __str__(self) -> str:
        return f"{self.variable}={self.value} ({self.source})"


def choose(kind: str, asked: Mapping[str, Any], environ: Mapping[str, str]) -> list[Setting]:
    """What a device of this kind (`cuda`, `mps`, `cpu`, ...) should run with. `asked`: KEY -> value, None = the preset. Changes nothing.

    Raises ConfigError for an unknown key or a value PyTorch would refuse.
    """
    asked = check(asked)
    chosen = PRESETS.get(kind, {}) | {key: value for key, value in asked.items() if key in KEYS.get(kind, ())}
    if kind == "cuda":
        return [_cuda(chosen, set(asked), environ)]
    if kind == "mps":
        return list(_mps(chosen, set(asked), environ))
    return list(_cpu(chosen, set(asked), environ)) if kind == "cpu" else []


def check(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set. Raises ConfigError listing everything that is wrong with them."""
    given = {key: value for key, value in asked.items() if value is not None}
    known = [key for keys in KEYS.values() for key in keys]
    wrong = [f"{key} is not known (known: {', '.join(known)})" for key in given if key not in known]
    wrong += [
        f"{key}={given[key]!r} must be true or false"
        for key in ("expandable_segments", "fallback")
        if given.get(key, True) not in (True, False)
    ]
    wrong += [
        f"{key}={given[key]!r} must be a number from 0 to 2"
        for key in ("high_watermark", "low_watermark")
        if not _within(given.get(key, 1), _HIGHEST)
    ]
    if not _within(given.get("garbage_collection_threshold", 0.5), 1):
        wrong.append("garbage_collection_threshold must be a number from 0 to 1")
    if not 0 <= _bytes(given.get("mmap_threshold", 0)) <= _LARGEST_THRESHOLD:
        wrong.append("mmap_threshold must be a size of at most 32MiB; 0 leaves the C library as it is")
    if not 0 < _bytes(given.get("trim_threshold", 1)) <= 1 << 30:
        wrong.append("trim_threshold must be a size of at most 1GiB")
    if "trim_threshold" in given and _bytes(given.get("mmap_threshold", 1)) == 0:
        wrong.append("trim_threshold would end what mmap_threshold=0 leaves to the C library; give one of the two")
    if not _within(given.get("max_split_size_mb", 21), float("inf")) or given.get("max_split_size_mb", 21) <= 20:
        wrong.append("max_split_size_mb must be more than 20")
    if wrong:
        raise ConfigError("runtime.allocator: " + "; ".join(wrong))
    return given


def apply(
    kind: str, asked: Mapping[str, Any], environ: MutableMapping[str, str] = os.environ, *, imported: bool | None = None
) -> list[Setting]:
    """Put the settings into the environment; returns them. Call it before torch is imported (`imported`: whether it is).

    After that a preset that is missing is a warning, and a setting that was asked for is a RuntimeConflict.
    """
    settings = choose(kind, asked, environ)
    if kind == "cpu":
        _tell_glibc(settings, environ)
        return settings
    late = [s for s in settings if environ.get(s.variable) != s.value] if (_torch_is_imported() if imported is None else imported) else []
    if wanted := [s for s in late if s.source == "runtime.allocator"]:
        raise RuntimeConflict(
            f"torch is imported already and runs with other allocator settings; restart, or set first: {_spelled(wanted)}"
        )
    if late:
        log.warning("torch was imported before fgvr could set its allocator; set before Python starts: %s", _spelled(late))
        return [s for s in settings if s not in late]
    for setting in settings:
        environ.setdefault(setting.variable, setting.value)
        if means_no_limit(setting):
            log.warning("%s: MPS memory has no upper limit; macOS will swap, and may end this process", setting)
    return settings


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings that mean something else in `after`, for people; of any kind of device, whichever this is."""
    had, wants = _meaning(before), _meaning(after)
    names = [key for keys in KEYS.values() for key in keys if had.get(key) != wants.get(key)]
    return [f"runtime.allocator.{key}={_written(after.get(key))} (it was {_written(before.get(key), had.get(key))})" for key in names]


def in_force(kind: str, environ: Mapping[str, str] = os.environ) -> list[Setting]:
    """What the environment says now, for the doctor."""
    presets = {s.variable: s.value for s in choose(kind, {}, {})}
    names = {"cuda": (_CUDA, *_CUDA_BEFORE), "mps": tuple(_MPS.values()), "cpu": _GLIBC_NAMES}.get(kind, ())
    return [Setting(n, environ[n], "preset" if presets.get(n) == environ[n] else "environment") for n in names if n in environ]


def means_no_limit(setting: Setting) -> bool:
    """PyTorch takes 0 for "no upper limit"."""
    return setting.variable == HIGH_WATERMARK and _number(setting.variable, setting.value) == 0


def _cuda(chosen: Mapping[str, Any], asked: set[str], environ: Mapping[str, str]) -> Setting:
    ours = ",".join(f"{key}:{chosen[key]}" for key in KEYS["cuda"] if key in chosen)
    source = "runtime.allocator" if asked & set(KEYS["cuda"]) else "preset"
    for name in (_CUDA, *_CUDA_BEFORE):
        if name in environ:
            if source == "runtime.allocator" and environ[name] != ours:
                log.warning("%s=%s is set in the environment and wins over runtime.allocator (%s)", name, environ[name], ours)
            return Setting(name, environ[name], "environment")
    return Setting(_CUDA, ours, source)


def _mps(chosen: dict[str, Any], asked: set[str], environ: Mapping[str, str]) -> Iterator[Setting]:
    for key in ("high_watermark", "low_watermark"):
        if _MPS[key] in environ:
            chosen[key] = _number(_MPS[key], environ[_MPS[key]])
    # PyTorch refuses to start when low is above high, and its own low (1.4) is: so both are always set, and low follows high.
    if chosen["high_watermark"] and chosen["low_watermark"] > chosen["high_watermark"]:
        if "low_watermark" in asked or _MPS["low_watermark"] in environ:
            raise ConfigError(
                f"MPS watermarks: low {chosen['low_watermark']} is above high {chosen['high_watermark']}; PyTorch would not start"
            )
        chosen["low_watermark"] = chosen["high_watermark"]
    for key, name in _MPS.items():
        value = str(int(chosen[key])) if key == "fallback" else str(float(chosen[key]))
        if name not in environ:
            yield Setting(name, value, "runtime.allocator" if key in asked else "preset")
            continue
        if key in asked and environ[name] != value:
            log.warning("%s=%s is set in the environment and wins over runtime.allocator.%s", name, environ[name], key)
        yield Setting(name, environ[name], "environment")


def _cpu(chosen: Mapping[str, Any], asked: set[str], environ: Mapping[str, str]) -> Iterator[Setting]:
    """Both, or neither: setting one of them ends what glibc does by itself about the other."""
    if platform.libc_ver()[0] != "glibc" or _bytes(chosen["mmap_threshold"]) == 0:
        yield from (Setting(name, environ[name], "environment") for name in _GLIBC_NAMES if name in environ)
        return
    for key, (name, _) in _GLIBC.items():
        value, source = str(_bytes(chosen[key])), "runtime.allocator" if key in asked else "preset"
        if name in environ and key in asked and environ[name] != value:
            log.warning("%s=%s is set in the environment and wins over runtime.allocator", name, environ[name])
        yield Setting(name, environ[name], "environment") if name in environ else Setting(name, value, source)


def _tell_glibc(settings: Iterable[Setting], environ: MutableMapping[str, str]) -> None:
    """This process by `mallopt`, its children by the environment; what the environment had is in force already."""
    numbers = dict(_GLIBC.values())
    for setting in settings:
        if setting.source != "environment":
            ctypes.CDLL(None).mallopt(numbers[setting.variable], int(setting.value))
            environ[setting.variable] = setting.value


def kept_by_libc(environ: Mapping[str, str] = os.environ) -> int:
    """Bytes of freed blocks that the C library may keep on a CPU, as set, else as in the preset: at the end of its heap the trim
    threshold, between blocks in use some holes below the other (eight, as measured with random-150m). 0 with another library."""
    if platform.libc_ver()[0] != "glibc":
        return 0
    texts = {key: environ.get(name, "") for key, (name, _) in _GLIBC.items()}
    mapped, trimmed = (int(text) if text.isdecimal() else _bytes(PRESETS["cpu"][key]) for key, text in texts.items())
    return trimmed + _HOLES * mapped


def _written(value: Any, preset: Any = None) -> str:
    if value is None and preset is not None:
        return f"the preset, {_written(preset)}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting there is, presets included; sizes in bytes."""
    settings = {key: value for preset in PRESETS.values() for key, value in preset.items()} | check(asked)
    return {key: value if (size := _bytes(value)) < 0 else size for key, value in settings.items()}


def _bytes(value: Any) -> int:
    """-1 for what is no size."""
    size = parse_bytes(value) if isinstance(value, str) else value
    return size if isinstance(size, int) and not isinstance(size, bool) else -1


def _torch_is_imported() -> bool:
    return "torch" in sys.modules


def _within(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}={text} in the environment is not a number") from None


def _spelled(settings: Iterable[Setting]) -> str:
    return " ".join(f"{s.variable}={s.value}" for s in settings)
