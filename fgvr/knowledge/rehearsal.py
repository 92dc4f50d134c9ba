"""What System 2 said of the support images during the build: the evidence the pooling weight is fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SlowRehearsal:
    """Log-likelihoods (nats) of the leave-one-out shortlist of each support image."""

    target: str  # slow.target they were scored with
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # image sha256 -> class id -> nats
