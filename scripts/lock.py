"""Versions: `python scripts/lock.py` writes constraints.txt anew, `--moved` says which installed libraries differ from it.

The lock holds the newest versions that pyproject.toml and this machine's pip settings allow, for Python 3.11 to 3.13 on Linux,
macOS and Windows; markers tell where one version does not fit all. No registry's host is in it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
HEADER = "# Tested versions, for Python 3.11 to 3.13 on Linux, macOS and Windows. Made by `make lock`; do not edit.\n"


def lock() -> None:
    """Resolve every extra for all platforms at once."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--all-extras", "--no-annotate", "--no-header"]
    command += ["--upgrade", "--python-version", "3.11", "--no-emit-package", "fgvr", "pyproject.toml", "-"]
    own = subprocess.run([sys.executable, "-m", "pip", "config", "--global", "get", "global.constraint"], capture_output=True, text=True)
    if own.returncode == 0:
        command += ["--constraint", own.stdout.strip()]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, input="uv\n").stdout
    pins = [line for line in found.splitlines() if "==" in line]
    CONSTRAINTS.write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(pins)} versions")


def moved() -> Iterator[tuple[str, str, str]]:
    """(name, locked, installed) of each installed library whose version is not that of constraints.txt."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            installed = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            yield wanted.name, str(wanted.specifier).removeprefix("=="), installed


if __name__ == "__main__":
    if sys.argv[1:] == ["--moved"]:
        print("\n".join(f"{name} {locked} -> {installed}" for name, locked, installed in moved()) or "nothing moved")
    else:
        lock()
