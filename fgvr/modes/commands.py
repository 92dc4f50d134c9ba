"""The words of `fgvr add`, `remove`, `classes` and `sort`: which base, which class, which photographs; and what is said of the result."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fgvr.config.composing import load_config
from fgvr.modes import begin, changing
from fgvr.modes.sorting import sort_images
from fgvr.session import Session
from fgvr.utils.logging import stdout_console
from fgvr.utils.paths import user_path
from fgvr.utils.words import Parser

EPILOG = """\
KEY=VALUE are settings as of every mode, above all those that say which base: dataset=folder dataset.root=FOLDER, or knowledge.path=BASE.
"""


def add(words: Sequence[str]) -> int:
    """`fgvr add CLASS PHOTO...`"""
    parser = Parser("fgvr add", description="one class more in a knowledge base, or more photographs of a class", epilog=EPILOG)
    parser.add_argument("name", metavar="CLASS", help="its name")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="photographs of it, or folders of them")
    session, asked = _understood(parser, words)
    return _changed(session, changing.add_class(session, asked.name, [user_path(photo) for photo in asked.photos]))


def remove(words: Sequence[str]) -> int:
    """`fgvr remove CLASS`"""
    parser = Parser("fgvr remove", description="one class less in a knowledge base", epilog=EPILOG)
    parser.add_argument("name", metavar="CLASS", help="its name or id")
    session, asked = _understood(parser, words)
    return _changed(session, changing.remove_class(session, asked.name))


def classes(words: Sequence[str]) -> int:
    """`fgvr classes`"""
    session, _ = _understood(Parser("fgvr classes", description="the classes of a knowledge base", epilog=EPILOG), words)
    base = changing.open_base(session)
    counts = zip(base.classes, base.statistics.correct.tolist(), base.statistics.occurred.tolist(), strict=True)
    rows = [{"id": r.id, "name": r.name, "photographs": r.shots, "right": right, "of": of} for r, right, of in counts]
    lines = ["{name:<32} {photographs:>4} photographs, leave-one-out {right} of {of}".format_map(row) for row in rows]
    return _say(session, {"path": str(base.path), "classes": rows}, lines, str(base.path))


def sort(words: Sequence[str]) -> int:
    """`fgvr sort FOLDER --into OUT`"""
    about = "copy a folder's photographs into one folder per class, and the doubtful ones into unsure/"
    parser = Parser("fgvr sort", description=about, epilog=EPILOG)
    parser.add_argument("folder", metavar="FOLDER", help="of photographs; they stay where they are")
    parser.add_argument("--into", metavar="OUT", required=True, help="a new folder")
    parser.add_argument("--link", action="store_true", help="symbolic links instead of copies")
    session, asked = _understood(parser, words, lambda asked: ["mode=classify", f"image={asked.folder}"])
    done = sort_images(session, Path(asked.into), link=asked.link)
    page = None if done.review is None else str(done.review)
    record = {"folder": str(done.folder), "counts": done.counts, "linked": done.linked, "unreadable": done.unreadable, "review": page}
    last = f"{'linked' if done.linked else 'copied'} into {done.folder}; the originals are as they were"
    lines = [f"{count:>7,}  {name}" for name, count in done.counts.items()]
    lines += [f"{done.unreadable:>7,}  unreadable, in no folder"] * bool(done.unreadable)
    lines += [f"name the unsure ones on {page}"] * (page is not None)
    return _say(session, record, lines, last)


def _understood(
    parser: argparse.ArgumentParser, words: Sequence[str], implied: Callable[[argparse.Namespace], list[str]] = lambda asked: []
) -> tuple[Session, argparse.Namespace]:
    """The session that the settings among the words mean, and what the other words say. ConfigError for words that make no sense."""
    settings, rest = _settings(words)
    asked = parser.parse_args(rest)
    config = load_config(*implied(asked), *settings)
    begin(config)
    return Session(config), asked


def _changed(session: Session, done: changing.Changed) -> int:
    base = done.base
    record = {"path": str(base.path), "what": done.what, "encoded": done.encoded, "classes": len(base.classes)}
    record |= {"content_hash": base.manifest.content_hash if base.manifest else "", "seconds": round(done.seconds, 3)}
    return _say(session, record, [f"{done.what}: {len(base.classes)} classes now ({done.seconds:.1f} s)"], str(base.path))


def _say(session: Session, record: dict[str, Any], lines: Sequence[str], last: str) -> int:
    if session.config.logging.as_json:
        sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
        return 0
    console = stdout_console(width=120)
    for line in (*lines, last):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(KEY=VALUE words, the others); a file whose name holds an equals sign is a file."""
    settings = [word for word in words if "=" in word and not word.startswith("-") and not user_path(word).exists()]
    return settings, [word for word in words if word not in settings]
