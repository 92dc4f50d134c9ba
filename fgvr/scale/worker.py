"""What a worker does: it holds the models of one device, recognises images that it opens itself, and answers questions to a model."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fgvr.config.configuration import Config
from fgvr.data.near_duplicates import hashes_of
from fgvr.errors import ImageError
from fgvr.pipeline import Recognizer
from fgvr.session import Session
from fgvr.types import ModelSpec, Prediction, Sample


@dataclass(frozen=True, slots=True)
class Job:
    """A recognizer, as a worker can make it: the configuration, parts that are made already, and how the rest is built."""

    config: Mapping[str, Any]
    made: Mapping[str, Any]
    build: Callable[[Session], Recognizer] | None

    def recognizer(self) -> Recognizer:
        session = Session(Config.of(self.config), **self.made)
        return self.build(session) if self.build else session.recognizer


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker's answers to some samples, and the files it could not read. Class names stay behind: the driver has them."""

    predictions: Sequence[Prediction]
    unreadable: Sequence[str]


class Worker:
    """The actor. Its process has one pool, which outlives jobs: a model is loaded once."""

    def __init__(self, config: Mapping[str, Any], folder: str) -> None:
        """Args: folder: the driver's working directory, from which relative paths are meant."""
        if Path(folder).is_dir():
            os.chdir(folder)
        self._session = Session(Config.of(config))
        self._job: Any = None
        self._recognizer: Recognizer | None = None

    def versions(self) -> dict[str, str]:
        return versions()

    def missing(self, files: Sequence[str]) -> list[str]:
        """Those of the files and folders that this worker does not see."""
        return [file for file in files if not Path(file).exists()]

    def fingerprints(self, roles: Sequence[str]) -> dict[str, str]:
        """Of the model files as they are on this node. Raises ModelLoadError."""
        return {role: getattr(self._session, role).fingerprint for role in roles}

    def recognise(self, job: Sequence[Any], samples: Sequence[Sample]) -> Answered:
        """Args: job: a list of one reference, so that the job is not fetched before it is known to be another one."""
        recognizer = self._recognizer
        if recognizer is None or self._job != job[0]:
            import ray

            found: Any = ray.get(job[0])
            self._recognizer = recognizer = found.recognizer()
            self._job = job[0]
        unreadable: list[ImageError] = []
        batches = recognizer.stream(samples, unreadable=unreadable)
        return Answered([replace(p, names={}) for batch in batches for p in batch], [str(error) for error in unreadable])

    def looks(self, samples: Sequence[Sample]) -> list[bytes | None]:
        """Their perceptual hashes."""
        return list(hashes_of(samples))

    def ask(self, spec: ModelSpec, method: str, columns: Sequence[Sequence[Any]], settings: Mapping[str, Any]) -> Any:
        """One call of a model's method."""
        return getattr(self._session.pool.leased(spec), method)(*columns, **settings)

    def status(self) -> dict[str, Any]:
        """What this worker holds, and what it has loaded so far; bytes."""
        pool = self._session.pool
        loads = dict(pool.loads)
        return {"node": platform.node(), "device": pool.device.name, "model_loads": loads, "peak_device_bytes": pool.peak_bytes}


def versions() -> dict[str, str]:
    """What must be the same in the driver and in its workers, so that they understand each other and compute the same."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("fgvr", "torch", "transformers", "open_clip_torch", "timm", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
