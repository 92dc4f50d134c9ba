"""A model server as a process of its own, and sweeps as its clients or in one process: for serve_demo.py and kill_server.py."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fgvr.errors import RemoteError  # noqa: E402
from fgvr.utils.service import Service  # noqa: E402

TRIGGERS = ("never", "always", "random", "gates")
TOLERANCE = 1e-3
"""Of a confidence: who shares a batch with whom changes the last bits of a sum, and calibration spreads them."""


_CLIENTS: list[subprocess.Popen[str]] = []


class Server:
    """`fgvr serve` on a port of its own; everything it writes to stderr is kept."""

    def __init__(self, home: Path, words: Sequence[str], port: int | None = None, token: str = "") -> None:
        self.home, self._words = home, list(words)
        self.port = port or free_port()
        self.token = token or secrets.token_urlsafe(16)
        self.said: list[str] = []
        self._start()

    def _start(self) -> None:
        command = ["mode=serve", f"server.port={self.port}", f"paths.home={self.home}", *self._words]
        self.process = subprocess.Popen(
            [sys.executable, "discovering.py", *command],
            cwd=ROOT,
            env=environment(FGVR_ADMIN_TOKEN=self.token),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        if process.stderr is not None:
            with process.stderr as stream:
                for line in stream:
                    self.said.append(line)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Service:
        return Service(self.url, self.token, timeout=60)

    def wait(self, seconds: float = 300) -> float:
        """Until a real lease can be had; the seconds it took. Raises SystemExit with the server's words."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}:\n{''.join(self.said)}")
            try:
                if self.service.get("/health").get("status") == "ok":
                    return time.monotonic() - began
            except RemoteError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"not healthy within {seconds:g} s:\n{''.join(self.said)}")

    def kill(self) -> None:
        """-9, as the kernel kills what needs too much memory."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self._start()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._listener.join(10)


def environment(**more: str) -> dict[str, str]:
    """Of a child: one thread per process where several share a machine."""
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**{k: v for k, v in os.environ.items() if not k.startswith("FGVR_")}, **quiet, **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def client(words: Sequence[str], **more: str) -> subprocess.Popen[str]:
    """A Python process of the checkout."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _CLIENTS.append(process)
    return process


def end_clients() -> None:
    """Those that still run, with their own children: a client whose server is gone would wait for it."""
    for process in _CLIENTS:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process: subprocess.Popen[str], what: str, seconds: float = 900) -> str:
    """Its output. Raises SystemExit with its errors."""
    out, err = process.communicate(timeout=seconds)
    if process.returncode:
        raise SystemExit(f"{what} failed with {process.returncode}:\n{err}")
    return out


def sweep(home: Path, world: Sequence[str], *words: str, **more: str) -> subprocess.Popen[str]:
    """One job per trigger."""
    jobs = ["-m", "mode=evaluate", f"trigger={','.join(TRIGGERS)}", "logging=quiet", f"paths.home={home}", *world, *words]
    return client(["discovering.py", *jobs], **more)


def predictions(home: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each job of the home's sweeps, by number."""
    files = sorted(home.glob("sweeps/*/*/predictions.jsonl"))
    return {file.parent.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def loads(home: Path) -> dict[str, int]:
    """Models the home's jobs loaded themselves, by role."""
    reports = [json.loads(file.read_text())["model_loads"] for file in home.glob("sweeps/*/*/report.json")]
    return {role: sum(found[role] for found in reports) for role in ("mllm", "encoder", "joint")}


def differences(here: dict[str, list[dict[str, Any]]], there: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What two sweeps say differently, in words; confidences within TOLERANCE."""
    if here.keys() != there.keys() or not here:
        return [f"jobs {sorted(here)} against {sorted(there)}"]
    found = []
    for job, rows in here.items():
        others = {row["image"]: row for row in there[job]}
        if {row["image"] for row in rows} != others.keys() or len(rows) != len(others):
            found.append(f"job {job}: other images")
            continue
        found += [f"job {job}, {row['image']}: {text}" for row in rows if (text := differs(row, others[row["image"]]))]
    return found


def differs(row: dict[str, Any], other: dict[str, Any]) -> str:
    """What two rows of the same image say differently; "" = nothing."""
    for key in ("sha256", "prediction", "by"):
        if row[key] != other[key]:
            return f"{key} {row[key]} against {other[key]}"
    near = math.isclose(row["confidence"], other["confidence"], abs_tol=TOLERANCE)
    return "" if near else f"confidence {row['confidence']} against {other['confidence']}"


def table(text: str) -> str:
    return re.sub(r"(?m)^", "  ", text.rstrip())
