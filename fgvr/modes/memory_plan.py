"""mode=plan: what would be in memory, and whether it fits. Nothing is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fgvr.modes.showing import to_json, to_text
from fgvr.planning import plan
from fgvr.types import MemoryPlan
from fgvr.utils.text import format_bytes

__all__ = ["plan"]


@to_json.register
def _(result: MemoryPlan) -> dict[str, Any]:
    return asdict(result) | {"needed": result.needed, "in_turns": result.in_turns, "fits": result.fits, "verdict": result.verdict}


@to_text.register
def _(result: MemoryPlan) -> list[Any]:
    from rich.table import Table

    table = Table(title=f"memory plan, budget {format_bytes(result.budget)}", title_justify="left")
    table.add_column("part")
    table.add_column("bytes", justify="right")
    table.add_column("")
    bold = {part.name for part in result.parts}
    for name, size, note in result.rows:
        if name == "needed":
            table.add_section()
            table.add_row(name, format_bytes(size), result.verdict, style="green" if result.fits else "yellow")
            table.add_section()
        else:
            table.add_row(name, format_bytes(size), note, style="bold" if name in bold else "dim")
    table.add_section()
    for part in result.host:
        table.add_row(f"main memory: {part.name}", format_bytes(part.bytes), part.note, style="dim")
    advice = ["What to change:", *(f"- {line}" for line in result.advice)] if result.advice else []
    return [table, *(f"* {fact}" for fact in result.facts), *advice]
