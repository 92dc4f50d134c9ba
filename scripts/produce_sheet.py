"""README's first picture and the gallery's of a sort, made anew: `python scripts/produce_sheet.py [key=value ...]`.

The first two test photographs of each kind of `dataset=produce`, in the order of their names, with System 1's answers: a green frame is
right, a red one wrong (with the truth beneath). Writes docs/produce.jpg and prints the accuracy on all test photographs. docs/sorted.jpg
shows the folders that `fgvr sort` would make of all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import fgvr  # noqa: E402
from fgvr.evaluation import records  # noqa: E402
from fgvr.session import Session  # noqa: E402
from fgvr.types import Prediction  # noqa: E402
from fgvr.utils.images import read_image  # noqa: E402

SHEET, SORTED = ROOT / "docs" / "produce.jpg", ROOT / "docs" / "sorted.jpg"
SHOWN, MOST, SMALL = 6, 11, 72  # folders and photographs of each that the picture of a sort shows; pixels of one
EACH, COLUMNS = 2, 8
SIDE, FRAME, LINE = 112, 4, 15  # pixels: photograph, its frame, a line of text
RIGHT, WRONG, INK, PAPER = "#2e7d32", "#c62828", "#202020", "#ffffff"


def main(words: list[str]) -> None:
    cfg = fgvr.load_config("mode=evaluate", "dataset=produce", *words)
    report = fgvr.evaluate(cfg)
    dataset = Session(cfg).dataset
    files = {sample.key: Path(str(sample.image)) for sample in dataset.split.test}
    predictions = sorted(records.read(report.path / "predictions.jsonl", dataset.catalog.as_dict()), key=lambda p: p.image)
    by_kind: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_kind.setdefault(str(prediction.label), []).append(prediction)
    chosen = [prediction for kind in by_kind.values() for prediction in kind[:EACH]]
    draw_sheet(chosen, files).save(SHEET, quality=72, optimize=True, progressive=True)
    draw_sorted(predictions, files).save(SORTED, quality=76, optimize=True, progressive=True)
    low, high = report.top1_interval
    right = sum(p.correct is True for p in chosen)
    print(f"{SHEET}: {right} of {len(chosen)} shown are right; of all {report.n} {report.top1:.3f} [{low:.3f}, {high:.3f}]")


def draw_sheet(predictions: Sequence[Prediction], files: dict[str, Path]) -> Image.Image:
    width, height = SIDE + 2 * FRAME + 6, SIDE + 2 * FRAME + 2 * LINE + 6
    rows = -(-len(predictions) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + 6, rows * height + 6), PAPER)
    for place, prediction in enumerate(predictions):
        tile = draw_tile(prediction, files[prediction.image])
        sheet.paste(tile, (6 + place % COLUMNS * width, 6 + place // COLUMNS * height))
    return sheet


def draw_sorted(predictions: Sequence[Prediction], files: dict[str, Path]) -> Image.Image:
    """A row per folder, the fullest kinds first and what is unsure last; a red frame where the kind is wrong."""
    folders: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        folders.setdefault("unsure" if prediction.decision.escalate else prediction.name, []).append(prediction)
    unsure = folders.pop("unsure", [])
    rows = [*sorted(folders.items(), key=lambda row: (-len(row[1]), row[0]))[:SHOWN], ("unsure", unsure)]
    sheet = Image.new("RGB", (130 + MOST * (SMALL + 6) + 6, len(rows) * (SMALL + 10) + 10), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for line, (name, members) in enumerate(rows):
        top = 10 + line * (SMALL + 10)
        pen.text((10, top + 18), f"{name}/\n{len(members)}", INK, font)
        for place, prediction in enumerate(members[:MOST]):
            left = 130 + place * (SMALL + 6)
            if name != "unsure" and not prediction.correct:
                pen.rectangle((left - 3, top - 3, left + SMALL + 2, top + SMALL + 2), WRONG)
            sheet.paste(ImageOps.fit(read_image(files[prediction.image])[0], (SMALL, SMALL)), (left, top))
    return sheet


def draw_tile(prediction: Prediction, file: Path) -> Image.Image:
    side = SIDE + 2 * FRAME
    tile = Image.new("RGB", (side, side + 2 * LINE), PAPER)
    colour = RIGHT if prediction.correct else WRONG
    tile.paste(colour, (0, 0, side, side))
    tile.paste(ImageOps.fit(read_image(file)[0], (SIDE, SIDE)), (FRAME, FRAME))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    truth = "" if prediction.correct else f", is {prediction.names.get(str(prediction.label), prediction.label)}"
    pen.text((1, side), prediction.name, colour, font)
    pen.text((1, side + LINE), f"{prediction.confidence:.2f}{truth}", INK, font)
    return tile


if __name__ == "__main__":
    main(sys.argv[1:])
