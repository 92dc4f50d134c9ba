"""Code blocks of Markdown pages, and a reader that does what a block says: `fgvr ...` in this process, all else by bash or Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import __main__ as benchmarks
from fgvr import cli
from scripts import dev

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_FENCE = re.compile(r"^(?:<!-- needs: ([^>]*) -->\n)?```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BIRDS = ["dataset.genera=[2,2]", "dataset.test_per_class=3"]
_ITS_OWN_WORDS = {*cli.COMMANDS, "replay", "compare", "cache", "memory", "run", "--help"}
_OF_OTHERS = {"curl", "ollama", "vllm", "export", "cp"}  # programs that are none of ours
_FOR_EVER = {"serve"}  # tests/server runs it, with the blocks of its page


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str
    needs: tuple[str, ...]  # what this machine lacks, such as a GPU or a network: then the block is read, not run


def blocks(page: str) -> list[Block]:
    found = _FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [Block(page, language, text, tuple(filter(None, map(str.strip, needs.split(","))))) for needs, language, text in found]


def small(text: str) -> str:
    """Four kinds of fruit for all twenty, and a small world of birds: the same commands in less time."""
    text = text.replace("dataset=produce", "dataset=folder dataset.root=few").replace('examples/produce/train"', 'few/train"')
    return re.sub(r'("dataset=birds")', ", ".join([r"\1", *(f'"{word}"' for word in _BIRDS)]), text)


@dataclass
class Reader:
    """One person at one terminal: variables stay from line to line, and names from block to block of a notebook."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def run(self, block: Block) -> None:
        match block.language:
            case "python":
                text = small(block.text).replace('"dataset=folder dataset.root=few"', '"dataset=folder", "dataset.root=few"')
                exec(compile(text, block.page, "exec"), self.names)
            case "bash":
                for line in block.text.splitlines():
                    self.line(small(line))

    def line(self, line: str) -> None:
        if assigned := re.match(r"(\w+)=\$\(", line):
            self.variables[assigned[1]] = self.bash(f'{line}; printf %s "${assigned[1]}"')
            return
        words = self.bash(f"printf '%s\\0' {line}").split("\0")[:-1] if line.strip() and not line.startswith("#") else [""]
        match words:
            case ["fgvr", name, *rest]:
                assert name in _FOR_EVER or cli.main(self.told(name, rest)) == 0, line
            case ["make", target]:
                assert target in dev.TARGETS, line
            case ["python", script, *rest]:
                done = subprocess.run([sys.executable, script, *rest], cwd=self.folder, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            case [""]:
                pass
            case _:
                self.bash(line)

    def told(self, name: str, words: list[str]) -> list[str]:
        rendered = name not in _ITS_OWN_WORDS and not any(word.startswith(("dataset=", "experiment=")) for word in words)
        return [name, *(_BIRDS if rendered else []), *words]

    def bash(self, line: str) -> str:
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, env=os.environ | self.variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done.stdout


def read(block: Block) -> None:
    """What can be checked of a block that cannot run here: Python compiles, and every command and its words are known."""
    if block.language == "python":
        compile(block.text, block.page, "exec")
    if block.language == "bash":
        for line in block.text.splitlines():
            known(shlex.split(line, comments=True), block.page)


def known(words: list[str], page: str) -> None:
    """Raises ConfigError or AssertionError for a command with a mode, option, key, file, extra or target that does not exist."""
    match words:
        case ["fgvr", name, *_] if name in cli.COMMANDS:
            pass
        case ["fgvr", "run", *rest] | ["python", "discovering.py", *rest]:
            composed(rest)
        case ["fgvr", name, *rest]:
            composed([f"mode={name}", *rest])
        case ["python", "-m", "benchmarks", name, *_]:
            assert name in benchmarks.NAMES, (page, name)
        case ["python", "-c", text]:
            compile(text, page, "exec")
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), (page, script)
        case ["sbatch", *rest]:
            script, *rest = [word for word in rest if not word.startswith("--")]
            assert (ROOT / script).is_file(), (page, script)
            composed(rest)
        case ["pip", "install", *packages]:
            extras = {extra for found in re.findall(r"fgvr\[([^\]]+)\]", " ".join(packages)) for extra in found.split(",")}
            assert extras <= set(PROJECT["optional-dependencies"]), (page, extras)
        case [program, *_]:
            assert program in _OF_OTHERS, (page, words)


def composed(words: list[str]) -> None:
    """The configuration of a command, as far as it can be had here; a sweep's is judged by the first of each of its values."""
    from fgvr.config.composing import load_config

    told = [word for word in words if not word.startswith(("-", "hydra"))]
    if "models=remote" not in told:  # which asks its server
        load_config(*(word.split(",")[0] if "-m" in words else word for word in told))


def prepared(folder: Path) -> Path:
    """Where a reader sits: the checkout's examples, and folders of photographs as the pages speak of them."""
    kinds = ("Lemon", "Lime", "Orange", "Royal_Gala")
    for name in ("examples", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    for part, count in (("train", 8), ("test", 3)):
        for kind in kinds:
            (folder / "few" / part / kind).mkdir(parents=True)
            for photograph in sorted((ROOT / "examples/produce" / part / kind).iterdir())[:count]:
                shutil.copy(photograph, folder / "few" / part / kind)
    shutil.copytree(folder / "few/train", folder / "my_photos")
    (folder / "holiday").mkdir()
    for kind in kinds:
        photograph = min((folder / "few/test" / kind).iterdir())
        shutil.copy(photograph, folder / "holiday")
    shutil.copy(min((folder / "few/test/Lemon").iterdir()), folder / "my_photos/Lemon/a.jpg")
    return folder
