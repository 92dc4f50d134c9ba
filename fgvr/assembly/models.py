"""The one pool, the store, and the models as agents see them."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from omegaconf import DictConfig

from fgvr import keys
from fgvr.assembly.configuration import instantiate_cached, load_config, store_limit, to_dict, trigger_name
from fgvr.errors import ConfigError
from fgvr.evaluation import protocols
from fgvr.protocols import Cache
from fgvr.runtime import allocator
from fgvr.runtime import pool as pools
from fgvr.runtime.devices import device_class, pick_device
from fgvr.runtime.loaders.libraries import prepare
from fgvr.runtime.monitor import watch
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pool_settings import PoolSettings
from fgvr.runtime.spec import checked as checked_spec
from fgvr.store.cache import NoCache, SqliteCache
from fgvr.store.cached_models import CachedEncoder, CachedJointEncoder, CachedMLLM
from fgvr.types import ROLES, ModelSpec


def shared_pool(cfg: DictConfig | None = None) -> ModelPool:
    """The process's one ModelPool, with this configuration's models known under their roles; nothing is loaded."""
    if cfg is None:
        try:
            return pools.shared()
        except ConfigError:
            cfg = load_config()
    return _with_settings(cfg)


_settings: WeakKeyDictionary[ModelPool, tuple[Any, Any, Path]] = WeakKeyDictionary()  # what each pool was last told


def _with_settings(cfg: DictConfig) -> ModelPool:
    """Every stage of every job asks: what the pool already knows is not worked out again (on a CPU the kernel would walk all its pages)."""
    runtime = to_dict(cfg.runtime)
    wanted = (runtime, to_dict(cfg.models), home(cfg))
    with suppress(ConfigError):  # there is none yet
        if _settings.get(pool := pools.shared()) == wanted:
            return pool
        pool.refuse_other_allocator(runtime["allocator"])  # before glibc is told
    keys.check({"runtime": runtime})  # a notebook may have changed what was checked
    allocator.apply(device_class(runtime["device"]).allocator, runtime["allocator"])  # before anything imports torch
    device = pick_device(runtime["device"])
    settings = PoolSettings.of(runtime, device)
    pool = pools.shared(lambda: ModelPool(device, settings))
    pool.configure(settings, device=device)
    pool.device.optimize = runtime["optimize"]
    watch(pool).configure(runtime, prepare=lambda role: prepare(spec(cfg, role)))
    for role in present(cfg):
        pool.register(spec(cfg, role))
    _settings[pool] = wanted
    return pool


@contextmanager
def looking_ahead(cfg: DictConfig, *stages: Sequence[str]) -> Iterator[None]:
    """Inside, the pool knows the order in which roles are used, over and over: the next stage's models are brought in while the present
    one's work, if there is room, and what is used soonest is evicted last. Not for models that may not be needed: they would be loaded."""
    pool = shared_pool(cfg)
    pool.expect(*stages)
    try:
        yield
    finally:
        pool.expect()


def stages_of_recognition(cfg: DictConfig) -> list[tuple[str, ...]]:
    """What a run with this configuration uses for each batch; one stage where System 2 is never asked."""
    looks = [("encoder",), *([("joint",)] if cfg.fusion.joint else [])]
    return [*looks, *([("mllm",)] if thinks(cfg) else [])]


def present(cfg: DictConfig) -> list[str]:
    """The roles that have a model; `models/mllm=none` has none."""
    return [role for role in ROLES if cfg.models[role].loader != "none"]


def asks_mllm(cfg: DictConfig) -> bool:
    """Whether System 2 is an MLLM; a person answers later, and `none` never."""
    return cfg.slow.decoder not in ("none", "person")


def thinks(cfg: DictConfig) -> bool:
    """Whether the MLLM may be asked at all."""
    return asks_mllm(cfg) and (trigger_name(cfg) != "never" or cfg.evaluation.record == "all")


def spec(cfg: DictConfig, role: str) -> ModelSpec:
    return checked_spec(instantiate_cached(cfg.models[role]), cfg.runtime.device)


def abilities(cfg: DictConfig) -> Any:
    """What the engine behind `models.mllm` can do (`Abilities`); None where the model is computed here. Raises RemoteError."""
    wanted = spec(cfg, "mllm")
    probe = getattr(shared_pool(cfg).loader(wanted), "abilities", None)
    return probe(wanted) if probe else None


def home(cfg: DictConfig) -> Path:
    return Path(cfg.paths.home).expanduser()


def open_store(cfg: DictConfig) -> Cache:
    """The machine's memory of embeddings and replies, or one that forgets (`store.enabled=false`)."""
    return _store(store_path(cfg), store_limit(cfg)) if cfg.store.enabled else NoCache()


@lru_cache(maxsize=1)
def _store(path: Path, limit: int | None) -> SqliteCache:
    """Stays open from job to job: closing writes down when each entry was last used."""
    return SqliteCache(path, max_bytes=limit)


atexit.register(_store.cache_clear)


def store_path(cfg: DictConfig) -> Path:
    return home(cfg) / "store" / "cache.sqlite"


@dataclass(frozen=True, slots=True)
class Models:
    """The models as agents see them: borrowed from the pool for each call, remembered in a cache."""

    encoder: CachedEncoder
    mllm: CachedMLLM
    joint: CachedJointEncoder
    present: tuple[str, ...] = ROLES  # asking another one is an error that names the cure

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the models that a knowledge base is made with."""
        return {role: getattr(self, role).fingerprint for role in ("encoder", "mllm") if role in self.present}


def open_models(cfg: DictConfig, cache: Cache) -> Models:
    pool = shared_pool(cfg)
    return Models(
        encoder=CachedEncoder(pool.leased(spec(cfg, "encoder")), cache),
        mllm=CachedMLLM(pool.leased(spec(cfg, "mllm")), cache),
        joint=CachedJointEncoder(pool.leased(spec(cfg, "joint")), cache),
        present=tuple(present(cfg)),
    )


def sentences(cfg: DictConfig) -> protocols.Sentences:
    """The run's own text encoder, as protocols compare names with it; asked only by those that do."""
    models = open_models(cfg, open_store(cfg))
    return protocols.Sentences(f"{cfg.models.encoder.source} (the run's own text encoder)", models.encoder.encode_text)
