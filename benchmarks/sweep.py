"""Twenty jobs that change only the trigger, against one job that computes all they need together; and the same command a second time.

Commands as a person starts them, each from an empty store, with the knowledge base built before. The last job escalates what any of the
others does, so it is the union; this is checked from what the jobs recorded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fgvr
from benchmarks.commands import Ran, run
from benchmarks.measure import Series
from benchmarks.race import Races
from fgvr.errors import FgvrError
from fgvr.session import Session

JOBS = 20
LARGEST = 0.6
MOST = 1.5


def measure(*, models: str, repeat: int, size: int = 0) -> Races:
    """`size`: test images of each of 40 species; 0: with the tiny models all there are, 20, with larger ones 2."""
    size = size or (20 if models == "tiny" else 2)
    settings = [f"slow_rate:{LARGEST * (i + 1) / JOBS:.2f}" for i in range(JOBS)]
    common = [f"models={models}", f"dataset.test_per_class={size}", "logging=quiet"]
    notes: list[str] = []
    ratios, again, counted = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = Session(fgvr.load_config()).home / "models"
        base = root / "base"
        base.mkdir()
        if source.exists():
            (base / "models").symlink_to(source.resolve())
        _command(base, "mode=build_knowledge_base", *common)
        shutil.rmtree(base / "store")
        for i in range(repeat):
            one, many = (shutil.copytree(base, root / f"{name}{i}", symlinks=True) for name in ("one", "many"))
            first = _command(one, "mode=evaluate", f"trigger.target={settings[-1]}", *common)
            second = _command(one, "mode=evaluate", f"trigger.target={settings[-1]}", "run.fresh=true", *common)
            sweep = _command(many, "-m", "mode=evaluate", f"trigger.target={','.join(settings)}", *common)
            ratios.append(sweep.cpu / first.cpu)
            again.append(first.cpu / second.cpu)
            counted = _counted(many)
            one_job = f"one job {first.cpu:.1f} s CPU ({first.wall:.1f} wall), again {second.cpu:.1f}"
            notes.append(f"turn {i + 1}: {one_job}, {JOBS} jobs {sweep.cpu:.1f} ({sweep.wall:.1f} wall)")
            shutil.rmtree(one), shutil.rmtree(many)
    ratio = Series.of(ratios)
    notes += [
        f"{JOBS} jobs take {ratio:.2f} x the one that computes their union (at most {MOST}), start and reports included",
        f"the same command again, from the store: {Series.of(again):.1f} x faster, start of the process and report included",
        "work of the sweep: " + ", ".join(f"{name} {value}" for name, value in counted.items()),
    ]
    return Races(notes=notes, facts={"ratio": ratio.summary(), "counted": counted})


def _command(home: Path, *words: str) -> Ran:
    ran = run("discovering.py", f"paths.home={home}", *words, home=home)
    if ran.code:
        raise FgvrError(f"{' '.join(words)} ended with {ran.code}: {ran.err[-800:]}")
    return ran


def _counted(home: Path) -> dict[str, Any]:
    """Work of all jobs together, beside what there was to do."""
    jobs = sorted((home / "sweeps").glob("*/*/report.json"), key=lambda file: int(file.parent.name))
    reports = [json.loads(file.read_text()) for file in jobs]
    rows = [[json.loads(line) for line in file.with_name("predictions.jsonl").read_text().splitlines()] for file in jobs]
    return {
        "jobs": len(jobs),
        "encoder_forwards": sum(r["cost"]["encoder_forwards"] for r in reports),
        "distinct_images": len({row["sha256"] for job in rows for row in job}),
        "mllm_calls": sum(r["cost"]["mllm_calls"] for r in reports),
        "escalated_by_any": len({row["sha256"] for job in rows for row in job if row["decision"]["escalate"]}),
        "escalated_by_last": sum(row["decision"]["escalate"] for row in rows[-1]),
        "loads": reports[-1]["model_loads"],
    }
