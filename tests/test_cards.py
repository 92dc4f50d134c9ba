"""docs/cards.md: what the plan says of each row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fgvr
from fgvr.planning import plan

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cards.md"
ROWS = re.findall(r"^\| (?!memory|-)([^|]+) \| `([^`]+)` \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_kind_of_machine_has_a_row() -> None:
    assert {memory.split(",")[0] for memory, _, _ in ROWS} == {"CPU only", "Apple", *(f"{size} GiB card" for size in (8, 12, 16, 24, 80))}


@pytest.mark.parametrize(("words", "said"), [row[1:] for row in ROWS], ids=[row[1] for row in ROWS])
def test_the_plan_says_what_the_page_says(words: str, said: str, tmp_path: Path) -> None:
    result = plan(fgvr.load_config("mode=plan", *words.split(), f"paths.home={tmp_path}"))
    verdict, *facts = said.split("; ")
    assert result.verdict.split(", ")[0].split(" (")[0] == verdict
    for fact in facts:
        assert any(fact.removesuffix(" language layers stay in main memory") in told for told in result.facts), result.facts
