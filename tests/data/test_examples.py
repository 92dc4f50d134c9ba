"""The photographs that come with fgvr: small, licensed, found in a checkout and in a wheel, and an honest test."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import fgvr
from fgvr.data.leaks import split_overlaps
from fgvr.data.near_duplicates import PerceptualHash
from fgvr.session import Session
from fgvr.store.cache import NoCache
from fgvr.utils.paths import PACKAGE, examples_dir

ROOT = Path(__file__).resolve().parents[2]


def test_produce_is_small_and_brings_its_licence_and_source() -> None:
    folder = examples_dir() / "produce"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 6_000_000
    assert "Copyright (c) 2019 Marcus Klasson" in (folder / "LICENSE").read_text()
    assert "github.com/marcusklasson/GroceryStoreDataset" in (folder / "README.md").read_text(encoding="utf-8")


def test_produce_opens_with_eight_photographs_of_each_kind_in_each_part() -> None:
    dataset = Session(fgvr.load_config("dataset=produce")).dataset
    assert len(dataset.catalog) == 20 and "Granny Smith" in dataset.catalog.names() and dataset.superclass == "fruit or vegetable"
    for part in (dataset.split.support, dataset.split.test):
        assert set(Counter(sample.label for sample in part).values()) == {8}
    assert dataset.notes == () and dataset.bad_images == ()
    assert split_overlaps(dataset.split, PerceptualHash(NoCache())) == []


def test_fewer_shots_can_be_asked_for() -> None:
    dataset = Session(fgvr.load_config("dataset=produce", "dataset.shots=3", "dataset.calibration=2")).dataset
    assert (len(dataset.split.support), len(dataset.split.calibration), len(dataset.split.test)) == (60, 40, 160)


def test_a_wheel_packs_every_folder_where_it_is_looked_for() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert {"fgvr", "configs", "examples"} <= set(build["wheel"]["only-include"]) and {"configs", "examples"} <= set(
        build["sdist"]["include"]
    )
    assert build["wheel"]["sources"] == {name: f"fgvr/{name}" for name in ("configs", "examples")}
    assert examples_dir() == PACKAGE.parent / "examples", "beside the package in a checkout"
