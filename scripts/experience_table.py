"""Does the experience library help the MLLM it was learned with? Worlds with planted confusions, and worlds without.

    python scripts/experience_table.py                               # planted on 9000-9019 (8 shots), plain on 9020-9039 (4 shots)
    python scripts/experience_table.py --worlds 2 paths.home=/tmp/x  # the first two of each

Planted: genera of nine species, as large as they get, so that every species has neighbours one fine attribute away. Plain: genera of
four. Each world is built, rules are learned from System 2's failures on its support images, and `fast_slow` answers the same new images
with the library and without; answers are remembered, so only what a rule changed is computed twice. Ends with 1 when a promise breaks:
more than a tenth of the rules proposed on plain worlds accepted, or the library worse by more than .005 there (upper 95 % limit of the
loss over worlds).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from birds_measure import predictions
from scipy import stats

import fgvr
from fgvr import modes
from fgvr.evaluation import uncertainty
from fgvr.utils.files import atomic_write

KINDS = {
    "planted": (range(9000, 9020), ("dataset.genera=[9,9]", "dataset.shots=8")),
    "plain": (range(9020, 9040), ("dataset.genera=[4,4,4,4]", "dataset.shots=4")),
}
MOST_ACCEPTED, MOST_LOST = 0.1, 0.005


@dataclass(frozen=True, slots=True)
class World:
    """One world: its rules by status, and who was right with the library and without."""

    seed: int
    accepted: int
    proposed: int
    right_with: np.ndarray
    right_without: np.ndarray

    @property
    def gain(self) -> float:
        return float(self.right_with.mean() - self.right_without.mean())


def measure(seed: int, words: Sequence[str]) -> World:
    world = ("dataset=birds", f"dataset.seed={seed}", "dataset.calibration=0", *words)
    base = modes.perform(fgvr.load_config("mode=build_experience_base", *world))

    def right(*more: str) -> np.ndarray:
        found = predictions(fgvr.evaluate(fgvr.load_config("mode=evaluate", *world, *more)))
        return np.array([p.correct for p in found])

    accepted = sum(rule.status == "accepted" for rule in base.experience)
    return World(seed, accepted, len(base.experience), right(), right("slow.rules=0"))


def lines(kind: str, worlds: Sequence[World]) -> list[str]:
    """What a kind of worlds came to, in words."""
    accepted, proposed = sum(w.accepted for w in worlds), sum(w.proposed for w in worlds)
    pooled_with, pooled_without = (np.concatenate([getattr(w, name) for w in worlds]) for name in ("right_with", "right_without"))
    fixed, broken = int((pooled_with & ~pooled_without).sum()), int((~pooled_with & pooled_without).sum())
    p = uncertainty.mcnemar(pooled_with, pooled_without)
    return [
        f"{kind}: {len(worlds)} worlds, {len(pooled_with)} images; {proposed} rules proposed, {accepted} accepted",
        f"  top-1 {pooled_without.mean():.4f} without the library, {pooled_with.mean():.4f} with it; fixed {fixed}, broken {broken}, "
        f"exact paired p {p:.3f}; loss at most {most_lost(worlds):.4f} (upper 95 % limit over worlds)",
    ]


def most_lost(worlds: Sequence[World]) -> float:
    """Upper one-sided 95 % limit (Student's t over worlds) of accuracy without the library less with it."""
    losses = np.array([-w.gain for w in worlds])
    if len(losses) < 2:
        return float("inf")
    return float(losses.mean() + stats.t.ppf(0.95, len(losses) - 1) * losses.std(ddof=1) / np.sqrt(len(losses)))


def kept(worlds: Sequence[World]) -> bool:
    """What plain worlds have to show."""
    accepted, proposed = sum(w.accepted for w in worlds), sum(w.proposed for w in worlds)
    return accepted <= MOST_ACCEPTED * proposed and most_lost(worlds) <= MOST_LOST


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=20, help="how many of each kind, at most 20")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides for every run")
    options = parser.parse_args(arguments)
    found: dict[str, list[World]] = {kind: [] for kind in KINDS}
    for kind, (seeds, words) in KINDS.items():
        for seed in seeds[: options.worlds]:
            found[kind].append(world := measure(seed, (*words, *options.overrides)))
            print(f"{kind} {seed}: {world.accepted} of {world.proposed} rules accepted, gain {world.gain:+.4f}", flush=True)
    for kind, worlds in found.items():
        print(*lines(kind, worlds), sep="\n")
    if options.json:
        rows = {kind: [[w.seed, w.accepted, w.proposed, w.gain] for w in worlds] for kind, worlds in found.items()}
        atomic_write(options.json, json.dumps(rows, indent=1) + "\n")
    return 0 if kept(found["plain"]) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fgvr.FgvrError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, fgvr.ConfigError) else 3)
