"""Any picture a user may hand over, decoded to upright RGB and known by its content."""

import base64
import hashlib
import importlib
import io
import math
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from fgvr.errors import ImageError
from fgvr.utils.files import sha256_bytes
from fgvr.utils.paths import user_path
from fgvr.utils.text import some


class StoredImage:
    """An encoded image that lies in another file, such as a shard. `str` names it."""

    __slots__ = ()

    @property
    def file(self) -> Path:
        """The one that it lies in, or the folder of all."""
        raise NotImplementedError

    def read_bytes(self) -> bytes:
        """Raises ImageError."""
        raise NotImplementedError


ImageSource = Path | str | Image.Image | np.ndarray | StoredImage

_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_OTHERS = (".pnm", ".tga", ".mpo", ".jp2", ".j2k", ".jpf", ".jpx", ".avif", ".avifs", ".jxl", ".heic", ".heif", ".hif")
IMAGE_SUFFIXES = frozenset((*_COMMON, *_OTHERS))
"""Files with these are opened; one that this Pillow cannot decode is an unusable image that is named."""
LISTED = 20
"""Files that are passed over and named."""
MAX_ASPECT = 20
"""A picture longer than this many times its short side is padded with white: image processors refuse it, or scale it without bound."""
REDUCE_ABOVE = 8_000_000
"""Pixels. A larger picture is reduced to a quarter of that while it is read: twice what a model looks at, 1,003,520 pixels at most."""
LONGEST = 4096
"""The long side of a padded picture at most; a longer one is scaled down first."""
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\x0a")
_BAND = 256  # rows
_ORIENTATION = 0x0112  # the EXIF tag
MAX_SCANS = 200
"""Passes of a progressive JPEG; encoders write ten or so. Each costs a walk over all pixels, so a small file could take minutes."""
MAX_PIXELS = 89_000_000
"""More than this in one picture is taken for a decompression bomb (just below where Pillow itself starts to warn)."""


def read_image(source: ImageSource | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str, str]:
    """RGB upright image, its sha256 (of the file's bytes, or of the RGB pixels when there is no file), and that of its content.

    Arrays: H x W, H x W x 1, 3 or 4; uint8, uint16 (full range), bool, or float in 0..1. Transparency is laid over white; of an
    animation the first frame counts. A very long picture is padded (`MAX_ASPECT`), a large one is reduced (`REDUCE_ABOVE`): its content
    then has a hash of its own, under which answers about it are remembered (`content_sha256`).
    Anything that cannot be decoded is an ImageError that names it and says why.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        name = f"image {source.size[0]} x {source.size[1]} ({source.mode})"
        rgb = _decode(source, name, max_pixels)
        sha256 = pixels_sha256(rgb)
        return rgb, sha256, sha256
    if isinstance(source, bytes):
        data, name = source, f"{len(source)} bytes"
    elif isinstance(source, StoredImage):
        data, name = source.read_bytes(), str(source)
    else:
        data, name = _read_file(user_path(source)), str(source)
    if (scans := _scans(data)) > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG in {scans:,} passes, more than the limit of {MAX_SCANS}; save it anew, without so many")
    heic = data[4:8] == b"ftyp" and data[8:12] in _HEIC
    if heic:
        with suppress(ImportError):  # the picture is then refused with the cure
            importlib.import_module("pillow_heif").register_heif_opener()
    try:
        with Image.open(io.BytesIO(data)) as image:
            size, sha256 = image.size, sha256_bytes(data)
            return _decode(image, name, max_pixels), sha256, content_sha256(sha256, size)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: {_unknown_format(data, heic)}") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise ImageError(f"{name}: cannot be decoded ({error or type(error).__name__})") from error


def _unknown_format(data: bytes, heic: bool) -> str:
    if heic:
        return "a HEIC photograph, for which a package is missing: pip install pillow-heif"
    kind = "AVIF" if data[4:10] == b"ftypav" else "JPEG XL" if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")) else ""
    return f"in the format {kind}, which this Pillow cannot decode; save it as JPEG or PNG" if kind else "not an image in a known format"


def content_sha256(sha256: str, size: tuple[int, int]) -> str:
    """Of what models see of a file with this hash and this size: another hash where it is reduced or padded."""
    changed = size[0] * size[1] > REDUCE_ABOVE or max(size) > MAX_ASPECT * min(size)
    return reduced_sha256(sha256) if changed else sha256


def reduced_sha256(sha256: str) -> str:
    """Content hash of a picture that was reduced or padded on reading; `sha256`: of its file."""
    return sha256_bytes(f"{sha256} reduced v1".encode())


def pixels_sha256(image: Image.Image) -> str:
    """Content hash of a picture that has no file: mode, size and pixels (of a palette image the colours they mean)."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    digest = hashlib.sha256(f"{image.mode} {image.size[0]}x{image.size[1]} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def list_images(folder: str | Path, *, recursive: bool = False) -> list[Path]:
    """Image files by suffix (those without one by their first bytes), sorted by path; hidden files and folders are left out."""
    return [path for path in _visible(folder, recursive=recursive) if _is_image(path)]


def passed_over(folders: Iterable[str | Path]) -> list[str]:
    """In words, for `notes`: the visible files below these folders that are not taken for images, by suffix, and folders that cannot be
    read; [] when there are none."""
    denied: list[OSError] = []
    others = [path for folder in folders for path in _visible(folder, recursive=True, denied=denied) if not _is_image(path)]
    closed = [f"{len(denied):,} folders cannot be read, the first: {denied[0].filename} ({denied[0].strerror})"] if denied else []
    if not others:
        return closed
    kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8))
    return [*closed, f"{len(others):,} files are not images and were passed over ({counts}): {some(others, LISTED)}"]


def _scans(data: bytes) -> int:
    """Passes of a JPEG up to its end marker; 0 for what is no JPEG. What phones append to a picture, such as a film, does not count."""
    if not data.startswith(b"\xff\xd8"):
        return 0
    if (most := data.count(b"\xff\xda")) <= MAX_SCANS:
        return most
    position, found = 2, 0
    while (marker := data.find(b"\xff", position)) >= 0 and marker + 4 <= len(data):
        kind = data[marker + 1]
        if kind == 0xD9:
            break
        if kind == 0xFF or kind == 0 or 0xD0 <= kind <= 0xD7:  # filling, an escaped byte, or a restart: no segment
            position = marker + (1 if kind == 0xFF else 2)
            continue
        found += kind == 0xDA
        position = marker + 2 + int.from_bytes(data[marker + 2 : marker + 4], "big")
    return found


def _visible(folder: str | Path, *, recursive: bool, denied: list[OSError] | None = None) -> list[Path]:
    """Linked folders are followed, but for those that lead back: upwards, or to where the walk has been."""
    hidden, found = (".", "__MACOSX", "Thumbs.db"), list[Path]()
    met = {str(above) for above in Path(os.path.realpath(folder)).parents}
    for top, folders, files in os.walk(folder, onerror=None if denied is None else denied.append, followlinks=True):
        if (place := os.path.realpath(top)) in met:
            folders.clear()
            continue
        met.add(place)
        folders[:] = [name for name in folders if recursive and not name.startswith(hidden)]
        found += [Path(top, name) for name in files if not name.startswith(hidden)]
    return sorted(path for path in found if path.is_file())


def _is_image(path: Path) -> bool:
    if path.suffix:
        return path.suffix.lower() in IMAGE_SUFFIXES
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return False  # counted among what was passed over
    return head.startswith(_SIGNATURES) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", *(b"ftyp" + brand for brand in _HEIC))


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
    if width * height > REDUCE_ABOVE:
        image = image if isinstance(image, ImageFile.ImageFile) else image.copy()  # the caller's stays as it is
        _reduce(image, REDUCE_ABOVE // 4)
    image.load()
    return pad_long_image(_to_rgb(_upright(image)))


def pad_long_image(image: Image.Image) -> Image.Image:
    """White around a picture beyond `MAX_ASPECT`; any other as it is."""
    short, long = sorted(image.size)
    if long <= MAX_ASPECT * short:
        return image
    scale = min(1.0, LONGEST / long)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if scale < 1:
        image = image.resize((width, height), Image.Resampling.BOX)
    least = -(-max(width, height) // MAX_ASPECT)
    padded = Image.new("RGB", (max(width, least), max(height, least)), "white")
    padded.paste(image, ((padded.width - width) // 2, (padded.height - height) // 2))
    return padded


def _reduce(image: Image.Image, pixels: int) -> None:
    """In place, to about `pixels`, and never to a side below 256; a JPEG is decoded at a smaller size."""
    width, height = image.size
    factor = min(math.sqrt(width * height / pixels), min(width, height) / 256)
    if factor > 1:
        smooth = image.mode in ("RGB", "RGBA", "L", "LA", "CMYK", "YCbCr")
        method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        image.thumbnail((round(width / factor), round(height / factor)), method, reducing_gap=2.0)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)  # which would copy it
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
    bands = [values[start : start + _BAND] for start in range(0, len(values), _BAND)]  # float64 of all would be eight times the picture

    def clean(band: np.ndarray) -> np.ndarray:
        return np.nan_to_num(band.astype(np.float64))

    peak, scale = max(float(clean(band).max()) for band in bands), 1.0
    if full_range or peak > 255:
        scale = 255 / max(65535.0, peak)
    elif peak <= 1 and not all(np.array_equal(clean(band), np.round(clean(band))) for band in bands):
        scale = 255.0
    return np.concatenate([np.clip(np.round(clean(band) * scale), 0, 255).astype(np.uint8) for band in bands])


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
