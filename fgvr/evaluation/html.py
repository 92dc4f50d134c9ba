"""Pages and drawings are Jinja2 templates (`templates/`), filled in here. Whatever users, models and files say is escaped by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ImageError
from fgvr.utils.images import read_image, thumbnail_data_url

if TYPE_CHECKING:
    from jinja2 import Environment

    from fgvr.utils.images import ImageSource

THUMBNAIL = 112
"""Longer side of a thumbnail, pixels."""


def render(template: str, **values: Any) -> str:
    """A template of the folder with these values. A name that the template uses and nobody gave is an error."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # here: most commands write no page

    made = Environment(
        loader=PackageLoader("fgvr.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "thumbnail": thumbnail,
        "percent": lambda share, digits=0: f"{share:.{digits}%}",
        "decimals": lambda number, digits: f"{number:,.{digits}f}",
        "thousands": "{:,.0f}".format,
        "signed": "{:+.2f}".format,
    }
    return made


def thumbnail(source: ImageSource | None, side: int = THUMBNAIL) -> str | None:
    """A small JPEG as a data URL; None when the picture is not to be had."""
    if isinstance(source, Path):
        with suppress(OSError):
            stat = source.stat()
            return _of_file(source, side, stat.st_size, stat.st_mtime_ns)
    return None if source is None else _small(source, side)


@lru_cache(maxsize=2048)
def _of_file(file: Path, side: int, size: int, modified: int) -> str | None:
    """The jobs of a sweep show much the same pictures. (About 4 kB each.)"""
    return _small(file, side)


def _small(source: ImageSource, side: int) -> str | None:
    try:
        picture, _ = read_image(source)
    except ImageError:
        return None
    return thumbnail_data_url(picture, side)


def section(title: str, content: str, *, count: int | None = None, folded: bool = False) -> str:
    """A card of the page; `folded`: opened by a click or the enter key."""
    head = f"<h2>{escape(title)}{'' if count is None else f' <span>{count:,}</span>'}</h2>"
    inside = f"<details><summary>{head}</summary>{content}</details>" if folded else head + content
    return f"<section>{inside}</section>"


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = (), live: bool = False) -> str:
    """Columns of `numeric` are set right. `live`: page.js lets one sort it by each column and filter its rows."""

    def kind(column: int) -> str:
        return ' class="number"' if column in numeric else ""

    head = "".join(f'<th scope="col"{kind(i)}>{escape(h)}</th>' for i, h in enumerate(heads))

    def line(first: str, *rest: str) -> str:
        cells = "".join(f"<td{kind(i)}>{escape(cell)}</td>" for i, cell in enumerate(rest, 1))
        return f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'

    # A table wider than a phone scrolls on its own, reachable by keyboard.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table{" data-live" if live else ""}>'
        f"<caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(line(*row) for row in rows)}</tbody></table></div>"
    )


def image(url: str | None, alt: str = "") -> str:
    if url is None:
        return '<div class="no-picture" aria-hidden="true">no picture</div>'
    return f'<img src="{url}" alt="{escape(alt)}" loading="lazy">'
