"""Comparison of runs: what differs on the same images, whether it is more than chance, and which images flipped.

Runs are paired by image content, so a difference is never one of test sets. Several runs get one row each, and means over seeds where
they differ in nothing else.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.errors import ConfigError, DatasetError, StoreError
from fgvr.evaluation import metrics, records, uncertainty
from fgvr.evaluation.uncertainty import Interval
from fgvr.types import Prediction
from fgvr.utils.files import canonical_json, read_json
from fgvr.utils.text import dotted

_DRAWS = {"seed": "seed", "dataset.split_seed": "split", "dataset.seed": "world", "trigger.seed": "trigger"}
"""Keys that make another draw of the same thing, and how each is shown. A trigger's seed follows `seed` unless it was given."""
_SHOWN = 10  # rows of a long table on the terminal; the JSON has all


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A finished evaluation, read from its folder."""

    path: Path
    report: Mapping[str, Any]
    settings: Mapping[str, Any]  # by dotted key
    predictions: tuple[Prediction, ...]

    @property
    def name(self) -> str:
        return "/".join(self.path.parts[-2:])

    @property
    def seed(self) -> str:
        """Everything that makes another draw: the seed, which shots, which world."""
        given = {name: self.settings.get(key) for key, name in _DRAWS.items()}
        if given["trigger"] == given["seed"]:
            del given["trigger"]
        return " ".join(f"{name} {value}" for name, value in given.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Row:
    """One run in a table of many."""

    run: str
    trigger: str
    shots: int | Literal["all"] | None
    seed: str
    n: int
    top1: float
    interval: Interval
    slow_rate: float
    mllm_calls_asked: float | None  # remembered or not; None in reports of an earlier version
    mllm_calls_computed: float  # in that run; the store remembered the others
    best: bool  # the highest top-1 of the table


@dataclass(frozen=True, slots=True)
class Cell:
    """Runs that differ in their seeds alone."""

    trigger: str
    shots: int | Literal["all"] | None
    settings: str  # what else tells it from the other cells, such as `trigger.target=slow_rate:0.2`
    seeds: int  # different ones
    mean: float  # over the means of each seed
    interval: Interval | None  # Student's t over seeds; None with a single one


@dataclass(frozen=True, slots=True)
class Flip:
    """An image that two runs answer differently."""

    image: str
    label: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Run b against run a on the images both have."""

    a: str
    b: str
    n: int
    left_out: int  # images only one of them has
    top1: tuple[float, float]
    gain: float  # top-1 of b less that of a
    image_bootstrap: Interval  # of the gain, paired: these classes
    class_bootstrap: Interval  # of the gain, paired: new classes of this kind
    only_a: int  # right in a alone
    only_b: int
    mcnemar: float  # exact two-sided p
    classes: tuple[tuple[str, int, float, float], ...]  # (class id, images, accuracy in a, in b), greatest change first
    pairs: tuple[tuple[str, str, int, int], ...]  # (truth, answer, times in a, in b), greatest change first
    flips: tuple[Flip, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `mode=compare` has found."""

    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]  # each against the first run; none for a sweep
    names: Mapping[str, str]


def compare(paths: Sequence[Path]) -> Comparison:
    """Runs against the first one, or the jobs of one sweep folder beside each other."""
    sweep = len(paths) == 1
    runs = [read_run(folder) for folder in (_jobs(paths[0]) if sweep else paths)]
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError("runs: one run is given twice")
    names = {category: name for run in runs for category, name in run.report["classes"].items()}
    rows = _rows(runs)
    return Comparison(rows, _cells(runs, rows), () if sweep else tuple(difference(runs[0], other) for other in runs[1:]), names)


def read_run(path: Path) -> Run:
    """A run's folder, or a file in it."""
    folder = _folder(path)
    if not (folder / "report.json").exists():
        raise StoreError(f"{folder} holds no finished evaluation (report.json); give the folder of a run, or finish it with its command")
    report = read_json(folder / "report.json")
    config = folder / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    predictions = records.read(folder / "predictions.jsonl", report["classes"])
    return Run(folder, report, dotted(settings), tuple(p for p in predictions if p.label is not None))


def difference(a: Run, b: Run) -> Difference:
    """Paired by content and label; runs without a common image are a DatasetError."""
    theirs = {(p.sha256, p.label): p for p in b.predictions}
    pairs = [(p, theirs[p.sha256, p.label]) for p in a.predictions if (p.sha256, p.label) in theirs]
    if not pairs:
        raise DatasetError(f"{a.name} and {b.name} have no image in common: they cannot be compared")
    labels = np.array([str(p.label) for p, _ in pairs])
    answers = np.array([p.category for p, _ in pairs]), np.array([q.category for _, q in pairs])
    right = answers[0] == labels, answers[1] == labels
    gains = right[1].astype(float) - right[0].astype(float)
    scores = [metrics.per_class(labels, r) for r in right]
    classes = [(x.category, x.n, x.accuracy, y.accuracy) for x, y in zip(*scores, strict=True)]
    times = [Counter({(c.truth, c.answer): c.count for c in metrics.confusions(labels, given)}) for given in answers]
    confused = [(*pair, times[0][pair], times[1][pair]) for pair in sorted(set(times[0]) | set(times[1]))]
    return Difference(
        a=a.name,
        b=b.name,
        n=len(pairs),
        left_out=len(a.predictions) + len(b.predictions) - 2 * len(pairs),
        top1=(metrics.accuracy(right[0]), metrics.accuracy(right[1])),
        gain=float(gains.mean()),
        image_bootstrap=uncertainty.image_bootstrap(gains),
        class_bootstrap=uncertainty.class_bootstrap(gains, labels),
        only_a=int((gains < 0).sum()),
        only_b=int((gains > 0).sum()),
        mcnemar=uncertainty.mcnemar(*right),
        classes=tuple(sorted(classes, key=lambda c: (-abs(c[3] - c[2]), c[0]))),
        pairs=tuple(sorted(confused, key=lambda c: (-abs(c[3] - c[2]), c[0], c[1]))),
        flips=tuple(Flip(p.image, str(p.label), p.category, q.category) for p, q in pairs if p.category != q.category),
    )


def _folder(path: Path) -> Path:
    """What a user names: a folder, or a file in it."""
    if not path.exists():
        raise StoreError(f"runs: {path} does not exist; give the folders of two runs, or of one sweep")
    if path.is_file() and not (path.parent / "report.json").exists():
        raise StoreError(f"runs: {path} is a file, and no report.json lies beside it; give the folder of a run")
    return path.parent if path.is_file() else path


def _jobs(path: Path) -> list[Path]:
    folder = _folder(path)
    if (folder / "report.json").exists():
        raise ConfigError(f"runs: {folder} is one run; give the one to compare it with as well: runs=[{folder},ANOTHER]")
    jobs = sorted((f.parent for f in folder.glob("*/report.json")), key=lambda f: (len(f.name), f.name))
    if not jobs:
        raise ConfigError(f"runs: {folder} is no sweep with finished jobs; give two runs, or a folder below sweeps/")
    return jobs


def _rows(runs: Sequence[Run]) -> tuple[Row, ...]:
    best = max(run.report["top1"] for run in runs)
    return tuple(
        Row(
            run=run.name,
            trigger=run.report["trigger"],
            shots=run.settings.get("dataset.shots"),
            seed=run.seed,
            n=run.report["n"],
            top1=run.report["top1"],
            interval=(run.report["top1_interval"][0], run.report["top1_interval"][1]),
            slow_rate=run.report["slow_rate"],
            mllm_calls_asked=(run.report.get("asked") or {}).get("mllm_calls"),
            mllm_calls_computed=run.report["cost"]["mllm_calls"],
            best=run.report["top1"] == best,
        )
        for run in runs
    )


def _cells(runs: Sequence[Run], rows: Sequence[Row]) -> tuple[Cell, ...]:
    """Means over seeds, where some settings were run with several."""
    varied = _varied(runs)
    groups: dict[str, list[tuple[Run, Row]]] = defaultdict(list)
    for run, row in zip(runs, rows, strict=True):
        groups[canonical_json([row.trigger, {key: value for key, value in run.settings.items() if key not in _DRAWS}])].append((run, row))
    cells = [_cell(group, varied) for group in groups.values()]
    if all(cell.seeds == 1 for cell in cells):
        return ()
    return tuple(sorted(cells, key=lambda c: (c.trigger, math.inf if c.shots == "all" else c.shots or 0)))


def _cell(group: Sequence[tuple[Run, Row]], varied: Sequence[str]) -> Cell:
    run, row = group[0]
    top1: dict[str, list[float]] = defaultdict(list)
    for _, one in group:
        top1[one.seed].append(one.top1)
    means = np.array([np.mean(same) for same in top1.values()])
    told = ", ".join(f"{key}={run.settings[key]}" for key in varied)
    interval = uncertainty.t_interval(means) if len(means) > 1 else None
    return Cell(row.trigger, row.shots, told, len(means), float(means.mean()), interval)


def _varied(runs: Sequence[Run]) -> list[str]:
    """Settings that all runs have and not all alike, less what a cell tells anyway."""
    first, *others = (run.settings for run in runs)
    shared = [key for key in first if all(key in other for other in others)]
    known = (*_DRAWS, "dataset.shots", "trigger.shots", "trigger._target_", "pinned_trigger")
    return [key for key in shared if key not in known and any(other[key] != first[key] for other in others)]


# --- for people and for machines ---------------------------------------------------------------------------------------------


def tables(found: Comparison) -> list[RenderableType]:
    """The runs, the means over seeds, then what differs from the first run."""
    shown: list[RenderableType] = [_table_of_runs(found.rows)]
    if found.cells:
        varied = ["settings"] if any(c.settings for c in found.cells) else []
        heads = ("trigger", "shots", *varied, "seeds", "mean top-1", "95 % t-interval over seeds")
        table = Table(*heads, title="over seeds", title_justify="left")
        for c in found.cells:
            bounds = "one seed only" if c.interval is None else _interval(c.interval)
            table.add_row(c.trigger, str(c.shots), *([c.settings] if varied else []), str(c.seeds), f"{c.mean:.3f}", bounds)
        shown.append(table)
    for d in found.differences:
        shown += _differences(d, found.names)
    return shown


def _table_of_runs(rows: Sequence[Row]) -> Table:
    table = Table("run", "trigger", "shots", "draw", "n", "top-1", "95 % (images)", "escalated", "MLLM calls asked", "computed")
    for r in rows:
        cells = (str(r.shots), r.seed, str(r.n), f"{r.top1:.3f}{' *' if r.best else ''}", _interval(r.interval), f"{r.slow_rate:.1%}")
        asked = "not recorded" if r.mllm_calls_asked is None else f"{r.mllm_calls_asked:,.0f}"
        table.add_row(r.run, r.trigger, *cells, asked, f"{r.mllm_calls_computed:,.0f}", style="bold" if r.best else "")
    table.caption, table.caption_justify = "* best top-1 accuracy", "left"
    return table


def _differences(d: Difference, names: Mapping[str, str]) -> list[RenderableType]:
    def named(category: str) -> str:
        return names.get(category, category)

    facts = Table(title=f"{d.b} against {d.a}, {d.n} images", title_justify="left", show_header=False)
    facts.add_row("top-1 accuracy", f"{d.top1[0]:.3f} -> {d.top1[1]:.3f}  ({d.gain:+.3f})")
    facts.add_row("95 % of the gain: images / classes", f"{_interval(d.image_bootstrap)} / {_interval(d.class_bootstrap)}")
    facts.add_row("right in one alone", f"{d.only_a} in the first, {d.only_b} in the second")
    facts.add_row("McNemar, exact p", f"{d.mcnemar:.4g}")
    facts.add_row("answered differently", f"{len(d.flips)}")
    if d.left_out:
        facts.add_row("images only one of them has", f"{d.left_out} (left out)")
    classes = Table("class", "images", "first", "second", title="classes that changed most", title_justify="left")
    for category, n, a, b in [c for c in d.classes if c[2] != c[3]][:_SHOWN]:
        classes.add_row(named(category), str(n), f"{a:.2f}", f"{b:.2f}")
    pairs = Table("truth", "taken for", "first", "second", title="confusions that changed most", title_justify="left")
    for truth, answer, a, b in [c for c in d.pairs if c[2] != c[3]][:_SHOWN]:
        pairs.add_row(named(truth), named(answer), str(a), str(b))
    flips = [Text(f"{f.image}: {named(f.a)} -> {named(f.b)} (is {named(f.label)})") for f in d.flips[:_SHOWN]]
    more = [Text(f"and {len(d.flips) - _SHOWN} more (logging=json lists all)")] if len(d.flips) > _SHOWN else []
    return [facts, classes, pairs, *flips, *more]


def _interval(bounds: Interval) -> str:
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"
