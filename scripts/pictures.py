"""The pictures of README and docs, made anew: `python scripts/pictures.py report|server|review [key=value ...]`. Takes Debian's chromium.

`report`: a contact sheet of the birds; the report of the default run; and one image's way: of the test images that System 1 got wrong and
System 2 put right, the first one of which System 1 was nearly sure goes as a file through `mode=classify`.
`server`: the server's page, of a server started for it.
`review`: a person's page, of photographs: `review dataset=folder dataset.root=../shared/data/grocery_produce50 dataset.shots=4`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from serving import Server  # noqa: E402
from tiny.sheet import contact_sheet  # noqa: E402

import fgvr  # noqa: E402
from fgvr import modes  # noqa: E402
from fgvr.evaluation import records  # noqa: E402
from fgvr.modes import runs  # noqa: E402
from fgvr.session import Session  # noqa: E402
from fgvr.types import Prediction, Report  # noqa: E402
from fgvr.utils.images import read_image  # noqa: E402

DOCS = ROOT / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, PHONE = {"viewport": {"width": 1100, "height": 900}}, {"viewport": {"width": 390, "height": 844}}
DARK = WIDE | {"color_scheme": "dark"}


def main(words: list[str]) -> None:
    made = {"report": report_pages, "server": server_page, "review": review_page}
    if not words or words[0] not in made:
        sys.exit(f"{__doc__}")
    made[words[0]](words[1:])


def report_pages(words: list[str]) -> None:
    contact_sheet().quantize(256).save(DOCS / "birds-contact-sheet.png", optimize=True)
    cfg = fgvr.load_config("mode=fast_slow", *words)
    report = fgvr.evaluate(cfg)
    page = report.path / "report.html"
    photograph(page, "report.png", height=3600, open_first_pair=True, **WIDE)
    photograph(page, "report-dark.png", height=1000, **DARK)
    photograph(page, "report-phone.png", height=2400, **PHONE)
    chosen = put_right(report)
    sample = next(s for s in Session(cfg).dataset.split.test if s.key == chosen.image)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bird.png"
        read_image(sample.image)[0].save(file)
        cfg = fgvr.load_config("mode=classify", f"image='{file}'", *words)
        modes.perform(cfg)
        newest = max(report.path.parents[1].glob("classify/*/report.html"), key=lambda page: page.stat().st_mtime)
        photograph(newest, "one-image.png", height=2000, **WIDE)


def server_page(words: list[str]) -> None:
    """The dashboard while somebody works with it: models used, one pinned, an image dropped; then in the dark, and on a phone."""
    with tempfile.TemporaryDirectory() as folder:
        bird = Path(folder) / "bird.png"
        sample = Session(fgvr.load_config(f"paths.home={folder}", *words)).dataset.split.test[1]
        read_image(sample.image)[0].save(bird)
        # Nothing is remembered, so that each picture shows models at work.
        server = Server(Path(folder), ["runtime.budget=256MiB", "store.enabled=false", *words])
        try:
            print("the server builds its knowledge base")
            server.wait(1800)
            with browser() as chromium:
                for name, context in (("dashboard.png", WIDE), ("dashboard-dark.png", DARK), ("dashboard-phone.png", PHONE)):
                    tab = chromium.new_context(**context).new_page()
                    work_with(tab, server, bird)
                    shoot(tab, name, full_page=True)
                    tab.context.close()  # an open tab asks every two seconds
        finally:
            server.stop()


def work_with(tab: Any, server: Server, bird: Path) -> None:
    """Raises SystemExit where the page says that the image could not be classified."""
    tab.goto(server.url)
    tab.get_by_role("button", name="Token").click()
    tab.get_by_label("Token", exact=True).fill(server.token)
    tab.get_by_role("button", name="Use it").click()
    tab.locator("#listening:has-text('live')").wait_for()
    tab.get_by_role("button", name="Drop all idle models").click()
    tab.locator("#said:has-text('came back')").wait_for()
    tab.wait_for_timeout(6000)
    tab.set_input_files("#file", bird)
    tab.locator("#answer .way, #classify-said.wrong").first.wait_for(timeout=120_000)
    if tab.locator("#classify-said.wrong").count():
        sys.exit(tab.locator("#classify-said").inner_text())
    pin = tab.locator("#models button[aria-label^='pin mllm']")
    if pin.is_enabled():  # pinned for the first picture, it stays so for the others
        pin.click()
    tab.wait_for_timeout(12000)


def review_page(words: list[str]) -> None:
    report = fgvr.evaluate(fgvr.load_config("mode=evaluate", "slow=person", *words))
    with browser() as chromium:
        tab = chromium.new_context(viewport={"width": 1240, "height": 860}).new_page()
        tab.goto((report.path / "review.html").absolute().as_uri())
        tab.keyboard.type("1121n1131")
        shoot(tab, "review.jpg")


def put_right(report: Report) -> Prediction:
    """An image that System 1 got wrong with a wide margin and System 2 right."""
    rows = records.read(report.path / runs.PREDICTIONS, report.classes)
    fixed = [p for p in rows if p.by == "slow" and p.correct and p.fast.candidates[0].category != p.label]
    if not fixed:
        sys.exit("System 2 put nothing right in this world; choose another one (dataset.seed=9002)")
    return max(fixed, key=lambda p: p.fast.margin)


def photograph(page: Path, name: str, *, height: int, open_first_pair: bool = False, **context: Any) -> None:
    """A picture of a file's page, at most `height` CSS pixels of it."""
    with browser() as chromium:
        tab = chromium.new_context(**context).new_page()
        tab.goto(page.resolve().as_uri())
        if open_first_pair:
            tab.locator(".pairs > details summary").first.click()
        tab.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        tab.wait_for_function("[...document.images].every(i => i.complete)")
        width, whole = tab.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        shoot(tab, name, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": min(height, whole)})


def shoot(tab: Any, name: str, **how: Any) -> None:
    """Into docs/: a JPEG where photographs are shown, else a PNG of few colours."""
    target = DOCS / name
    if target.suffix == ".jpg":
        tab.screenshot(path=target, type="jpeg", quality=85, **how)
    else:
        tab.screenshot(path=target, **how)
        with Image.open(target) as shot:
            fewer = shot.convert("RGB").quantize(128)
        fewer.save(target, optimize=True)
    print(target)


@contextmanager
def browser() -> Iterator[Any]:
    """Raises SystemExit without one."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None) or sys.exit("no chromium here: python3 scripts/dev.py browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1:])
