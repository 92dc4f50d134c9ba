"""Two Ray workers against one, and one against the plain loop: one thread each, in turns, on the same images; rows compared.

Whole commands as a person starts them, the start of the cluster and the loading of models included; the base is built before, and the look
for copies remembered. Then what an image costs outside the models, stage by stage: the figures of docs/scale.md.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fgvr
from benchmarks.commands import run
from benchmarks.measure import Series
from benchmarks.race import Races
from fgvr.data.near_duplicates import perceptual_hash
from fgvr.errors import FgvrError
from fgvr.evaluation import records
from fgvr.scale.worker import Answered
from fgvr.session import Session
from fgvr.store.journal import RunFile
from fgvr.types import Sample
from fgvr.utils.images import read_image
from fgvr.utils.paths import examples_dir

LEAST, MOST = 1.7, 1.15  # speed-up of two workers; one worker against the plain loop
IMAGES, SPECIES = 2000, 40
WAYS = {"plain loop": (), "one worker": ("engine=ray", "engine.workers=1"), "two workers": ("engine=ray", "engine.workers=2")}


@dataclass(frozen=True, slots=True)
class _Turn:
    """One command: its wall seconds, its rows without their costs, its report."""

    seconds: float
    answers: list[dict[str, Any]]
    report: dict[str, Any]
    file: Path


def measure(*, models: str, repeat: int, size: int = 0) -> Races:
    """`size`: test images; 0: 2,000."""
    each = max(1, (size or IMAGES) // SPECIES)
    common = [f"dataset.test_per_class={each}", "trigger=never", "slow=none", "logging=quiet"]
    words = [f"models={models}", "models/mllm=none", *common]
    os.environ["OMP_NUM_THREADS"] = "1"
    taken: dict[str, list[_Turn]] = {name: [] for name in WAYS}
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        base, source = Path(folder) / "base", Session(fgvr.load_config()).home / "models"
        base.mkdir()
        if source.exists():
            (base / "models").symlink_to(source.resolve())
        os.environ["FGVR_DATA"] = str(Path(folder) / "data")
        _evaluate(base, "models=fake", *common)  # draws the pictures and looks for copies
        _run(base, "mode=build_knowledge_base", *words)
        shutil.rmtree(base / "runs")
        for turn in range(repeat):
            for name, engine in WAYS.items():
                home = Path(folder) / f"{name} {turn}"
                shutil.copytree(base, home, symlinks=True)
                taken[name].append(_evaluate(home, *words, *engine))
            told = ", ".join(f"{name} {turns[-1].seconds:.1f} s" for name, turns in taken.items())
            notes.append(f"turn {turn + 1}, whole commands: {told}")
        last = taken["plain loop"][-1]
        stages = {"encoder and retrieval": last.report["cost"]["seconds"] / len(last.answers)} | _stages(last.file, Path(folder))
    same = all(one.answers == last.answers for turns in taken.values() for one in turns)
    faster, more = _ratios(taken["one worker"], taken["two workers"]), _ratios(taken["one worker"], taken["plain loop"])
    notes += [
        f"two workers against one: {faster:.2f} x as fast (at least {LEAST})",
        f"one worker against the plain loop: {more:.2f} x the time (at most {MOST})",
        f"rows are {'the same' if same else 'NOT THE SAME'} in {3 * repeat} runs of {SPECIES * each:,} images",
        *(f"  {name:<44} {1e6 * seconds:10.1f} us per image" for name, seconds in stages.items()),
    ]
    return Races(notes=notes, facts={"faster": faster.summary(), "more": more.summary(), "same": same, "stages": stages})


def _ratios(above: list[_Turn], below: list[_Turn]) -> Series:
    return Series.of([one.seconds / other.seconds for one, other in zip(above, below, strict=True)])


def _run(home: Path, *words: str) -> float:
    ran = run("discovering.py", f"paths.home={home}", *words, home=home)
    if ran.code:
        raise FgvrError(f"{' '.join(words)} ended with {ran.code}: {ran.err[-800:]}")
    return ran.wall


def _evaluate(home: Path, *words: str) -> _Turn:
    seconds = _run(home, "mode=evaluate", *words)
    (file,) = (home / "runs" / "evaluate").glob("*/predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    answers = [{key: value for key, value in row.items() if key != "cost"} for row in rows]
    return _Turn(seconds, answers, json.loads(file.with_name("report.json").read_text()), file)


def _stages(file: Path, folder: Path) -> dict[str, float]:
    """Seconds of the processor per image outside the models: of a worker (decoding, looking for copies), then of the driver."""
    predictions = records.read(file)[:128]
    answered = Answered([replace(prediction, names={}) for prediction in predictions], [])
    samples = [Sample(Path("/data/test") / p.image, p.image, p.label, p.sha256) for p in predictions]
    photos = sorted(examples_dir().rglob("*.jpg"))[:32]
    opened = [read_image(photo)[0] for photo in photos]
    sent, received = pickle.dumps(samples, 5), pickle.dumps(answered, 5)
    with RunFile(folder / "stages.jsonl") as journal:
        found = {
            f"decode a photograph ({opened[0].width} x {opened[0].height})": _seconds(lambda: [read_image(p) for p in photos], len(photos)),
            "look for copies (after decoding)": _seconds(lambda: [perceptual_hash(image) for image in opened], len(opened)),
            f"driver: send a sample ({len(sent) // len(samples)} bytes)": _seconds(lambda: pickle.dumps(samples, 5), len(samples)),
            f"driver: receive an answer ({len(received) // len(predictions)} bytes)": _seconds(
                lambda: pickle.loads(received), len(predictions)
            ),
            "driver: a row, written and synced by 128": _seconds(
                lambda: journal.append([records.to_row(prediction) for prediction in predictions]), len(predictions)
            ),
        }
    return found


def _seconds(work: Callable[[], object], items: int, times: int = 5) -> float:
    """Of the processor per item, the least of some tries."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken) / items
