"""A long test against a short one: `mode=fast_slow` as a command over rendered birds. Memory must not grow with the images, nor speed fall.

Each run has a home of its own, with the knowledge base built before; the pictures are drawn before the clock starts. Peaks are of the
process: resident memory as the system counts it, and what is its own alone (USS), looked at every quarter of a second.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

import fgvr
from benchmarks.measure import ROOT
from benchmarks.race import Races
from fgvr.errors import FgvrError
from fgvr.session import Session

CLASSES = 40
SHORT = 50  # test images per class
MOST = 1.1
PARTS = 4


class Streamed(NamedTuple):
    images: int
    wall: float
    cpu: float
    rss: int  # greatest, bytes
    own: int  # greatest, bytes
    rates: list[float]  # images per second of model time and waiting, by quarter of the run
    decode_share: float
    counts: dict[str, float]


def measure(*, models: str, repeat: int, size: int = 500) -> Races:
    """`size`: test images of each of 40 classes of the long run. `repeat` plays no part: a run of minutes is many batches."""
    with tempfile.TemporaryDirectory(prefix="fgvr-stream-") as folder:
        found = [_run(Path(folder) / str(per_class), models, per_class) for per_class in (SHORT, size)]
    short, long = found
    notes = [
        f"{s.images} images: {s.wall:.0f} s wall, {s.cpu:.0f} s CPU, peak {s.rss / 2**20:.0f} MiB resident, {s.own / 2**20:.0f} its own; "
        f"images/s by quarter {', '.join(f'{r:.1f}' for r in s.rates)}; {s.decode_share:.1%} of the time waiting for decode; "
        + ", ".join(f"{name} {value:g}" for name, value in s.counts.items())
        for s in found
    ]
    rss, own = long.rss / short.rss, long.own / short.own
    verdict = "met" if max(rss, own) <= MOST else "MISSED"
    notes.append(f"peak of the long run over the short one: {rss:.3f} resident, {own:.3f} its own (at most {MOST}): {verdict}")
    return Races(notes=notes, facts={"runs": [s._asdict() for s in found], "rss_ratio": rss, "own_ratio": own})


def _run(home: Path, models: str, per_class: int) -> Streamed:
    home.mkdir(exist_ok=True)
    source = Session(fgvr.load_config()).home / "models"
    if source.exists():
        (home / "models").symlink_to(source.resolve())
    words = [f"paths.home={home}", f"models={models}", f"dataset.test_per_class={per_class}", "logging=quiet"]
    _command([*words, "mode=build_knowledge_base"])
    shutil.rmtree(home / "store")
    wall, cpu, rss, own = _command([*words, "mode=fast_slow"])
    (report,) = (json.loads(file.read_text()) for file in (home / "runs" / "fast_slow").glob("*/report.json"))
    (steps,) = (home / "runs" / "fast_slow").glob("*/metrics.jsonl")
    told = [json.loads(line) for line in steps.read_text().splitlines()][:-1]  # the last one is the report
    images = np.array([0] + [row["step"] for row in told])
    seconds = np.array([0.0] + [row["seconds"] + row["decode_wait"] for row in told])
    borders = [round(i * (len(images) - 1) / PARTS) for i in range(PARTS + 1)]
    rates = (np.diff(images[borders]) / np.diff(seconds[borders])).tolist()
    cost = report["cost"]
    share = cost["decode_wait"] / (cost["seconds"] + cost["decode_wait"])
    counts = {name: int(cost[name]) for name in ("encoder_forwards", "mllm_calls")} | {"top1": round(report["top1"], 4)}
    return Streamed(report["n"], wall, cpu, rss, own, rates, share, counts)


def _command(words: list[str]) -> tuple[float, float, int, int]:
    """(seconds, seconds of the processor, greatest resident bytes, greatest bytes of its own)."""
    began = time.perf_counter()
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([sys.executable, "discovering.py", *words], cwd=ROOT, env=environment, stdout=said, stderr=said)
        process, own = psutil.Process(child.pid), 0
        while (ended := os.wait4(child.pid, os.WNOHANG))[0] == 0:
            own = max(own, process.memory_full_info().uss)
            time.sleep(0.25)
        _, status, usage = ended
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise FgvrError(f"{' '.join(words)} ended with {child.returncode}: {said.read().decode(errors='replace')[-800:]}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, own
