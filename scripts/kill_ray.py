"""Kill workers, nodes and the driver of a Ray run with -9 at random moments: the rows and the base are those of an undisturbed process.

    python scripts/kill_ray.py [--kills 10] [--seed 0] [OVERRIDE ...]

A cluster of several nodes in this machine (`ray.cluster_utils.Cluster`) builds a base and evaluates, over and over, until it was killed
that often: an actor, or a whole node, which comes back after a while; the driver twice. Ends with 0 when every run finished with the same
rows, none lost, none twice, and with the same base.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
QUIET = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "OMP_NUM_THREADS": "1",
}
NODES = 2


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "discovering.py", "mode=evaluate", "logging=json", f"paths.home={home}", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=1800)
    if process.returncode:
        raise SystemExit(f"ended with {process.returncode}: {said[-1500:]}")


def rows(home: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for file in home.glob("runs/evaluate/*/predictions.jsonl") for line in file.read_text().splitlines()]
    for row in found:
        del row["cost"]  # what a killed worker had computed is in the store, and counts for nobody
    return found


def bases(home: Path) -> list[str]:
    return [json.loads(file.read_text())["content_hash"] for file in home.glob("knowledge/*/*/manifest.json")]


def actors() -> list[psutil.Process]:
    """Workers of ours that have begun."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may end meanwhile
            found += [process] if (process.cmdline() or [""])[0].startswith("ray::Worker") else []
    return found


class Cluster:
    """A head without a core, and nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as OfRay

        self._cluster = OfRay(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self._add() for _ in range(NODES)]
        self.address = self._cluster.address

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20)

    def kill_node(self, rng: random.Random) -> None:
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)

    def complete(self) -> None:
        while len(self._nodes) < NODES:
            self._nodes.append(self._add())

    def close(self) -> None:
        self._cluster.shutdown()


def disturb(process: subprocess.Popen[str], cluster: Cluster, rng: random.Random, what: str) -> bool:
    """Wait for a worker, then for a random while, then kill. False where the run ended first."""
    while process.poll() is None and not actors():
        time.sleep(0.05)
    moment = time.monotonic() + rng.uniform(0.0, 20.0)
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.02)
    if process.poll() is not None:
        return False
    if what == "driver":
        process.send_signal(signal.SIGKILL)
        process.communicate()
    elif what == "node":
        cluster.kill_node(rng)
    elif there := actors():
        rng.choice(there).send_signal(signal.SIGKILL)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    os.environ |= QUIET | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    words = ["dataset.genera=[3,3]", "dataset.test_per_class=60", "evaluation.batch_size=8", *args.overrides]
    due = ["driver"] * min(2, args.kills) + ["node", "actor"] * args.kills
    due = due[: args.kills]
    rng.shuffle(due)
    with tempfile.TemporaryDirectory(prefix="fgvr-kill-") as folder:
        top = Path(folder)
        os.environ["FGVR_DATA"] = str(top / "data")
        finish(start(top / "whole", *words))
        whole, base = rows(top / "whole"), bases(top / "whole")
        print(f"one process, undisturbed: {len(whole)} rows", flush=True)
        cluster, killed, turn = Cluster(), 0, 0
        try:
            while due:
                turn += 1
                home = top / f"turn{turn}"
                ray = ["engine=ray", f"engine.workers={NODES}", f"engine.address={cluster.address}"]
                process, deaths = start(home, *words, *ray), []
                while due and disturb(process, cluster, rng, due[0]):
                    deaths.append(due.pop(0))
                    if deaths[-1] == "driver":
                        process = start(home, *words, *ray)
                    cluster.complete()
                finish(process)
                killed += len(deaths)
                if rows(home) != whole or bases(home) != base:
                    print(f"turn {turn}, killed {deaths}: {len(rows(home))} rows, and not the same ones")
                    return 1
                print(
                    f"turn {turn}, killed {', '.join(deaths) or 'nobody in time'}: the same {len(whole)} rows and the same base", flush=True
                )
                shutil.rmtree(home)
        finally:
            cluster.close()
    print(f"{killed} kills: no row lost, none twice")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
