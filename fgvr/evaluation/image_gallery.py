"""`report.html` of `mode=discover`: every kind that was found, with pictures that show it. Also its table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.agents.discover import Discovered
from fgvr.evaluation import html
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
