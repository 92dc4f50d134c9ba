"""Every noun of the project, as frozen records. No behaviour beyond derived properties and how a record prints itself.

Arrays are numpy float32. Class identity is always the class *id*, a string; names are for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    ImageSource = Path | str | Image | np.ndarray

# --- what is looked at -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to recognise: where it is and, when known, what it shows."""

    image: ImageSource
    key: str  # how files and reports call it: path relative to the dataset's root, or a name given by the user
    label: str | None = None  # class id
    sha256: str = ""  # of the content, where a dataset knows it


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded image: RGB, upright, with the hash of what it came from (file bytes, or pixels when there is no file).

    `content`: of what is seen of it, another one where a file was reduced or padded on reading; answers are remembered under it."""

    image: Image
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

    category: str
    probability: float
    image_score: float | None
    text_score: float | None
    name_score: float | None = None
    joint_score: float | None = None
    image_rank: int | None = None
    text_rank: int | None = None


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
    candidates: tuple[Candidate, ...]
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
    """Whether to think slowly, and why: escalate iff score < threshold."""

    escalate: bool
    score: float
    threshold: float
    terms: Mapping[str, float] = field(default_factory=dict)


# --- System 2 ----------------------------------------------------------------------------------------------------------------


class Reply(str):
    """An MLLM's answer; a string that knows what it cost."""

    prompt_tokens: int
    new_tokens: int

    def __new__(cls, text: str, prompt_tokens: int = 0, new_tokens: int = 0) -> Reply:
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

    category: str | None  # None iff unreadable
    probabilities: Mapping[str, float]
    rationale: str = ""
    rules: tuple[str, ...] = ()
    status: Literal["answered", "unreadable"] = "answered"
    log_likelihoods: Mapping[str, float] = field(default_factory=dict)  # nats of each class judged; beyond the shortlist for replays


@dataclass(frozen=True, slots=True)
class Cost:
    """Work actually done (answers from the cache cost nothing); seconds are wall time of its share of the batch.

    `decode_wait`: its share of the seconds in which the models had nothing to do as the batch was not decoded yet, on top of `seconds`;
    `cache_hits`: embeddings and replies that were remembered. Both are no part of predictions.jsonl.
    """

    mllm_calls: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    encoder_forwards: int = 0
    seconds: float = 0.0
    decode_wait: float = 0.0
    cache_hits: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.mllm_calls + other.mllm_calls,
            self.prompt_tokens + other.prompt_tokens,
            self.new_tokens + other.new_tokens,
            self.encoder_forwards + other.encoder_forwards,
            self.seconds + other.seconds,
            self.decode_wait + other.decode_wait,
            self.cache_hits + other.cache_hits,
        )


@dataclass(frozen=True, slots=True)
class Abstention:
    """Whether the final answer is good enough to be given: withheld iff score < threshold."""

    withheld: bool
    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The final answer for one image with everything that led to it."""

    image: str
    sha256: str
    label: str | None
    category: str
    name: str
    confidence: float
    by: Literal["fast", "slow"]
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
    def answer(self) -> str:
        """For people: the class's name, or that there is no answer and why."""
        held = self.abstention
        if held is None or not held.withheld:
            return self.name
        return f"no answer: certainty {held.score:.2f} is below {held.threshold:.2f} (best guess: {self.name})"

    def __str__(self) -> str:
        return f"{self.image}: {self.answer} ({self.confidence:.2f}, {self.by})"

    def _repr_html_(self) -> str:
        from fgvr.utils.text import prediction_html

        return prediction_html(self)


# --- knowledge ---------------------------------------------------------------------------------------------------------------


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


# --- runtime -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, in which form. Two specs with one `key` share one copy."""

    role: Literal["mllm", "encoder", "joint"]
    loader: str  # module name below fgvr.runtime.loaders: clip, qwen, blip, mlx, remote, fake
    source: str  # folder, hub repository or "tiny" (shipped); address#model of a remote one
    revision: str | None = None
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    quantization: str | None = None
    max_pixels: int | None = None  # the processor's cap; changes memory, hence part of the key
    batch_size: int = 8  # how many images or prompts go through at once; not part of the key
    patience: float = 600.0  # seconds a remote engine that is away or busy is waited for; not part of the key

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.loader, self.source, self.revision, self.dtype, self.quantization, self.role, self.max_pixels)

    @property
    def key(self) -> str:
        """`role-hash8`, as shown in status tables and REST paths."""
        import hashlib

        return f"{self.role}-{hashlib.sha256(repr(self.identity).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as the pool sees it; bytes are measured once resident, estimated before. `draining`: resident and leased, and the next in
    the queue needs its place, so nobody else gets it before."""

    key: str
    role: str
    source: str
    state: Literal["absent", "loading", "resident", "draining", "parked", "evicting", "failed"]
    bytes: int
    leases: int
    hits: int
    loads: int
    pinned: bool
    idle_seconds: float
    error: str = ""
    host_bytes: int = 0  # held in main memory, for a quick way back to the device
    priority: int = 0  # the higher, the longer it stays
    next_use: int | None = None  # stages until it is expected to be used; None = not expected
    return_seconds: float = 0.0  # what it took to bring it in when that was last done; 0 = never done
    gap_seconds: float = 0.0  # usual time between two uses; 0 = used once at most
    working_sizes: tuple[tuple[str, int], ...] = ()  # (call, largest batch) learned when memory ran out
    last_used: float | None = None  # Unix seconds at which its last lease began or ended; None = never lent

    @property
    def here(self) -> bool:
        """Whether it is on the device, ready to compute."""
        return self.state in ("resident", "draining")

    @property
    def placed(self) -> bool:
        """Whether it has a place on the device: here, or on its way in or out."""
        return self.here or self.state in ("loading", "evicting")


@dataclass(frozen=True, slots=True)
class PlanPart:
    """One line of a memory plan; `parts`, where given, say what it is made of and add up to it."""

    name: str
    bytes: int
    note: str = ""
    kind: Literal["weights", "work", "reserve", ""] = ""
    parts: tuple[PlanPart, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What would be resident at once and whether it fits."""

    budget: int
    parts: tuple[PlanPart, ...]
    advice: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()  # sizes per token and per image
    host: tuple[PlanPart, ...] = ()  # main memory beside the device's; not part of the budget
    optional: tuple[PlanPart, ...] = ()  # not part of what is needed: loaded only when asked for, or there now and able to leave

    @property
    def needed(self) -> int:
        """All models resident and a batch of each computing at once."""
        return sum(part.bytes for part in self.parts)

    @property
    def in_turns(self) -> int:
        """All models resident, one batch computing at a time."""
        work = [part.bytes for part in self.parts if part.kind == "work"]
        return self.needed - sum(work) + max(work, default=0)

    @property
    def fits(self) -> bool:
        return self.needed <= self.budget

    @property
    def verdict(self) -> str:
        from fgvr.utils.text import format_bytes

        if self.fits:
            return f"fits, {format_bytes(self.budget - self.needed)} to spare"
        if self.in_turns <= self.budget:
            return f"fits while one batch computes at a time ({format_bytes(self.in_turns)}); all at once {format_bytes(self.needed)}"
        return f"does not fit: {format_bytes(self.in_turns - self.budget)} too much, one batch at a time"

    def __str__(self) -> str:
        from fgvr.utils.text import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        from fgvr.utils.text import plan_html

        return plan_html(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing `mode=doctor` looked at; `cure` says what to do where it is not well."""

    topic: str
    well: bool
    detail: str
    cure: str = ""


# --- results -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation's numbers; `path` holds report.json, report.html and predictions.jsonl."""

    n: int
    top1: float
    top1_interval: tuple[float, float]
    macro: float
    slow_rate: float
    fixed: int
    broken: int
    protocols: Mapping[str, float]
    cost: Mapping[str, float]
    peak_device_bytes: int
    model_loads: Mapping[str, int]
    notes: tuple[str, ...]
    classes: Mapping[str, str]  # id -> name
    dataset: str
    trigger: str
    path: Path
    skipped: int = 0

    @property
    def unchanged(self) -> int:
        """Images sent to System 2 that are as right or as wrong as before."""
        return round(self.slow_rate * self.n) - self.fixed - self.broken

    def __str__(self) -> str:
        low, high = self.top1_interval
        return f"{self.dataset}, {self.trigger}: top-1 {self.top1:.3f} [{low:.3f}, {high:.3f}], slow {self.slow_rate:.2f}, n {self.n}"

    def _repr_html_(self) -> str:
        from fgvr.utils.text import report_html

        return report_html(self)
