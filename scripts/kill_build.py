"""Kill a knowledge-base build with -9 at random moments, then let it finish: nothing is lost, nothing is done twice.

    python scripts/kill_build.py [--kills 5] [--seed 0] [OVERRIDE ...]

Ends with 0 when (a) the base's content hash equals that of an uninterrupted build in another home, and (b) the work of the last run
plus what its journal already held is exactly the work of the uninterrupted build.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(home: Path, data: Path, overrides: list[str]) -> subprocess.Popen[str]:
    words = ["mode=build_knowledge_base", "store.enabled=false", "logging=json", f"paths.home={home}", f"dataset.root={data}", *overrides]
    return subprocess.Popen([sys.executable, "discovering.py", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"the build failed with {process.returncode}:\n{err}")
    return json.loads(out.splitlines()[-1])


def kill(process: subprocess.Popen[str], far: Callable[[], int], enough: int, pause: float) -> bool:
    """kill -9 `pause` seconds after `far()` has reached `enough`; False when the process ended by itself before."""
    while far() < enough and process.poll() is None:
        time.sleep(0.02)
    time.sleep(pause)
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return True


def moments(total: int, kills: int, rng: random.Random) -> list[int]:
    """One per stretch of the first nine tenths, so that each kill comes before the end and after the one before it."""
    stretch = 0.9 * total / kills
    return [max(1, int((i + rng.random()) * stretch)) for i in range(kills)]


def remembered(home: Path) -> int:
    """Entries in the journal of the unfinished build; 0 before there is one."""
    for journal in home.glob("knowledge/*/*.partial/journal.sqlite"):
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
            tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
            return database.execute(f"select count(*) from {tables[0]}").fetchone()[0] if tables else 0
    return 0


def work(summary: dict) -> int:
    """Journal entries this work makes: one per image, text, description and score, and one for the encoder's temperature."""
    done = summary["work"]
    return done["encoder_forwards"] + done["text_forwards"] + done["mllm_calls"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="fgvr-kill-") as folder:
        top = Path(folder)
        finish(start(top / "warm", top / "data", args.overrides))  # draws the dataset, so that only builds are timed
        whole = finish(start(top / "whole", top / "data", args.overrides))
        print(f"uninterrupted: {work(whole)} pieces of model work, content {whole['content_hash'][:12]}")
        home = top / "killed"
        kept = 0
        # Moments spread over the work itself: when so many entries are there, and a little later.
        for number, moment in enumerate(moments(work(whole), args.kills, rng), 1):
            process = start(home, top / "data", args.overrides)
            if not kill(process, lambda: remembered(home), moment, rng.uniform(0, 0.3)):
                print(f"kill {number}: the build had ended by itself")
                break
            kept, before = remembered(home), kept
            print(f"kill {number}: the journal holds {kept} entries, {kept - before} of them new", flush=True)
        last = finish(start(home, top / "data", args.overrides))
        print(f"last run: {work(last)} pieces of work, content {last['content_hash'][:12]}")
        same = last["content_hash"] == whole["content_hash"]
        # The encoder's temperature is one entry that is no forward; it is there once the first image has been encoded.
        nothing_twice = work(last) + kept in (work(whole), work(whole) + 1)
        print(f"same content: {same}; nothing done twice, nothing lost: {nothing_twice}")
        return 0 if same and nothing_twice else 1


if __name__ == "__main__":
    sys.exit(main())
