"""With what a result was made, so that somebody can make it again. Nothing is imported or loaded to find out."""

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fgvr

PACKAGES = ("torch", "transformers", "open_clip_torch", "numpy", "hydra-core")


def provenance() -> dict[str, str]:
    """Versions, machine, commit (of a checkout), and now."""
    return {
        "fgvr": f"{fgvr.__version__}{_commit()}",
        "Python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores",
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def _commit() -> str:
    """Of our own checkout only: an installed package may lie in somebody else's repository. Asked once: what runs stays the same."""
    root = Path(fgvr.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ", a checkout"
    return f", commit {asked.stdout.strip()}" if asked.returncode == 0 else ", a checkout"
