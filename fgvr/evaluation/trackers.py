"""How a run goes, while it goes: `metrics.jsonl` always, and an experiment tracker of your choice through accelerate.

A step is the number of images answered so far. A resumed run drops the steps beyond what was saved and goes on from there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgvr.errors import ConfigError
from fgvr.types import Prediction, Report
from fgvr.utils.files import atomic_write
from fgvr.utils.text import dotted

FILE = "metrics.jsonl"
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Name in `logging=` -> package to install."""
PROJECT = "fgvr"


class Tracker:
    """Counts what a run has answered and tells it to the file and to the tracker."""

    def __init__(self, file: Path, others: Sequence[Any] = ()) -> None:
        self._file, self._others = file, others
        self._images = self._labelled = self._right = self._slow = 0
        self._seconds = self.decode_wait = 0.0
        self.cache_hits = 0

    def resume(self, done: Sequence[Prediction]) -> None:
        """What an earlier, interrupted run has answered; its steps stay in the file, later ones go."""
        self._count(done)
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True) if self._file.exists() else []
        rows = [(line, json.loads(line)) for line in lines if line.endswith("\n")]  # the last one may be half written
        kept = [(line, row) for line, row in rows if row["step"] <= self._images and "final/top1" not in row]
        last = kept[-1][1] if kept else {}
        self.decode_wait, self.cache_hits = last.get("decode_wait", 0.0), last.get("cache_hits", 0)
        atomic_write(self._file, "".join(line for line, _ in kept))

    def batch(self, predictions: Sequence[Prediction]) -> None:
        """Running figures after one more batch; one without a readable image adds nothing to them."""
        if not predictions:
            return
        self._count(predictions)
        values = {"slow_rate": self._slow / self._images, "seconds": round(self._seconds, 3), "decode_wait": round(self.decode_wait, 3)}
        values["cache_hits"] = self.cache_hits
        if self._labelled:
            values["top1"] = self._right / self._labelled
        self._tell(values)

    def finish(self, report: Report) -> None:
        """The report's own figures."""
        nested = {"protocol": report.protocols, "cost": report.cost, "asked": report.asked, "model_loads": report.model_loads}
        flat = {f"{kind}/{name}": float(value) for kind, values in nested.items() for name, value in values.items()}
        counts = {name: float(getattr(report, name)) for name in ("top1", "macro", "slow_rate", "fixed", "broken", "peak_device_bytes")}
        self._tell({f"final/{name}": value for name, value in {**counts, **flat}.items()})

    def _count(self, predictions: Sequence[Prediction]) -> None:
        for p in predictions:
            self._images += 1
            self._labelled += p.label is not None
            self._right += bool(p.correct)
            self._slow += p.decision.escalate
            self._seconds += p.cost.seconds
            self.decode_wait += p.cost.decode_wait
            self.cache_hits += p.cost.cache_hits

    def _tell(self, values: Mapping[str, float]) -> None:
        with open(self._file, "a", encoding="utf-8") as rows:
            rows.write(json.dumps({"step": self._images, **values}) + "\n")
        for other in self._others:
            other.log(dict(values), step=self._images)


@contextmanager
def tracked(name: str | None, folder: Path, run: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """A tracker for the length of a run. Raises ConfigError when its package is not installed or it cannot be reached."""
    if name is None:
        yield Tracker(folder / FILE)
        return
    other = _start(name, folder, run)
    try:
        values = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in dotted(config).items()}
        other.store_init_configuration(values)
        yield Tracker(folder / FILE, [other])
    finally:
        other.finish()


def _start(name: str, folder: Path, run: str) -> Any:
    from accelerate import tracking  # imports torch

    kind = tracking.LOGGER_TYPE_TO_CLASS[name]
    where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
    options = {"mlflow": {"experiment_name": PROJECT, "run_name": run}, "tensorboard": {"run_name": name}}.get(name, {"run_name": PROJECT})
    if name == "wandb":
        options["name"] = run
    try:
        tracker = kind(**options, **where)
        tracker.start()
    except ImportError as error:
        raise ConfigError(f"logging={name}: {error}; pip install {TRACKERS[name]}, or logging=default") from error
    return tracker
