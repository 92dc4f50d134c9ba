"""README's first picture, made anew: `python scripts/produce_sheet.py [key=value ...]`.

The first two test photographs of each kind of `dataset=produce`, in the order of their names, with System 1's answers: a green frame is
right, a red one wrong (with the truth beneath). Writes docs/produce.jpg and prints the accuracy on all test photographs.
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

SHEET = ROOT / "docs" / "produce.jpg"
EACH, COLUMNS = 2, 8
SIDE, FRAME, LINE = 112, 4, 15  # pixels: photograph, its frame, a line of text
RIGHT, WRONG, INK, PAPER = "#2e7d32", "#c62828", "#202020", "#ffffff"


def main(words: list[str]) -> None:
    cfg = fgvr.load_config("mode=fastonly", "dataset=produce", *words)
    report = fgvr.evaluate(cfg)
    dataset = Session(cfg).dataset
    files = {sample.key: Path(str(sample.image)) for sample in dataset.split.test}
    predictions = sorted(records.read(report.path / "predictions.jsonl", dataset.catalog.as_dict()), key=lambda p: p.image)
    by_kind: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_kind.setdefault(str(prediction.label), []).append(prediction)
    chosen = [prediction for kind in by_kind.values() for prediction in kind[:EACH]]
    draw_sheet(chosen, files).save(SHEET, quality=72, optimize=True, progressive=True)
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
