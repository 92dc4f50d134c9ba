"""Model folders from the Hugging Face hub, in huggingface_hub's cache. Large files are resumed and verified."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, get_token, hf_hub_url, snapshot_download

from fgvr.errors import FgvrError, ModelLoadError, RemoteError
from fgvr.fetch.download import RemoteFile, download
from fgvr.fetch.published import Download, check_room
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec
from fgvr.utils.network import route_to

_HTTP_ERROR: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # of the HTTP library that huggingface_hub uses: httpx, or httpx2
FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


def plan_model(spec: ModelSpec, repository: str) -> Download | None:
    """What `fetch_model` would bring; None when all of it is here.

    Raises:
        ModelLoadError: no such repository or revision, or one that asks for a licence to be accepted first.
        RemoteError: the hub does not answer, or HF_HUB_OFFLINE forbids asking it.
        StoreError: the disk is too small.
    """
    with _explained(spec, repository):
        missing = _missing(spec, repository)
        if not missing:
            return None
        licence = getattr(HfApi().model_info(repository, revision=spec.revision).card_data, "license", None)
    cache, size = files.hub_cache(), sum(file.file_size or 0 for file in missing)
    check_room(repository, cache, size, "HF_HOME")
    address = f"{constants.ENDPOINT}/{repository}"
    return Download(f"{spec.role}: {repository}", (address,), size, str(licence or "see its page"), cache)


def fetch_model(spec: ModelSpec, repository: str) -> Path:
    """The folder of the model in the hub's cache. Errors as `plan_model`, and RemoteError for a file with another hash than the hub's.

    huggingface_hub begins an interrupted file anew. So we bring large files, resumed, to where its cache has them by their hash.
    """
    with _explained(spec, repository):
        wanted = {file.filename for file in _missing(spec, repository)}
        info = HfApi().model_info(repository, revision=spec.revision, files_metadata=True)
        blobs = files.hub_cache() / f"models--{repository.replace('/', '--')}" / "blobs"
        for file in info.siblings or ():
            if file.lfs is not None and file.rfilename in wanted:
                address = hf_hub_url(repository, file.rfilename, revision=info.sha)
                download(RemoteFile(address, f"sha256:{file.lfs.sha256}", token=get_token()), blobs / file.lfs.sha256)
        return Path(_snapshot(spec, repository))


def _missing(spec: ModelSpec, repository: str) -> list[Any]:
    return [file for file in _snapshot(spec, repository, dry_run=True, tqdm_class=_silent()) if file.will_download]


def _snapshot(spec: ModelSpec, repository: str, **more: Any) -> Any:
    more |= {"allow_patterns": [*FILES], "ignore_patterns": list(getattr(find_loader(spec), "unneeded", ()))}
    return snapshot_download(repository, revision=spec.revision, **more)


@contextmanager
def _explained(spec: ModelSpec, repository: str) -> Iterator[None]:
    route_to(constants.ENDPOINT).certificates()  # a proxy or certificate variable that cannot work is named
    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, _HTTP_ERROR, OSError) as error:
        raise _in_our_words(spec, repository, [error, *filter(None, [error.__cause__])]) from error


def _in_our_words(spec: ModelSpec, repository: str, chain: Sequence[BaseException]) -> FgvrError:
    """huggingface_hub wraps what went wrong; the innermost error that we know decides."""
    page = f"{constants.ENDPOINT}/{repository}"
    for error in chain:
        match error:
            case errors.OfflineModeIsEnabled():
                return RemoteError("HF_HUB_OFFLINE forbids downloads: unset it for this command")
            case errors.GatedRepoError():
                return ModelLoadError(f"{repository} asks you to accept its licence at {page}, then to log in: hf auth login")
            case errors.RepositoryNotFoundError() | errors.RevisionNotFoundError():
                wanted = f"{repository} with the revision {spec.revision}" if spec.revision else repository
                key = f"models.{spec.role}.source"
                return ModelLoadError(f"the hub has no model {wanted}; correct {key}, or log in if it is private: hf auth login")
    said = str(chain[-1]).partition("\n")[0]
    return RemoteError(f"{constants.ENDPOINT} cannot give {repository} ({said}); the same command goes on from what is here")


def _silent() -> Any:
    """A plan shows no bars of its own."""
    from functools import partial

    from huggingface_hub.utils import tqdm

    return partial(tqdm, disable=True)
