"""Is the stress harness worth its name? One-line mistakes are put into copies of the pool's sources; each has to be caught.

    python scripts/mutants.py                 # or: make mutants; the last line is `caught N of N`, exit 1 when one gets away
    python scripts/mutants.py ticket charge   # only those whose name contains one of the words

Each mutant is looked for by the storms of tests/runtime/storm.py (stalls, budget, evicted while leased, double loads, books), or, where a
storm cannot see it by its nature, by the named test of the promise it breaks. The sources as they are must pass both first.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("fgvr", "configs", "tests/__init__.py", "tests/runtime", "pyproject.toml")
SEEDS, PATIENCE = 24, 5  # storms per mutant, at most; seconds without any progress that count as a stall
LIMIT = 150  # seconds for one look


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file`. `test`: the named test that sees it; without one, the storms do."""

    name: str
    file: str
    old: str
    new: str
    test: str = ""


MUTANTS = (
    Mutant(
        "mark drains before taking the ticket",
        "admission.py",
        "        if not nested and (absent or short or blocked) and ask not in self._queue:\n",
        "        if not nested and short: self._drain(ask, short, now)\n"
        "        if not nested and (absent or short or blocked) and ask not in self._queue:\n",
    ),
    Mutant("a ticket is kept after the lease", "admission.py", "            self._queue.remove(ask)\n", "            pass\n"),
    Mutant("a drain mark is kept after the lease", "admission.py", "entry.drain_for, changed = None, True", "changed = True"),
    Mutant(
        "a nested request waits like any other",
        "admission.py",
        "nested = any(grant in self._ledger.grants for grant in ask.own)",
        "nested = False",
    ),
    Mutant("no bytes are reserved before a load", "admission.py", '"loading", entry.size, ask', '"loading", 0, ask'),
    Mutant(
        "what is being loaded counts as there",
        "admission.py",
        'moving = any(e.state in ("loading", "evicting")',
        'moving = any(e.state in ("evicting",)',
    ),
    Mutant(
        "the charge ends when an eviction begins",
        "admission.py",
        'entry.state, entry.mover = "evicting", ask',
        'entry.state, entry.mover, entry.charge = "evicting", ask, 0',
    ),
    Mutant("leased models count as idle", "ledger.py", 'if e.state == "resident" and not e.leases and', 'if e.state == "resident" and'),
    Mutant("working memory of leases is not counted", "ledger.py", "            total += grant.work\n", "            total += 0\n"),
    Mutant(
        "nobody is woken when a lease comes back",
        "leases.py",
        '            self._events.lent("return", grant, now - grant.granted)\n            self._condition.notify_all()\n',
        '            self._events.lent("return", grant, now - grant.granted)\n',
    ),
    Mutant(
        "a failed load keeps its charge",
        "lifecycle.py",
        "entry.state, entry.charge = entry.at_rest, 0\n                if failure",
        "entry.state = entry.at_rest\n                if failure",
    ),
    Mutant(
        "the TTL looks at the time only",
        "lifecycle.py",
        "for e in ledger.idle()}",
        'for e in ledger.entries.values() if e.state == "resident"}',
    ),
    Mutant(
        "a parked model is loaded a second time", "lifecycle.py", "restoring, began = entry.model is not None,", "restoring, began = False,"
    ),
    Mutant(
        "what can never fit is not refused",
        "admission.py",
        "        if needed > ledger.limit:\n",
        "        if False:\n",
        "test_within_budget.py::test_what_can_never_fit_is_refused_at_once_and_evicts_nothing",
    ),
    Mutant(
        "models are built beside computing",
        "lifecycle.py",
        "with CONSTRUCT.write(timeout), self._device.current():",
        "with CONSTRUCT.read(), self._device.current():",
        "test_waiting.py::test_building_a_model_excludes_computing_and_waits_for_it",
    ),
    Mutant(
        "the newest waiter goes first",
        "admission.py",
        "            self._queue.append(ask)\n",
        "            self._queue.appendleft(ask)\n",
        "test_waiting.py::test_capacity_is_given_in_order_of_asking",
    ),
    Mutant(
        "a second look at the clock in one decision",
        "admission.py",
        '(left := ledger.spared_seconds(e, "", now))',
        '(left := ledger.spared_seconds(e, "", time.monotonic()))',
        "test_housekeeping.py::test_the_end_of_a_least_stay_between_two_looks_at_the_clock_is_not_missed",
    ),
    Mutant(
        "a size that worked is forgotten",
        "recovery.py",
        "            entry.sizes[call] = min(",
        "            _ = min(",
        "test_out_of_memory.py::test_memory_that_runs_out_in_use_halves_the_batch_and_the_size_is_remembered",
    ),
)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    began = time.monotonic()
    if (problem := trial(None)) != "":
        print(f"the sources as they are do not pass, so nothing can be said about mutants:\n{problem}")
        return 1
    print(f"the sources as they are pass ({time.monotonic() - began:.0f} s)", flush=True)
    caught = 0
    for mutant in chosen:
        start = time.monotonic()
        seen = trial(mutant)
        caught += bool(seen)
        verdict = f"caught: {seen.splitlines()[0][:110]}" if seen else "NOT CAUGHT"
        print(f"{mutant.name:<48} {time.monotonic() - start:4.0f} s  {verdict}", flush=True)
    print(f"caught {caught} of {len(chosen)}")
    return 0 if caught == len(chosen) else 1


def trial(mutant: Mutant | None) -> str:
    """What was seen to be wrong with a copy of the sources that has this mistake (None: no mistake); empty when nothing was."""
    with tempfile.TemporaryDirectory(prefix="fgvr-mutant-") as folder:
        root = Path(folder)
        copy(root)
        if mutant is not None:
            apply(mutant, root)
        if mutant is None:
            return storms(root) or tests(root, *sorted({m.test for m in MUTANTS if m.test}))
        return tests(root, mutant.test) if mutant.test else storms(root)


def copy(root: Path) -> None:
    for name in COPIED:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        else:
            shutil.copy(source, target)


def apply(mutant: Mutant, root: Path) -> None:
    path = root / "fgvr" / "runtime" / mutant.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        sys.exit(f"{mutant.name}: its text stands {count} times in {mutant.file}, not once; bring scripts/mutants.py up to date")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def storms(root: Path) -> str:
    return look(root, "tests.runtime.storm", str(SEEDS), "--patience", str(PATIENCE), "--stop-at-first", "--quiet")


def tests(root: Path, *names: str) -> str:
    """The named tests; a name that no test has is an error, not a catch."""
    places = [f"tests/runtime/{name}" for name in names]
    answer = look(root, "pytest", "-q", "-x", "-p", "no:cacheprovider", "--show-capture=no", "--tb=line", "--timeout", "60", *places)
    if "not found" in answer or "no tests ran" in answer:
        sys.exit(f"no test is called {', '.join(names)}; bring scripts/mutants.py up to date")
    return answer


def look(root: Path, *command: str) -> str:
    """Runs a module in the copy; its last words when it fails, or empty."""
    try:
        done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in (done.stdout + done.stderr).strip().splitlines() if line.strip()]
    return "\n".join([*lines[-1:], *lines[-20:]]) or f"exit code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
