"""Kill the model server with -9 while a sweep of four processes borrows from it, and start it again: the sweep ends, answers are equal.

    python scripts/kill_server.py [--kills 2] [--away 3] [OVERRIDE ...]

Ends with 0 when the server died in the sweep that often, no job failed, and all predictions equal those of one process without a server.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from serving import TRIGGERS, Server, differences, end_clients, finish, predictions, sweep

WORLD = ("dataset.genera=[3,3]", "dataset.test_per_class=12", "dataset.shots=4", "dataset.calibration=1", "evaluation.batch_size=4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--away", type=float, default=3.0, help="seconds the server stays away each time")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    world = [*WORLD, *args.overrides]
    with tempfile.TemporaryDirectory(prefix="fgvr-kill-server-") as folder:
        top = Path(folder)
        finish(sweep(top / "alone", world, "models=tiny"), "the sweep without a server")
        whole = predictions(top / "alone")
        total = sum(map(len, whole.values()))
        server = Server(top / "server", world)
        try:
            server.wait()
            wrong = _interrupted(server, top / "sweep", world, total, args.kills, args.away)
        finally:
            end_clients()
            server.stop()
        wrong += differences(whole, predictions(top / "sweep"))
    print("\n".join(wrong) if wrong else f"{len(whole)} jobs, {total} rows: equal to those of one process without a server")
    return 1 if wrong else 0


def _interrupted(server: Server, home: Path, world: list[str], total: int, kills: int, away: float) -> list[str]:
    remote = ["models=remote", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={len(TRIGGERS)}"]
    sweeping = sweep(home, world, *remote, FGVR_SERVER_URL=server.url)
    wrong = []
    for number in range(1, kills + 1):
        moment = number * total // (kills + 2)
        while _rows(home) < moment and sweeping.poll() is None:
            time.sleep(0.02)
        if sweeping.poll() is not None:
            wrong.append(f"kill {number}: the sweep had ended by itself")
            break
        server.kill()
        print(f"kill {number}: after {_rows(home)} of {total} rows; away for {away:g} s", flush=True)
        time.sleep(away)
        if sweeping.poll() is not None:
            wrong.append(f"kill {number}: the sweep gave up")
            break
        server.restart()
    finish(sweeping, "the sweep")
    return wrong


def _rows(home: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in home.glob("sweeps/*/*/predictions.jsonl"))


if __name__ == "__main__":
    sys.exit(main())
