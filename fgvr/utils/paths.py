"""Paths as people write them, and where this installation keeps its files."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def user_path(path: str | Path) -> Path:
    """As a person writes it: `~` is a home folder. A name that only begins so, such as `~backup`, stays as it is."""
    return Path(os.path.expanduser(path))


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
