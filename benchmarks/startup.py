"""From the command to its answer where no model is needed: help, a wrong key, a plan; and what the fresh processes imported."""

from __future__ import annotations

from benchmarks.commands import Ran, run
from benchmarks.measure import Series
from benchmarks.race import Races
from fgvr.errors import FgvrError

HEAVY = ("torch", "transformers", "open_clip", "numpy", "hydra", "pydantic")
MOST = 0.8  # CPU seconds
COMMANDS = {"--help": (["--help"], 0), "a wrong key": (["trigger.treshold=1"], 2), "mode=plan": (["mode=plan"], 0)}
_ASK = "import sys; from fgvr.cli import program; code = program({words}); print('IMPORTED', *({heavy} & set(sys.modules))); sys.exit(code)"


def measure(*, models: str, repeat: int, size: int = 0) -> Races:
    """`size` plays no part."""
    notes, facts = [], {}
    bare = Series.of([run("-c", "pass").cpu for _ in range(repeat)])
    notes.append(f"python -c pass: {bare:.3f} s CPU")
    for name, (words, code) in COMMANDS.items():
        asked = [*words, f"models={models}"] if name == "mode=plan" else words
        ran = [_checked(run("-c", _ASK.format(words=asked, heavy=set(HEAVY))), code) for _ in range(repeat)]
        imported = ran[-1].out.rpartition("IMPORTED")[2].split()
        cpu, wall = Series.of([r.cpu for r in ran]), Series.of([r.wall for r in ran])
        verdict = "met" if cpu.median <= MOST and "torch" not in imported else "MISSED"
        brought = ", ".join(sorted(imported)) or "none"
        notes.append(f"{name}: {cpu:.3f} s CPU, {wall:.3f} s wall; at most {MOST} and no torch: {verdict}; imported {brought}")
        facts[name] = {"cpu": cpu.summary(), "wall": wall.summary(), "imported": imported}
    return Races(notes=notes, facts=facts)


def _checked(ran: Ran, code: int) -> Ran:
    if ran.code != code:
        raise FgvrError(f"the command ended with {ran.code}, not {code}: {ran.err[-500:]}")
    return ran
