"""A rule learned from failures, and what a knowledge base is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Experience:
    """One rule learned from failures, with its evidence."""

    id: str  # hash of the rule
    rule: str  # what System 2 is told
    applies: str  # when it applies, in words
    root_cause: str  # of the failures it came from
    pair: tuple[str, ...]  # the confused class ids, or () for a rule about the superclass
    priority: Literal["high", "medium", "low"]  # the model's own judgement
    sources: tuple[str, ...]  # sha256 of the support images it came from
    status: Literal["accepted", "undecided", "rejected"]  # after the test; only accepted ones are used
    p: float | None = None  # of the exact sign-flip test; None: not tried
    n: int = 0  # images it was tried on
    fixed: int = 0  # of them, wrong before and right with it
    broken: int = 0  # right before and wrong with it
    hits: int = 0  # times it was recalled
    gain: float | None = None  # mean change of log p(true) on the n images it was tried on, nats; None: not tried, or an older base


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a knowledge base is made of; written last, so its presence means the base is whole."""

    schema: int  # version of this format
    key: str  # the base's folder
    dataset: str  # its name
    world: str  # which rendered world or folder the dataset is
    split_hash: str  # of the support images by class
    shots: int | Literal["all"]  # support images per class
    split_seed: int  # which shots
    models: Mapping[str, str]  # role -> fingerprint
    prompts: str  # fingerprint of every prompt
    counts: Mapping[str, int]  # of classes, images, descriptions, rules
    libraries: Mapping[str, str]  # name -> version
    files: Mapping[str, str]  # file name -> sha256
    content_hash: str  # over everything here but itself, the two time fields and `sources`
    created: str = ""  # when, UTC
    seconds: float = 0.0  # that the build took
    catalog: str = ""  # hash of the classes' ids, names and superclasses; older bases have none
    sources: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)  # for people: role -> source, revision, dtype
