"""Images, the store, the pool and the models of a configuration."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

from fgvr import planning
from fgvr.config.configuration import Config
from fgvr.config.factories import instantiate
from fgvr.data import learned
from fgvr.data.datasets import Dataset
from fgvr.data.near_duplicates import PerceptualHash
from fgvr.errors import ConfigError
from fgvr.evaluation import scoring_protocols
from fgvr.evaluation.scoring_protocols import Sentences
from fgvr.protocols import Cache, reads_text
from fgvr.runtime import allocator
from fgvr.runtime import pool as pools
from fgvr.runtime.budget import as_bytes
from fgvr.runtime.devices import device_class, device_names, pick_devices
from fgvr.runtime.loaders.libraries import prepare
from fgvr.runtime.monitor import watch
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pool_group import open_shared
from fgvr.runtime.pool_settings import PoolSettings
from fgvr.session.engine import Engine
from fgvr.store.cache import NoCache, SqliteCache
from fgvr.store.cached_models import CachedEncoder, CachedJointEncoder, CachedMLLM
from fgvr.types import ROLES, ModelSpec
from fgvr.utils.paths import user_path

_DEPENDS_ON = {
    "dataset": ("dataset", "knowledge.learned", "paths"),
    "specs": ("models", "runtime"),
    "pool": ("models", "runtime", "paths"),
    "engine": ("models", "runtime", "paths", "engine"),
    "abilities": ("models", "runtime"),
    "store": ("store", "paths"),
    "perceptual_hash": ("store", "paths"),
}
"""Parts that derived sessions share while these keys stay the same."""


class Resources:
    """What a configuration works with: its images, the machine's memory of answers, its models."""

    def __init__(self, config: Config, **made: Any) -> None:
        """Args: made: parts that are there already, by their names here."""
        self.config = config
        self.__dict__.update(made)

    def derive(self, changes: Mapping[str, Any], **made: Any) -> Self:
        """With other values for some keys, and what is `made` in place of its own parts. Both share what stays the same."""
        config = self.config.derive(changes) if changes else self.config
        shared = {
            name: self.__dict__[name]
            for name, keys in _DEPENDS_ON.items()
            if name in self.__dict__ and all(config.get(key) == self.config.get(key) for key in keys)
        }
        return type(self)(config, **shared | made)

    # --- places, images, memory

    @cached_property
    def home(self) -> Path:
        return user_path(self.config.paths.home)

    @cached_property
    def dataset(self) -> Dataset:
        """The configured images; photographs that a person has named in a review are among the support (`knowledge.learned`)."""
        dataset: Dataset = instantiate(self.config.dataset, "dataset", Dataset)
        table = self.config.knowledge.learned
        return dataset if table is None else learned.join(dataset, user_path(table), cache_dir=self.home / "store")

    @property
    def store_path(self) -> Path:
        return self.home / "store" / "cache.sqlite"

    @property
    def store_limit(self) -> int | None:
        """Bytes of values the store may hold; None: no limit."""
        limit = self.config.store.limit
        return None if limit is None else as_bytes(limit)

    @cached_property
    def store(self) -> Cache:
        """The machine's memory of embeddings and replies, or one that forgets (`store.enabled=false`)."""
        return _store(self.store_path, self.store_limit) if self.config.store.enabled else NoCache()

    @cached_property
    def perceptual_hash(self) -> PerceptualHash:
        """The perceptual hashes of pictures, kept in the store."""
        return PerceptualHash(self.store)

    # --- models

    @cached_property
    def specs(self) -> dict[str, ModelSpec]:
        """By role."""
        return {role: planning.spec(self.config, role) for role in ROLES}

    @cached_property
    def pool(self) -> ModelPool:
        """The process's one ModelPool, of one device or several, its models known under their roles. Nothing is loaded."""
        runtime = self.config.runtime.to_dict()
        with suppress(ConfigError):  # there is none yet
            pools.shared().refuse_other_allocator(runtime["allocator"])  # before glibc is told
        allocator.apply(device_class(device_names(runtime["device"])[0]).allocator, runtime["allocator"])  # before anything imports torch
        devices = pick_devices(runtime["device"])
        used, probes = planning.used(self.config), planning.probes(self.config)
        settings = [PoolSettings.of(runtime, device, devices=len(devices), roles=used, probes=probes) for device in devices]
        pool = open_shared(devices, settings)
        for member in pool.members:
            member.device.optimize = runtime["optimize"]
            watch(member).configure(runtime, prepare=lambda role: prepare(self.specs[role]))
        for role in self.config.models.present:
            pool.register(self.specs[role])
        return pool

    @cached_property
    def engine(self) -> Engine:
        """Who does the work: this process, unless `fgvr.scale.working` has put workers here."""
        return Engine(self.pool)

    @cached_property
    def encoder(self) -> CachedEncoder:
        return CachedEncoder(self.engine.lend(self.specs["encoder"]), self.store)

    @cached_property
    def mllm(self) -> CachedMLLM:
        return CachedMLLM(self.engine.lend(self.specs["mllm"]), self.store)

    @cached_property
    def joint(self) -> CachedJointEncoder:
        return CachedJointEncoder(self.engine.lend(self.specs["joint"]), self.store)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the models that a base is made with, by role."""
        return {role: getattr(self, role).fingerprint for role in ("encoder", "mllm") if role in self.config.models.present}

    @cached_property
    def abilities(self) -> Any:
        """What the engine behind `models.mllm` can do (`Abilities`); None where the model is computed here. Raises RemoteError."""
        return self.pool.loader(self.specs["mllm"]).abilities(self.specs["mllm"])

    @property
    def sentences(self) -> Sentences | None:
        """The run's own text encoder, as protocols compare names with it; asked only by those that do. None without a text side.

        Raises ConfigError where a protocol of this evaluation needs one.
        """
        if not reads_text(self.encoder):
            if needing := [name for name in self.config.evaluation.protocols if scoring_protocols.get(name).encoder]:
                raise ConfigError(
                    f"evaluation.protocols: {', '.join(needing)} compares names with a text encoder, and "
                    f"{self.config.models.encoder.source} reads no text: leave it out, or choose another models/encoder"
                )
            return None
        return Sentences(f"{self.config.models.encoder.source} (the run's own text encoder)", lambda texts: self.encoder.encode_text(texts))


@lru_cache(maxsize=1)
def _store(path: Path, limit: int | None) -> SqliteCache:
    """Stays open from job to job: closing writes down when each entry was last used."""
    return SqliteCache(path, max_bytes=limit)


atexit.register(_store.cache_clear)
