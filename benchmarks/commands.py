"""Commands as a person starts them: a process of their own, its seconds and what it printed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import ROOT


class Ran(NamedTuple):
    wall: float
    cpu: float  # seconds of all its threads and children
    code: int
    out: str
    err: str


def run(*words: str, home: Path | None = None) -> Ran:
    """`python WORDS` in the checkout."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | ({"FGVR_HOME": str(home)} if home else {})
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    answer = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Ran(wall, cpu, answer.returncode, answer.stdout, answer.stderr)
