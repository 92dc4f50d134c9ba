"""Is what the trigger promises about risk kept? Simulated draws, rules that must fail, and new images of development worlds.

    python scripts/promise_table.py                          # 2,000 simulated draws a line; seconds to a minute
    python scripts/promise_table.py --worlds 9000-9019       # also 100 new test images per species and world (renders 4,000 a world)
    python scripts/promise_table.py --worlds 9000 --fresh 20

On worlds System 1 alone is asked; runs go on where they were, since vectors are kept in paths.home. Worlds 9050 and up are refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import risk_simulation as simulation
from birds_measure import TestImages
from birds_table import _range

import fgvr
from fgvr.session import Session

EPSILONS, FORMS, PER_SPECIES = (0.05, 0.1, 0.2), ("joint", "selective"), (4, 10)


def simulated() -> list[str]:
    """One line per rule: violations of 2,000, against the limit that a kept promise respects."""

    def line(what: str, broken: int, verdict: str) -> str:
        return f"{what:<58} {broken:>5} of {simulation.DRAWS}  {verdict}"

    lines = []
    for n in (160, 400):
        for epsilon in EPSILONS:
            for form, count in (("joint", simulation.kept_joint), ("selective", simulation.kept_selective)):
                broken = count(n, epsilon)
                verdict = "kept" if broken <= simulation.MOST_VIOLATIONS else "BROKEN"
                lines.append(line(f"{form}, n {n}, epsilon {epsilon}", broken, f"{verdict} (at most {simulation.MOST_VIOLATIONS})"))
    controls = {
        "control: plug-in threshold, n 160, epsilon .1": simulation.plug_in(160, 0.1),
        "control: history with the image's own outcome, epsilon .1": simulation.own_history(0.1),
        "control: near-copies under leave-one-out, epsilon .1": simulation.left_out(0.1, copies=True),
    }
    for what, broken in controls.items():
        lines.append(line(what, broken, "fails, as it must" if broken > simulation.MOST_VIOLATIONS else "KEPT: the control is no control"))
    fair = simulation.own_history(0.1, own=False)
    lines.append(line("the same history, judged on other images", fair, "kept" if fair <= simulation.MOST_VIOLATIONS else "BROKEN"))
    left_out = simulation.left_out(0.1)
    lines.append(
        line("leave-one-out on the support, epsilon .1", left_out, f"{left_out / simulation.DRAWS:.1%}, an estimate: printed, not gated")
    )
    return lines


def on_world(seed: int, fresh: int, overrides: Sequence[str]) -> dict[tuple[str, float, int], tuple[bool, float, bool]]:
    """(form, epsilon, calibration images) -> (violated, share answered fast, promised) on new images of one world."""
    words = ("dataset=birds", f"dataset.seed={seed}", f"dataset.test_per_class={fresh}", "knowledge.leave_one_out=false", "slow.weight=0.5")
    found = {}
    for each in PER_SPECIES:
        world = ("mode=evaluate", *words, f"dataset.calibration={each}", *overrides)
        test = TestImages.of(Session(fgvr.load_config(*world)).dataset.split.test)
        for form in FORMS:
            for epsilon in EPSILONS:
                target = ("trigger=calibrated", f"trigger.target=risk:{epsilon}@{simulation.DELTA}", f"trigger.form={form}")
                recognizer = fgvr.build_recognizer(fgvr.load_config(*world, *target))
                _, fast, right = test.fast_only(recognizer)
                share = float(np.mean(fast))
                risk = float(np.mean(fast & ~right)) / (1.0 if form == "joint" else max(share, 1e-9))
                found[form, epsilon, 40 * each] = (risk > epsilon, share, share > 0)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=_range, default=(), metavar="A-B", help="development worlds to render new images of")
    parser.add_argument("--fresh", type=int, default=100, help="new test images per species")
    parser.add_argument("--no-simulation", action="store_true", help="only the worlds")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides for every run")
    options = parser.parse_args(arguments)
    if any(seed >= 9050 for seed in options.worlds):
        parser.error("worlds 9050 and up are not for this: develop on 9000-9049")
    if not options.no_simulation:
        print("\n".join(simulated()), flush=True)
    by_world = []
    for seed in options.worlds:
        by_world.append(on_world(seed, options.fresh, options.overrides))
        print(f"world {seed}: " + ", ".join(f"{'/'.join(map(str, key))} fast {share:.2f}{' VIOLATED' if broken else ''}"
                                            for key, (broken, share, _) in by_world[-1].items()), flush=True)  # fmt: skip
    for key in by_world[0] if by_world else ():
        broken, share, kept = (np.array([found[key][i] for found in by_world], float) for i in range(3))
        form, epsilon, n = key
        print(f"{form}, epsilon {epsilon}, n {n}: violated {broken.sum():.0f} of {len(broken)}, promised in {kept.mean():.0%}, "
              f"fast rate {share.mean():.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fgvr.FgvrError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, fgvr.ConfigError) else 3)
