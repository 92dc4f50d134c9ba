"""How a bird is drawn: one pose, its parts from back to front, then what a camera does to it.

Randomness comes only from the generator it is given, in a fixed order: the shipped models and every recorded figure depend on its pixels.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 112
"""Picture side, pixels."""

_SUPERSAMPLING = 2
_CENTRE = (54, 62)  # of the bird, in its own coordinates

RGB = tuple[int, int, int]
Pair = np.ndarray | Sequence[float]  # x, y
Points = np.ndarray | Sequence[Sequence[float]]  # [n, 2]


def draw(words: Mapping[str, str], rng: np.random.Generator, difficulty: float) -> Image.Image:
    """A bird whose parts look as these words say, 112 x 112 RGB. At difficulty 0 only the pose varies, a little."""
    canvas = _Canvas(rng, difficulty)
    _draw_background(canvas)
    _draw_body(canvas, words)
    _draw_head(canvas, words)
    _draw_leaves(canvas)
    return _degrade(canvas)


_PAINT: dict[str, RGB] = {
    "black": (28, 26, 30),
    "white": (242, 241, 236),
    "grey": (136, 139, 145),
    "red": (205, 40, 38),
    "orange": (238, 134, 30),
    "yellow": (243, 211, 46),
    "green": (84, 138, 58),
    "blue": (48, 92, 196),
    "brown": (124, 80, 46),
}
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 24, endpoint=False)), np.sin(np.linspace(0, 2 * np.pi, 24, endpoint=False))], 1)


class _Canvas:
    """A drawing surface in bird coordinates: a bird facing right around `_CENTRE`, posed by one affine map."""

    def __init__(self, rng: np.random.Generator, difficulty: float) -> None:
        self.rng, self.difficulty = rng, difficulty
        self.image = Image.new("RGB", (SIZE * _SUPERSAMPLING, SIZE * _SUPERSAMPLING))
        self.draw = ImageDraw.Draw(self.image)
        amount = 0.1 + 0.9 * difficulty
        angle = math.radians(self.spread(20 * amount))
        scale = (0.87 + self.spread(0.13 * amount)) * _SUPERSAMPLING
        stretch = 1 + self.spread(0.1 * amount)
        flip = -1 if rng.random() < 0.5 else 1
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shear = np.array([[flip * stretch, self.spread(0.15 * amount)], [0.0, 1 / stretch]])
        self.matrix = scale * turn @ shear
        self.shift = _SUPERSAMPLING * (SIZE / 2 + rng.uniform(-7, 7, 2) * amount)
        self.scale = scale

    def spread(self, width: float) -> float:
        """Uniform in [-width, width]."""
        return float(self.rng.uniform(-width, width))

    def paint(self, name: str) -> RGB:
        """The colour of a word, slightly different for every feather."""
        return self.shade(_PAINT[name], 1.0, 14)

    def shade(self, colour: RGB, factor: float, jitter: float = 0.0) -> RGB:
        varied = np.array(colour) * factor + self.rng.uniform(-jitter, jitter, 3) * self.difficulty
        r, g, b = np.clip(varied, 0, 255).astype(int).tolist()
        return r, g, b

    def polygon(self, points: Points, fill: RGB, edge: RGB | None = None) -> None:
        """Fill a polygon given in bird coordinates, float [n, 2]."""
        posed = ((np.asarray(points, float) - _CENTRE) @ self.matrix.T + self.shift).ravel().tolist()
        self.draw.polygon(posed, fill=fill)
        if edge is not None:
            self.draw.line([*posed, *posed[:2]], fill=edge, width=2)

    def ellipse(self, centre: Pair, radii: Pair, fill: RGB, tilt: float = 0.0) -> None:
        self.polygon(_oval(centre, radii, tilt), fill)

    def line(self, points: Points, fill: RGB, width: float) -> None:
        """A stroke in bird coordinates; width in pixels of the final picture."""
        posed = ((np.asarray(points, float) - _CENTRE) @ self.matrix.T + self.shift).ravel().tolist()
        self.draw.line(posed, fill=fill, width=max(1, round(width * self.scale)), joint="curve")


def _oval(centre: Pair, radii: Pair, tilt: float = 0.0) -> np.ndarray:
    c, s = math.cos(tilt), math.sin(tilt)
    return (_CIRCLE * radii) @ np.array([[c, s], [-s, c]]) + centre


def _turned(points: Points, pivot: Pair, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return (np.asarray(points, float) - pivot) @ np.array([[c, s], [-s, c]]) + pivot


def _draw_background(canvas: _Canvas) -> None:
    """A blurred field of two or three colours, blobs and twigs in any colour a bird may have, and the perch."""
    rng, difficulty = canvas.rng, canvas.difficulty
    plain = np.array([168.0, 186.0, 178.0])
    field = rng.uniform(50, 225, 3) * difficulty + plain * (1 - difficulty)
    patches = field + rng.uniform(-45, 45, (4, 4, 3)) * difficulty
    soft = Image.fromarray(np.clip(patches, 0, 255).astype(np.uint8)).resize(canvas.image.size, Image.Resampling.BICUBIC)
    canvas.image.paste(soft)
    side = SIZE * _SUPERSAMPLING
    for _ in range(int(rng.integers(2, 8) * difficulty)):
        colour = canvas.shade(list(_PAINT.values())[int(rng.integers(len(_PAINT)))], float(rng.uniform(0.7, 1.1)), 40)
        centre, radii = rng.uniform(0, side, 2), rng.uniform(5, 24, 2)
        if rng.random() < 0.6:
            canvas.draw.polygon(_oval(centre, radii, float(rng.uniform(0, 3.14))).ravel().tolist(), fill=colour)
        else:
            canvas.draw.line([*centre, *rng.uniform(0, side, 2)], fill=colour, width=int(rng.integers(2, 9)))
    height = 96 + canvas.spread(1.5)
    bark = canvas.shade((96, 82, 70), 1 + canvas.spread(0.35) * difficulty, 20)
    canvas.line([(-20, height + canvas.spread(8)), (50, height), (132, height + canvas.spread(8))], bark, 3.5 + canvas.spread(1))


def _draw_body(canvas: _Canvas, words: Mapping[str, str]) -> None:
    back, belly = canvas.paint(words["back"]), canvas.paint(words["belly"])
    dark = canvas.shade(back, 0.72)
    _draw_legs(canvas, canvas.paint(words["legs"]))
    _draw_tail(canvas, words["tail"], dark)
    body = _oval((49, 61), (25, 17), -0.35)
    canvas.polygon(body, back)
    canvas.polygon(np.concatenate([body[-4:], body[:13], [(38, 66), (56, 56), (66, 49)]]), belly)
    canvas.ellipse((64, 56), (12, 13), belly, 0.3)
    _draw_breast(canvas, words["breast"], canvas.shade((58, 44, 38), 1.0, 10))
    _draw_wing(canvas, words["wing bars"], canvas.shade(back, 0.86), dark)


def _draw_legs(canvas: _Canvas, colour: RGB) -> None:
    for hip in (46, 57):
        foot = (hip + 2 + canvas.spread(2 * canvas.difficulty), 96)
        canvas.line([(hip, 72), foot], colour, 3.4)
        canvas.line([(foot[0] - 4, 97), (foot[0] + 6, 96)], colour, 2.8)


def _draw_tail(canvas: _Canvas, kind: str, colour: RGB) -> None:
    shapes = {
        "short": [(32, 59), (16, 62), (16, 76), (34, 73)],
        "pointed": [(32, 60), (-5, 70), (34, 73)],
        "forked": [(32, 58), (-3, 56), (12, 67), (0, 82), (34, 74)],
    }
    swing = canvas.spread(0.2 * (0.1 + 0.9 * canvas.difficulty))
    canvas.polygon(_turned(shapes[kind], (33, 66), swing), colour, canvas.shade(colour, 0.6))


def _draw_breast(canvas: _Canvas, kind: str, mark: RGB) -> None:
    wobble = canvas.rng.uniform(-1, 1, (8, 2)) * (0.3 + canvas.difficulty)
    if kind == "spotted":
        places = np.array([(61, 61), (67, 58), (73, 58), (58, 68), (64, 66), (70, 65), (63, 73), (68, 72)]) + wobble
        for place in places:
            canvas.polygon(place + _CIRCLE[::3] * 1.9, mark)
    elif kind == "streaked":
        for x, y in np.array([(60, 60), (65, 58), (70, 57), (74, 56)]) + wobble[:4]:
            canvas.line([(x, y), (x - 3, y + 15)], mark, 1.9)


def _draw_wing(canvas: _Canvas, bars: str, colour: RGB, dark: RGB) -> None:
    lift = canvas.spread(0.15 * canvas.difficulty)
    pivot = (44, 57)
    outline = _turned(_oval(pivot, (19, 10), -0.3), pivot, lift)
    canvas.polygon(outline, colour, dark)
    canvas.polygon(_turned([(30, 57), (22, 68), (40, 66)], pivot, lift), dark)
    white = canvas.shade((244, 243, 238), 1.0, 8)
    for x in {"no": (), "one": (44,), "two": (38, 51)}[bars]:
        canvas.line(_turned([(x - 3, 49 - (x - 44) * 0.3), (x + 3, 66 - (x - 44) * 0.3)], pivot, lift), white, 3.6)


def _draw_head(canvas: _Canvas, words: Mapping[str, str]) -> None:
    rng = canvas.rng
    nod = canvas.spread(0.16 * (0.1 + 0.9 * canvas.difficulty))
    neck = (72, 50)
    cheek = canvas.shade((150, 130, 108), 1 + canvas.spread(0.12) * canvas.difficulty, 8)

    def posed(points: Points | np.ndarray) -> np.ndarray:
        return _turned(points, neck, nod)

    beak = canvas.shade((92, 84, 74), 1 + canvas.spread(0.45) * canvas.difficulty, 14)
    shapes = {
        "stubby": [(85, 33), (96, 41), (85, 48)],
        "long": [(86, 36), (112, 42), (86, 44)],
        "hooked": [(85, 33), (96, 34), (103, 40), (102, 53), (97, 45), (85, 46)],
    }
    canvas.polygon(posed(shapes[words["beak"]]), beak, canvas.shade(beak, 0.6))
    head = posed(_oval((75, 40), (15, 14)))
    canvas.polygon(head, cheek)
    canvas.polygon(posed(_oval((79, 51), (9, 7), 0.2)), canvas.paint(words["throat"]))
    canvas.polygon(np.concatenate([head[11:24], posed([(88, 35), (76, 33), (62, 41)])]), canvas.paint(words["crown"]))
    eye = (79.0, 40.0)
    if words["eye ring"] != "no":
        canvas.polygon(posed(_oval(eye, (5.4, 5.4))), canvas.paint(words["eye ring"]))
    canvas.polygon(posed(_oval(eye, (2.8, 2.8))), canvas.shade((18, 16, 18), 1.0))
    if rng.random() < 0.7:
        canvas.polygon(posed(_oval((80.0, 39.0), (0.9, 0.9))), (235, 235, 235))


def _draw_leaves(canvas: _Canvas) -> None:
    """Up to three leaves before the bird; each hides at most one part."""
    rng, side = canvas.rng, SIZE * _SUPERSAMPLING
    for _ in range(int(rng.integers(0, 4))):
        place, size, tilt = rng.uniform(0, side, 2), rng.uniform(7, 15) * canvas.difficulty, float(rng.uniform(0, 3.14))
        green = canvas.shade((74, 112, 52), float(rng.uniform(0.6, 1.3)), 30)
        if size >= 1:
            canvas.draw.polygon(_oval(place, (size * 1.3, size * 0.55), tilt).ravel().tolist(), fill=green)


def _degrade(canvas: _Canvas) -> Image.Image:
    """Down to 112 x 112, then blur, contrast, colour cast, a gradient of light and sensor noise."""
    rng, difficulty = canvas.rng, canvas.difficulty
    small = canvas.image.reduce(_SUPERSAMPLING)
    blur = float(rng.uniform(0, 1.0)) * difficulty
    if blur > 0.25:
        small = small.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(small, np.float32)
    contrast = 1 + canvas.spread(0.22 * difficulty)
    cast = 1 + rng.uniform(-0.12, 0.12, 3) * difficulty
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    slope = rng.uniform(-0.2, 0.2, 2) * difficulty
    light = 1 + canvas.spread(0.15 * difficulty) + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    noise = rng.standard_normal((SIZE, SIZE), np.float32)[..., None] * rng.uniform(1, 11) * difficulty
    grain = rng.standard_normal((SIZE // 2, SIZE // 2, 3), np.float32).repeat(2, 0).repeat(2, 1) * rng.uniform(0, 6) * difficulty
    pixels = ((pixels - 120) * contrast + 120) * light[..., None].astype(np.float32) * cast.astype(np.float32) + noise + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
