"""Pictures of a review page in a real browser, for docs/review.md: python scripts/review_picture.py RUN_FOLDER [OUT_FOLDER]."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WAYS = {
    "review": {"viewport": {"width": 1240, "height": 860}},
    "review-dark": {"viewport": {"width": 1240, "height": 860}, "color_scheme": "dark"},
    "review-phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def main(run: Path, out: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, way in WAYS.items():
            page = browser.new_context(**way).new_page()
            page.goto((run / "review.html").absolute().as_uri())
            for key in "1121n1131":
                page.keyboard.press(key)
            page.screenshot(path=out / f"{name}.png")
            with Image.open(out / f"{name}.png") as shot:
                smaller = shot.convert("RGB").quantize(256)
            smaller.save(out / f"{name}.png", optimize=True)
            print(out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs"))
