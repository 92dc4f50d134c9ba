"""`report.html` of `mode=discover`: every kind that was found, with pictures that show it. Also tables for terminal and notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.evaluation import figures
from fgvr.utils.text import html_table

if TYPE_CHECKING:
    from fgvr.agents.discover import Discovered, Kind
    from fgvr.utils.images import ImageSource

SHOWN, IN_ALL = 8, 4000
"""Pictures of one kind, and of the whole page."""
_STYLE = """
.kind{border-top:1px solid color-mix(in srgb,currentColor 20%,transparent);padding:.75rem 0}
.kind h2{margin:0 0 .25rem;font-size:1.05rem}.kind h2 span{font-weight:400;opacity:.75}
.kind ul{display:flex;flex-wrap:wrap;gap:.4rem;list-style:none;margin:.5rem 0 0;padding:0}
.kind li{width:96px;font-size:.75rem;text-align:center}.kind img{width:96px;height:96px;object-fit:cover;border-radius:4px;display:block}
"""


def render(found: Discovered, pictures: Sequence[ImageSource], notes: Sequence[str] = ()) -> str:
    """One self-contained page, the largest kind first. Args: pictures: those of the album, by number."""
    style = resources.files("fgvr.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    shown = min(SHOWN, max(1, IN_ALL // max(len(found.kinds), 1)))
    title = headline(found)
    said = "".join(f'<p class="note" role="note">{escape(note)}</p>' for note in notes)
    looked = f"<p>Looked at: {escape(', '.join(found.attributes))}.</p>" if found.attributes else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{style}{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>{said}"
        f"<p>{escape(vote(found))}</p>{looked}{''.join(_kind(kind, pictures, shown) for kind in found.kinds)}</main></body></html>\n"
    )


def headline(found: Discovered) -> str:
    images = sum(len(kind.pictures) for kind in found.kinds)
    return f"{len(found.kinds):,} kinds of {found.superclass} in {images:,} unlabelled images"


def vote(found: Discovered) -> str:
    return f"{found.guesses:,} different guesses; one stays if the images would lose more than {found.price:.1f} nats without it."


def _kind(kind: Kind, pictures: Sequence[ImageSource], shown: int) -> str:
    cells = []
    for picture, certainty in zip(kind.pictures[:shown], kind.certainty[:shown], strict=True):
        url = figures.thumbnail(pictures[picture])
        image = f'<img src="{url}" alt="{escape(kind.name)}">' if url else ""
        cells.append(f"<li>{image}{certainty:.0%}</li>")
    more = f" ({len(kind.pictures) - shown:,} more)" if len(kind.pictures) > shown else ""
    also = f"<p>Also: {escape(', '.join(kind.aliases))}</p>" if kind.aliases else ""
    return (
        f'<section class="kind"><h2>{escape(kind.name)} <span>{len(kind.pictures):,} images, guessed {kind.votes:,} times</span></h2>'
        f"<p>{escape(kind.description)}</p>{also}<ul>{''.join(cells)}</ul>{more}</section>"
    )


def table(found: Discovered) -> str:
    """For a notebook."""
    rows = ((kind.name, f"{len(kind.pictures):,}", f"{kind.votes:,}", kind.description) for kind in found.kinds)
    return f"<p>{escape(headline(found))}</p>" + html_table(("name", "images", "guessed", "description"), rows)


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
