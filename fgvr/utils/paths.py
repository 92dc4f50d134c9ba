"""Where this installation keeps its files."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """The Hydra tree: packed into the package by a wheel, beside it in a checkout."""
    packed = PACKAGE / "configs"
    return packed if packed.is_dir() else PACKAGE.parent / "configs"
