"""Model folders from the Hugging Face hub, by huggingface_hub: it resumes, and checks sizes and hashes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fgvr.errors import FgvrError, ModelLoadError, RemoteError, StoreError
from fgvr.fetch.published import Download
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec
from fgvr.utils.text import format_bytes

FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


def plan_model(spec: ModelSpec, repository: str) -> Download | None:
    """What `fetch_model` would bring; None when all of it is here.

    Raises:
        ModelLoadError: no such repository or revision, or one that asks for a licence to be accepted first.
        RemoteError: the hub does not answer, or HF_HUB_OFFLINE forbids asking it.
        StoreError: the disk is too small.
    """
    with _explained(spec, repository):
        found: Any = snapshot_download(
            repository, revision=spec.revision, allow_patterns=[*FILES], ignore_patterns=_ignored(spec), dry_run=True, tqdm_class=_silent()
        )
        missing = [file for file in found if file.will_download]
        if not missing:
            return None
        licence = getattr(HfApi().model_info(repository, revision=spec.revision).card_data, "license", None)
    sizes = [file.file_size for file in missing]
    size = None if None in sizes else sum(sizes)
    cache = files.hub_cache()
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size is not None and size > free:
        raise StoreError(
            f"{repository} needs {format_bytes(size)}, and {there} has {format_bytes(free)} free: "
            "make room, or set HF_HOME to a larger disk"
        )
    address = f"{constants.ENDPOINT}/{repository}"
    return Download(f"{spec.role}: {repository}", (address,), size, str(licence or "see its page"), cache)


def fetch_model(spec: ModelSpec, repository: str) -> Path:
    """The folder of the model in the hub's cache; an interrupted download goes on. Errors as `plan_model`."""
    with _explained(spec, repository):
        return Path(snapshot_download(repository, revision=spec.revision, allow_patterns=[*FILES], ignore_patterns=_ignored(spec)))


def _ignored(spec: ModelSpec) -> list[str]:
    return list(getattr(find_loader(spec), "unneeded", ()))


@contextmanager
def _explained(spec: ModelSpec, repository: str) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, OSError) as error:
        raise _in_our_words(spec, repository, [error, *filter(None, [error.__cause__])]) from error


def _in_our_words(spec: ModelSpec, repository: str, errors: Sequence[BaseException]) -> FgvrError:
    """huggingface_hub wraps what went wrong; the innermost error that we know decides."""
    page = f"{constants.ENDPOINT}/{repository}"
    for error in errors:
        match error:
            case OfflineModeIsEnabled():
                return RemoteError("HF_HUB_OFFLINE forbids downloads: unset it for this command")
            case GatedRepoError():
                return ModelLoadError(f"{repository} asks you to accept its licence at {page}, then to log in: hf auth login")
            case RepositoryNotFoundError() | RevisionNotFoundError():
                wanted = f"{repository} with the revision {spec.revision}" if spec.revision else repository
                key = f"models.{spec.role}.source"
                return ModelLoadError(f"the hub has no model {wanted}; correct {key}, or log in if it is private: hf auth login")
    said = str(errors[-1]).partition("\n")[0]
    return RemoteError(f"{constants.ENDPOINT} cannot give {repository} ({said}); the same command goes on from what is here")


def _silent() -> Any:
    """A plan shows no bars of its own."""
    from functools import partial

    from huggingface_hub.utils import tqdm

    return partial(tqdm, disable=True)
