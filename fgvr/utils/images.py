"""Any picture a user may hand over, decoded to upright RGB and known by its content."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fgvr.errors import ImageError
from fgvr.utils.files import sha256_bytes

ImageSource = Path | str | Image.Image | np.ndarray

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"})
MAX_PIXELS = 89_000_000
"""More than this in one picture is taken for a decompression bomb (just below where Pillow itself starts to warn)."""


def read_image(source: ImageSource | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """RGB upright image and its sha256: of the file's bytes, or of the RGB pixels when there is no file.

    Arrays: H x W, H x W x 1, 3 or 4; uint8, uint16 (full range), bool, or float in 0..1. Transparency is laid over white; of an
    animation the first frame counts. Anything that cannot be decoded is an ImageError that names it and says why.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        name = f"image {source.size[0]} x {source.size[1]} ({source.mode})"
        rgb = _decode(source, name, max_pixels)
        return rgb, pixels_sha256(rgb)
    if isinstance(source, bytes):
        data, name = source, f"{len(source)} bytes"
    else:
        data, name = _read_file(Path(source).expanduser()), str(source)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _decode(image, name, max_pixels), sha256_bytes(data)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a known format") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise ImageError(f"{name}: cannot be decoded ({error or type(error).__name__})") from error


def pixels_sha256(image: Image.Image) -> str:
    """Content hash of a picture that has no file: mode, size and pixels (of a palette image the colours they mean)."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    digest = hashlib.sha256(f"{image.mode} {image.size[0]}x{image.size[1]} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def list_images(folder: str | Path, *, recursive: bool = False) -> list[Path]:
    """Image files by suffix, sorted by path; hidden files (and those in hidden folders) are left out."""
    folder = Path(folder)
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def thumbnail_data_url(image: Image.Image, side: int = 96) -> str:
    """`data:image/jpeg;base64,...` of at most side x side pixels, for self-contained pages."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, not an image file")
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not data:
        raise ImageError(f"{path}: the file is empty")
    return data


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Checks the size from the header, before any pixel is unpacked."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} pixels, more than the limit of {max_pixels:,}; shrink it first")
    if width * height == 0:
        raise ImageError(f"{name}: has no pixels")
    image.load()
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF must not cost a picture whose pixels are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image without file, palette or metadata."""
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bit(np.asarray(image), full_range=image.mode.startswith("I;16")))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        rgb = Image.alpha_composite(white, rgba).convert("RGB")
    else:
        rgb = image.convert("RGB") if image.mode != "RGB" else image.copy()
    rgb.info = {}
    return rgb


def _to_8_bit(values: np.ndarray, *, full_range: bool) -> np.ndarray:
    """Grey values of unknown depth to uint8: 16 bit by its high byte, floats in 0..1 by 255, what fits in 8 bit as it is."""
    values = np.nan_to_num(values.astype(np.float64))
    peak = values.max()
    if full_range or peak > 255:
        values = values * (255 / max(65535.0, float(peak)))
    elif peak <= 1 and not np.array_equal(values, np.round(values)):
        values = values * 255
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    name = f"array {'x'.join(map(str, array.shape))} {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(f"{name}: an image is H x W, H x W x 3 or H x W x 4 (channels last)")
    if array.size == 0:
        raise ImageError(f"{name}: has no pixels")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = np.round(array / 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also catches NaN
            raise ImageError(f"{name}: float images must lie in 0..1")
        array = np.round(array * 255).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise ImageError(f"{name}: integer images must lie in 0..255")
        array = array.astype(np.uint8)
    else:
        raise ImageError(f"{name}: not numbers")
    return Image.fromarray(np.ascontiguousarray(array))
