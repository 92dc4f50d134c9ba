"""Does a run's memory record keep its promises? python scripts/check_memory.py RUN/memory.jsonl

Complete: every sample has ledger, storages and USS. Within the budget: every sample and every event. True: the process holds beyond its
base (USS before the first load, with libraries and tokenizers) what the ledger says, within a tolerance. While leases run, the ledger holds
the weights and room for working memory, so the process must lie between the weights and the ledger; at rest the two are one. Samples taken
while a model was on its way in or out are not compared: its bytes are reserved before they are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from fgvr.errors import FgvrError
from fgvr.runtime import timeline
from fgvr.runtime.timeline import MemorySample, Timeline
from fgvr.utils.text import format_bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of samples and bytes. Deviations are shares of the ledger; `_of_limit`: of the budget."""

    samples: int
    events: int
    incomplete: int
    over_budget: int
    compared_at_rest: int
    compared_in_use: int
    moving: int  # not compared
    before_the_first_load: int  # nothing to compare
    base: int | None
    peak_ledger: int
    limit: int
    worst_at_rest: float
    median_at_rest: float
    worst_in_use: float
    worst_of_limit: float
    storages_differ: int  # samples at rest whose storages are not the ledger's weights within 1 %
    tolerance: float
    of: str  # ledger or budget: what the tolerance is a share of

    @property
    def failures(self) -> list[str]:
        """In words; none when all is well."""
        found = []
        if not self.compared_at_rest + self.compared_in_use:
            found.append("no sample could be compared: no model was ever at rest or in use while one was taken")
        if self.incomplete:
            found.append(f"{self.incomplete} samples lack the ledger, the storages or the USS")
        if self.over_budget:
            found.append(f"{self.over_budget} samples or events over the budget")
        if self.storages_differ:
            found.append(f"{self.storages_differ} samples at rest with storages that are not the ledger's weights")
        worst = self.worst_of_limit if self.of == "budget" else max(self.worst_at_rest, self.worst_in_use)
        if worst > self.tolerance:
            found.append(f"process and ledger differ by {worst:.1%} of the {self.of}, more than {self.tolerance:.0%}")
        return found


def judge(record: Timeline, *, tolerance: float = 0.10, of: str = "ledger") -> Verdict:
    samples = record.samples
    events = [event for session in record.sessions for event in session.events]
    known = [s for s in samples if s.uss is not None and s.base_uss is not None and s.weights and not s.moving]
    rest, use = [s for s in known if s.settled], [s for s in known if not s.settled]
    at_rest = sorted(_beyond(s) / s.ledger for s in rest)
    in_use = [_beyond(s) / s.ledger for s in use]
    return Verdict(
        samples=len(samples),
        events=len(events),
        incomplete=sum(s.uss is None for s in samples),
        over_budget=sum(s.ledger > s.limit for s in samples) + sum(e.used > e.limit > 0 for e in events),
        compared_at_rest=len(rest),
        compared_in_use=len(use),
        moving=sum(s.moving for s in samples),
        before_the_first_load=sum(not s.weights or s.base_uss is None for s in samples if not s.moving),
        base=next((s.base_uss for s in reversed(samples) if s.base_uss is not None), None),
        peak_ledger=max([0, *(s.ledger for s in samples), *(e.used for e in events)]),
        limit=max((s.limit for s in samples), default=0),
        worst_at_rest=max(at_rest, default=0.0),
        median_at_rest=at_rest[len(at_rest) // 2] if at_rest else 0.0,
        worst_in_use=max(in_use, default=0.0),
        worst_of_limit=max((_beyond(s) / s.limit for s in known), default=0.0),
        storages_differ=sum(abs(s.storage_bytes - s.weights_bytes) > 0.01 * s.weights_bytes for s in rest),
        tolerance=tolerance,
        of=of,
    )


def _beyond(sample: MemorySample) -> int:
    """Bytes by which the process lies outside what the ledger says it holds: the weights, and at most its working memory."""
    held = (sample.uss or 0) - (sample.base_uss or 0)
    return max(sample.weights_bytes - held, held - sample.ledger, 0)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python scripts/check_memory.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("records", nargs="+", metavar="FILE", help="memory.jsonl of a run")
    parser.add_argument("--tolerance", type=float, default=0.10, help="default 0.10")
    parser.add_argument(
        "--of", choices=("ledger", "budget"), default="ledger", help="what the tolerance is a share of; default: the ledger"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(words)
    failed = False
    for file in args.records:
        try:
            verdict = judge(timeline.read(file), tolerance=args.tolerance, of=args.of)
        except FgvrError as error:
            sys.stderr.write(f"error: {error}\n")
            return 3
        failed |= bool(verdict.failures)
        if args.json:
            sys.stdout.write(json.dumps({"file": file, **asdict(verdict), "failures": verdict.failures}) + "\n")
        else:
            sys.stdout.write("\n".join([file, *_lines(verdict)]) + "\n")
    return 1 if failed else 0


def _lines(v: Verdict) -> Iterable[str]:
    yield f"  samples {v.samples} (at rest {v.compared_at_rest}, in use {v.compared_in_use}, moving {v.moving}), events {v.events}"
    yield f"  incomplete {v.incomplete}, over budget {v.over_budget}, peak {format_bytes(v.peak_ledger)} of {format_bytes(v.limit)}"
    base = format_bytes(v.base) if v.base is not None else "unknown"
    yield f"  base {base}; USS - base against the ledger: at rest at most {v.worst_at_rest:.1%} (median {v.median_at_rest:.1%}),"
    yield f"  in use at most {v.worst_in_use:.1%} outside weights..ledger; of the budget at most {v.worst_of_limit:.1%}"
    yield "  " + ("; ".join(f"FAILED: {failure}" for failure in v.failures) or "all well")


if __name__ == "__main__":
    sys.exit(main())
