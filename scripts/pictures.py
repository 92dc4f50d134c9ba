"""The pictures of README and docs, made anew: `python scripts/pictures.py [--server] [key=value ...]`. Takes Debian's chromium.

`--server`: only the server's page, of a server started for it. Else a contact sheet of the birds; the report of the default run; and one
image's way: of the test images that System 1 got wrong and System 2 put right, the first one of which System 1 was nearly sure goes as a
file through `mode=classify`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import fgvr
from fgvr.modes import runs
from fgvr.session import Session

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from tiny.sheet import contact_sheet  # noqa: E402

from fgvr import modes  # noqa: E402
from fgvr.evaluation import records  # noqa: E402
from fgvr.types import Prediction, Report  # noqa: E402
from fgvr.utils.images import read_image  # noqa: E402

DOCS = ROOT / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(words: list[str]) -> None:
    if "--server" in words:
        server_page([word for word in words if word != "--server"])
        return
    contact_sheet().quantize(256).save(DOCS / "birds-contact-sheet.png", optimize=True)
    cfg = fgvr.load_config("mode=fast_slow", *words)
    report = fgvr.evaluate(cfg)
    page = report.path / "report.html"
    photograph(page, DOCS / "report.png", height=3600, open_first_pair=True)
    photograph(page, DOCS / "report-dark.png", height=1000, color_scheme="dark")
    photograph(page, DOCS / "report-phone.png", height=2400, viewport={"width": 390, "height": 844})
    chosen = put_right(report)
    sample = next(s for s in Session(cfg).dataset.split.test if s.key == chosen.image)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bird.png"
        read_image(sample.image)[0].save(file)
        cfg = fgvr.load_config("mode=classify", f"image='{file}'", *words)
        modes.perform(cfg)
        newest = max(report.path.parents[1].glob("classify/*/report.html"), key=lambda page: page.stat().st_mtime)
        photograph(newest, DOCS / "one-image.png", height=2000)


def server_page(words: list[str]) -> None:
    """The dashboard while somebody works with it: models used, one pinned, an image dropped; then on a phone, and in the dark."""
    from serving import Server

    with tempfile.TemporaryDirectory() as folder:
        bird = Path(folder) / "bird.png"
        sample = Session(fgvr.load_config(f"paths.home={folder}", *words)).dataset.split.test[1]
        read_image(sample.image)[0].save(bird)
        server = Server(Path(folder), ["runtime.budget=256MiB", *words])
        try:
            server.wait()
            with sync_playwright() as playwright:
                chromium = playwright.chromium.launch(executable_path=_browser(), args=["--no-sandbox", "--disable-gpu"])
                for name, context in (
                    ("dashboard", {"viewport": {"width": 1100, "height": 900}}),
                    ("dashboard-dark", {"viewport": {"width": 1100, "height": 900}, "color_scheme": "dark"}),
                    ("dashboard-phone", {"viewport": {"width": 390, "height": 844}}),
                ):
                    tab = chromium.new_context(**context).new_page()
                    _work_with(tab, server, bird)
                    tab.screenshot(path=DOCS / f"{name}.png", full_page=True)
                    Image.open(DOCS / f"{name}.png").convert("RGB").quantize(128).save(DOCS / f"{name}.png", optimize=True)
                chromium.close()
        finally:
            server.stop()


def _work_with(tab: Any, server: Any, bird: Path) -> None:
    tab.goto(server.url)
    tab.get_by_role("button", name="Token").click()
    tab.get_by_label("Token", exact=True).fill(server.token)
    tab.get_by_role("button", name="Use it").click()
    tab.locator("#listening:has-text('live')").wait_for()
    tab.get_by_role("button", name="Drop all idle models").click()
    tab.locator("#said:has-text('came back')").wait_for()
    tab.wait_for_timeout(6000)
    tab.set_input_files("#file", bird)
    tab.locator("#answer .way").wait_for(timeout=600_000)
    pin = tab.locator("#models button[aria-label^='pin mllm']")
    if pin.is_enabled():  # pinned for the first picture, it stays so for the others
        pin.click()
    tab.wait_for_timeout(12000)


def put_right(report: Report) -> Prediction:
    """An image that System 1 got wrong with a wide margin and System 2 right."""
    rows = records.read(report.path / runs.PREDICTIONS, report.classes)
    fixed = [p for p in rows if p.by == "slow" and p.correct and p.fast.candidates[0].category != p.label]
    if not fixed:
        sys.exit("System 2 put nothing right in this world; choose another one (dataset.seed=9002)")
    return max(fixed, key=lambda p: p.fast.margin)


def photograph(page: Path, target: Path, *, height: int, open_first_pair: bool = False, **context: Any) -> None:
    """A PNG of the page, at most `height` CSS pixels of it; raises SystemExit without a browser."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_browser(), args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_context(**{"viewport": {"width": 1100, "height": 900}, **context}).new_page()
        tab.goto(page.resolve().as_uri())
        if open_first_pair:
            tab.locator(".pairs > details summary").first.click()
        tab.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        tab.wait_for_function("[...document.images].every(i => i.complete)")
        width, whole = tab.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        tab.screenshot(path=target, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": min(height, whole)})
        chromium.close()
    Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)


def _browser() -> str:
    return next(filter(None, map(shutil.which, BROWSERS)), None) or sys.exit("no chromium here: python3 scripts/dev.py browser")


if __name__ == "__main__":
    main(sys.argv[1:])
