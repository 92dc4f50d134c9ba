"""What is looked at, what both systems say of it, and the prediction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from fgvr.utils.text import html_table

if TYPE_CHECKING:
    from PIL.Image import Image

    from fgvr.utils.images import ImageSource

# --- what is looked at -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to recognise: where it is and, when known, what it shows."""

    image: "ImageSource"
    key: str  # how files and reports call it: path relative to the dataset's root, or a name given by the user
    label: str | None = None  # class id
    sha256: str = ""  # of the content, where a dataset knows it


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded image: RGB, upright, with the hash of what it came from (file bytes, or pixels when there is no file).

    `content`: of what is seen of it, another one where a file was reduced or padded on reading; answers are remembered under it."""

    image: "Image"
    sha256: str
    content: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", self.content or self.sha256)


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a dataset."""

    id: str
    name: str
    superclass: str = "object"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figures:
    """What the makers of a dataset say it holds: classes, images to learn from and to test (0: no official split), and each class's."""

    classes: int
    train: int
    test: int
    train_each: int | None = None
    test_each: int | None = None


# --- System 1 ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class on System 1's shortlist; scores are cosines (`None`: not scored), ranks are those among all classes, from 1."""

    category: str  # class id
    probability: float  # P(c) of the fusion
    image_score: float | None  # with the class's images
    text_score: float | None  # with its description and name
    name_score: float | None = None  # with its name alone
    joint_score: float | None = None  # match probability of the joint encoder
    image_rank: int | None = None  # by images alone
    text_rank: int | None = None  # by words alone


@dataclass(frozen=True, slots=True)
class History:
    """How the class System 1 names has done in leave-one-out retrieval on the support set."""

    seen: int  # times it was predicted
    correct: int  # times that was right
    total: int  # predictions over all classes


@dataclass(frozen=True, slots=True)
class FastResult:
    """What System 1 saw: ranked candidates and the evidence the trigger decides on."""

    sha256: str
    candidates: tuple[Candidate, ...]  # most probable first
    confidence: float  # P(top) + 0.1 * RRF(top)
    margin: float  # P(top) - P(second)
    entropy: float  # nats, over the candidates
    agreement: bool  # both modalities rank the same class first
    history: History

    @property
    def top(self) -> Candidate:
        return self.candidates[0]

    @property
    def ambiguity(self) -> float:
        """Entropy as a share of its maximum ln|U|, in [0, 1]."""
        return self.entropy / math.log(len(self.candidates)) if len(self.candidates) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an image is escalated to System 2, and why: escalate iff score < threshold."""

    escalate: bool  # to System 2
    score: float  # of the policy; of `calibrated`: P(System 1 is right)
    threshold: float  # below it an image is escalated
    terms: Mapping[str, float] = field(default_factory=dict)  # what the score is made of


# --- System 2 ----------------------------------------------------------------------------------------------------------------


class Reply(str):
    """An MLLM's answer; a string that knows what it cost."""

    prompt_tokens: int
    new_tokens: int

    def __new__(cls, text: str, prompt_tokens: int = 0, new_tokens: int = 0) -> "Reply":
        self = super().__new__(cls, text)
        self.prompt_tokens, self.new_tokens = prompt_tokens, new_tokens
        return self


@dataclass(frozen=True, slots=True)
class Choice:
    """A reply to a multiple-choice question, and nats of each option where the reply names one; empty where they are not known."""

    reply: Reply
    log_likelihoods: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-likelihood of each continuation given one image and prompt, in nats, summed over its tokens."""

    log_likelihoods: tuple[float, ...]
    tokens: tuple[int, ...]  # length of each continuation
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class SlowResult:
    """System 2's answer among the candidates it was shown."""

    category: str | None  # None iff it is not answered
    probabilities: Mapping[str, float]  # class id -> share, over the candidates
    rationale: str = ""  # what the MLLM wrote
    rules: tuple[str, ...] = ()  # of experience that it was shown
    status: Literal["answered", "unreadable", "unknown"] = "answered"  # unknown: a person says that it is none of the classes
    log_likelihoods: Mapping[str, float] = field(default_factory=dict)  # nats of each class judged; beyond the shortlist for replays


@dataclass(frozen=True, slots=True)
class Asked:
    """The work that a method asks of the models. It is the same with a full store and with an empty one."""

    mllm_calls: int = 0  # prompts
    prompt_tokens: int = 0  # image tokens included
    new_tokens: int = 0  # that the MLLM wrote
    encoder_forwards: int = 0  # images and texts

    def __add__(self, other: "Asked") -> "Asked":
        return Asked(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Cost:
    """The work computed in this run (cached answers cost nothing), and the work that was asked for, cached or not.

    `seconds`: wall time, its share of the batch. `decode_wait`: its share of the seconds in which the models waited for the batch to be
    decoded, on top of `seconds`. `cache_hits`: embeddings and replies from the store. predictions.jsonl holds neither of the last two.
    `asked` is None where a file does not tell, such as one of an earlier version.
    """

    mllm_calls: int = 0  # prompts
    prompt_tokens: int = 0  # image tokens included
    new_tokens: int = 0  # that the MLLM wrote
    encoder_forwards: int = 0  # images and texts
    seconds: float = 0.0  # wall time, its share of the batch
    decode_wait: float = 0.0
    cache_hits: int = 0
    asked: Asked | None = Asked()  # remembered or not

    @property
    def without_thinking(self) -> "Cost":
        """The same work of a method that would not have sent this image to System 2."""
        return self if self.asked is None else replace(self, asked=Asked(encoder_forwards=self.asked.encoder_forwards))

    def __add__(self, other: "Cost") -> "Cost":
        asked = None if self.asked is None or other.asked is None else self.asked + other.asked
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__slots__ if name != "asked"), asked=asked)


@dataclass(frozen=True, slots=True)
class Abstention:
    """Whether the final answer is good enough to be given: withheld iff score < threshold."""

    withheld: bool  # whether no answer is given
    score: float  # certainty of the final answer
    threshold: float  # least certainty that is answered


UNKNOWN = ""
"""Stands for a class id where a person has answered "none of these"."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The final answer for one image with everything that led to it."""

    image: str
    sha256: str
    label: str | None
    category: str
    name: str
    confidence: float
    by: Literal["fast", "slow", "person"]
    fast: FastResult
    decision: Decision
    slow: SlowResult | None = None
    cost: Cost = Cost()
    abstention: Abstention | None = None  # None: every answer is given
    names: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)  # class id -> name, for people

    @property
    def correct(self) -> bool | None:
        """Whether the best guess is right, also where it is withheld."""
        return None if self.label is None else self.category == self.label

    @property
    def unsure(self) -> bool:
        """Whether the answer is not to be relied on: it is withheld; or the trigger doubts it and nobody has looked again, because there
        is no System 2, or a person who has not answered yet."""
        return self.abstention.withheld if self.abstention is not None else self._waits

    @property
    def _waits(self) -> bool:
        return self.decision.escalate and self.by == "fast" and self.slow is None

    @property
    def verdict(self) -> str:
        """For people: what became of the trigger's decision."""
        if not self.decision.escalate:
            return "answered by System 1"
        return "unsure, and nobody has looked again" if self._waits else "escalated to System 2"

    @property
    def answer(self) -> str:
        """For people: the class's name, that it is unsure, or that there is no answer and why."""
        held = self.abstention
        if held is None or not held.withheld:
            return f"{self.name} (unsure)" if self.unsure else self.name
        return f"no answer: certainty {held.score:.2f} is below {held.threshold:.2f} (best guess: {self.name})"

    def ranked(self, most: int | None = None) -> list[tuple[str, float]]:
        """Class names with their probability, likeliest first, in the eyes of the system that gave the answer."""
        fast = {candidate.category: candidate.probability for candidate in self.fast.candidates}
        shares = self.slow.probabilities if self.by != "fast" and self.slow else fast
        ordered = sorted(shares.items(), key=lambda share: -share[1])[:most]
        return [(self.names.get(category, category), probability) for category, probability in ordered]

    def to_dict(self) -> dict[str, Any]:
        """The answer in plain values."""
        return {
            "file": self.image,
            "class": self.name,
            "class_id": self.category,
            "confidence": float(self.confidence),
            "by": self.by,
            "unsure": self.unsure,
            "label": None if self.label is None else self.names.get(self.label, self.label),
            "correct": self.correct,
            "top": [{"class": name, "probability": float(probability)} for name, probability in self.ranked(5)],
        }

    @property
    def reason(self) -> str:
        """Why the image was escalated to System 2 or not, in words."""
        decision, place = self.decision, "below" if self.decision.escalate else "not below"
        terms = ", ".join(f"{name.replace('_', ' ')} {value:+.2f}" for name, value in decision.terms.items())
        why = f"score {decision.score:.3f} is {place} the threshold {decision.threshold:.3f}"
        return f"{self.verdict}: {why}" + (f" ({terms})" if terms else "")

    def __str__(self) -> str:
        return f"{self.image}: {self.answer} ({self.confidence:.2f}, {self.by})"

    def _repr_html_(self) -> str:
        return _prediction_html(self)


def _prediction_html(prediction: Prediction) -> str:
    """The shortlist with its scores, the reason for the trigger's decision, and System 2's answer."""
    slow, names = prediction.slow, prediction.names
    truth = escape(names.get(str(prediction.label), str(prediction.label)))
    verdict = {True: " &#10003;", False: f" &#10007; (is {truth})", None: ""}[prediction.correct]
    head = f"<b>{escape(prediction.answer)}</b>{verdict} &middot; {prediction.confidence:.2f} &middot; {prediction.by}"
    columns, rows = ["class", "P", "image", "text", "name", "joint", *(["slow"] if slow else [])], []
    for c in prediction.fast.candidates:
        shares = [slow.probabilities.get(c.category)] if slow else []
        scores = (c.probability, c.image_score, c.text_score, c.name_score, c.joint_score, *shares)
        rows.append((names.get(c.category, c.category), *map(_number, scores)))
    parts = [f"{escape(prediction.image)}: {head}", html_table(columns, rows), escape(prediction.reason)]
    if slow:
        answer = slow.status if slow.category is None else names.get(slow.category, slow.category)
        parts += [f"slow: {escape(answer)}{': ' + escape(slow.rationale) if slow.rationale else ''}"]
        parts += [f"rule: {escape(rule)}" for rule in slow.rules]
    return f"<div>{''.join(f'<div>{part}</div>' for part in parts)}</div>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
