"""mode=discover: from a folder of unlabelled images to the dataset that they are, as a knowledge base can be built from it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from fgvr.agents import discover_prompts
from fgvr.agents.discover import Discovered, Discoverer
from fgvr.assembly.configuration import to_dict
from fgvr.assembly.models import abilities, home, open_models, open_store
from fgvr.data.catalog import Catalog
from fgvr.data.datasets import Dataset
from fgvr.data.splits import Split
from fgvr.data.unlabelled import Unlabelled, open_unlabelled
from fgvr.errors import ConfigError
from fgvr.knowledge.build import JOURNAL
from fgvr.store.cache import LayeredCache, SqliteCache
from fgvr.store.stage_cache import StageCache
from fgvr.types import Category


def open_images(cfg: DictConfig) -> Unlabelled:
    """The images a person has named, without anything that is known of them."""
    return open_unlabelled(Path(str(cfg.images)), cache_dir=home(cfg) / "store")


def find_kinds(cfg: DictConfig, images: Unlabelled, folder: Path) -> Discovered:
    """The stages of discovery, each kept in `folder`. Only the album, pictures without paths, is handed over."""
    wishes = checked_wishes(cfg)
    if (can := abilities(cfg)) is not None and not can.scores:
        raise ConfigError(
            f"mode=discover compares its guesses by log-likelihoods of given text, and {cfg.models.mllm.source} gives none: "
            "have a server of fgvr (fgvr serve) or vLLM hold the model, or take one that runs here (models/mllm=tiny)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with SqliteCache(folder / JOURNAL) as journal:
        models = open_models(cfg, LayeredCache(journal, open_store(cfg)))
        stages = StageCache(folder, [images.content, models.fingerprints, cfg.models.slow_target, discover_prompts.fingerprint(), wishes])
        discoverer = Discoverer(
            models.mllm,
            models.encoder,
            target=cfg.models.slow_target,
            stage=stages,
            mllm_batch=cfg.models.mllm.batch_size,
            encode_batch=cfg.models.encoder.batch_size,
            **wishes,
        )
        return discoverer(images.album)


def discovered_dataset(cfg: DictConfig, images: Unlabelled, found: Discovered) -> Dataset:
    """What was found, as a dataset: its kinds are the classes, their most certain images the support. It has no test images."""
    ids = [f"{place:03d}" for place in range(len(found.kinds))]
    categories = (Category(id, kind.name, found.superclass, kind.aliases) for id, kind in zip(ids, found.kinds, strict=True))
    support = tuple(
        replace(images.samples[picture], label=id)
        for id, kind in zip(ids, found.kinds, strict=True)
        for picture in kind.pictures[: cfg.discover.shots]
    )
    name = re.sub(r"[^\w.-]+", "_", images.root.resolve().name) or "folder"
    return Dataset(
        f"discovered-{name}", images.root.resolve().name, Catalog(tuple(categories)), found.superclass, Split(support, ()), images.root
    )


def checked_wishes(cfg: DictConfig) -> dict:
    """The keys of `discover` that the discoverer takes; a senseless one is a ConfigError."""
    wishes = to_dict(cfg)["discover"]
    shots, _, _ = (wishes.pop(key) for key in ("shots", "kinds", "names"))  # the last two: without an MLLM
    for key, value, least in (("shortlist", wishes["shortlist"], 1), ("max_new_tokens", wishes["max_new_tokens"], 1), ("shots", shots, 2)):
        if not (key == "shots" and value is None) and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"discover.{key}={value}: must be a whole number from {least} up")
    price = wishes["price"]
    if price is not None and (isinstance(price, bool) or not isinstance(price, int | float) or price < 0):
        raise ConfigError(f"discover.price={price}: must be null, or a number of nats from 0 up (0 keeps every guess)")
    if not 0 < wishes["alike"] <= 1:
        raise ConfigError(f"discover.alike={wishes['alike']}: must be a cosine above 0, up to 1")
    return wishes
