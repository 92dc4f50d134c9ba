"""Who may go next: one decision at a time, over the ledger, under the pool's condition. Nothing here waits, loads or evicts.

Waiting for capacity is first come, first served: a request takes its ticket before it marks or reserves anything (the other order
stalled 13 % of stress runs of a prototype). What is resident and fits is lent at once, unless it is draining for the head of the queue.
A holder of leases never waits for others' leases: it is told WouldDeadlock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fgvr.errors import OutOfBudget, WouldDeadlock
from fgvr.runtime.ledger import Entry, Ledger, Request, Shortage
from fgvr.runtime.plan import Need, describe
from fgvr.types import MemoryPlan, PlanPart
from fgvr.utils.text import format_bytes

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """Its place is reserved; load it now, outside the condition."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Evict:
    """They are no longer lent; release them now, outside the condition."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Until something changes, or for `seconds`, when time alone may help."""

    seconds: float | None = None


Action = Load | Evict | Wait | None
"""None: it is granted."""


class Admission:
    """The queue and the rules."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._queue: deque[Request] = deque()

    def decide(self, ask: Request) -> Action:
        """The next step for this request. Raises its refusal: OutOfBudget, WouldDeadlock, or the failure of a load in back-off."""
        now = time.monotonic()  # one for all: what ends between two looks would be refused by the first and not waited for by the second
        self._raise_failures(ask, now)
        nested = any(grant in self._ledger.grants for grant in ask.own)
        self._refuse_what_never_fits(ask)
        absent = [e for e in ask.entries if e.state in ("absent", "parked")]
        moving = any(e.state in ("loading", "evicting") for e in ask.entries)
        short = self._ledger.shortage(absent, ask.work)
        blocked = not nested and any(e.drain_for not in (None, ask) for e in ask.entries)
        if not (absent or moving or short or blocked):
            return self._grant(ask, now)
        if not nested and (absent or short or blocked) and ask not in self._queue:
            self._queue.append(ask)
        if moving or not (nested or self._queue[0] is ask):
            return Wait(self._next_look(now))
        if not short:
            return self._reserve(ask, absent[0]) if absent else Wait(self._next_look(now))
        return self._make_room(ask, short, now, nested=nested)

    def withdraw(self, ask: Request) -> bool:
        """Takes back what a request that is granted, refused, timed out or interrupted has marked: its ticket, drains, half-done moves.

        Returns whether there was anything, so whether others have reason to look again.
        """
        changed = ask in self._queue
        if changed:
            self._queue.remove(ask)
        for entry in self._ledger.entries.values():
            if entry.drain_for is ask:
                entry.drain_for, changed = None, True
            if entry.mover is ask:  # interrupted before anything was done
                entry.mover, changed = None, True
                entry.state, entry.charge = ("resident", entry.charge) if entry.state == "evicting" else (entry.at_rest, 0)
        return changed

    def plan(self, ask: Request) -> MemoryPlan:
        """What this request needs resident at once; below the sum what else is there."""
        own = self._own(ask)
        leased = {entry for grant in own for entry in grant.entries}
        notes = {}
        for entry in self._ledger.needed_together(ask.entries, own):
            note = "leased by the caller" if entry in leased else "pinned" if entry not in ask.entries else ""
            notes[entry] = note or entry.state
        return self._describe(notes, self._ledger.limit, ask.work + sum(grant.work for grant in own))

    def plan_of_kept(self, limit: int) -> MemoryPlan:
        """What no eviction can free now, against another limit."""
        ledger, idle = self._ledger, self._ledger.idle()
        notes = {entry: entry.state for entry in ledger.entries.values() if entry.charge and entry not in idle}
        return self._describe(notes, limit, sum(grant.work for grant in ledger.grants))

    def timeout_text(self, ask: Request, seconds: float) -> str:
        """Who holds what, for a LeaseTimeout."""
        now = time.monotonic()
        held = [f"{lease} for {now - since:.0f} s" for lease, since in self._ledger.held()]
        stuck = [f"{e.key}: {e.alert}" for e in self._ledger.entries.values() if e.alert]
        wanted = ", ".join(e.key for e in ask.entries)
        lines = [f"no place for {wanted} within {seconds:g} s (runtime.lease_timeout)", *held, *stuck]
        return "; ".join(lines if held or stuck else [*lines, f"{len(self._queue)} requests are queued"])

    @property
    def queued(self) -> int:
        """Requests that wait for capacity."""
        return len(self._queue)

    # --- steps -------------------------------------------------------------------------------------------------------------

    def _own(self, ask: Request) -> list[Request]:
        return [g for g in ask.own if g in self._ledger.grants]

    def _describe(self, notes: Mapping[Entry, str], limit: int, work: int) -> MemoryPlan:
        """These models and what is said of each; below the sum what else is on the device, since it can leave."""
        needs = [Need(entry.spec, entry.charge or entry.size, entry.work, note) for entry, note in notes.items()]
        others = []
        for entry in self._ledger.entries.values():
            if entry.charge and entry not in notes:
                holders = sorted({grant.holder for grant in self._ledger.grants if entry in grant.entries})
                when = f"leased by {', '.join(holders)}; can leave after that" if holders else f"{entry.state}; can leave"
                others.append(PlanPart(f"{entry.key}, not counted", entry.charge, f"{entry.spec.source}, {when}"))
        return replace(describe(needs, limit, reserve=self._ledger.reserve, work=work), optional=tuple(others))

    def _raise_failures(self, ask: Request, now: float) -> None:
        for entry in ask.entries:
            if entry.state != "failed" or entry.failure is None:
                continue
            if now < entry.retry_at:
                failure = entry.failure
                raise OutOfBudget(failure.text, self.plan(ask)) if failure.kind is OutOfBudget else failure.kind(failure.text)
            entry.failure = None
            entry.state = entry.at_rest

    def _refuse_what_never_fits(self, ask: Request) -> None:
        """Raises OutOfBudget, before any eviction, for what would not fit even with everybody else gone."""
        ledger, own = self._ledger, self._own(ask)
        together = ledger.needed_together(ask.entries, own)
        needed = sum(e.charge or e.size for e in together) + ask.work + sum(g.work for g in own) + ledger.reserve
        names = ", ".join(e.key for e in ask.entries)
        if needed > ledger.limit:
            plan = self.plan(ask)
            head = f"{names} can never fit: {format_bytes(needed)} needed, budget {format_bytes(ledger.limit)}"
            raise OutOfBudget(f"{head}\n{plan}", plan)
        if ledger.max_models is not None and len(together) > ledger.max_models:
            raise OutOfBudget(f"{names}: {len(together)} models at once, runtime.max_models={ledger.max_models}", self.plan(ask))

    def _grant(self, ask: Request, now: float) -> None:
        ask.granted = now
        for entry, batch in ask.batches.items():
            entry.lend(batch, now, ask.holder)
            entry.hits += entry not in ask.loaded
        self._ledger.grants.add(ask)
        self._ledger.update_peak()

    def _reserve(self, ask: Request, entry: Entry) -> Load:
        entry.state, entry.charge, entry.mover = "loading", entry.size, ask
        ask.loaded.add(entry)
        self._ledger.update_peak()
        return Load(entry)

    def _make_room(self, ask: Request, short: Shortage, now: float, *, nested: bool) -> Action:
        ledger = self._ledger
        idle = ledger.idle(besides=ask.entries, now=now)
        enough = sum(e.charge for e in idle) >= short.bytes and len(idle) >= short.slots
        if nested and not enough:
            if ledger.in_transition():
                return Wait(self._next_look(now))
            holders = sorted({g.holder for g in ledger.grants if g not in ask.own})
            raise WouldDeadlock(
                f"{', '.join(e.key for e in ask.entries)} would wait for leases of {', '.join(holders) or 'nobody (see pool.status())'} "
                "while holding others; take all models in one lease: pool.lease(a, b)"
            )
        victims = ledger.victims([e for e in idle if not ledger.spared_seconds(e, ask.holder, now)], short)
        if victims:
            for entry in victims:
                entry.state, entry.mover = "evicting", ask
            return Evict(victims)
        if not nested and not ledger.in_transition():
            self._drain(ask, short, now)
        return Wait(self._next_look(now))

    def _next_look(self, now: float) -> float | None:
        """Seconds after which a look is worth it although nothing was reported: memory may come back, a model may have stayed enough."""
        ledger = self._ledger
        if ledger.unreturned or any(e.stuck_until > now for e in ledger.entries.values()):
            return _LOOK_SECONDS
        if not ledger.min_residency:
            return None
        waits = [left for e in ledger.entries.values() if e.state == "resident" and (left := ledger.spared_seconds(e, "", now))]
        return min(waits, default=None)

    def _drain(self, ask: Request, short: Shortage, now: float) -> None:
        """Mark what is leased now, longest unused first, until its return will be enough: nobody new gets it before this request."""
        ledger = self._ledger
        missing, slots = short.bytes, short.slots
        leased = sorted(
            (e for e in ledger.entries.values() if e.leases and not ledger.spared_seconds(e, ask.holder, now)),
            key=lambda e: (e.drain_for is not ask, e.last_used),
        )
        for entry in leased:
            if missing <= 0 and slots <= 0:
                return
            entry.drain_for = ask
            if entry not in ask.entries and not ledger.pinned(entry):
                missing, slots = missing - entry.charge, slots - 1
            missing -= sum(g.work for g in ledger.grants if entry in g.entries)
