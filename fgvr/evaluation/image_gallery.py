"""Pages of `mode=discover`: `report.html`, every kind with pictures that show it (also a table in the terminal), and one to name kinds."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.agents.discover import Discovered
from fgvr.errors import DatasetError
from fgvr.evaluation import html
from fgvr.evaluation.answers import read_table
from fgvr.utils.files import short_hash
from fgvr.utils.images import ImageSource

SHOWN, IN_ALL = 8, 4000
"""Pictures of one kind, and of the whole page."""


def render(found: Discovered, pictures: Sequence[ImageSource], notes: Sequence[str] = ()) -> str:
    """One self-contained page, the largest kind first. Args: pictures: by number."""
    shown = min(SHOWN, max(1, IN_ALL // max(len(found.kinds), 1)))
    return html.render("discover.html", title=headline(found), notes=notes, vote=vote(found), found=found, pictures=pictures, shown=shown)


def headline(found: Discovered) -> str:
    images = sum(len(kind.pictures) for kind in found.kinds)
    return f"{len(found.kinds):,} kinds of {found.superclass} in {images:,} unlabelled images"


def vote(found: Discovered) -> str:
    if not found.complexity_penalty:
        return f"{found.guesses:,} groups of images that look alike; a name is what a person gives them (review.html, discover.names=)."
    return (
        f"{found.guesses:,} different guesses; one stays if the images would lose more than {found.complexity_penalty:.1f} nats without it."
    )


def terminal(found: Discovered, notes: Sequence[str], lines: Sequence[str], most: int = 30) -> list[RenderableType]:
    """Notes, the largest kinds, and what to do next."""
    named = Table(title=headline(found), title_justify="left")
    for head in ("name", "images", "guessed by", "certain"):
        named.add_column(head, justify="left" if head == "name" else "right")
    for kind in found.kinds[:most]:
        certain = sum(kind.certainty) / len(kind.certainty)
        named.add_row(kind.name, f"{len(kind.pictures):,}", f"{kind.votes:,}", f"{certain:.2f}")
    if len(found.kinds) > most:
        named.add_row(f"and {len(found.kinds) - most:,} more", "", "", "")
    return [*(Text(note, style="yellow") for note in notes), named, Text(vote(found)), *(Text(line, overflow="fold") for line in lines)]


# --- `review.html` without an MLLM: a person names the kinds; `names.csv` comes back with `discover.names=names.csv` ----------------

COLUMNS = ("run", "kind", "name")
_SHOWN, _SIDE, _IN_ALL = 12, 120, 4000


def run_of(found: Discovered, hashes: Sequence[str]) -> str:
    """What names belong to: which images are of one kind. Args: hashes: content of the images."""
    return "kinds-" + short_hash([[kind.name, sorted(hashes[i] for i in kind.pictures)] for kind in found.kinds])


def render_naming(found: Discovered, run: str, pictures: Sequence[ImageSource], *, title: str, notes: Sequence[str] = ()) -> str:
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
