"""Datasets and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from fgvr.assembly.configuration import instantiate
from fgvr.assembly.models import home, open_store
from fgvr.data import learned
from fgvr.data.datasets import Dataset
from fgvr.data.near_duplicates import PerceptualHash
from fgvr.data.pictures import open_picture
from fgvr.errors import KnowledgeError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.types import Picture, Sample


def open_dataset(cfg: DictConfig) -> Dataset:
    """The configured images; photographs that a person has named in a review are among the support (`knowledge.learned`)."""
    dataset: Dataset = instantiate(cfg.dataset)
    table = cfg.knowledge.learned
    return dataset if table is None else learned.join(dataset, Path(table).expanduser(), cache_dir=home(cfg) / "store")


def perceptual_hash(cfg: DictConfig) -> PerceptualHash:
    """The perceptual hashes of pictures, kept in the store."""
    return PerceptualHash(open_store(cfg))


def look(sample: Sample) -> Picture:
    return open_picture(sample.image)


def support_of(base: KnowledgeBase, samples: Sequence[Sample]) -> list[Sample]:
    """The base's support images in its own order, known by content."""
    found = {sample.sha256: sample for sample in samples}
    missing = [support.key for support in base.support if support.sha256 not in found]
    if missing:
        raise KnowledgeError(f"{base.path} was built from images that the dataset no longer has, the first: {missing[0]}")
    return [found[support.sha256] for support in base.support]
