"""A rule learned from failures, and what a knowledge base is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Experience:
    """One rule learned from failures, with its evidence."""

    id: str
    rule: str
    applies: str
    root_cause: str
    pair: tuple[str, ...]  # the confused class ids, or () for a rule about the superclass
    priority: Literal["high", "medium", "low"]
    sources: tuple[str, ...]  # sha256 of the support images it came from
    status: Literal["accepted", "undecided", "rejected"]
    p: float | None = None
    n: int = 0
    fixed: int = 0
    broken: int = 0
    hits: int = 0
    gain: float | None = None  # mean change of log p(true) on the n images it was tried on, nats; None: not tried, or an older base


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a knowledge base is made of; written last, so its presence means the base is whole."""

    schema: int
    key: str
    dataset: str
    world: str  # which rendered world or folder the dataset is
    split_hash: str
    shots: int
    split_seed: int
    models: Mapping[str, str]  # role -> fingerprint
    prompts: str  # fingerprint of every prompt
    counts: Mapping[str, int]
    libraries: Mapping[str, str]
    files: Mapping[str, str]  # file name -> sha256
    content_hash: str  # over everything here but itself, the two time fields and `sources`
    created: str = ""
    seconds: float = 0.0
    catalog: str = ""  # hash of the classes' ids, names and superclasses; older bases have none
    sources: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)  # for people: role -> source, revision, dtype
