"""Model folders on disk: where they are, what they weigh, who they are. No tensor library, no network."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.types import ModelSpec
from fgvr.utils.paths import PACKAGE, user_path

OFFLINE = "models=photos (photographs, no MLLM) or models=tiny (rendered birds)"  # works without any download

HASH_WHOLE = 64 << 20  # smaller weights are hashed whole, larger ones by header, size and samples
_SAMPLES, _SAMPLE = 16, 64 << 10
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Weights:
    """What safetensors headers say: numbers of floating-point values, the bytes of the rest, the type most of them have."""

    values: int
    other_bytes: int
    dtype: str
    file_bytes: int

    def bytes_as(self, dtype: str) -> int:
        """Once loaded in `dtype`; `auto` keeps the file's, see `resolve_dtype`."""
        return self.values * DTYPE_BYTES.get(resolve_dtype(dtype, self), 4) + self.other_bytes


def resolve_dtype(asked: str, weights: Weights) -> str:
    """`auto`: float32 for small models (exact, and no slower on any CPU), the file's type for large ones."""
    if asked != "auto":
        return asked
    return "float32" if weights.file_bytes < HASH_WHOLE else weights.dtype


def locate(spec: ModelSpec, repository: str | None = None) -> Path | None:
    """The folder a spec means: shipped, local, or in the Hugging Face cache (`repository` when the source is an alias). None: nowhere."""
    if spec.source == "tiny":
        return PACKAGE / "models_tiny" / spec.role
    folder = user_path(spec.source)
    if folder.is_dir():
        return folder
    return cached_snapshot(repository or spec.source, spec.revision)


def cached_snapshot(repository: str, revision: str | None = None) -> Path | None:
    """The snapshot folder of a hub repository in the local cache, by the cache's documented layout."""
    if not is_repository(repository):
        return None
    root = hub_cache() / f"models--{repository.replace('/', '--')}"
    commit = revision or "main"
    reference = root / "refs" / commit
    if reference.is_file():
        commit = reference.read_text().strip()
    snapshot = root / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def is_repository(source: str) -> bool:
    """Whether a source is written as owner/name."""
    return _REPOSITORY.fullmatch(source) is not None


def hub_cache() -> Path:
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return user_path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub")))


def require(spec: ModelSpec, needed: Sequence[str], repository: str | None = None) -> Path:
    """The folder, once all `needed` files are there (`a|b`: either). `mode=fetch` alone downloads.

    Raises ModelLoadError saying what is missing, where it was looked for, how to get it, and what works without.
    """
    folder = locate(spec, repository)
    cure = how_to_get(spec, repository)
    if folder is None:
        if (file := user_path(spec.source)).is_file():
            raise ModelLoadError(
                f"{spec.role} {spec.source!r} is a file; models.{spec.role}.source takes the folder of a model: {file.parent}"
            )
        hub, looked = repository or spec.source, [str(user_path(spec.source).absolute())]
        if is_repository(hub):
            looked.append(str(hub_cache() / f"models--{hub.replace('/', '--')}"))
        raise ModelLoadError(f"{spec.role} {spec.source!r} is not on this machine; looked in {' and '.join(looked)}.\n{cure}")
    missing = [names for names in needed if not any(_present(folder, name) for name in names.split("|"))]
    if missing:
        names = ", ".join(m.replace("|", " or ") for m in missing)
        raise ModelLoadError(f"{spec.role} {spec.source!r}: {names} missing in {folder}.\n{cure}")
    if absent := absent_shards(folder):
        missing = f"{len(absent)} of its weight files are missing in {folder}: {first(absent)}"
        raise ModelLoadError(f"{spec.role} {spec.source!r}: {missing}.\n{cure}")
    return folder


def weight_files(folder: Path, pattern: str = "*.safetensors") -> list[Path]:
    """Every safetensors file that is there, sorted; a link into nowhere is not."""
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def first(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def absent_shards(folder: Path) -> list[str]:
    """Weight files that an index names and that are not there; a link into nowhere is not there."""
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        shards = read_config(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ModelLoadError(f"{index} has no weight_map; get it again")
        named |= set(map(str, shards.values()))
    return sorted(name for name in named if not (folder / name).is_file())


def read_weights(files: Iterable[Path]) -> Weights:
    """Sizes from headers only. Raises ModelLoadError for a damaged file."""
    values = other = size = 0
    count: dict[str, int] = {}
    for file in files:
        size += file.stat().st_size
        for tensor in _header(file).values():
            number = math.prod(tensor["shape"])
            if (kind := _FLOATS.get(tensor["dtype"])) is not None:
                values += number
                count[kind] = count.get(kind, 0) + number
            else:
                other += number * _DTYPE_BYTES.get(tensor["dtype"], 1)
    return Weights(values, other, max(count, key=lambda k: count[k], default="float32"), size)


def tensor_shapes(shards: Iterable[Path]) -> dict[str, list[int]]:
    """Name and shape of every tensor, from headers only. Raises ModelLoadError for a damaged file."""
    return {name: tensor["shape"] for file in shards for name, tensor in _header(file).items()}


def read_scalar(file: Path, name: str) -> float:
    """One number out of a safetensors file, without reading the rest. Raises ModelLoadError when it is not there."""
    tensor = _header(file).get(name)
    if tensor is None or math.prod(tensor["shape"]) != 1 or tensor["dtype"] not in _FLOATS:
        raise ModelLoadError(f"{file} has no single number {name!r}")
    with open(file, "rb") as stream:
        data_begins = 8 + int.from_bytes(stream.read(8), "little")
        stream.seek(data_begins + tensor["data_offsets"][0])
        raw = stream.read(tensor["data_offsets"][1] - tensor["data_offsets"][0])
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        return struct.unpack("<f", b"\0\0" + raw)[0]
    return struct.unpack({"F16": "<e", "F32": "<f", "F64": "<d"}[tensor["dtype"]], raw)[0]


def folder_fingerprint(spec: ModelSpec, folder: Path, *, extra: object = None) -> str:
    """12 hex digits over configuration, tokenizer, preprocessing and weights, and over how the spec loads them."""
    digest = hashlib.sha256(repr((spec.loader, spec.role, spec.dtype, spec.quantization, spec.revision, spec.max_pixels, extra)).encode())
    small = [p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".jinja", ".model") and p.name not in _IRRELEVANT]
    for file in sorted(small):
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    for file in weight_files(folder):
        digest.update(f"{file.name}\0".encode() + weights_digest(file))
    return digest.hexdigest()[:12]


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises ModelLoadError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} is no configuration of a model (a JSON object); get the folder again")
    return config


# Describe the model to people, or how to sample from it, which is never done here.
_IRRELEVANT = {"generation_config.json", "training.json", "metrics.json", "model_card.json"}


def _present(folder: Path, name: str) -> bool:
    return any(path.is_file() for path in folder.glob(name))


def how_to_get(spec: ModelSpec, repository: str | None = None) -> str:
    """The cure for a model that is not here, in lines."""
    hub, lines = repository or spec.source, []
    if spec.source == "tiny":
        lines.append("These files are shipped with fgvr: reinstall it, or train them with scripts/train_tiny.py")
    elif is_repository(hub):
        lines.append(f"Get it: hf download {hub} (or the same words with mode=fetch)")
    lines.append(f"Have it elsewhere: models.{spec.role}.source=FOLDER")
    if spec.source != "tiny":
        lines.append(f"Works without any download: {OFFLINE}")
    return "\n".join(lines)


def _header(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 0 < size <= min(100 << 20, file.stat().st_size):
                raise ValueError("no safetensors header")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        end = 8 + size + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if end != file.stat().st_size:
            raise ValueError(f"{file.stat().st_size} bytes where the header says {end}: an interrupted download?")
        if wrong := [name for name, tensor in header.items() if not isinstance(math.prod(tensor["shape"]), int)]:
            raise ValueError(f"no shape of {first(wrong)}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{file} is damaged ({error}); get it again") from error
    return header


def weights_digest(file: Path) -> bytes:
    """The sha256 of a file below `HASH_WHOLE`, that of samples of a larger one.

    Read once as long as the file stays what it is: every stage of every job asks for its models' fingerprints.
    """
    found = file.stat()
    return _digest(file, found.st_size, found.st_size < HASH_WHOLE, (found.st_mtime_ns, found.st_ino))


@lru_cache(maxsize=256)
def _digest(file: Path, size: int, whole: bool, _as_of: tuple[int, int]) -> bytes:
    with open(file, "rb") as stream:
        if whole:
            return hashlib.file_digest(stream, "sha256").digest()
        digest = hashlib.sha256(f"{size} {json.dumps(_header(file), sort_keys=True)}".encode())
        # Fine-tuned siblings share header and size: samples of the values tell them apart.
        for index in range(_SAMPLES):
            stream.seek((size - _SAMPLE) * index // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE))
        return digest.digest()
