"""The ablation table: what each part of the method adds on worlds no model was trained on, and which router spends System 2 best.

    make ablation                                       # final worlds: rows of System 1 on 9050-9069, rows of System 2 on 9050-9054
    python scripts/ablation.py --worlds 9000-9001       # development, as often as you like
    python scripts/ablation.py --worlds 9000 --rows "image prototypes" "+ text"

Each row is a handful of configuration overrides, shown in the table, measured by `mode=evaluate`; the same command goes on where it was
killed, since runs and every model's answer are kept in paths.home. Intervals are bootstraps over worlds (2.5 % and 97.5 %). Routers are
compared by the area under accuracy against slow rate, each one's score swept, on the same recorded answers. Writes docs/ablation.md with
--write-docs. Words like `paths.home=/tmp/x` are handed on to every run. Worlds 9070-9099 are never run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from birds_measure import CALIBRATED, RUNS, predictions
from birds_table import FINAL, FORBIDDEN, ROOT, _range, commit, logged
from rich.console import Console
from rich.table import Table

import fgvr
from fgvr.evaluation import metrics, records, routers, uncertainty
from fgvr.types import Decision, Prediction
from fgvr.utils.files import atomic_write

FAST, NO_RULES = ("trigger=never",), ("slow.rules=0",)


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration of the method. `against`: the row whose accuracy its gain is measured from, paired by world."""

    words: tuple[str, ...]
    against: str | None = None
    slow: bool = False
    learns: bool = False  # needs the experience library


ROWS: dict[str, Row] = {
    "image prototypes": Row((*FAST, "fusion.image_weight=1")),
    "text prototypes": Row((*FAST, "fusion.image_weight=0")),
    "+ text": Row(FAST, "image prototypes"),
    "+ names": Row((*FAST, "models.name_prompts=true"), "+ text"),
    "+ names, one template": Row((*FAST, "models.name_prompts=true", "knowledge.templates=1"), "+ text"),
    "+ names, no descriptions": Row((*FAST, "models.name_prompts=true", "fusion.name_weight=1"), "+ text"),
    "+ descriptions by clause": Row((*FAST, "knowledge.split=clauses"), "+ text"),
    "+ views of the support images": Row((*FAST, "knowledge.views=4"), "+ text"),
    "+ joint, as third score": Row((*FAST, "fusion=joint"), "+ text"),
    "+ joint, as re-ranker": Row((*FAST, "fusion=rerank"), "+ text"),
    "+ calibrated slow path": Row((*CALIBRATED, *NO_RULES), "+ text", slow=True),
    "+ experience": Row(CALIBRATED, "+ calibrated slow path", slow=True, learns=True),
    "+ joint": Row((*CALIBRATED, "fusion=joint"), "+ experience", slow=True, learns=True),
    "decoder score, descriptions": Row((*RUNS["slow"], *NO_RULES), "+ text", slow=True),
    "decoder score, names": Row((*RUNS["slow"], *NO_RULES, "slow.target=name"), "+ text", slow=True),
    "decoder score, letters": Row((*RUNS["slow"], *NO_RULES, "slow.target=letter"), "+ text", slow=True),
    "decoder reason": Row((*RUNS["reason"], *NO_RULES), "+ text", slow=True),
    "decoder analyse": Row((*RUNS["slow"], *NO_RULES, "slow=analyse"), "+ text", slow=True),
    "MLLM alone": Row((*RUNS["alone"], *NO_RULES), "+ text", slow=True),
}
ROUTERS = ("calibrated", "sare", "gates", "random")
ALWAYS = "decoder score, descriptions"
"""The row whose answers every router is tried on."""


# --- one world -----------------------------------------------------------------------------------------------------------


def accuracy(seed: int, row: Row, overrides: Sequence[str]) -> tuple[float, float]:
    """(top-1, slow rate) of one row on one world. The rules, where a row has them, are learned first; a run without them shows none."""
    report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *world(seed, overrides), *row.words))
    return report.top1, report.slow_rate


def world(seed: int, overrides: Sequence[str]) -> tuple[str, ...]:
    return ("dataset=birds", f"dataset.seed={seed}", *overrides)


def learn(seed: int, overrides: Sequence[str]) -> tuple[int, int]:
    """(accepted, proposed) rules of a world's base; learned once."""
    from fgvr import modes

    base = modes.perform(fgvr.load_config("mode=build_experience_base", *world(seed, overrides), *CALIBRATED))
    return sum(rule.status == "accepted" for rule in base.experience), len(base.experience)


def areas(seed: int, overrides: Sequence[str]) -> dict[str, float]:
    """Area under accuracy against slow rate of each router, on the answers of the run that always thinks; and of the oracle."""
    words = (*world(seed, overrides), *NO_RULES)
    always = predictions(fgvr.evaluate(fgvr.load_config("mode=evaluate", *words, *RUNS["slow"])))
    found = records.outcomes(always)
    fast, slow = found.fast_right, found.right
    decided = {name: _decisions((*words, f"trigger={name}"), always) for name in ROUTERS}
    swept = {name: routers.curve(fast, slow, np.array([d.score for d in decisions])).area for name, decisions in decided.items()}
    return swept | {
        "chance": routers.chance(fast, slow).area,
        "oracle": routers.oracle(fast, slow).area,
        "accepted by sare": metrics.accuracy(np.array([not d.escalate for d in decided["sare"]])),
    }


def _decisions(words: Sequence[str], always: Sequence[Prediction]) -> list[Decision]:
    """A trigger's decisions about images that were looked at already; no picture is opened again."""
    return fgvr.build_recognizer(fgvr.load_config("mode=evaluate", *words)).decide([p.fast for p in always])


# --- over worlds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure over worlds with its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        low, high = uncertainty.image_bootstrap(np.array(values, float))
        return cls(float(np.mean(values)), low, high, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.n == 1 else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def sign_flip(differences: Sequence[float]) -> float:
    """One-sided exact p of the mean difference under flips of its signs; at best 2^-n, so n worlds bound it from below."""
    values = np.array(differences, float)
    flips = np.array(list(product((1, -1), repeat=len(values))))
    return float(np.mean((flips * values).mean(axis=1) >= values.mean() - 1e-12))


def paired_t(differences: Sequence[float]) -> float:
    """One-sided p of the paired t-test; nan for fewer than two worlds or no spread."""
    from scipy.stats import ttest_1samp

    values = np.array(differences, float)
    return float(ttest_1samp(values, 0.0, alternative="greater").pvalue) if len(values) > 1 and values.std() > 0 else float("nan")


HEADS = ("row", "worlds", "top-1", "slow rate", "gain, paired", "over", "overrides")


def table_lines(found: Mapping[str, Mapping[int, tuple[float, float]]]) -> list[tuple[str, ...]]:
    """One line per measured row; gains over the worlds that both rows have."""
    lines = []
    for name, by_world in found.items():
        row = ROWS[name]
        gain = ""
        if row.against in found and (both := sorted(by_world.keys() & found[row.against].keys())):
            gain = str(Summary.of([by_world[s][0] - found[row.against][s][0] for s in both]))
        top1, rate = (Summary.of([pair[i] for pair in by_world.values()]) for i in (0, 1))
        words = " ".join(row.words)
        lines.append((name, str(len(by_world)), str(top1), f"{rate.mean:.2f}", gain, row.against or "", words))
    return lines


ROUTER_HEADS = ("router", "area", "less random (expected)", "t-test p", "sign-flip p", "calibrated less it")


def router_lines(found: Mapping[int, Mapping[str, float]]) -> list[tuple[str, ...]]:
    lines = []
    for name in (*ROUTERS, "chance", "oracle"):
        over = [areas[name] - areas["chance"] for areas in found.values()]
        behind = [areas["calibrated"] - areas[name] for areas in found.values()]
        tests = ("", "") if name == "chance" else (f"{paired_t(over):.4f}", f"{sign_flip(over):.4f}")
        area = str(Summary.of([areas[name] for areas in found.values()]))
        lines.append((name, area, str(Summary.of(over)), *tests, str(Summary.of(behind))))
    return lines


def verdicts(found: Mapping[int, Mapping[str, float]]) -> list[str]:
    """What the routers must show (issue 5)."""
    over = [a["calibrated"] - a["chance"] for a in found.values()]
    lines = [f"calibrated above random: p {paired_t(over):.4f} (paired t over {len(over)} worlds; must be below .01)"]
    for other in ("sare", "gates"):
        behind = float(np.mean([a["calibrated"] - a[other] for a in found.values()]))
        lines.append(f"calibrated less {other}'s score: {behind:+.4f} (must not be below -.01): {'met' if behind >= -0.01 else 'MISSED'}")
    accepted = float(np.mean([a["accepted by sare"] for a in found.values()]))
    lines.append(f"sare at its published threshold answers {accepted:.1%} fast at these shots")
    return lines


def markdown(
    rows: Mapping[str, Mapping[int, tuple[float, float]]],
    found: Mapping[int, Mapping[str, float]],
    rules: Mapping[int, tuple[int, int]],
    *,
    title: str,
) -> str:
    """The page docs/ablation.md."""

    def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines))

    learned = ", ".join(f"{seed}: {accepted} of {proposed}" for seed, (accepted, proposed) in rules.items())
    return (
        "# What each part adds\n\n"
        f"{title} 40 species, 4 shots, 20 test images each; chance is .025.\n"
        "The tiny models are a demonstration: they know rendered birds only, and no species' name, so the rows on names show that.\n"
        "Intervals: bootstrap over worlds, 95 %. Gains are paired by world. Written by `scripts/ablation.py --write-docs`.\n\n"
        f"{table(HEADS, table_lines(rows))}\n\n"
        + (f"Rules accepted of those proposed, by world: {learned}.\n\n" if rules else "")
        + (
            "## Routers\n\nArea under accuracy against slow rate, each router's score swept over the same recorded answers; `chance` is "
            f"the expected random router.\n\n{table(ROUTER_HEADS, router_lines(found))}\n\n" + "".join(f"- {v}\n" for v in verdicts(found))
            if found
            else ""
        )
    )


# --- the command -----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    rows: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in ROWS if name in options.rows}
    routed: dict[int, dict[str, float]] = {}
    rules: dict[int, tuple[int, int]] = {}
    finished = False
    try:
        for seed in options.worlds:
            slow = options.slow is None or seed in options.slow
            # Rules first: they change the base, and a run starts anew when its base has changed.
            if slow and any(ROWS[name].learns for name in rows):
                rules[seed] = learn(seed, options.overrides)
            for name in rows:
                if slow or not ROWS[name].slow:
                    rows[name][seed] = accuracy(seed, ROWS[name], options.overrides)
                    print(f"world {seed}: {name} {rows[name][seed][0]:.3f}, slow {rows[name][seed][1]:.2f}", flush=True)
            if slow and not options.no_routers and ALWAYS in rows:
                routed[seed] = areas(seed, options.overrides)
                print(f"world {seed}: " + ", ".join(f"{name} {area:.4f}" for name, area in routed[seed].items()), flush=True)
        finished = True
    finally:
        rows = {name: by_world for name, by_world in rows.items() if by_world}
        if any(seed in FINAL for seed in options.worlds):
            _note_final_run(options, rows, finished)
    where = f"Worlds {options.worlds[0]}-{options.worlds[-1]}, commit {commit()}."
    if options.json:
        body = {"commit": commit(), "rows": rows, "routers": routed, "rules": rules, "overrides": options.overrides}
        atomic_write(options.json, json.dumps(body, indent=1) + "\n")
    if options.write_docs:
        atomic_write(ROOT / "docs" / "ablation.md", markdown(rows, routed, rules, title=where))
    _show(where, rows, routed)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--worlds", type=_range, metavar="A-B", help="one world or a range, with all rows")
    chosen.add_argument("--full", dest="worlds", action="store_const", const=FINAL, help="all rows on all final worlds, 9050-9069")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=tuple(ROWS), metavar="ROW", help="only these: " + "; ".join(ROWS))
    parser.add_argument("--no-routers", action="store_true", help="leave the routers out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--write-docs", action="store_true", help="write docs/ablation.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides for every run")
    options = parser.parse_args(arguments)
    options.slow = None if options.worlds else FINAL[:5]  # worlds with rows of System 2; None: all
    options.worlds = options.worlds or FINAL
    if any(seed in FORBIDDEN for seed in options.worlds):
        parser.error(f"worlds {FORBIDDEN[0]}-{FORBIDDEN[-1]} are never run; develop on 9000-9049")
    return options


def _show(where: str, rows: Mapping[str, Mapping[int, tuple[float, float]]], routed: Mapping[int, Mapping[str, float]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 170)

    def show(heads: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> None:
        table = Table(*heads, title=title, title_justify="left")
        for line in lines:
            table.add_row(*line)
        console.print(table)

    show(HEADS[:-1], [line[:-1] for line in table_lines(rows)], where)
    if routed:
        show(ROUTER_HEADS, router_lines(routed), "Routers: area under accuracy against slow rate")
        console.print("\n".join(verdicts(routed)), highlight=False)


def _note_final_run(options: argparse.Namespace, rows: Mapping[str, Mapping[int, tuple[float, float]]], finished: bool) -> None:
    """Final worlds are for acceptance only, so each use of them is written down, an interrupted one too."""
    figures = ", ".join(f"{name} {np.mean([pair[0] for pair in by_world.values()]):.3f}" for name, by_world in rows.items())
    ended = "" if finished else " (ended early)"
    line = f"- ablation on final worlds {options.worlds[0]}-{options.worlds[-1]}, commit {commit()}{ended}: {figures}."
    log = ROOT / "docs" / "LOG.md"
    atomic_write(log, logged(log.read_text(encoding="utf-8"), datetime.date.today().isoformat(), line))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fgvr.FgvrError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, fgvr.ConfigError) else 3)
