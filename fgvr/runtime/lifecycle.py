"""Loading and evicting, outside the pool's condition: the ledger is told before, and learns the outcome after.

A model comes from disk (construct, then place) or from main memory (restore). It leaves for main memory where there is room and it can be
moved, else it is dropped. Either way its charge ends only when the device shows the memory as free.
"""

from __future__ import annotations

import functools
import gc
import logging
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from threading import Condition
from typing import Any

from fgvr.errors import FgvrError, LeaseTimeout, ModelLoadError, OutOfBudget, WouldDeadlock
from fgvr.runtime.devices.base import Device
from fgvr.runtime.events import WAS_PARKED, Events
from fgvr.runtime.gc_tools import clear_frames, drop_reference, still_held
from fgvr.runtime.ledger import STUCK_SECONDS, Entry, Ledger, LoadFailure
from fgvr.runtime.locks import CONSTRUCT
from fgvr.runtime.sizing import Sizing
from fgvr.utils.plugins import blame
from fgvr.utils.text import format_bytes

log = logging.getLogger(__name__)

BACKOFF_SECONDS = 1.0  # doubles with each failure in a row
BACKOFF_MOST = 60.0
DRIFT = 0.03  # a measured size farther from its estimate is worth a word


class Lifecycle:
    """Loads and evicts. Each method is called by the one thread that moved the entry to `loading` or `evicting`."""

    def __init__(self, condition: Condition, ledger: Ledger, events: Events, device: Device, sizing: Sizing) -> None:
        self._condition, self._ledger, self._events, self._device, self._sizing = condition, ledger, events, device, sizing
        self._baseline: int | None = None  # what the process had on the device before the first load
        self.closed = False

    def load(self, entry: Entry, timeout: float) -> None:
        """Makes the entry resident or failed, or what it was when interrupted. An OOM is tried once more, without idle models."""
        box: list[Any] = []  # handed over by popping: no frame may still hold the model once others can evict it
        failure: LoadFailure | None = None
        restoring, began = entry.model is not None, time.monotonic()
        bring = self._restore if restoring else functools.partial(self._construct, timeout=timeout)
        try:
            self._note_baseline()
            self._device.limit(self._ledger.limit)
            self._announce("loading", entry, entry.size)
            where = "where it was parked" if restoring else entry.spec.source
            log.info("loading %s (from %s, about %s)", entry.key, where, format_bytes(entry.size))
            failure = self._attempt(entry, box, bring)
            if failure is not None and failure.oom:
                # Here the exception and its frames are gone, so the half-loaded tensors are, too.
                log.warning("%s: %s; evicting all idle models and trying once more", entry.key, failure.text)
                self._announce("oom", entry, entry.size, failure.text)
                self.evict_idle()
                self.reclaim()
                failure = self._attempt(entry, box, bring)
        finally:
            self._finish_load(entry, box, failure, began, restored=restoring)
            if self.closed:
                self.close()
            self._events.deliver()
        if failure is not None:
            log.warning("%s", failure.text)
            return
        done, seconds = "restored" if restoring else "loaded", time.monotonic() - began
        log.info("%s %s: %s in %.2f s", done, entry.key, format_bytes(entry.size), seconds)
        self.trim()

    def evict(self, entries: Iterable[Entry], *, park: bool = True) -> int:
        """Bytes that came back from models marked `evicting`. `park`: those on the device go to main memory where that is possible."""
        released, left = 0, list(entries)
        try:
            while left:
                released += self._take_out(left.pop(0), park=park)
            return released
        finally:
            if left:  # interrupted
                with self._condition:
                    for entry in left:
                        entry.state, entry.mover = entry.at_rest if entry.is_parked else "resident", None
                    self._condition.notify_all()
            if self.closed:
                self.close()

    def close(self) -> None:
        """Nothing stays: what is idle goes now, what is leased or under way when it comes back."""
        self.closed = True
        while going := self._begin_eviction(lambda: [*self._ledger.idle(), *self._ledger.parked()]):
            for entry in going:
                self._take_out(entry, park=False)

    def evict_idle(self, *, park: bool = True) -> int:
        """Everything that is neither leased nor pinned; bytes that came back to the device."""
        return self.evict(self._begin_eviction(self._ledger.idle), park=park)

    def drop_parked(self) -> int:
        """Let all parked models go, pinned ones apart; their bytes in main memory."""
        return self.evict(self._begin_eviction(lambda: [e for e in self._ledger.parked() if not self._ledger.pinned(e)]))

    def trim_host(self) -> int:
        """Let parked models go, longest unused first, until main memory is within its limit."""
        return self.evict(self._begin_eviction(self._ledger.host_victims))

    def trim(self) -> int:
        """Evict by policy until the ledger is within its limits."""
        return self.evict(self._begin_eviction(self._ledger.excess))

    def expire(self) -> float | None:
        """Models idle for the TTL leave the device, copies in main memory idle for twice as long go. Seconds until the next look."""
        ledger, ttl = self._ledger, self._ledger.settings.ttl
        if ttl is None:
            return None
        with self._condition:
            now = time.monotonic()
            ends = {e: e.last_used + ttl for e in ledger.idle()}
            ends |= {e: e.last_used + 2 * ttl for e in ledger.parked() if not ledger.pinned(e)}
            due = self._begin_eviction(lambda: [e for e, end in ends.items() if end <= now])
        self.evict(due)
        return max(0.001, min([ttl, *(end - now for end in ends.values() if end > now)]))

    def recheck_unreturned(self) -> None:
        """See whether memory that did not come back with its model has come back since."""
        if self._ledger.unreturned:  # of a device that counts tensors: no other can tell
            allocated = self._device.allocated()
            with self._condition:
                self._ledger.unreturned = min(self._ledger.unreturned, self._unexplained(allocated))
                self._condition.notify_all()

    def reclaim(self) -> None:
        """Give the device's freed blocks back, cycles and the frames of past errors included."""
        with self._condition:
            entries = tuple(self._ledger.entries.values())
        for entry in entries:
            entry.frames.clear()
        gc.collect()
        self._device.synchronize()
        self._device.empty_cache()

    # --- in ----------------------------------------------------------------------------------------------------------------

    def _attempt(self, entry: Entry, box: list[Any], bring: Callable[[Entry], Any]) -> LoadFailure | None:
        """Puts the model in the box, or says why not."""
        try:
            box.append(bring(entry))
            return None
        except (LeaseTimeout, WouldDeadlock):  # says nothing about the model
            raise
        except (KeyboardInterrupt, SystemExit) as interrupt:  # on its way out it would keep a half-made model beside the next one
            clear_frames(interrupt)
            raise
        except Exception as error:
            log.debug("loading %s failed:\n%s", entry.key, traceback.format_exc())
            failure = self._failure(entry, error)
            clear_frames(error)
        return failure

    def _construct(self, entry: Entry, timeout: float) -> Any:
        with CONSTRUCT.write(timeout), self._device.current():
            spec = replace(entry.spec, offloaded=entry.offloaded) if entry.offloaded else entry.spec
            model = entry.loader.load(spec, self._device)
        if (place := getattr(model, "place", None)) is not None:
            with CONSTRUCT.read():
                place(self._device)
        _ = model.nbytes  # a model of somebody's own without it fails here, where that is a failed load
        self._sizing.probe(entry, model, timeout)
        if self._ledger.preallocate:
            self._prepare(entry, model)
        return model

    def _prepare(self, entry: Entry, model: Any) -> None:
        """The copy in main memory, ahead of time. Only if there is room beside the others', and no failure of the load when it fails."""
        movable = getattr(model, "movable", None)
        if movable is None:
            return
        with self._condition:
            if not movable.host_needed or self._ledger.host_used + movable.host_needed > self._ledger.host_limit:
                return
            entry.host_charge = movable.host_needed
        try:
            with CONSTRUCT.read():
                movable.prepare()
        except Exception as error:
            log.warning("%s: no copy in main memory ahead of time: %s", entry.key, _text(error))

    def _restore(self, entry: Entry) -> Any:
        with CONSTRUCT.read():
            entry.model.movable.restore(self._device)
        return entry.model

    def _failure(self, entry: Entry, error: Exception) -> LoadFailure:
        if self._device.is_oom(error):
            text = (
                f"{entry.key} ({entry.spec.source}) ran out of memory while loading on {self._device.name}: "
                f"{format_bytes(entry.size)} expected, budget {format_bytes(self._ledger.limit)} ({error}). "
                "Others hold memory, or the budget is above what is there: lower runtime.budget, or take a smaller or quantised model"
            )
            return LoadFailure(OutOfBudget, text, oom=True)
        if isinstance(error, FgvrError):
            return LoadFailure(type(error), str(error))
        why = blame(error) or f"{type(error).__name__}: {error}"
        return LoadFailure(ModelLoadError, f"{entry.key} ({entry.spec.source}) could not be loaded: {why}")

    def _finish_load(self, entry: Entry, box: list[Any], failure: LoadFailure | None, began: float, *, restored: bool) -> None:
        broken = failure is not None and not failure.oom  # it would fail again: next time from disk
        if restored and not box and (broken or not entry.is_parked):  # or stopped half-way: not whole in either place
            entry.model = None  # gone before anybody may bring in another
        with self._condition:
            entry.failure, entry.alert, entry.mover = failure, "", None
            if box:
                self._became_resident(entry, box.pop(), began, restored=restored)
            else:
                entry.host_charge = entry.host_bytes
                entry.state, entry.charge = entry.at_rest, 0
                if failure:
                    entry.retry_at = time.monotonic() + min(BACKOFF_MOST, BACKOFF_SECONDS * 2**entry.fails)
                    entry.fails += 1
                    self._events.about("failed", entry, text=failure.text)
            self._condition.notify_all()

    def _became_resident(self, entry: Entry, model: Any, began: float, *, restored: bool) -> None:
        measured, now = int(model.nbytes), time.monotonic()
        if not restored and entry.size and abs(measured - entry.size) > DRIFT * entry.size:
            entry.alert = f"measured {format_bytes(measured)}, estimated {format_bytes(entry.size)}"
        entry.state, entry.model = "resident", model
        entry.charge = entry.size = entry.movable.nbytes if entry.movable else measured  # a flat buffer has some bytes between the tensors
        entry.host_charge = entry.host_bytes
        entry.since = entry.last_used = now
        entry.fails = 0
        if restored:
            entry.restores += 1
            entry.restore_seconds = now - began
        else:
            entry.loads += not entry.loader.elsewhere  # nothing came into this process's memory
            entry.load_seconds = now - began
        self._ledger.update_peak()
        self._events.about("restored" if restored else "loaded", entry, bytes=measured, seconds=now - began)
        if entry.alert:
            self._events.about("alert", entry, bytes=measured, text=entry.alert)

    # --- out ---------------------------------------------------------------------------------------------------------------

    def _begin_eviction(self, choose: Callable[[], Sequence[Entry]]) -> Sequence[Entry]:
        with self._condition:
            chosen = choose()
            for entry in chosen:
                entry.state, entry.mover = "evicting", self
            return chosen

    def _take_out(self, entry: Entry, *, park: bool) -> int:
        return self._drop(entry) if entry.is_parked else self._release(entry, park=park)

    def _release(self, entry: Entry, *, park: bool) -> int:
        """Drops references (gc only if somebody is left), empties the device's cache, looks. Returns the bytes that came back."""
        charge, began = entry.charge, time.monotonic()
        watch: weakref.ref[Any] | None = None
        parked, allocated, before, after = False, None, 0, 0
        try:
            before = self._announce("evicting", entry, charge)
            entry.frames.clear()
            parked = park and self._park(entry)
            if not parked:
                watch = drop_reference(entry)
            self._device.synchronize()
            self._device.empty_cache()
            allocated = self._read_allocated(entry) if self._device.exact else None
        finally:
            survivor = watch() if watch is not None else None
            holders = still_held(survivor)
            with self._condition:
                released, after = self._finish_release(entry, survivor, holders, allocated), self._ledger.used
                if entry.state != "resident":
                    kind = "parked" if entry.state == "parked" else "evicted"
                    self._events.about(kind, entry, bytes=released, seconds=time.monotonic() - began)
                if entry.alert:
                    self._events.about("alert", entry, bytes=charge - released, text=entry.alert)
                self._condition.notify_all()
            self._events.deliver()
        if holders:
            log.warning("%s %s", entry.key, holders)
        else:
            figures = [format_bytes(size) for size in (before, after, released, charge)]
            log.info("evicting %s%s: %s before, %s after, %s of %s came back", entry.key, " (parked)" if parked else "", *figures)
        return released

    def _park(self, entry: Entry) -> bool:
        """Whether the model now lies in main memory, and only there."""
        if entry.movable is None or self.closed or not self._reserve_host_memory(entry, entry.movable.host_needed):
            return False
        try:
            with CONSTRUCT.read():
                entry.movable.park()
            return True
        except (KeyboardInterrupt, SystemExit) as interrupt:  # on its way out it would keep weights that another thread may drop
            clear_frames(interrupt)
            raise
        except Exception as error:  # not worth a failure: it is dropped instead, and comes from disk next time
            log.warning("%s could not be parked and is dropped: %s", entry.key, _text(error))
            return False

    def _reserve_host_memory(self, entry: Entry, size: int) -> bool:
        """Whether main memory has a place to park it, others' oldest copies making room."""
        ledger = self._ledger
        more = size - entry.host_charge
        while ledger.host_limit:
            with self._condition:
                if ledger.host_used + more <= ledger.host_limit:
                    entry.host_charge = size
                    return True
                victims = ledger.host_victims(more, besides=entry)
                enough = ledger.host_used + more - sum(e.host_charge for e in victims) <= ledger.host_limit
            if not enough:
                log.info("%s: no room in main memory for %s (runtime.host_budget)", entry.key, format_bytes(size))
                return False
            if not self.evict(self._begin_eviction(lambda: ledger.host_victims(more, besides=entry))):
                return False
        return False

    def _drop(self, entry: Entry) -> int:
        """A parked model goes, and is charged and `evicting` until it is truly gone. Bytes that came back in main memory."""
        released, kept = 0, ""
        try:
            survivor = drop_reference(entry)()  # freeing gigabytes takes its time
            kept = still_held(survivor)
            entry.model = survivor  # rather that one again than a second beside it
        finally:
            with self._condition:
                if entry.model is None:
                    released, entry.host_charge = entry.host_charge, 0
                    self._events.about("evicted", entry, bytes=released, text=WAS_PARKED)
                elif kept:
                    entry.stuck_until = time.monotonic() + STUCK_SECONDS
                    self._events.about("alert", entry, text=kept)
                entry.state, entry.mover, entry.alert = entry.at_rest, None, kept
                self._condition.notify_all()
            self._events.deliver()
        return released

    def _finish_release(self, entry: Entry, survivor: Any, holders: str, allocated: int | None) -> int:
        entry.alert, entry.mover = holders, None
        if survivor is not None:  # one copy: rather the old one again than a second beside it
            entry.state, entry.model = "resident", survivor
            entry.host_charge = entry.host_bytes
            entry.stuck_until = time.monotonic() + STUCK_SECONDS
            return 0
        entry.host_charge = entry.host_bytes
        if entry.model is not None and not entry.is_parked:  # interrupted before anything was done
            entry.state = "resident"
            return 0
        charge, entry.state, entry.charge = entry.charge, entry.at_rest, 0
        left = 0 if allocated is None else self._unexplained(allocated)
        missing = min(charge, left - self._ledger.unreturned)
        if missing > DRIFT * charge:
            self._ledger.unreturned += missing
            entry.alert = f"{format_bytes(missing)} did not come back: somebody keeps tensors of this model"
            return charge - missing
        return charge

    def _read_allocated(self, entry: Entry) -> int:
        """Bytes allocated; read again when others' moves between two readings could pass for memory that does not come back."""
        for _ in range(3):
            allocated = self._device.allocated()
            with self._condition:
                others = any(e is not entry and e.state in ("loading", "evicting") for e in self._ledger.entries.values())
                if not others or self._unexplained(allocated) - entry.charge <= self._ledger.unreturned:
                    break
        return allocated

    def _note_baseline(self) -> None:
        if self._baseline is None:
            held = self._device.allocated() if self._device.exact else 0
            with self._condition:
                if self._baseline is None:
                    self._baseline = held

    def _unexplained(self, allocated: int) -> int:
        """Bytes on the device that the ledger cannot explain."""
        explained = self._ledger.used - self._ledger.unreturned - self._ledger.reserve
        return max(0, allocated - (self._baseline or 0) - explained)

    def _announce(self, kind: Any, entry: Entry, size: int, text: str = "") -> int:
        """What is in use just then."""
        with self._condition:
            self._events.about(kind, entry, bytes=size, text=text)
            used = self._ledger.used
        self._events.deliver()
        return used


def _text(error: Exception) -> str:
    """For the log: the error itself, kept by a handler, would keep its frames and with them a model."""
    return f"{type(error).__name__}: {error}"
