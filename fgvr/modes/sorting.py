"""A folder of photographs, sorted by class into another folder. Originals are read and never moved, changed or deleted."""

import glob
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fgvr.errors import ConfigError, StoreError
from fgvr.evaluation import records, review_page
from fgvr.modes.classifying import classify, stream_at
from fgvr.session import Session
from fgvr.store.maintenance import DAY
from fgvr.types import Prediction
from fgvr.utils.paths import user_path
from fgvr.utils.progress import track
from fgvr.utils.text import printable

log = logging.getLogger(__name__)

UNSURE = "unsure"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


@dataclass(frozen=True, slots=True)
class Sorted:
    """Where the photographs are now, and how many in each folder."""

    folder: Path
    counts: dict[str, int]
    linked: bool
    unreadable: int
    review: Path | None  # the page on which a person names the unsure ones


def sort_images(session: Session, into: Path, *, link: bool = False) -> Sorted:
    """Classify all images of `image=` and copy (or link) each into `into`/<class>, or `into`/unsure where the answer is unsure.

    `into` appears when it is whole, with predictions.csv. A photograph that has gone meanwhile is named and stops no other. ConfigError
    where `into` holds something or lies within the originals.
    """
    source, into = user_path(session.config.image), Path(os.path.realpath(user_path(into)))
    _check(source, into)
    predictions = classify(session, review=True)
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        _forget_killed(into)
        with TemporaryDirectory(prefix=f".{into.name}.", suffix=".partial", dir=into.parent) as own:
            partial = Path(own, into.name)
            counts = _place(source, predictions, partial, link=link)
            records.write_table(partial, predictions)
            if into.exists():
                into.rmdir()  # empty, as was checked; raises if not
            partial.rename(into)
    except OSError as error:
        cure = "nothing was sorted, the originals are as they were" + ("; write without --link to copy" if link else "")
        raise StoreError(f"{into} cannot be written ({error.strerror or error}); {cure}") from error
    page = predictions.folder / review_page.PAGE if predictions.folder is not None and UNSURE in counts else None
    return Sorted(into, counts, link, len(predictions.unreadable), page)


def _check(source: Path, into: Path) -> None:
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ConfigError(f"--into {into}: there is something already; name a folder that is new or empty")
    if stream_at(source.absolute()) is not None:
        raise ConfigError(f"{source} holds shards, and fgvr sort copies files; mode=classify image={source} answers them")
    here = Path(os.path.realpath(source))
    if into == here or here in into.parents:
        raise ConfigError(f"--into {into} lies within {source}; name a folder outside, so that the originals stay by themselves")


def _forget_killed(into: Path) -> None:
    """Remove the copies of a sort into the same folder that was killed a day ago or more; one still at work is younger."""
    for left in into.parent.glob(f".{glob.escape(into.name)}.????????.partial"):
        with suppress(OSError):  # another sort may end meanwhile
            if left.stat().st_mtime < time.time() - DAY and {one.name for one in left.iterdir()} <= {into.name}:
                shutil.rmtree(left)


def _place(source: Path, predictions: Sequence[Prediction], folder: Path, *, link: bool) -> dict[str, int]:
    counts: Counter[str] = Counter()
    folder.mkdir()
    for answer in track((prediction.to_dict() for prediction in predictions), "sorting", len(predictions)):
        kind = UNSURE if answer["unsure"] else folder_name(answer["class"])
        original = source / answer["file"] if source.is_dir() else source
        target = _free(folder / kind / original.name)
        target.parent.mkdir(exist_ok=True)
        try:
            if link:
                os.symlink(original.resolve(strict=True), target)
            else:
                shutil.copyfile(original, target)
                with suppress(OSError):  # times and rights, which not every disk keeps
                    shutil.copystat(original, target)
        except FileNotFoundError:
            if original.exists():
                raise
            log.error("%s: has gone since it was classified; it is not sorted", original)
            continue
        counts[kind] += 1
    return dict(sorted(counts.items()))


def folder_name(name: str) -> str:
    """A class's name as a folder that every system allows; never that of the unsure ones."""
    plain = _FORBIDDEN.sub("_", printable(name)).strip().rstrip(".") or "_"
    return f"{plain}_" if _RESERVED.fullmatch(plain) or plain.casefold() == UNSURE else plain


def _free(path: Path) -> Path:
    """The path, or with a number behind its name where another photograph has it."""
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found
