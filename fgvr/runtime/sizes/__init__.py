"""What a model takes, by parts, computed before anything is loaded. No tensor library: file headers, config.json, arithmetic.

`footprint(spec)` answers for every family; each family's formulas are in the file of its name. They are checked against real loads and
against a trace of every tensor of real calls (tests/runtime/test_sizes.py).
"""

from __future__ import annotations

from fgvr.runtime.devices import device_class
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec

__all__ = ["Footprint", "footprint"]


def footprint(spec: ModelSpec, device: str = "cpu") -> Footprint:
    """Bytes of `spec` on `device` (`cpu`, `cuda:0`, ...).

    Raises ModelLoadError when they cannot be known, ConfigError for an unknown loader or device.
    """
    return find_loader(spec).footprint(spec, device_class(device))
