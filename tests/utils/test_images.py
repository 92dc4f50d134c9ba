"""Whatever a user hands over becomes an upright RGB picture, or an error that says what is wrong with it."""

import base64
import hashlib
import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr import planning
from fgvr.data.pictures import open_picture
from fgvr.errors import ImageError
from fgvr.utils.images import LONGEST, MAX_ASPECT, REDUCE_ABOVE, list_images, pixels_sha256, thumbnail_data_url


def pixel(picture, place=(0, 0)):
    assert picture.image.mode == "RGB"
    return picture.image.getpixel(place)


def save(image, path, **options):
    image.save(path, **options)
    return path


# --- files -------------------------------------------------------------------------------------------------------------------


def test_a_file_is_known_by_its_bytes(tmp_path):
    path = save(Image.new("RGB", (3, 2), "red"), tmp_path / "a.png")
    picture = open_picture(path)
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert picture.image.size == (3, 2) and pixel(picture) == (255, 0, 0)
    assert open_picture(str(path)).sha256 == open_picture(path.read_bytes()).sha256 == picture.sha256


@pytest.mark.parametrize("name", ["blank and ünïcode [1]=2.png", "no suffix", "wrong.jpg", "UPPER.PNG"])
def test_names_do_not_matter(tmp_path, name):
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "blue").save(buffer, "PNG")
    (tmp_path / name).write_bytes(buffer.getvalue())
    assert pixel(open_picture(tmp_path / name)) == (0, 0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_come_upright(tmp_path, orientation):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("red", (0, 0, 10, 10))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    picture = open_picture(save(stored, tmp_path / "p.png", exif=exif))
    assert picture.image.size == (40, 20)
    assert pixel(picture, (3, 3)) == (255, 0, 0)


def test_transparency_is_laid_over_white(tmp_path):
    clear = save(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), tmp_path / "clear.png")
    half = save(Image.new("LA", (2, 2), (0, 128)), tmp_path / "half.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30] * 256)
    see_through = save(palette, tmp_path / "p.gif", transparency=0)
    assert pixel(open_picture(clear)) == (255, 255, 255)
    assert pixel(open_picture(half)) == (127, 127, 127)
    assert pixel(open_picture(see_through)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(open_picture(path)) == (255, 0, 0)


def test_cmyk_palette_grey_and_one_bit_become_rgb(tmp_path):
    red, green, blue = pixel(open_picture(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "c.jpg")))
    assert red > 230 and green < 30 and blue < 30
    assert pixel(open_picture(save(Image.new("L", (1, 1), 77), tmp_path / "l.png"))) == (77, 77, 77)
    assert pixel(open_picture(save(Image.new("1", (1, 1), 1), tmp_path / "1.png"))) == (255, 255, 255)
    palette = Image.new("RGB", (2, 2), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(open_picture(save(palette, tmp_path / "p.png"))) == (10, 20, 30)


def test_sixteen_bits_keep_their_brightness(tmp_path):
    grey = Image.fromarray(np.full((2, 2), 128 * 257, np.uint16))
    assert pixel(open_picture(save(grey, tmp_path / "16.png"))) == (128, 128, 128)
    assert pixel(open_picture(save(grey, tmp_path / "16.tif"))) == (128, 128, 128)
    dark = Image.fromarray(np.full((2, 2), 200, np.uint16))
    assert pixel(open_picture(save(dark, tmp_path / "dark.png"))) == (1, 1, 1)
    assert pixel(open_picture(save(Image.fromarray(np.full((2, 2), 0.5, np.float32)), tmp_path / "f.tif"))) == (128, 128, 128)


def _png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    head = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _png_chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 10000), (12000, 12000), (60000, 60000)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    with pytest.raises(ImageError, match=r"bomb\.png.*(limit|bomb)"):
        open_picture(tmp_path / "bomb.png")


def test_the_limit_can_be_set(tmp_path):
    path = save(Image.new("RGB", (11, 10)), tmp_path / "a.png")
    with pytest.raises(ImageError, match="limit of 100"):
        open_picture(path, max_pixels=100)


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp", "tif"])
def test_a_truncated_file_is_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"cut.{kind}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"cut\.{kind}: "):
        open_picture(path)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"<html>no such image</html>", "not an image"), (b"\xff\xd8\xff\xe0junk", "cut.jpg")]
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path, content, reason):
    (tmp_path / "cut.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        open_picture(tmp_path / "cut.jpg")


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        open_picture(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        open_picture("/dev/zero")


# --- arrays and PIL images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 9, np.uint8), (9, 9, 9)),
        (np.full((2, 3, 1), 9, np.uint8), (9, 9, 9)),
        (np.full((2, 3, 3), [1, 2, 3], np.uint8), (1, 2, 3)),
        (np.full((2, 3, 4), [1, 2, 3, 0], np.uint8), (255, 255, 255)),
        (np.full((2, 3, 3), [0.0, 0.5, 1.0]), (0, 128, 255)),
        (np.full((2, 3), 0.5, np.float16), (128, 128, 128)),
        (np.full((2, 3), 514, np.uint16), (2, 2, 2)),
        (np.full((2, 3, 3), [1, 2, 3], np.int64), (1, 2, 3)),
        (np.full((2, 3), True), (255, 255, 255)),
        (np.full((3, 2, 3), [1, 2, 3], np.uint8)[:, ::-1].transpose(1, 0, 2), (1, 2, 3)),
    ],
)
def test_arrays_of_every_usual_kind_are_pictures(array, expected):
    picture = open_picture(array)
    assert picture.image.size == (3, 2) and pixel(picture) == expected


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 2, 3), 1.5),
        np.full((2, 2, 3), np.nan),
        np.full((2, 2), -1),
        np.full((2, 2), 300),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.full((2, 2), "a"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array):
    with pytest.raises(ImageError, match="array"):
        open_picture(array)


def test_equal_pixels_have_equal_hashes_and_size_counts():
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    picture = open_picture(array)
    assert picture.sha256 == open_picture(Image.fromarray(array)).sha256 == pixels_sha256(Image.fromarray(array))
    assert picture.sha256 != open_picture(array.reshape(4, 2, 3)).sha256


def test_a_palette_counts_as_much_as_its_indices():
    red, blue = Image.new("P", (2, 2), 0), Image.new("P", (2, 2), 0)
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    assert pixels_sha256(red) != pixels_sha256(blue)


def test_the_users_image_is_left_as_it_was():
    image = Image.new("RGB", (2, 2), "red")
    open_picture(image).image.paste("blue", (0, 0, 2, 2))
    assert image.getpixel((0, 0)) == (255, 0, 0)


# --- helpers -----------------------------------------------------------------------------------------------------------------


def test_listing_takes_images_only_and_skips_what_is_hidden(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", ".hidden.png", "sub/d.webp", ".git/e.png", "__MACOSX/f.png", "._b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [p.name for p in list_images(tmp_path, recursive=True)] == ["a.png", "b.JPG", "d.webp"]


def test_a_thumbnail_is_a_small_jpeg():
    head, data = thumbnail_data_url(Image.new("RGBA", (400, 200)), 50).split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (50, 25)


# --- very long pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3000, 10), (10, 3000), (5000, 1), (1, 1_000_000)])
def test_a_very_long_picture_is_padded_to_what_processors_accept(tmp_path, size):
    path = save(Image.new("RGB", size, "red"), tmp_path / "long.png")
    for source in (path, path.read_bytes(), Image.new("RGB", size, "red")):
        picture = open_picture(source)
        short, long = sorted(picture.image.size)
        assert long <= min(LONGEST, max(size)) and long <= MAX_ASPECT * short
        assert pixel(picture, (picture.image.width // 2, picture.image.height // 2)) == (255, 0, 0)
        assert pixel(picture) == (255, 255, 255)


def test_a_panorama_is_left_as_it_is(tmp_path):
    assert open_picture(save(Image.new("RGB", (200, 10), "red"), tmp_path / "p.png")).image.size == (200, 10)


def test_a_column_of_25_million_pixels_becomes_a_small_picture(tmp_path):
    picture = open_picture(save(Image.new("L", (1, 25_000_000)), tmp_path / "column.png"))
    assert picture.image.size == (205, LONGEST)


def test_the_plan_says_what_pictures_take_of_main_memory() -> None:
    found = planning.plan(fgvr.load_config("mode=plan", "models=fake", "evaluation.batch_size=8"))
    assert planning.HELD_PIXELS == REDUCE_ABOVE
    assert any("two batches of 8 for each device, 4 bytes a pixel, at most 488.3 MiB" in fact for fact in found.facts), found.facts


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_a_picture_is_copied_once_while_it_is_read(tmp_path: Path, python: Callable[..., CompletedProcess[str]]) -> None:
    Image.new("RGB", (3200, 2400), "red").save(tmp_path / "red.png")
    code = (
        "import resource, sys; from PIL import Image; from fgvr.utils.images import read_image; Image.init()\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
        f"before = peak(); read_image({str(tmp_path / 'red.png')!r}); print((peak() - before) / 3200 / 2400)"
    )
    assert float(python("-c", code).stdout) < 10, "bytes a pixel: two pictures of four, where a third was twelve"
