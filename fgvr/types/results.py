"""What a build and an evaluation leave: rules learned from failures, what a knowledge base is made of, and a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal

from fgvr.utils.text import format_bytes, html_table


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation's numbers; `path` holds report.json, report.html and predictions.jsonl."""

    n: int  # images scored
    top1: float  # share of right answers
    top1_interval: tuple[float, float]  # 95 %, over images
    macro: float  # mean of the classes' accuracies
    slow_rate: float  # share escalated
    fixed: int  # wrong in System 1, right in the end
    broken: int  # right in System 1, wrong in the end
    protocols: Mapping[str, float]  # protocol -> score
    cost: Mapping[str, float]  # computed in this run
    peak_device_bytes: int  # highest use of the device
    model_loads: Mapping[str, int]  # role -> loads
    notes: tuple[str, ...]  # what one must know before the numbers
    classes: Mapping[str, str]  # id -> name
    dataset: str  # its name
    trigger: str  # its name
    path: Path
    skipped: int = 0  # images that could not be read
    asked: Mapping[str, float] = field(default_factory=dict)  # of the models, remembered or not; empty where a file does not tell

    @property
    def computed(self) -> Mapping[str, float]:
        """What of `asked` the models have computed in this run; the store remembered the rest."""
        return {name: self.cost[name] for name in ("encoder_forwards", "mllm_calls", "prompt_tokens", "new_tokens")}

    @property
    def unsure(self) -> bool:
        """Whether what the trigger escalated was answered by nobody: there is no System 2 (`slow=none`), or a person comes later."""
        return self.slow_rate > 0 and self.asked.get("mllm_calls") == 0

    @property
    def unchanged(self) -> int:
        """Images sent to System 2 that are as right or as wrong as before."""
        return round(self.slow_rate * self.n) - self.fixed - self.broken

    def __str__(self) -> str:
        low, high = self.top1_interval
        return f"{self.dataset}, {self.trigger}: top-1 {self.top1:.3f} [{low:.3f}, {high:.3f}], slow {self.slow_rate:.2f}, n {self.n}"

    def _repr_html_(self) -> str:
        return _report_html(self)


def _report_html(report: Report) -> str:
    """An evaluation's figures; notes come first, because they may say that the figures mean little."""
    low, high = report.top1_interval
    rows = [
        ("top-1 accuracy", f"{report.top1:.4f} [{low:.4f}, {high:.4f}]"),
        ("macro accuracy", f"{report.macro:.4f}"),
        ("images", f"{report.n}" + (f" ({report.skipped} skipped)" if report.skipped else "")),
        ("unsure" if report.unsure else "escalated to System 2", f"{report.slow_rate:.1%}"),
        ("fixed / broken by System 2", f"{report.fixed} / {report.broken}"),
        *((name, f"{value:.4f}") for name, value in report.protocols.items()),
        *((f"{name} asked", f"{value:g}") for name, value in report.asked.items()),
        *((f"{name} computed" if name in report.asked else name, f"{value:g}") for name, value in report.cost.items()),
        ("peak device memory", format_bytes(report.peak_device_bytes)),
        ("model loads", ", ".join(f"{role} {count}" for role, count in report.model_loads.items()) or "none"),
        ("files", str(report.path)),
    ]
    notes = "".join(f"<div><i>{escape(note)}</i></div>" for note in report.notes)
    title = f"<b>{escape(report.dataset)}, {escape(report.trigger)}</b>"
    return f"<div>{notes}{title}{html_table(('', ''), rows)}</div>"


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
