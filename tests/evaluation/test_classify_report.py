from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from PIL import Image

from fgvr.evaluation import classify_report


class Tags(HTMLParser):
    """Fails on tags that are closed in another order than they were opened."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("<body>")[2]))


def test_a_way_shows_candidates_decision_and_thoughts_in_this_order(run) -> None:
    (p,) = run(1, slow_rate=1.0)
    p = replace(p, names={c.category: f"Name {c.category}" for c in p.fast.candidates}, slow=replace(p.slow, rules=("Mind the tail.",)))
    page = classify_report.render([p], {p.image: Image.new("RGB", (20, 10), "red")}, ["a notice"])
    Tags(page)
    said = text(page)
    steps = [
        "a notice",
        p.name,
        "System 1's shortlist",
        "Name",
        "escalated to System 2",
        "history",
        "-0.25",
        "System 2's answer",
        "Mind the tail.",
    ]
    assert [said.find(step) for step in steps] == sorted(said.find(step) for step in steps)
    assert all(step in said for step in steps)
    assert "data:image/jpeg" in page and "http" not in page
    assert "<and not another>" not in page  # the rationale is escaped


def test_a_fast_answer_has_no_thoughts_and_an_unreadable_one_says_so(run) -> None:
    fast, slow = (next(p for p in run(40) if p.by == by) for by in ("fast", "slow"))
    assert "System 2's answer" not in text(classify_report.render([fast], {}))
    unreadable = replace(slow, slow=replace(slow.slow, category=None, probabilities={}), by="fast")
    assert "could not be read" in text(classify_report.render([unreadable], {}))


def test_a_long_page_is_cut_and_says_so(run) -> None:
    page = classify_report.render(run(classify_report.SHOWN + 3), {})
    Tags(page)
    assert page.count('class="way"') == classify_report.SHOWN
    assert "3 more are in predictions.jsonl" in page
