"""What a review found: how much a person had to look at, and how right each part of the answers is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from fgvr.evaluation.console import facts
from fgvr.types import UNKNOWN, Prediction


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a run's images. `right` is None where no label is known."""

    images: int
    right: float | None

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> "Part":
        judged = [p.correct for p in predictions if p.correct is not None]
        return cls(len(predictions), sum(judged) / len(judged) if judged else None)

    def __str__(self) -> str:
        return f"{self.images:,}" + ("" if self.right is None else f", {self.right:.3f} of them right")


@dataclass(frozen=True, slots=True)
class ReviewFigures:
    """Parts of a run's images after a review. In `all`, "none of these" is not right, and System 1's guess stands where no answer is."""

    all: Part
    fast: Part  # the same images as System 1 alone answers them
    without_person: Part  # not escalated
    named: Part  # by the person
    unknown: int  # none of these, says the person
    waiting: Part  # escalated, without an answer
    fast_and_wrong: float | None  # share of all images that were answered without the person, and wrongly: what a joint risk promises

    @classmethod
    def of(cls, settled: Sequence[Prediction], before: Sequence[Prediction]) -> "ReviewFigures":
        """Args: settled: with the person's answers; before: the run's own, of the same images."""
        without = Part.of([p for p in settled if p.by != "person" and not p.decision.escalate])
        answered = [p for p in settled if p.by == "person"]
        return cls(
            all=Part.of(settled),
            fast=Part.of(before),
            without_person=without,
            named=Part.of([p for p in answered if p.category != UNKNOWN]),
            unknown=sum(p.category == UNKNOWN for p in answered),
            waiting=Part.of([p for p in settled if p.by != "person" and p.decision.escalate]),
            fast_and_wrong=None if without.right is None else (1 - without.right) * without.images / len(settled),
        )

    @property
    def reviewed(self) -> int:
        return self.named.images + self.unknown

    @property
    def share(self) -> float:
        """Share of the images that the person has answered."""
        return self.reviewed / self.all.images if self.all.images else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"reviewed": self.reviewed, "share_reviewed": self.share}

    def sentences(self) -> list[str]:
        """For the first lines of a report."""
        answered = f"{self.named.images:,} named" + ("" if self.named.right is None else f", {self.named.right:.3f} of them right")
        wait = f"; {self.waiting.images:,} escalated images wait for an answer, System 1's guess stands" if self.waiting.images else ""
        return [
            f"a person answered {self.reviewed:,} of {self.all.images:,} images ({self.share:.1%}): {answered}; "
            f'{self.unknown:,} "none of these"{wait}',
            f"answered without a person: {self.without_person}",
        ]

    def table(self, title: str) -> Table:
        rows = {
            "answered without a person": str(self.without_person),
            "reviewed by a person": f"{self.reviewed:,} ({self.share:.1%} of the images)",
            "  named": str(self.named),
            "  none of these": f"{self.unknown:,}",
            "still waiting (System 1's guess stands)": str(self.waiting),
            "all images": str(self.all),
            "all images, System 1 alone": str(self.fast),
        }
        if self.fast_and_wrong is not None:
            rows["answered without a person and wrong, of all images"] = f"{self.fast_and_wrong:.3f}"
        return facts(title, rows.items(), bold="all images")
