"""The house rules that no linter knows."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import fgvr
from fgvr.utils.paths import PACKAGE

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "transformers", "open_clip", "timm", "mlx"}
Python = Callable[..., CompletedProcess[str]]


def test_importing_fgvr_costs_nothing(python: Python) -> None:
    code = "import sys, time; t = time.process_time(); import fgvr; dir(fgvr); print(time.process_time() - t); print(*sys.modules)"
    seconds, modules = python("-c", code).stdout.splitlines()
    assert float(seconds) < 0.1
    assert not (HEAVY | {"numpy", "hydra", "omegaconf"}) & set(modules.split())


def test_importing_every_module_loads_no_model_and_no_tensor_library(python: Python) -> None:
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in sorted(PACKAGE.rglob("*.py"))]
    code = f"""
import gc, importlib, json, sys
for name in {names}:
    importlib.import_module(name)
from fgvr.runtime.pool import ModelPool
print(json.dumps([sorted({HEAVY!r} & set(sys.modules)), sum(isinstance(o, ModelPool) for o in gc.get_objects())]))
"""
    answer = python("-c", code)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [[], 0]


def test_every_public_name_is_there() -> None:
    for name in fgvr.__all__:
        assert getattr(fgvr, name) is not None
    assert set(fgvr.__all__) <= set(dir(fgvr))
    assert len(set(fgvr.__all__)) == len(fgvr.__all__)


def test_every_error_is_public_and_has_its_line_in_the_drawn_tree() -> None:
    import fgvr.errors as errors

    ours = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.FgvrError)]
    assert set(ours) <= set(fgvr.__all__)
    assert all(re.search(rf"\b{name}\b", errors.__doc__ or "") for name in ours)


def test_commands_named_in_the_readme_exist() -> None:
    dev = (ROOT / "scripts/dev.py").read_text()
    targets = set((ROOT / "Makefile").read_text().split(".PHONY:")[1].split("\n")[0].split())
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / document).read_text()
        assert set(re.findall(r"`?make ([a-z-]+)", text)) <= targets, document
        for path in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (ROOT / path).exists() or (ROOT / f"{path}.md").exists(), path
    assert all(f'"{target}": (' in dev for target in targets - {"help"})


def test_no_text_of_the_code_cites_a_page_that_is_not_in_the_repository() -> None:
    sources = [file for top in ("fgvr", "configs", "scripts", "tests", "benchmarks", "hydra_plugins") for file in (ROOT / top).rglob("*")]
    known = {file.name for top in ("docs", "benchmarks", "examples", "fgvr") for file in (ROOT / top).rglob("*.md")}
    known |= {file.name for file in ROOT.glob("*.md")} | set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    for file in (file for file in sources if file.suffix in (".py", ".yaml", ".sh") and file.name not in ("test_house.py", "test_site.py")):
        cited = set(re.findall(r"\b([\w-]+\.md)\b", file.read_text(encoding="utf-8")))
        assert cited - known <= {"cards.md", "scale.md"}, file


# --- tests by public names ---------------------------------------------------------------------------------------------------

MOST_PATCHES, MOST_REACHES = 39, 19
"""Calls of `monkeypatch.setattr`, and reads of an attribute that is private to something else, in all tests. Only ever lowered."""
FOREIGN = {"_exit", "_getframe", "_cdata", "_repr_html_"}  # of Python, of torch, and what a notebook asks for


def test_tests_patch_little_and_reach_into_few_private_attributes() -> None:
    patches, reaches = [], []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            place = f"{file.relative_to(ROOT)}:{node.lineno}"
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr == "setattr":
                patches.append(place)
            elif node.attr.startswith("_") and not node.attr.startswith("__") and not own and node.attr not in FOREIGN:
                reaches.append(place)
    assert len(patches) <= MOST_PATCHES, patches
    assert len(reaches) <= MOST_REACHES, reaches
