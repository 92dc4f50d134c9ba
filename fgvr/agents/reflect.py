"""Reflection on failures: a failure becomes a rule (docs/method.md, section 1). rule_validation.py then tries the proposed rules."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fgvr.agents import prompts
from fgvr.agents.slow import Option
from fgvr.protocols import MLLM, Encoder, reads_text
from fgvr.types import Experience, Picture

_LINE = re.compile(r"^\W*(rule|when|cause|priority)\W*:\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class WrongAnswer:
    """A support image that System 2 answered wrong with the prompt of inference."""

    index: int  # of the support image
    sha256: str
    fold: int  # the half of its class's shots that it belongs to
    truth: Option
    taken_for: Option

    @property
    def pair(self) -> tuple[str, str]:
        """The confused classes, in the order of their ids."""
        first, second = sorted((self.truth.category, self.taken_for.category))
        return first, second


@dataclass(frozen=True, slots=True)
class Proposal:
    """An untried rule, and the fold of the shots that it was learned on."""

    rule: Experience
    fold: int


def sample(failures: Sequence[WrongAnswer], most: int) -> list[WrongAnswer]:
    """At most so many failures, taken in turn from every confusion pair, the most frequent pair first."""
    pairs: dict[tuple[str, str], list[WrongAnswer]] = defaultdict(list)
    for failure in failures:
        pairs[failure.pair].append(failure)
    queues = sorted(pairs.values(), key=lambda queue: (-len(queue), queue[0].pair))
    rounds = max(map(len, queues), default=0)
    return [queue[i] for i in range(rounds) for queue in queues if i < len(queue)][:most]


class Reflector:
    """Shows the MLLM its mistakes with the truth, and reads rules from its answers."""

    def __init__(self, mllm: MLLM, *, superclass: str, max_new_tokens: int) -> None:
        self._mllm = mllm
        self._superclass = superclass
        self._max_new_tokens = max_new_tokens

    def __call__(self, pictures: Sequence[Picture], failures: Sequence[WrongAnswer]) -> list[Proposal | None]:
        """One proposal per failure; None where the answer states no rule."""
        replies = self._mllm.generate(
            pictures, [self._ask(failure) for failure in failures], system=prompts.SYSTEM, max_new_tokens=self._max_new_tokens
        )
        return [_read(reply, failure) for reply, failure in zip(replies, failures, strict=True)]

    def _ask(self, failure: WrongAnswer) -> str:
        truth, wrong = failure.truth, failure.taken_for
        return prompts.reflect(self._superclass, (truth.name, truth.description), (wrong.name, wrong.description))


def merge(proposals: Iterable[Proposal], encoder: Encoder, *, alike: float) -> list[Proposal]:
    """Merge the rules about one pair and fold that mean the same: the words of the first, the sources of all.

    Args: alike: cosine of the text encoder from which two sentences mean the same; without a text side, only the same words do.
    """
    groups: dict[tuple[tuple[str, ...], int], list[Proposal]] = defaultdict(list)
    for proposal in proposals:
        groups[proposal.rule.pair, proposal.fold].append(proposal)
    merged: list[Proposal] = []
    for group in groups.values():
        words = [f"{p.rule.rule} {p.rule.applies}" for p in group]
        vectors = encoder.encode_text(words) if reads_text(encoder) else np.array([[a == b for b in words] for a in words], float)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        kept: list[int] = []
        for i, proposal in enumerate(group):
            same = next((k for k in kept if float(np.dot(vectors[i], vectors[k])) >= alike), None)
            if same is None:
                kept.append(i)
            else:
                sources = (*group[same].rule.sources, *proposal.rule.sources)
                group[same] = replace(group[same], rule=replace(group[same].rule, sources=tuple(dict.fromkeys(sources))))
        merged += [group[k] for k in kept]
    return merged


def _read(reply: str, failure: WrongAnswer) -> Proposal | None:
    said = {key.lower(): value.strip("*_` ") for key, value in reversed(_LINE.findall(reply))}  # the first of each counts
    if "rule" not in said:
        return None
    words = said.get("priority", "").lower()
    rule = Experience(
        id=hashlib.sha256(repr((said["rule"], failure.pair, failure.fold)).encode()).hexdigest()[:12],
        rule=said["rule"],
        applies=said.get("when", ""),
        root_cause=said.get("cause", ""),
        pair=failure.pair,
        priority="high" if "high" in words else "low" if "low" in words else "medium",
        sources=(failure.sha256,),
        status="undecided",
    )
    return Proposal(rule, failure.fold)
