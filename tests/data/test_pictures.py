"""Pictures that are opened when somebody looks: what a store remembers needs no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.data.pictures import late_pictures, open_picture
from fgvr.errors import ImageError
from fgvr.types import Picture, Sample
from fgvr.utils.files import sha256_file


def sample(folder: Path, colour: str) -> Sample:
    file = folder / f"{colour}.png"
    Image.new("RGB", (6, 4), colour).save(file)
    return Sample(file, file.name, sha256=sha256_file(file))


def test_what_is_remembered_is_opened_when_somebody_looks_and_only_then(tmp_path: Path) -> None:
    red, blue = sample(tmp_path, "red"), sample(tmp_path, "blue")
    asked: list[list[str]] = []

    def remembered(hashes) -> set[str]:
        asked.append(list(hashes))
        return {red.sha256}

    unknown, pixels = Sample(tmp_path / "new.png", "new"), Sample(Image.new("RGB", (2, 2)), "pixels", sha256=red.sha256)
    late, *others = late_pictures(remembered, [red, blue, unknown, pixels])
    assert asked == [[red.sha256, blue.sha256]]  # one question per batch
    assert others == [None, None, None]
    assert isinstance(late, Picture) and late.sha256 == red.sha256
    opened = open_picture(red.image)
    assert np.array_equal(np.asarray(late.image), np.asarray(opened.image))
    assert open_picture(late) is late


@pytest.mark.parametrize("then", ["gone", "changed"])
def test_a_file_that_is_no_longer_what_was_listed_is_told_when_somebody_looks(tmp_path: Path, then: str) -> None:
    red = sample(tmp_path, "red")
    (late,) = late_pictures(lambda hashes: set(hashes), [red])
    if then == "gone":
        (tmp_path / "red.png").unlink()
    else:
        Image.new("RGB", (6, 4), "green").save(tmp_path / "red.png")
    assert late is not None
    with pytest.raises(ImageError, match=r"red\.png: (no such file|has changed since)"):
        _ = late.image
