"""What an evaluation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

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
