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
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fgvr.errors import ConfigError, RuntimeConflict
from fgvr.runtime.budget import parse_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of `runtime.allocator`: of which device, what it is unless asked for, in which variable, and what it must be."""

    kind: str
    preset: Any
    variable: str
    must: str
    fits: Callable[[Any], bool]


def _number_within(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_switch(value: Any) -> bool:
    return value in (True, False)


# CUDA and ROCm: segments that grow fight the fragmentation that models of different sizes leave, and old free blocks go before memory is
# short. MPS: shares of the recommended working set above which PyTorch refuses (high) and cleans up (low); what MPS lacks runs on the CPU.
# CPU: glibc gives blocks from `mmap_threshold` on back to the system as they are freed, and free memory at the end of its heap beyond
# `trim_threshold`; left to itself it raises both, to 32 and 64 MiB. Less of either is paid in page faults, up to a third of the processor's
# time of a forward pass (docs/adr/0020). What is kept goes when a model is evicted (CpuDevice.empty_cache).
_CUDA = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # one variable for all keys; the older names still work
HIGH_WATERMARK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
_MMAP, _TRIM = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"  # read as a process starts: for children
_MALLOPT = {_MMAP: -3, _TRIM: -1}  # malloc.h's numbers, for this process
_SMALL = "must be a size of at most 32MiB; 0 leaves the C library as it is"  # mallopt(3): DEFAULT_MMAP_THRESHOLD_MAX
_KEYS = {
    "expandable_segments": _Key("cuda", True, _CUDA[0], "must be true or false", _is_switch),
    "garbage_collection_threshold": _Key("cuda", 0.6, _CUDA[0], "must be a number from 0 to 1", _number_within(0, 1)),
    "max_split_size_mb": _Key("cuda", None, _CUDA[0], "must be a number from 21 up", _number_within(21, float("inf"))),
    "high_watermark": _Key("mps", 0.7, HIGH_WATERMARK, "must be a number from 0 to 2", _number_within(0, 2)),
    "low_watermark": _Key("mps", 0.5, "PYTORCH_MPS_LOW_WATERMARK_RATIO", "must be a number from 0 to 2", _number_within(0, 2)),
    "fallback": _Key("mps", True, "PYTORCH_ENABLE_MPS_FALLBACK", "must be true or false", _is_switch),
    "mmap_threshold": _Key("cpu", "8MiB", _MMAP, _SMALL, lambda value: 0 <= _bytes(value) <= 32 << 20),
    "trim_threshold": _Key("cpu", "32MiB", _TRIM, "must be a size of at most 1GiB", lambda value: 0 < _bytes(value) <= 1 << 30),
}
PRESETS = {
    kind: {name: key.preset for name, key in _KEYS.items() if key.kind == kind and key.preset is not None}
    for kind in ("cuda", "mps", "cpu")
}
_HOLES = 4


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
    chosen = PRESETS.get(kind, {}) | {name: value for name, value in asked.items() if _KEYS[name].kind == kind}
    if kind == "cuda":
        ours = ",".join(f"{name}:{chosen[name]}" for name in _KEYS if name in chosen)
        return [_decide(_CUDA, ours, any(name in chosen for name in asked), environ)]
    if kind == "mps":
        chosen = _watermarks(chosen, asked, environ)
        values = {name: str(int(value)) if name == "fallback" else str(float(value)) for name, value in chosen.items()}
    elif kind == "cpu" and platform.libc_ver()[0] == "glibc" and _bytes(chosen["mmap_threshold"]) > 0:
        values = {
            name: str(_bytes(value)) for name, value in chosen.items()
        }  # both: setting one ends what glibc does by itself about the other
    else:
        return [Setting(name, environ[name], "environment") for name in _MALLOPT if kind == "cpu" and name in environ]
    return [_decide((_KEYS[name].variable,), value, name in asked, environ) for name, value in values.items()]


def check(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set. Raises ConfigError listing everything that is wrong with them."""
    given = {name: value for name, value in asked.items() if value is not None}
    wrong = [f"{name} is not known (known: {', '.join(_KEYS)})" for name in given if name not in _KEYS]
    wrong += [f"{name}={given[name]!r} {key.must}" for name, key in _KEYS.items() if name in given and not key.fits(given[name])]
    if "trim_threshold" in given and _bytes(given.get("mmap_threshold", 1)) == 0:
        wrong.append("trim_threshold would end what mmap_threshold=0 leaves to the C library; give one of the two")
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
    if kind == "cpu":  # this process by `mallopt`, its children by the environment; what the environment had is in force already
        for setting in (one for one in settings if one.source != "environment"):
            ctypes.CDLL(None).mallopt(_MALLOPT[setting.variable], int(setting.value))
            environ[setting.variable] = setting.value
        return settings
    imported = "torch" in sys.modules if imported is None else imported
    late = [s for s in settings if imported and environ.get(s.variable) != s.value]
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
    names = [key for key in _KEYS if had.get(key) != wants.get(key)]
    return [f"runtime.allocator.{key}={_written(after.get(key))} (it was {_written(before.get(key), had.get(key))})" for key in names]


def in_force(kind: str, environ: Mapping[str, str] = os.environ) -> list[Setting]:
    """What the environment says now, for the doctor."""
    presets = {s.variable: s.value for s in choose(kind, {}, {})}
    names = _CUDA if kind == "cuda" else [key.variable for key in _KEYS.values() if key.kind == kind]
    return [Setting(n, environ[n], "preset" if presets.get(n) == environ[n] else "environment") for n in names if n in environ]


def means_no_limit(setting: Setting) -> bool:
    """PyTorch takes 0 for "no upper limit"."""
    return setting.variable == HIGH_WATERMARK and _number(setting.variable, setting.value) == 0


def _decide(names: Sequence[str], value: str, asked: bool, environ: Mapping[str, str]) -> Setting:
    """By the first of the variables that the environment has, else by us."""
    for name in names:
        if name in environ:
            if asked and environ[name] != value:
                log.warning("%s=%s is set in the environment and wins over runtime.allocator (%s)", name, environ[name], value)
            return Setting(name, environ[name], "environment")
    return Setting(names[0], value, "runtime.allocator" if asked else "preset")


def _watermarks(chosen: Mapping[str, Any], asked: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """As the environment has them. PyTorch refuses to start when low is above high, and its own low (1.4) is: so both are always set, and
    low follows high."""
    given = {name: _KEYS[name].variable for name in ("high_watermark", "low_watermark") if _KEYS[name].variable in environ}
    chosen = {**chosen, **{name: _number(variable, environ[variable]) for name, variable in given.items()}}
    high, low = chosen["high_watermark"], chosen["low_watermark"]
    if not high or low <= high:
        return chosen
    if "low_watermark" in asked or "low_watermark" in given:
        raise ConfigError(f"MPS watermarks: low {low} is above high {high}; PyTorch would not start")
    return {**chosen, "low_watermark": high}


def kept_by_libc(environ: Mapping[str, str] = os.environ) -> int:
    """Bytes of freed blocks that the C library may keep on a CPU, as set, else as in the preset: at the end of its heap the trim
    threshold, between blocks in use some holes below the other (four, as measured with random-150m). 0 with another library."""
    if platform.libc_ver()[0] != "glibc":
        return 0
    texts = {name: environ.get(_KEYS[name].variable, "") for name in PRESETS["cpu"]}
    mapped, trimmed = (int(text) if text.isdecimal() else _bytes(PRESETS["cpu"][name]) for name, text in texts.items())
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


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}={text} in the environment is not a number") from None


def _spelled(settings: Iterable[Setting]) -> str:
    return " ".join(f"{s.variable}={s.value}" for s in settings)
