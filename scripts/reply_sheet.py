"""A contact sheet of free replies: the picture, the candidates of the prompt, the reply, and whether it is right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, LINE, PAD, COLUMNS = 1160, 15, 10, 165
RIGHT, WRONG, INK, PAPER = (0, 110, 50), (180, 20, 20), (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Shown:
    """A reply and what it answers."""

    image: Image.Image
    name: str  # of the true class
    asked: str
    reply: str
    right: bool


def draw_sheet(replies: Sequence[Shown]) -> Image.Image:
    """One reply below the other."""
    font = ImageFont.load_default(12)
    blocks = [_lines(one) for one in replies]
    heights = [max(one.image.height, LINE * len(lines)) + 2 * PAD for one, lines in zip(replies, blocks, strict=True)]
    sheet = Image.new("RGB", (WIDTH, sum(heights)), PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for one, lines, height in zip(replies, blocks, heights, strict=True):
        sheet.paste(one.image, (PAD, top + PAD))
        for i, (text, colour) in enumerate(lines):
            draw.text((one.image.width + 2 * PAD, top + PAD + LINE * i), text, fill=colour, font=font)
        draw.line((0, top + height - 1, WIDTH, top + height - 1), fill=(200, 200, 200))
        top += height
    return sheet.quantize(64)


def _lines(one: Shown) -> list[tuple[str, tuple[int, int, int]]]:
    verdict = f"{'right' if one.right else 'wrong'}: it is a {one.name}"
    said = [(text, RIGHT if one.right else WRONG) for text in (*textwrap.wrap(one.reply, COLUMNS), verdict)]
    return [*((text, INK) for line in one.asked.splitlines() for text in textwrap.wrap(line, COLUMNS)), *said]
