"""The published method's way of working, from its description (the research page of this project), with our weights, prompts and tokens.

One image at a time; every stage opens and encodes its images again: once for the image prototypes, twice for a query (image to image and
image to text), twice for the statistics, six times for the experience pass with three identical generate calls, and three reflections.
A picture reaches the MLLM as PNG in base64. No cache. It is a baseline of work, not of quality: what it computes is what ours computes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bench import Bench
from fgvr.types import Picture

DESCRIBE, CHOOSE = "Describe the bird in this picture.", "Which bird is this?"
SYSTEM = ""


def round_trip(picture: Picture) -> Image.Image:
    """As the reference hands a picture over: PNG, base64, and back."""
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue())
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def encode(bench: Bench, file: Path) -> np.ndarray:
    return bench.encoder.encode([bench.open(file)])


def ask(bench: Bench, files: Sequence[Path], prompt: str, tokens: int) -> str:
    images = [round_trip(bench.open(file)) for file in files]
    return bench.mllm.generate([images], [prompt], system=SYSTEM, max_new_tokens=tokens)[0]


def fast(bench: Bench, file: Path, prototypes: np.ndarray) -> np.ndarray:
    """Encoded for the image prototypes, and again for the words; compared class by class, as a dictionary is walked."""
    scores = []
    for table in (prototypes, prototypes):
        vector = encode(bench, file)[0]
        scores.append({c: float(vector @ row) for c, row in enumerate(table)})
    return np.array([a + b for a, b in zip(scores[0].values(), scores[1].values(), strict=True)])


def slow(bench: Bench, file: Path, prototypes: np.ndarray, prompt: str, tokens: int) -> str:
    """A query of System 1, then one generate call; the file is opened for each."""
    fast(bench, file, prototypes)
    return ask(bench, [file], prompt, tokens)


def build(bench: Bench, classes: Sequence[Sequence[Path]], tokens: int, *, experience: bool) -> None:
    """Prototypes, one text per class from three pictures, the experience passes, the statistics."""
    for files in classes:
        for file in files:
            encode(bench, file)
    for files in classes:
        ask(bench, list(files)[:3], DESCRIBE, tokens)
        bench.encoder.encode_text([DESCRIBE])
    if experience:
        for files in classes:
            for file in files:
                for _ in range(3):  # the initial, the trajectory and the final pass differ only when a rule was accepted
                    encode(bench, file)
                    encode(bench, file)
                    ask(bench, [file], CHOOSE, tokens)
        for _ in range(3):
            bench.mllm.generate([[]], ["What can be learned from these failures?"], system=SYSTEM, max_new_tokens=tokens)
    for files in classes:
        for file in files:
            encode(bench, file)
            encode(bench, file)
