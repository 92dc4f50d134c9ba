"""`review.html` of a discovery without an MLLM: a person names the kinds. `names.csv` comes back with `discover.names=names.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgvr.agents.discover import Discovered
from fgvr.errors import DatasetError
from fgvr.evaluation import html
from fgvr.evaluation.answers import read_table
from fgvr.utils.files import short_hash
from fgvr.utils.images import ImageSource

COLUMNS = ("run", "kind", "name")
_SHOWN, _SIDE, _IN_ALL = 12, 120, 4000


def run_of(found: Discovered, hashes: Sequence[str]) -> str:
    """What names belong to: which images are of one kind. Args: hashes: content of the images."""
    return "kinds-" + short_hash([[kind.name, sorted(hashes[i] for i in kind.pictures)] for kind in found.kinds])


def render(found: Discovered, run: str, pictures: Sequence[ImageSource], *, title: str, notes: Sequence[str] = ()) -> str:
    shown = min(_SHOWN, max(1, _IN_ALL // max(len(found.kinds), 1)))
    kinds = [
        {"name": kind.name, "images": len(kind.pictures), "shown": [html.thumbnail(pictures[i], _SIDE) for i in kind.pictures[:shown]]}
        for kind in found.kinds
    ]
    return html.render("kinds.html", title=title, notes=notes, kinds=kinds, run=run)


def read_names(file: Path, found: Discovered, run: str) -> dict[str, str]:
    """Kind -> name. DatasetError where they are those of other kinds, or one kind has two names."""
    known, names, wrong = {kind.name for kind in found.kinds}, {}, []
    for line, row in read_table(file, COLUMNS, required=COLUMNS):
        if row["run"] != run:
            raise DatasetError(f"{file}, line {line}: these names are of other images or groups ({row['run']}, not {run}); name them again")
        if row["kind"] not in known:
            wrong.append(f"line {line}: there is no {row['kind']!r}")
        elif row["name"] and names.setdefault(row["kind"], row["name"]) != row["name"]:
            wrong.append(f"line {line}: {row['kind']} is {row['name']!r}, and {names[row['kind']]!r} above")
    if wrong:
        raise DatasetError(f"{file}: {len(wrong)} rows cannot be used; mend them or take them out: {'; '.join(wrong[:10])}")
    return names
