"""Names of classes, files, models and whatever a model says are text on every page, never markup."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from PIL import Image

from fgvr.agents.discover import Discovered, Kind
from fgvr.evaluation import classify_report, html, image_gallery, report
from fgvr.evaluation.memory_history import MemoryHistory, ModelTotals

HOSTILE = """<script>alert("1")</script>'" onload="x" {{ 1 }}"""
RED = Image.new("RGB", (20, 10), "red")


class Page(HTMLParser):
    """How often each tag stands on the page, its attributes, and all its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    def check(self, scripts: int, texts: int) -> None:
        """`texts`: how often the hostile name must at least be read as it is."""
        assert self.tags.count("script") == scripts
        assert not [name for name, _ in self.attributes if name.startswith("on")]
        assert self.text.count(HOSTILE) >= texts
        assert "&lt;" not in self.text and "&amp;" not in self.text, "escaped twice"


@pytest.fixture
def predictions(run):
    """Every string that a user, a file or a model may have written is hostile."""
    return [
        replace(
            p,
            image=f"{HOSTILE}{i}",
            names={c.category: HOSTILE for c in p.fast.candidates},
            name=HOSTILE,
            decision=replace(p.decision, terms={HOSTILE: 0.5, "history": -0.25}),
            slow=p.slow and replace(p.slow, rationale=HOSTILE, rules=(HOSTILE,)),
        )
        for i, p in enumerate(run(60, slow_rate=0.7))
    ]


COURSE = MemoryHistory(
    used=((0.0, 5, 10),), process=((0.0, 3), (1.0, 4)), seconds=2.0,
    totals=(ModelTotals(HOSTILE, HOSTILE, bytes=5, loads=1),), troubles=Counter(),
)  # fmt: skip


def test_the_page_of_an_evaluation(predictions, tmp_path: Path) -> None:
    names = {str(c): HOSTILE for c in range(8)}
    made = report.make_report(
        predictions, classes=names, dataset=HOSTILE, trigger=HOSTILE, notes=[HOSTILE], model_loads={HOSTILE: 1}, path=tmp_path,
        config={HOSTILE: "x"}, pictures={p.image: RED for p in predictions}, known={c: [RED] for c in names},
        provenance={HOSTILE: HOSTILE}, memory=COURSE,
    )  # fmt: skip
    report.write(made, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    page.check(scripts=1, texts=60)
    assert (HOSTILE + "0" in page.text) or any(value and value.startswith(HOSTILE) for name, value in page.attributes if name == "alt")


def test_the_page_of_classified_images(predictions) -> None:
    page = Page(classify_report.render(predictions, {p.image: RED for p in predictions}, [HOSTILE]))
    page.check(scripts=0, texts=300)
    assert ("alt", HOSTILE + "0") in page.attributes


def test_the_page_of_discovered_kinds() -> None:
    kind = Kind(HOSTILE, (HOSTILE,), HOSTILE, (0, 1), (0.9, 0.8), 2)
    page = Page(image_gallery.render(Discovered(HOSTILE, (HOSTILE,), (kind,), 3, 1.0, ()), [RED, RED], [HOSTILE]))
    page.check(scripts=0, texts=6)
    assert page.attributes.count(("alt", HOSTILE)) == 2


def test_no_template_turns_escaping_off_and_a_value_that_is_missing_is_an_error() -> None:
    folder = resources.files("fgvr.evaluation").joinpath("templates")
    templates = [file for file in folder.iterdir() if file.name.endswith((".html", ".svg"))]
    assert len(templates) >= 7
    for file in templates:
        text = file.read_text(encoding="utf-8")
        assert "safe" not in text and "autoescape" not in text, file.name
    with pytest.raises(UndefinedError):
        html.render("discover.html", title="t")
