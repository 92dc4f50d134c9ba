"""The target of a calibrated trigger, as people write it. This module imports nothing heavy, because a plan checks targets too."""

import math
from dataclasses import dataclass
from typing import Literal

from fgvr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Target:
    """The goal that the threshold is chosen for: `slow_rate:0.45`, `precision:0.9` or `risk:0.1@0.1` (epsilon@delta)."""

    kind: Literal["slow_rate", "precision", "risk"]
    value: float
    delta: float = 0.1

    @classmethod
    def parse(cls, text: str, key: str = "trigger.target") -> "Target":
        kind, _, value = str(text).partition(":")
        given = f"{key}={text!r}"
        if kind not in ("slow_rate", "precision", "risk"):
            raise ConfigError(f"{given}: write slow_rate:0.45, precision:0.9 or risk:0.1@0.1")
        if kind == "risk":
            share, _, delta = value.partition("@")
            target = cls(kind, _share(given, share, "risk:0.1@0.1"), _share(given, delta or "0.1", "risk:0.1@0.1"))
            if not (0 < target.value < 1 and 0 < target.delta < 1):
                raise ConfigError(f"{given}: a risk lies strictly between 0 and 1, and so does its delta, e.g. risk:0.1@0.1")
            return target
        return cls(kind, _share(given, value, f"{kind}:0.45"))

    @property
    def fewest(self) -> int:
        """Calibration images that a risk needs when none of them is wrong: (1 - epsilon)^n <= delta, as in risk_control.upper_limit."""
        return math.ceil(math.log(self.delta) / math.log(1 - self.value))


def _share(given: str, value: str, example: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ConfigError(f"{given}: {value!r} is no share between 0 and 1, e.g. {example}")
    return number
