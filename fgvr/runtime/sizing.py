"""Asking loaders how large their models are: once per model for its weights, once per batch size for working memory."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Condition

from fgvr.runtime.ledger import Entry
from fgvr.types import ModelSpec


def measure(condition: Condition, specs: Mapping[Entry, ModelSpec]) -> None:
    """Have `size` and `works[spec.batch_size]` of each entry known. Reads files, hence outside the pool's condition."""
    for entry, spec in specs.items():
        if spec.batch_size not in entry.works:
            size, work = 0 if entry.works else entry.loader.estimate(spec), entry.loader.work_bytes(spec)
            with condition:
                if not entry.works:  # what was measured since stays
                    entry.size = size
                entry.works[spec.batch_size] = work
