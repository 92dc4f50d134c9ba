"""The words of `fgvr add`, `remove`, `classes` and `sort`: which base, which class, which photographs; and what is said of the result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fgvr import assembly
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes import changing
from fgvr.modes.sorting import sort_images
from fgvr.utils.logging import own_terminal, setup_logging, stdout_console

Job = Callable[[DictConfig], Any]
EPILOG = """\
KEY=VALUE are settings as in fgvr run, above all those that say which base: dataset=folder dataset.root=FOLDER, or knowledge.path=BASE.
"""


def parse(command: str, words: Sequence[str]) -> tuple[list[str], Job]:
    """The settings of the configuration in these words, and what is to be done with it. ConfigError for words that make no sense."""
    return {"add": _add, "remove": _remove, "classes": _classes, "sort": _sort}[command](_Parser(f"fgvr {command}", epilog=EPILOG), words)


def _add(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], Job]:
    parser.description = "one class more in a knowledge base, or more photographs of a class"
    parser.add_argument("name", metavar="CLASS", help="its name")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="photographs of it, or folders of them")
    settings, rest = _settings(words)
    asked = parser.parse_args(rest)
    return settings, lambda cfg: _changed(cfg, changing.add_class(cfg, asked.name, [Path(photo).expanduser() for photo in asked.photos]))


def _remove(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], Job]:
    parser.description = "one class less in a knowledge base"
    parser.add_argument("name", metavar="CLASS", help="its name or id")
    settings, rest = _settings(words)
    asked = parser.parse_args(rest)
    return settings, lambda cfg: _changed(cfg, changing.remove_class(cfg, asked.name))


def _classes(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], Job]:
    parser.description = "the classes of a knowledge base"
    settings, rest = _settings(words)
    parser.parse_args(rest)
    return settings, lambda cfg: _listed(cfg, changing.open_base(cfg))


def _sort(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], Job]:
    parser.description = "copy a folder's photographs into one folder per class, and the doubtful ones into unsure/"
    parser.add_argument("folder", metavar="FOLDER", help="of photographs; they stay where they are")
    parser.add_argument("--into", metavar="OUT", required=True, help="a new folder")
    parser.add_argument("--link", action="store_true", help="symbolic links instead of copies")
    settings, rest = _settings(words)
    asked = parser.parse_args(rest)

    def job(cfg: DictConfig) -> None:
        done = sort_images(cfg, Path(asked.into), link=asked.link)
        record = {"folder": str(done.folder), "counts": done.counts, "linked": done.linked}
        last = f"{'linked' if done.linked else 'copied'} into {done.folder}; the originals are as they were"
        _say(cfg, record, [f"{count:>7,}  {name}" for name, count in done.counts.items()], last)

    return ["mode=classify", f"image={asked.folder}", *settings], job


def _changed(cfg: DictConfig, done: changing.Changed) -> None:
    base = done.base
    record = {"path": str(base.path), "what": done.what, "encoded": done.encoded, "classes": len(base.classes)}
    record |= {"content_hash": base.manifest.content_hash if base.manifest else "", "seconds": round(done.seconds, 3)}
    _say(cfg, record, [f"{done.what}: {len(base.classes)} classes now ({done.seconds:.1f} s)"], str(base.path))


def _listed(cfg: DictConfig, base: KnowledgeBase) -> None:
    counts = zip(base.classes, base.statistics.correct.tolist(), base.statistics.occurred.tolist(), strict=True)
    rows = [{"id": r.id, "name": r.name, "photographs": r.shots, "right": right, "of": of} for r, right, of in counts]
    lines = ["{name:<32} {photographs:>4} photographs, leave-one-out {right} of {of}".format_map(row) for row in rows]
    _say(cfg, {"path": str(base.path), "classes": rows}, lines, str(base.path))


def _say(cfg: DictConfig, record: dict[str, Any], lines: Sequence[str], last: str) -> None:
    if cfg.logging.json:
        sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
        return
    console = stdout_console(width=120)
    for line in (*lines, last):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def run(job: Job, cfg: DictConfig) -> None:
    """As every mode is run: check, then do."""
    own_terminal()
    cfg = assembly.validate(cfg)
    setup_logging(level=cfg.logging.level, quiet=cfg.logging.quiet)
    job(cfg)


def _settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(KEY=VALUE words, the others); a file whose name holds an equals sign is a file."""
    settings = [word for word in words if "=" in word and not word.startswith("-") and not Path(word).expanduser().exists()]
    return settings, [word for word in words if word not in settings]


class _Parser(argparse.ArgumentParser):
    """Wrong words are an error like any other."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")
