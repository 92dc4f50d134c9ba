"""Where this installation keeps its files."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """The Hydra tree."""
    return _shipped("configs")


def examples_dir() -> Path:
    """The example data sets."""
    return _shipped("examples")


def _shipped(name: str) -> Path:
    """A folder of the repository: packed into the package by a wheel, beside it in a checkout."""
    packed = PACKAGE / name
    return packed if packed.is_dir() else PACKAGE.parent / name
