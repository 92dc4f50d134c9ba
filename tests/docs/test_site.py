"""The documentation's own rules: what is shown twice stands once, and no page asks for anything outside."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from scripts import docs_site

from .blocks import ROOT


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/a.js"></script>',
        "<link rel=stylesheet href=//fonts.example/css>",
        '<img alt="x" src="http://example/a.png">',
        "<style>@import 'https://fonts.example/css'; </style>",
        '<style>body { background: url("https://example/a.png") }</style>',
    ],
)
def test_what_a_page_would_ask_of_others_is_found(html: str) -> None:
    assert len(docs_site.outside(f"<html>{html}</html>")) == 1


def test_a_link_that_a_reader_may_follow_is_no_request() -> None:
    assert docs_site.outside('<a href="https://arxiv.org/abs/2603.17729">paper</a> <img src="a.png"> <link href="assets/site.css">') == []


def shown(text: str, place: str) -> str:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
    return docs_site.on_page_markdown(text, page, SimpleNamespace(docs_dir=str(ROOT / "docs")))


def test_an_included_text_has_its_links_and_not_its_title() -> None:
    text = shown("<!-- include: review.md -->", "how-to/models.md")
    assert "# Let a person answer" not in text and "](../review.jpg)" in text


def test_one_section_can_be_included_and_an_absent_page_is_nothing() -> None:
    text = shown("<!-- include: CONTRIBUTING.md: Parts from outside -->", "how-to/parts.md")
    assert "# shy.py" in text and "## A release" not in text
    assert shown("before <!-- include: not_there.md --> after", "index.md") == "before  after"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_what_a_page_shows_of_another_can_be_reached_from_the_file_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {(page.parent / link).resolve() for link in re.findall(r"\]\(([\w./-]+\.md)[#)]", text)}
    for name in re.findall(r"<!-- include: ([\w./-]+)", text):
        assert {(ROOT / "docs" / name).resolve(), ROOT / name} & links, f"{page.name} shows {name} on the site alone"


def test_links_between_the_repository_and_the_site_fit_both() -> None:
    assert shown("[a](docs/method.md), [b](CHANGELOG.md)", "contributing.md") == "[a](method.md), [b](changelog.md)"
    assert shown("[a](../CONTRIBUTING.md), [b](../fgvr/cli.py)", "method.md") == "[a](contributing.md), b"
    assert shown("[a](scale.md)", "server.md") == "[a](how-to/scale.md)" and shown("[a](scale.md)", "how-to/index.md") == "[a](scale.md)"


def test_a_long_key_breaks_after_its_signs_only() -> None:
    page = '<td><code>models.mllm=qwen2_5</code></td><pre class="x"><code class="y">a.b</code></pre>'
    assert "<code>models.<wbr>mllm=<wbr>qwen2_<wbr>5</code>" in docs_site.on_post_page(page)
    assert "a.b" in docs_site.on_post_page(page)


def test_a_drawing_wider_than_a_phone_can_be_moved_and_says_so(tmp_path: Path) -> None:
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    chromium = shutil.which("chromium") or pytest.skip("no chromium here: python3 scripts/dev.py browser")
    place, config = SimpleNamespace(file=SimpleNamespace(src_uri="explanation/architecture.md")), SimpleNamespace(docs_dir=ROOT / "docs")
    html = docs_site.on_page_content('<img alt="who calls whom" src="drawings/architecture.svg">', place, config)
    style = "html { font-size: 20px }" + (ROOT / "docs/assets/site.css").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(f'<style>{style}</style><div class="md-typeset">{html}</div>', encoding="utf-8")
    shown = {}
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for width in (390, 1100):
            page = opened.new_page(viewport={"width": width, "height": 844})
            page.goto((tmp_path / "page.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself stays where it is"
            drawn = page.locator(".drawn")
            moved = drawn.evaluate(
                "box => { box.scrollLeft = 1000; box.focus(); return box.scrollLeft > 0 && document.activeElement === box }"
            )
            shown[width] = (moved, "sideways" in drawn.evaluate("box => getComputedStyle(box, '::before').content"))
        opened.close()
    assert shown == {390: (True, True), 1100: (False, False)}


def test_every_page_of_docs_is_in_the_navigation_or_said_to_be_outside_it() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    assert settings["strict"] and settings["theme"]["font"] is False
    outside = {line.strip("/ ") for line in settings["not_in_nav"].split()}
    for file in (ROOT / "docs").rglob("*.md"):
        path = str(file.relative_to(ROOT / "docs"))
        assert f" {path}\n" in text or path in docs_site.SHOWN_IN or path.split("/")[0] in outside, path
