"""The contact sheet of the bird world: one species per row, clean to heavy."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from fgvr.data.birds import SIZE, make_world, render

DIFFICULTIES = (0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
ROWS = (0, 1, 4, 8, 22, 34)


def contact_sheet(seed: int = 9000) -> Image.Image:
    """The first two rows are one genus."""
    sheet = Image.new("RGB", (SIZE * len(DIFFICULTIES), SIZE * len(ROWS)))
    for row, species in enumerate(ROWS):
        for column, difficulty in enumerate(DIFFICULTIES):
            picture = render(make_world(seed, difficulty=difficulty), species, "sheet", column)
            sheet.paste(picture, (column * SIZE, row * SIZE))
    return sheet


if __name__ == "__main__":
    contact_sheet().quantize(256).save(Path(sys.argv[1]), optimize=True)
