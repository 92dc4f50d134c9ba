"""What `mode=memory` and `fgvr memory` show on the terminal. Labels are the names of the figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from fgvr.utils.text import format_bytes

_NO_SERVER = "no server: figures of this machine, and of a pool with this configuration"
_BYTES = ("memory", "usage", "limit", "available", "total", "used", "bytes", "free", "allocated", "reserved", "released", "peak")
"""Last words of the names of figures that are bytes."""


def tables(found: Mapping[str, Any], server: str | None = None) -> list[RenderableType]:
    """Single figures first, then a table for each list of records. `server`: whose figures these are; None: of this machine."""
    facts = Table("quantity", "value", show_header=False)
    if "formatted_usage" in found:
        facts.add_row("in use of the budget", f"{found['formatted_usage']} of {found['formatted_limit']}")
    lists: list[RenderableType] = []
    for name, value in found.items():
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            lists.append(_rows(name, value))
        elif not name.startswith("formatted_"):  # the same number, which is formatted here anyway
            facts.add_row(name.replace("_", " "), _told(name, value))
    whose = Text(f"server: {server}" if server else _NO_SERVER)
    return [*([facts] if facts.row_count else []), *lists, whose]


def _rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*(Column(name.replace("_", " "), overflow="fold") for name in rows[0]), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_told(name, value) for name, value in row.items()))
    return table


def _told(name: str, value: Any) -> str:
    """A value in words; the name says what an integer means."""
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith(_BYTES):
            return format_bytes(value)
        case float():
            return f"{value:.0%}" if name.endswith("share") else f"{value:,.1f}"
        case list() | tuple():
            return ", ".join(map(str, value)) or "none"
    return str(value)
