"""Words for people: sizes, near spellings, one spelling of a name, and small tables for notebooks."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_NUMBER_PREFIX = re.compile(r"^(?:\d+\.(?!\d)|n\d{8}[-_])\s*(?=\S)")  # 107.Common_Raven, n02085620-Chihuahua
_ACCENTS = re.compile(r"([A-Za-z])[\u0300-\u036f]+")
_UNDECODED = re.compile(r"[\ud800-\udfff]")
_BLANKS = re.compile(r"[\s_-]+")


def format_bytes(count: float) -> str:
    """`1.50 GiB`, binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def dotted(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`{"trigger": {"form": "joint"}}` -> `{"trigger.form": "joint"}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= dotted(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which 9 comes before 10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part)


def printable(text: str) -> str:
    """The text with a replacement character for each byte of a file name that is no UTF-8; such text cannot be shown."""
    return _UNDECODED.sub("\ufffd", text)


def nearest(word: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` choices that look like `word`, best first; [] when none does."""
    known = {choice.casefold(): choice for choice in choices}
    return [known[match] for match in difflib.get_close_matches(word.casefold(), known, n=n, cutoff=0.5)]


def some(words: Sequence[object], most: int = 10) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(map(str, words[:most])) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def misfits(error: Exception) -> str:
    """In one line, what an error says of values that were read: of pydantic's the first fields and why, without its links."""
    found = getattr(error, "errors", None)
    return some([f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found()], 3) if found else repr(error)


def plain_name(name: str) -> str:
    """A folder's or file's spelling as people write it: `107.Common_Raven` -> `Common Raven`. Case and hyphens stay."""
    return " ".join(_NUMBER_PREFIX.sub("", name.strip()).replace("_", " ").split()) or name


def normalise_name(name: str) -> str:
    """The one spelling names are compared in: number prefix, case, accents on Latin letters, `-`, `_` and blanks do not count."""
    text = _ACCENTS.sub(r"\1", unicodedata.normalize("NFKD", _NUMBER_PREFIX.sub("", name.strip())))
    folded = unicodedata.normalize("NFC", text).casefold()
    return _BLANKS.sub(" ", folded).strip() or folded


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table; every cell is escaped."""
    head = "".join(f"<th>{escape(c)}</th>" for c in columns) if any(columns) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


_ENDS = {"sentences": r"(?<=[.!?])\s+", "clauses": r"(?<=[.!?,;:])\s+"}


def pieces(text: str, split: str) -> tuple[str, ...]:
    """`length`: the text as it is (the encoder itself splits what is longer than its context); `sentences`, `clauses`: at their marks."""
    if split == "length":
        return (text,)
    return tuple(part for part in (piece.strip(" ,;:") for piece in re.split(_ENDS[split], text)) if part) or (text,)
