"""What `mode=memory` shows on the terminal and as JSON. Labels on the terminal are the names of the fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.runtime.pressure import Pressure
from fgvr.runtime.status_records import ModelAnswer, Stats, SystemAnswer
from fgvr.store.stale_files import StaleFile
from fgvr.utils.text import format_bytes

_NO_SERVER = "no server: figures of this machine, and of a pool with this configuration"
_BYTES = ("memory", "usage", "limit", "available", "total", "used", "bytes", "free", "allocated", "reserved", "released")
"""Last words of the names of fields that hold bytes."""
Found = Stats | Pressure | SystemAnswer | Sequence[ModelAnswer] | Sequence[StaleFile] | Mapping[str, Any]


def as_json(found: Found) -> dict[str, Any]:
    """The record's own fields; lists under `models` or `leftovers`."""
    match found:
        case Stats() | Pressure() | SystemAnswer():
            return asdict(found)
        case Mapping():
            return dict(found)
        case [ModelAnswer(), *_]:
            return {"models": [asdict(row) for row in found]}  # type: ignore[call-overload]
    files = [file for file in found if isinstance(file, StaleFile)]
    removed = sum(file.bytes for file in files if not file.kept)
    rows = [asdict(file) | {"path": str(file.path)} for file in files]
    return {"leftovers": rows, "removed_bytes": removed, "formatted_removed": format_bytes(removed)}


def tables(found: Found, server: str | None = None) -> list[RenderableType]:
    """`server`: whose figures these are; None: of this machine."""
    whose = Text(f"server: {server}" if server else _NO_SERVER)
    match found:
        case Stats():
            in_use = {"in use of the budget": f"{found.formatted_usage} of {found.formatted_limit}"}
            return [_facts(in_use | {part.name: getattr(found, part.name) for part in fields(found)}), whose]
        case Pressure():
            return [_facts({part.name: getattr(found, part.name) for part in fields(found)}), whose]
        case SystemAnswer():
            facts = {part.name: getattr(found, part.name) for part in fields(found) if part.name != "devices"}
            devices = [asdict(device) for device in found.devices]
            return [_facts(facts), _rows("devices", devices), whose]
        case Mapping():
            return [_facts(found), whose]
    models = [asdict(row) for row in found if isinstance(row, ModelAnswer)]
    if models or server:
        return [_rows("models", models), whose]
    return _stale_files([row for row in found if isinstance(row, StaleFile)])


def _stale_files(rows: Sequence[StaleFile]) -> list[RenderableType]:
    if not rows:
        return [Text("nothing to clean up: no dead run has left anything")]
    table = Table("what", "where", "size", "age", "done")
    for row in rows:
        done = f"kept: {row.kept}" if row.kept else "removed"
        table.add_row(row.kind, Text(str(row.path), overflow="fold"), format_bytes(row.bytes), f"{row.age_seconds / 3600:,.1f} h", done)
    removed = [row for row in rows if not row.kept]
    return [table, Text(f"removed {len(removed)} of {len(rows)}: {format_bytes(sum(row.bytes for row in removed))}")]


def _facts(values: Mapping[str, Any]) -> Table:
    table = Table("quantity", "value", show_header=False)
    for name, value in values.items():
        if not name.startswith("formatted_"):  # the same number, which is formatted here anyway
            table.add_row(name.replace("_", " "), _told(name, value))
    return table


def _rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*(name.replace("_", " ") for name in (rows[0] if rows else ())), title=title, title_justify="left")
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
