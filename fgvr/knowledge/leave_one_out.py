"""System 2's leave-one-out answers on the support images. The build makes them, and the fusion weight is fitted on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LeaveOneOutScores:
    """Log-likelihoods (nats) of the leave-one-out shortlist of each support image."""

    target: str  # slow.target they were scored with
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # image sha256 -> class id -> nats
