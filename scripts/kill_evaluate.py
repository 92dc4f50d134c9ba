"""Kill an evaluation with -9 at random moments, then let it finish: the file is the same, and no image is computed twice.

    python scripts/kill_evaluate.py [--kills 5] [--seed 0] [OVERRIDE ...]

Ends with 0 when (a) `predictions.jsonl` equals that of an uninterrupted evaluation, timings apart, and (b) no row was written twice: each
kill leaves whole batches, and the last run adds exactly the rest. Only a batch that was under way at a kill is begun again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kill_build import ROOT, finish, kill, moments


def start(home: Path, data: Path, overrides: list[str]) -> subprocess.Popen[str]:
    words = ["mode=evaluate", "store.enabled=false", "logging=json", f"paths.home={home}", f"dataset.root={data}", *overrides]
    return subprocess.Popen([sys.executable, "discovering.py", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(home: Path) -> list[dict[str, Any]]:
    """What the run has committed, timings apart; [] before there is a run."""
    found = []
    for file in home.glob("runs/evaluate/*/predictions.jsonl"):
        commit = file.with_name(file.name + ".commit")
        whole = int(commit.read_text()) if commit.exists() else 0
        found += [json.loads(line) for line in file.read_bytes()[:whole].splitlines()]
    for row in found:
        del row["cost"]["seconds"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="fgvr-kill-") as folder:
        top = Path(folder)
        report = finish(start(top / "whole", top / "data", args.overrides))
        whole = rows(top / "whole")
        print(f"uninterrupted: {len(whole)} images, {report['cost']['mllm_calls']:.0f} MLLM calls")
        home = top / "killed"
        shutil.copytree(top / "whole" / "knowledge", home / "knowledge")  # only the evaluation is killed
        for number, moment in enumerate(moments(len(whole), args.kills, rng), 1):
            process, before = start(home, top / "data", args.overrides), len(rows(home))
            if not kill(process, lambda: len(rows(home)), max(moment, before + 1), rng.uniform(0, 0.1)):
                print(f"kill {number}: the evaluation had ended by itself")
                return 1
            kept = rows(home)
            print(f"kill {number}: {len(kept)} images are kept, {len(kept) - before} of them new", flush=True)
            if kept != whole[: len(kept)]:
                first = next((ours, theirs) for ours, theirs in zip(kept, whole, strict=False) if ours != theirs)
                print(
                    "what was kept is not how the uninterrupted file begins; the first row that differs:", *map(json.dumps, first), sep="\n"
                )
                return 1
        kept = len(rows(home))
        last = finish(start(home, top / "data", args.overrides))
        ended = rows(home)
        same, once = ended == whole, len({row["image"] for row in ended}) == len(ended)
        print(f"last run: {len(ended) - kept} images; report equal: {last['top1'] == report['top1']}")
        print(f"same file, timings apart: {same}; no image twice in it: {once}; cost of its rows equal: {cost(ended) == cost(whole)}")
        return 0 if same and once and last["top1"] == report["top1"] else 1


def cost(found: list[dict[str, Any]]) -> dict[str, int]:
    """Work of all rows together."""
    return {key: sum(row["cost"][key] for row in found) for key in ("mllm_calls", "encoder_forwards", "prompt_tokens")}


if __name__ == "__main__":
    sys.exit(main())
