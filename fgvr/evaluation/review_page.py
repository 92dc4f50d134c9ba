"""`review.html`: the images that a person shall answer, most doubtful first, in one file that opens anywhere.

`review.json` beside it says which images and classes the page is about. Its `run` names them by their content, so the answers to one page
are never taken for those to another.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from fgvr.errors import StoreError
from fgvr.evaluation import html
from fgvr.types import Prediction
from fgvr.utils.files import atomic_write, read_json, short_hash
from fgvr.utils.images import ImageSource
from fgvr.utils.text import printable

PAGE, FILE = "review.html", "review.json"
MOST = 1000
"""Images on one page: the most doubtful ones. What is learned from their answers may settle the others."""
CANDIDATES = 9
"""At most, one per digit."""
KNOWN = 3
"""Support images beside each candidate."""
_KNOWN_SIDE = 120
_SIDES = ((150, 480), (400, 320), (MOST, 240))  # so many images: the longer side of each, in pixels; about 15 MB at most


@dataclass(frozen=True, slots=True)
class Review:
    """What one page asks about."""

    run: str
    images: Mapping[str, str]  # what the page asks about: image -> content hash, most doubtful first
    classes: Mapping[str, str]  # id -> name
    base: Path | None  # the knowledge base that the run used

    @classmethod
    def of(cls, doubtful: Sequence[Prediction], classes: Mapping[str, str], base: Path | None) -> "Review":
        """Args: doubtful: all that a person may be asked about, most doubtful first."""
        images = {p.image: p.sha256 for p in doubtful}
        return cls("review-" + short_hash([list(images.items()), list(classes.items())]), images, classes, base)


def read(folder: Path) -> Review:
    """The review of a run's folder."""
    file = folder / FILE
    if not file.exists():
        raise StoreError(f"{folder} holds no {FILE}: only a run with slow=person asks a person; make it again with slow=person")
    body = read_json(file)
    try:
        return TypeAdapter(Review).validate_python(body)
    except ValueError as error:
        raise StoreError(f"{file} is not a review of this version ({error!r}); make the run again with run.fresh=true") from error


def write(review: Review, page: str, folder: Path) -> None:
    """Both files, the page first. `page`: what `render` made."""
    atomic_write(folder / PAGE, printable(page))
    # As the file system has the names: bytes that are no UTF-8 are escaped, and read back as they were.
    atomic_write(folder / FILE, json.dumps({"schema": 1, **asdict(review)}, indent=1, default=str) + "\n")


def render(
    review: Review,
    doubtful: Sequence[Prediction],
    *,
    title: str,
    candidates: int,
    pictures: Mapping[str, ImageSource],
    known: Mapping[str, Sequence[ImageSource]],
    probable: bool = False,
    notes: Sequence[str] = (),
) -> str:
    """The page.

    Args: candidates: of each image; pictures: by image; known: support images by class id; probable: whether the trigger's score is the
    probability that System 1 is right.
    """
    shown, most = doubtful[:MOST], min(candidates, CANDIDATES)
    named = {c.category for p in shown for c in p.fast.candidates[:most]}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        side = next(side for limit, side in _SIDES if len(shown) <= limit)
        photographs = list(threads.map(lambda p: html.thumbnail(pictures.get(p.image), side), shown))
        examples = {id: list(threads.map(lambda source: html.thumbnail(source, _KNOWN_SIDE), known.get(id, ())[:KNOWN])) for id in named}
    data = {
        "run": review.run,
        "classes": [{"id": id, "name": name, "known": [url for url in examples.get(id, ()) if url]} for id, name in review.classes.items()],
        "images": [
            {
                "image": printable(p.image),
                "picture": url,
                "certainty": round(p.decision.score, 3) if probable else None,
                "candidates": [[c.category, round(c.probability, 4)] for c in p.fast.candidates[:most]],
            }
            for p, url in zip(shown, photographs, strict=True)
        ],
    }
    return html.render("review.html", title=title, notes=notes, data=data, more=len(doubtful) - len(shown), most=most)
