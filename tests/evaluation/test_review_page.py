"""A review in a real browser, by keyboard and by mouse: 40 doubtful images, the page closed and opened in between, the answers scored."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fgvr
from fgvr import modes
from fgvr.evaluation import answers, review_page
from fgvr.modes import runs
from fgvr.runtime.pool import close_shared
from fgvr.types import Candidate, Decision, FastResult, History, Prediction

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: python3 scripts/dev.py browser")
WORDS = ("models=fake", "slow=person", "trigger=always", "dataset.genera=[4,4]", "dataset.test_per_class=5", "dataset.calibration=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    close_shared()
    return fgvr.evaluate(fgvr.load_config("mode=evaluate", *WORDS, f"paths.home={home}")).path


@pytest.fixture(scope="module")
def rows(run: Path) -> dict[str, dict[str, Any]]:
    return {row["image"]: row for row in map(json.loads, (run / runs.PREDICTIONS).read_text().splitlines())}


@pytest.fixture
def address(run: Path) -> str:
    return (run / "review.html").as_uri()


@pytest.fixture
def visit(address: str, tmp_path: Path) -> Iterator[Any]:
    """Opens the page in a browser whose profile lies on the disk, so that a call after `close()` is another day."""
    asked: list[str] = []
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:

        def call(**context: Any) -> Any:
            opened = playwright.chromium.launch_persistent_context(
                tmp_path / "profile", executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], **context
            )
            page = opened.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(address)
            return page

        yield call
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {address}
    assert not complaints


def shown(page: Any) -> str:
    return page.locator("#name").inner_text()


def key_for(row: dict[str, Any]) -> str:
    """What a person who knows the truth presses."""
    offered = [candidate["category"] for candidate in row["fast"]["candidates"][:5]]
    return str(offered.index(row["label"]) + 1) if row["label"] in offered else "n"


def download(page: Any, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.keyboard.press("d")
    waiting.value.save_as(folder / waiting.value.suggested_filename)
    return folder / waiting.value.suggested_filename


@pytest.mark.slow
def test_forty_images_are_answered_by_keyboard_on_two_days_and_scored(visit, run, rows, home, tmp_path) -> None:
    page = visit()
    pressed: dict[str, str] = {}
    for _ in range(17):
        pressed[shown(page)] = key_for(rows[shown(page)])
        page.keyboard.press(pressed[shown(page)])
    page.context.close()
    page = visit()
    assert page.locator("#told").inner_text() == "image 18 of 40 · 17 answered"
    while page.locator("#ask").is_visible():
        pressed[shown(page)] = key_for(rows[shown(page)])
        page.keyboard.press(pressed[shown(page)])
    assert len(pressed) == 40 and page.locator("#summary").inner_text().startswith("All 40 answered")
    file = download(page, tmp_path)
    page.context.close()
    assert file.name == "answers.csv"
    reviewed = modes.perform(fgvr.load_config("mode=review", f"answers={file}", f"paths.home={home}"))
    figures, none = reviewed.figures, sum(key == "n" for key in pressed.values())
    assert (reviewed.run, figures.reviewed, figures.unknown, figures.waiting.images) == (run, 40, none, 0)
    assert figures.named.right == 1.0 and reviewed.report is not None and reviewed.report.top1 == (40 - none) / 40


def test_the_most_doubtful_image_comes_first_and_undo_takes_answers_back(visit, rows) -> None:
    page = visit()
    doubtful = sorted(rows.values(), key=lambda row: (row["decision"]["score"], row["confidence"]))
    assert shown(page) == doubtful[0]["image"]
    assert page.locator("#certainty").inner_text() == "", "the score of trigger=always is no probability"
    page.keyboard.press("1")
    page.keyboard.press("n")
    third = shown(page)
    page.keyboard.press("u")
    assert shown(page) == doubtful[1]["image"] and page.locator("#none").get_attribute("aria-pressed") == "false"
    page.keyboard.press("ArrowLeft")
    assert page.locator(".candidate").first.get_attribute("aria-pressed") == "true"
    page.keyboard.press("2")  # another answer to the first image
    page.keyboard.press("u")
    assert page.locator(".candidate").first.get_attribute("aria-pressed") == "true", "undo brings the former answer back"
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert page.locator("#told").inner_text() == "image 1 of 40 · 0 answered"
    assert page.get_by_role("button", name="undo").is_disabled() and page.get_by_role("button", name="Download").is_disabled()
    assert third != doubtful[0]["image"]
    page.context.close()


def test_a_mouse_does_it_too_and_a_class_that_is_no_candidate_is_written(visit, run, rows, tmp_path) -> None:
    page = visit()
    first = shown(page)
    page.locator(".candidate").nth(1).click()
    second = shown(page)
    page.get_by_role("button", name="none of these").click()
    third = shown(page)
    offered = {candidate["category"] for candidate in rows[third]["fast"]["candidates"][:5]}
    classes = json.loads((run / "review.json").read_text())["classes"]
    elsewhere, name = next((id, name) for id, name in classes.items() if id not in offered)
    page.keyboard.press("/")
    page.keyboard.type("n1u")  # letters of a name are no commands
    assert shown(page) == third
    page.locator("#another").fill(name)
    page.keyboard.press("Enter")
    assert page.locator("#told").inner_text() == "image 4 of 40 · 3 answered"
    page.locator("#strip button").first.click()
    assert shown(page) == first
    lines = download(page, tmp_path).read_text(encoding="utf-8-sig").splitlines()
    page.context.close()
    run_name = json.loads((run / "review.json").read_text())["run"]
    chosen = rows[first]["fast"]["candidates"][1]["category"]
    assert lines == [
        "run,image,class_id,class_name",
        f"{run_name},{first},{chosen},{classes[chosen]}",
        f"{run_name},{second},,none of these",
        f"{run_name},{third},{elsewhere},{name}",
    ]


def test_every_picture_is_in_the_page_on_a_phone_and_in_the_dark(visit) -> None:
    page = visit(viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[:3]
    assert max(red, green, blue) < 60
    page.wait_for_function("[...document.querySelectorAll('#photograph, .known img')].every(i => i.complete && i.naturalWidth > 50)")
    assert page.locator(".known img").count() >= 10, "support images beside each of five candidates"
    assert page.evaluate("[...document.querySelectorAll('img')].every(i => i.hasAttribute('alt'))")
    page.context.close()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a folder whose classes and files are called what breaks pages and tables."""
    root = tmp_path_factory.mktemp("odd")
    names = ("</script><b>", 'a; "b", c', "none of these", "=1+1")
    for place, name in enumerate(names):
        folder = root / "photos" / name.replace("/", "\N{DIVISION SLASH}")
        folder.mkdir(parents=True)
        for number, suffix in enumerate(("plain", 'x,"y";z', " blank", os.fsdecode(b"\xe9"), "e\u0301 new")):
            Image.effect_noise((40, 40), 30 + 20 * place + number).convert("RGB").save(folder / f"{suffix}{place}.png")
    close_shared()
    words = ("models=fake", "slow=person", "trigger=always", "dataset=folder", f"dataset.root={root / 'photos'}", "dataset.shots=2")
    return fgvr.evaluate(fgvr.load_config("mode=evaluate", *words, "evaluation.on_overlap=allow", f"paths.home={root / 'home'}")).path


class TestOddNames:
    @pytest.fixture
    def address(self, odd: Path) -> str:
        return (odd / "review.html").as_uri()

    def test_names_that_break_pages_and_tables_come_back_as_they_were(self, visit, odd, tmp_path) -> None:
        page = visit()
        page.keyboard.press("n")
        while page.locator("#ask").is_visible():
            page.keyboard.press("1")
        file = download(page, tmp_path)
        page.context.close()
        found = [json.loads(line) for line in (odd / runs.PREDICTIONS).read_text().splitlines()]
        asked = review_page.read(odd)
        wanted = {row["image"]: row["fast"]["candidates"][0]["category"] for row in found}
        first = next(iter(asked.images))
        assert answers.read(file, asked) == wanted | {first: ""} and len(wanted) >= 8
        assert "none of these" in asked.classes.values(), "a class may be called so"


def test_a_page_holds_a_thousand_images_and_says_how_many_more_there_are() -> None:
    fast = FastResult("0", (Candidate("a", 0.6, 0.5, None), Candidate("b", 0.4, 0.4, None)), 0.6, 0.2, 0.5, True, History(1, 1, 2))
    doubtful = [Prediction(f"{i}.png", f"{i:064x}", None, "a", "A", 0.6, "fast", fast, Decision(True, i / 2000, 1.0)) for i in range(1001)]
    review = review_page.Review.of(doubtful, {"a": "A", "b": "B"}, None)
    picture = Image.new("RGB", (8, 8))
    html = review_page.render(review, doubtful, title="many", candidates=5, pictures={p.image: picture for p in doubtful}, known={})
    shown = json.loads(html.split('id="data">')[1].split("</script>")[0])["images"]
    assert [one["image"] for one in shown] == [p.image for p in doubtful[:1000]]
    assert "1 more images are doubtful" in html and len(review.images) == 1001
