"""mode=plan: what would be in memory, and whether it fits. Nothing is loaded, unless `runtime.probe=true` asks for measurements."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fgvr import planning
from fgvr.config.configuration import Config
from fgvr.errors import OutOfBudget
from fgvr.modes.showing import to_json, to_text
from fgvr.types import MemoryPlan
from fgvr.utils.text import format_bytes


def plan(config: Config) -> MemoryPlan:
    """The plan; with `runtime.probe=true` each model is loaded once before, so that its working memory is measured."""
    if config.runtime.probe is True:
        from fgvr.modes import begin
        from fgvr.session import Session

        begin(config)
        pool = Session(config).pool
        for role in planning.used(config):
            with suppress(OutOfBudget), pool.lease(role):  # the plan says what is missing
                pass
    return planning.plan(config)


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
