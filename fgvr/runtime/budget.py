"""How a memory budget may be written."""

from __future__ import annotations

import math
import re
from contextlib import suppress

from fgvr.errors import ConfigError

AUTO_SHARE = 0.8
_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b)\s*", re.IGNORECASE)
_FORMS = 'auto | "18GiB" (KiB MiB GiB TiB binary, KB MB GB TB decimal) | a share in (0, 1] such as 0.8 | a whole number of bytes'


def parse_budget(value: str | float | int, total: int, *, held: int = 0) -> int:
    """Bytes the pool may use of a device with `total` bytes of which others hold `held`.

    `auto` is 0.8 of the total less what others hold. Raises ConfigError, listing the accepted forms.
    """
    if isinstance(value, str):
        if value.strip().lower() == "auto":
            return max(0, int(AUTO_SHARE * total) - held)
        if size := parse_bytes(value):
            return size
        with suppress(ValueError):  # environment variables arrive as text: "0.8" and "17179869184" mean what the numbers mean
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise _refusal(value)
    if value > 1 and value != int(value):
        raise _refusal(value)
    return int(value * total) if value <= 1 else int(value)


def parse_bytes(text: str) -> int | None:
    """Bytes of a size with a unit ("2GiB", "1.5 MB"), None when it is not one."""
    match = _SIZE.fullmatch(text)
    return int(float(match[1]) * _UNITS[match[2].lower()]) if match else None


def as_bytes(size: str | int) -> int:
    """Of a size that follows its rule (`fgvr.config.fields`): bytes, or text with a unit."""
    return parse_bytes(size) or 0 if isinstance(size, str) else size


def _refusal(value: object) -> ConfigError:
    return ConfigError(f"budget {value!r} is not understood; write one of: {_FORMS}")
