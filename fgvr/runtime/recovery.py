"""When memory runs out while a model computes: make room, try once more, then in halves; what worked is remembered.

Nothing here runs inside an `except`: the exception would hold the very tensors whose memory is wanted back.
"""

from __future__ import annotations

import logging
from threading import Condition

from fgvr.errors import OutOfBudget
from fgvr.runtime.devices.base import Device
from fgvr.runtime.events import Events
from fgvr.runtime.ledger import Entry, Ledger
from fgvr.runtime.lifecycle import Lifecycle
from fgvr.runtime.plan import Need, describe
from fgvr.utils.text import format_bytes

log = logging.getLogger(__name__)


class Recovery:
    """What a pool does when memory runs out in a call of a model: `make_room`, then `halve`."""

    def __init__(self, condition: Condition, ledger: Ledger, events: Events, lifecycle: Lifecycle, device: Device) -> None:
        self._condition, self._ledger, self._events = condition, ledger, events
        self._lifecycle, self._device = lifecycle, device

    def is_oom(self, error: BaseException) -> bool:
        return self._device.is_oom(error)

    def make_room(self, entry: Entry, call: str, size: int, text: str) -> None:
        """Everything idle leaves the device, and the device gives its freed blocks back."""
        self._report(entry, f"{call} of {size} ran out of memory ({text}); evicting all idle models and trying once more")
        self._lifecycle.evict_idle()
        self._lifecycle.reclaim()

    def halve(self, entry: Entry, call: str, size: int, text: str) -> None:
        """From now on half as many at once, for this and all later leases, until `pool.reset` or a larger budget.

        The lease's working memory stays what it was: that many bytes were too few for the whole batch.
        Raises OutOfBudget with the plan when one alone does not fit.
        """
        if size <= 1:
            work = max(entry.work, 1)
            plan = describe([Need(entry.spec, entry.charge, work)], self._ledger.limit, reserve=self._ledger.reserve)
            head = f"{entry.key} ({entry.spec.source}): {call} of a single item ran out of memory on {self._device.name} ({text})"
            raise OutOfBudget(f"{head}; take a smaller or quantised model, smaller images, or raise runtime.budget\n{plan}", plan)
        with self._condition:
            entry.sizes[call] = min(size // 2, entry.sizes.get(call, size))
        self._lifecycle.reclaim()
        budget = format_bytes(self._ledger.limit)
        self._report(entry, f"{call} of {size} does not fit beside the weights within {budget}; batches of {size // 2} from now on")

    def _report(self, entry: Entry, text: str) -> None:
        log.warning("%s: %s", entry.key, text)
        with self._condition:
            self._events.about("oom", entry, text=text)
        self._events.deliver()
