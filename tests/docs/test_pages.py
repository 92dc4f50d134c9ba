"""Every command and code block of README, tutorials and how-to pages: run as it stands, or read where this machine lacks what it needs."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgvr.config.configuration import Config
from fgvr.config.overrides import REFUSED, groups
from fgvr.runtime.pool import close_shared
from scripts import docs_reference

from .blocks import ROOT, Block, Reader, blocks, prepared, read

NEEDS = {"gpu", "network", "weights", "engine", "server", "processes", "slurm", "results.json", "data", "answers"}
RUN = ["README.md", "docs/index.md", *(f"docs/tutorials/{name}.md" for name in ("photographs", "birds", "sweep", "notebook"))]
RUN += [f"docs/how-to/{name}.md" for name in ("models", "risk", "classes")]
RUN += ["docs/explanation/pool.md", "docs/reference/python.md", "docs/review.md", "docs/discovery.md", "docs/devices.md", "docs/scale.md"]
OTHERS = {
    "docs/tutorials/server.md": "tests/server/test_clients.py, tests/server/test_first_use.py",
    "docs/how-to/parts.md": "tests/test_extensions.py, by CONTRIBUTING.md",
}

OF_PLUGINS = {
    "hydra/launcher": ("joblib", "submitit_local", "submitit_slurm"),
    "trigger": ("shy",),  # and the other examples of CONTRIBUTING, "Parts from outside"
    "dataset": ("squares",),
    "models/encoder": ("colours",),
    "models/mllm": ("brief",),
    "runtime": ("modest",),
}
_SUFFIXES = ("json", "yaml", "html", "py", "md", "csv", "log")  # of files, whose names look like keys


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One folder for all pages: what one of them has computed is remembered for the next."""
    return Reader(prepared(tmp_path_factory.mktemp("reader")))


@pytest.fixture(autouse=True)
def at_the_desk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if "reader" not in request.fixturenames:
        yield
        return
    folder: Path = request.getfixturevalue("reader").folder
    shutil.rmtree(folder / "sorted", ignore_errors=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FGVR_HOME")
    sys.argv[:] = ["fgvr"]  # where Hydra looks; put back by `words_as_they_were`
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("FGVR_SWEEP", "")
    close_shared()
    yield
    close_shared()


def pages() -> list[str]:
    """README and every page of the site whose readers type."""
    folders = ("docs", "docs/tutorials", "docs/how-to", "docs/explanation", "docs/reference", "docs/ops")
    found = [str(file.relative_to(ROOT)) for folder in folders for file in sorted((ROOT / folder).glob("*.md"))]
    return ["README.md", *(page for page in found if page != "docs/LOG.md")]


@pytest.mark.timeout(900)  # seconds on a machine that does much else; some 5 by itself
@pytest.mark.parametrize("page", RUN)
def test_a_page_does_what_it_says(page: str, reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    reader.names = {}
    for block in blocks(page):
        (read if block.needs else reader.run)(block)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("page", [page for page in pages() if page not in RUN])
def test_what_is_not_run_is_read(page: str) -> None:
    for block in blocks(page):
        read(block)
        assert block.needs or block.language in ("text", "yaml") or page in OTHERS, (page, block.text)


def test_every_block_of_a_page_that_is_run_has_a_language_and_known_needs() -> None:
    found = [block for page in pages() for block in blocks(page)]
    assert {block.language for block in found} <= {"bash", "python", "yaml", "text"}
    assert {need for block in found for need in block.needs} <= NEEDS


def test_every_fence_is_found() -> None:
    for page in pages():
        fences = re.findall(r"(?m)^```", (ROOT / page).read_text(encoding="utf-8"))
        assert len(fences) == 2 * len(blocks(page)), page


def test_no_command_stands_outside_of_a_block() -> None:
    for page in pages():
        assert re.findall(r"(?m)^ {4}(?:fgvr|python|pip|make|sbatch) .*$", (ROOT / page).read_text(encoding="utf-8")) == [], page


def named(page: str) -> Iterator[tuple[str, str]]:
    """Every KEY=VALUE and every `section.key` that a page names within a line."""
    text = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`\n]+)`", text):
        for word in code.split():
            key, equals, value = word.partition("=")
            first = re.split(r"[./]", key)[0]
            ours = first in Config.model_fields or first in ("server", "hydra")
            if ours and re.fullmatch(r"\w+([./]\w+)*", key) and (equals or "." in key) and key.rpartition(".")[2] not in _SUFFIXES:
                yield key, value


@pytest.mark.parametrize("page", pages())
def test_every_option_and_key_that_a_page_names_exists(page: str) -> None:
    options = groups()
    for key, value in named(page):
        if key in options:
            chosen = {one for one in re.split(r"[,|]", value) if re.fullmatch(r"[a-z][\w-]*", one)}  # NAME and ... stand for others
            assert chosen <= {*options[key], *OF_PLUGINS.get(key, ())}, (page, key, value)
        else:
            assert key.startswith("hydra.") or key in REFUSED or docs_reference.rule(key) is not None, (page, key)


def test_a_wrong_word_in_a_block_is_found(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="trigger=nevr"):
        reader.run(Block("a page", "bash", "fgvr evaluate trigger=nevr\n", ()))
    from fgvr.errors import ConfigError

    with pytest.raises(ConfigError, match="nevr"):
        read(Block("a page", "bash", "fgvr evaluate trigger=nevr\n", ("gpu",)))
    for line in ("fgv evaluate", "pip install 'fgvr[rays]'", "python -m benchmarks lod", "python scripts/absent.py"):
        with pytest.raises(AssertionError):
            read(Block("a page", "bash", f"{line}\n", ("gpu",)))
