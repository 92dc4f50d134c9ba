"""Models larger than the budget together, never larger than it apart: they take turns, and nothing but time is lost.

    python scripts/one_at_a_time.py [--models tiny|random-150m] [--images 60] [--work FOLDER] [--json FILE]

1. `fast_slow` without a limit: the reference. 2. The same with a budget that holds only the largest model and a batch of it: it must
finish, with swaps, the same predictions, a memory record that scripts/check_memory.py passes (complete, within the budget, USS less
base against the ledger within 10 %), and the same answers of a joint matcher that is asked twice. 3. A budget below the largest model:
OutOfBudget within a second and no load. Tiny models do 2 with runtime.max_models=1; they are too small to be told apart from the process
around them, so their USS is not judged.

`random-150m` needs the folders of scripts/make_random_models.py 150m under WORK/models. Every run is a process of its own, as a person
would start it, on a CPU. Ends non-zero when one of these fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from check_memory import judge

from fgvr import load_config, planning
from fgvr.errors import ModelLoadError
from fgvr.modes import runs
from fgvr.runtime.plan import Need, need
from fgvr.runtime.timeline import read
from fgvr.utils.files import atomic_write
from fgvr.utils.text import format_bytes

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("encoder", "mllm", "joint")
CLASSES = 3
# What is shown does not depend on how much is said: few words keep it short on two cores.
BRIEF = [
    "dataset.shots=3",
    "models.description_tokens=8",
    "models.mllm.max_pixels=50176",
    "slow.candidates=2",
    "trigger.target=slow_rate:0.4",
]
BUFFERS = 1 << 20  # bytes; what a model makes as it is built is in no file header (384 bytes of rotary frequencies here)
SECONDS = 1.0  # for a refusal, in the process that is asked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=["tiny", "random-150m"], default="random-150m")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "fgvr-one-at-a-time", help="a home for the runs; models lie below it"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["FGVR_HOME"] = str(args.work)
    world = [
        "dataset=birds",
        f"dataset.genera=[{CLASSES}]",
        f"dataset.test_per_class={-(-args.images // CLASSES)}",
        "dataset.calibration=0",
    ]
    common = [f"models={args.models}", *world, *BRIEF, "store.enabled=false", "run.fresh=true", "runtime.device=cpu"]
    figures = compare(common, tiny=args.models == "tiny")
    figures["models"] = args.models
    for run in ("unlimited", "tight"):
        figures[run].pop("predictions", None)
    print(json.dumps(figures, indent=1))
    if args.json:
        atomic_write(args.json, json.dumps(figures, indent=1) + "\n")
    for failure in figures["failures"]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if figures["failures"] else 0


def compare(common: Sequence[str], *, tiny: bool) -> dict[str, Any]:
    """All three runs; figures and, under `failures`, what did not hold."""
    cfg = load_config("mode=fast_slow", *common)
    needs = _needs(cfg)
    largest = max(n.weights + n.work for n in needs.values()) + BUFFERS
    together = sum(n.weights for n in needs.values()) + max(n.work for n in needs.values())
    heaviest = max(n.weights for n in needs.values())
    tight = ["runtime.max_models=1"] if tiny else [f"runtime.budget={largest}"]
    free, held = child("run", common), child("run", [*common, *tight])
    refused = child("refuse", [*common, f"runtime.budget={heaviest - 1}"])
    failures = [f"{name}: {run['error']}" for name, run in (("unlimited", free), ("tight", held)) if run.get("error")]
    figures: dict[str, Any] = {
        "weights": {role: n.weights for role, n in needs.items()},
        "work": {role: n.work for role, n in needs.items()},
    }
    figures |= {"budget": largest, "together": together, "unlimited": free, "tight": held, "refused": refused, "failures": failures}
    if failures:
        return figures
    if not tiny and together <= largest:
        failures.append(f"the budget of {format_bytes(largest)} holds all models: it proves nothing")
    if free["predictions"] != held["predictions"] or free["matches"] != held["matches"]:
        failures.append("predictions or matches differ from those of the unlimited run")
    if sum(held["loads"].values()) <= sum(free["loads"].values()):
        failures.append(f"no swaps: loads {held['loads']}, unlimited {free['loads']}")
    verdict = judge(read(held["record"]))
    process = [f for f in verdict.failures if not (tiny and f.startswith("process and ledger"))]
    failures += process
    figures["verdict"] = {
        "samples": verdict.samples, "compared": verdict.compared_at_rest + verdict.compared_in_use, "incomplete": verdict.incomplete,
        "over_budget": verdict.over_budget, "worst_at_rest": verdict.worst_at_rest, "worst_in_use": verdict.worst_in_use,
        "peak_ledger": verdict.peak_ledger,
    }  # fmt: skip
    if refused["error"] != "OutOfBudget" or refused["seconds"] > SECONDS or any(refused["loads"].values()) or not refused["advice"]:
        failures.append(f"below the largest model: {refused}")
    return figures


def _needs(cfg: Any) -> dict[str, Need]:
    """Of the models that are here: the joint one may not be shipped in this size."""
    found = {}
    for role in ROLES:
        try:
            found[role] = need(planning.spec(cfg, role))
        except ModelLoadError:
            if role != "joint":
                raise
    return found


# --- one process -------------------------------------------------------------------------------------------------------------


def child(task: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What one process says of its task."""
    command = [sys.executable, __file__, "--task", task, *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=7200, check=False)
    if done.returncode:
        return {"error": done.stderr[-1500:]}
    return json.loads(done.stdout.splitlines()[-1])


def run(overrides: Sequence[str]) -> dict[str, Any]:
    """`fast_slow`, with a joint model asked before and after; its files are kept."""
    from PIL import Image

    from fgvr import modes, shared_pool

    began = time.monotonic()
    cfg = load_config("mode=fast_slow", "logging=quiet", *overrides)
    picture = Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    report = modes.perform(cfg)
    pool = shared_pool()
    matches = []
    for role in ("joint", "encoder", "joint") if "joint" in _needs(cfg) else ("encoder",):
        with pool.lease(role) as model:
            answer = model.match([picture] * 2, ["a bird", "a fish"]) if role == "joint" else model.encode([picture])[0, :4]
        matches += answer.tolist()
    rows = [json.loads(line) for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]
    for row in rows:
        del row["cost"]
    record = report.path / "memory.jsonl"
    kept = report.path.parent / f"{'tight' if cfg.runtime.max_models or cfg.runtime.budget != 'auto' else 'free'}-memory.jsonl"
    kept.write_bytes(record.read_bytes())
    return {
        "seconds": round(time.monotonic() - began, 1), "n": report.n, "slow_rate": report.slow_rate, "loads": dict(pool.loads),
        "peak": pool.status().peak, "record": str(kept), "matches": matches, "predictions": rows,
    }  # fmt: skip


def refuse(overrides: Sequence[str]) -> dict[str, Any]:
    """Ask for the largest model."""
    from fgvr import errors, shared_pool

    cfg = load_config("mode=fast_slow", "logging=quiet", *overrides)
    pool = shared_pool(cfg)
    needs = _needs(cfg)
    largest = max(needs, key=lambda role: needs[role].weights)
    began = time.monotonic()
    try:
        with pool.lease(largest):
            told, advice = "nothing", False
    except errors.OutOfBudget as error:
        told, advice = "OutOfBudget", bool(error.plan and error.plan.advice)
    return {"error": told, "advice": advice, "seconds": round(time.monotonic() - began, 3), "loads": dict(pool.loads)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        print(json.dumps({"run": run, "refuse": refuse}[sys.argv[2]](sys.argv[3:])))
        sys.exit(0)
    sys.exit(main())
