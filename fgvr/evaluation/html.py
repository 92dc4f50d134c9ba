"""Pages and drawings are Jinja2 templates (`templates/`), filled in here. Whatever users, models and files say is escaped by the engine."""

from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ImageError
from fgvr.utils.images import ImageSource, read_image, thumbnail_data_url

if TYPE_CHECKING:
    from jinja2 import Environment

THUMBNAIL = 112
"""Longer side of a thumbnail, pixels."""


def render(template: str, **values: Any) -> str:
    """A template of the folder with these values. A name that the template uses and nobody gave is an error."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
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
        "px": "{:.1f}".format,
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
        picture = read_image(source)[0]
    except ImageError:
        return None
    return thumbnail_data_url(picture, side)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")
