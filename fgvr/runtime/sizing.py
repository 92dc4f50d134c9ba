"""How large a pool's models are: once per model for its weights, once per batch size for working memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from threading import Condition
from typing import Any

from fgvr.errors import FgvrError
from fgvr.runtime import offload
from fgvr.runtime.devices.base import Device
from fgvr.runtime.gc_tools import clear_frames
from fgvr.runtime.ledger import Entry, Ledger
from fgvr.runtime.locks import CONSTRUCT
from fgvr.runtime.probe import take
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec

log = logging.getLogger(__name__)


class Sizing:
    """Asks loaders, and decides what lies beside the device. Reads files, hence outside the pool's condition."""

    def __init__(self, condition: Condition, ledger: Ledger, device: Device) -> None:
        self._condition, self._ledger, self._device = condition, ledger, device

    def measure(self, specs: Mapping[Entry, ModelSpec]) -> dict[Entry, int]:
        """Bytes of one batch of `spec.batch_size` of each entry; its `size` is then known, too. Other threads may change both again."""
        return {entry: self._work(entry, spec) for entry, spec in specs.items()}

    def _work(self, entry: Entry, spec: ModelSpec) -> int:
        terms, known = self._terms(entry), entry.works.get(spec.batch_size)
        return known if known is not None and terms == entry.terms else self._note(entry, spec, terms)

    def _terms(self, entry: Entry) -> tuple[object, ...]:
        """On what the division of a model depends; that of a loaded one stands until it is loaded again."""
        if entry.model is not None:
            return entry.terms
        ledger = self._ledger
        asked = ledger.settings.offload if entry.loader.offloads else offload.NONE
        return () if asked == offload.NONE else (asked, ledger.limit, ledger.reserve)

    def _note(self, entry: Entry, spec: ModelSpec, terms: tuple[object, ...]) -> int:
        found = entry.loader.footprint(spec, type(self._device))
        divided = None
        if terms:
            offload.check(spec, self._ledger.settings.offload, self._device.name)
            room = offload.room_for(found, list(self._others(entry)), self._ledger.limit - self._ledger.reserve)
            divided = offload.divide(found, self._ledger.settings.offload, room)
        work = (self._measured(entry, spec) or found.work_bytes) + (divided.largest if divided else 0)
        with self._condition:
            fresh = not entry.works or terms != entry.terms
            if fresh and entry.model is None and not entry.charge:  # what was measured since, or is being loaded, stays
                entry.size = found.weight_bytes - (divided.beside if divided else 0)
                entry.offloaded, entry.terms = divided.layers if divided else 0, terms
                entry.works.clear()
            entry.works[spec.batch_size] = work
        return work

    def probe(self, entry: Entry, model: Any, timeout: float) -> None:
        """Measure the widest batch of a model that was just loaded and that nobody has yet, where that is wanted and was not done.

        It has the place that its estimate says, and nothing else computes: where there is no such place or moment, the next load will see.
        """
        settings, spec = self._ledger.settings, entry.spec
        if not settings.probe or entry.offloaded or entry.loader.elsewhere or self._measured(entry, spec) is not None:
            return
        with self._condition:
            work = entry.work
            if self._ledger.used + work > self._ledger.limit:
                return
            entry.charge += work
            self._ledger.update_peak()
        try:
            with CONSTRUCT.write(timeout), self._device.current():
                measured = take(model, spec, self._device, entry.loader.most_pixels(spec))
        except Exception as error:  # no failure of the load: the estimate holds
            log.warning("%s: its working memory could not be measured, the estimate holds: %s: %s", entry.key, type(error).__name__, error)
            clear_frames(error)
            return
        finally:
            with self._condition:
                entry.charge -= work
        try:
            settings.probes.keep(entry.loader, spec, self._device.name, measured)
        except (OSError, FgvrError) as error:  # measured all the same, and again in the next process
            log.warning("%s: its measured working memory could not be kept: %s", entry.key, error)
        with self._condition:
            entry.works = {spec.batch_size: measured[spec.batch_size]}

    def _measured(self, entry: Entry, spec: ModelSpec) -> int | None:
        return self._ledger.settings.probes.work(entry.loader, spec, self._device.name)

    def _others(self, entry: Entry) -> Iterator[Footprint]:
        """Of the models that a run uses beside this one, where their sizes are known."""
        for role in self._ledger.settings.roles:
            other = self._ledger.entries.get(self._ledger.aliases.get(role, ""))
            if other is not None and other is not entry:
                try:
                    yield other.loader.footprint(other.spec, type(self._device))
                except FgvrError:  # its own load will say so
                    continue
