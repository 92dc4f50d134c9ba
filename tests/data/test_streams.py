"""Streams as data sets: the same images in shards, tables and folders; bad rows named and counted; listing that goes on after a kill."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fgvr
from fgvr.cli import main
from fgvr.data import leaks
from fgvr.data.catalog import Catalog
from fgvr.data.datasets import Dataset, open_folder
from fgvr.data.diagnosis import dataset_findings
from fgvr.data.near_duplicates import PerceptualHash
from fgvr.data.splits import Split
from fgvr.data.streams import index as indexes
from fgvr.data.streams.formats import Fault, ForwardReader, Row, Shard
from fgvr.data.streams.hf import HuggingFace, open_hf
from fgvr.data.streams.index import StreamIndex
from fgvr.data.streams.parquet import Parquet, open_parquet
from fgvr.data.streams.samples import StreamSamples
from fgvr.data.streams.webdataset import WebDataset, open_webdataset
from fgvr.errors import DatasetError, ImageError, StoreError
from fgvr.modes.classifying import stream_at
from fgvr.runtime.pool import close_shared
from fgvr.store.cache import NoCache, SqliteCache
from fgvr.store.journal import RunFile
from fgvr.types import Category
from fgvr.utils.images import read_image

KINDS = {"Rot": (200, 30, 30), "Blau": (30, 30, 200), "Gruen": (30, 200, 30)}


def png(kind: str, seed: int, side: int = 24) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 40, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray((np.array(KINDS[kind]) + noise).clip(0, 255).astype("uint8")).save(file, "PNG")
    return file.getvalue()


def images(first: int, each: int) -> list[tuple[str, bytes]]:
    """(class, image), classes in turns."""
    return [(kind, png(kind, first + 10 * i + k)) for i in range(each) for k, kind in enumerate(KINDS)]


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, rows: list[tuple[str, bytes]]) -> Path:
    return tar(
        path, {f"{i:04d}.{end}": part for i, (kind, data) in enumerate(rows) for end, part in (("png", data), ("cls", kind.encode()))}
    )


def table(path: Path, rows: list[tuple[str, bytes]], **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": data, "path": None} for _, data in rows]
    pq.write_table(pa.table({"image": cells, "label": [kind for kind, _ in rows]} | columns), path, row_group_size=4)
    return path


PARTS = {"train": images(1000, 4), "test": images(2000, 5)}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """The same images in a folder, in shards or in tables: (name of the option, its root)."""

    def made(kind: str) -> tuple[str, Path]:
        root = tmp_path / kind
        for part, rows in PARTS.items():
            if kind == "folder":
                for i, (label, data) in enumerate(rows):
                    file = root / part / label / f"{i:04d}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
            elif kind == "webdataset":
                shard(root / f"{part}-000.tar", rows[:7])
                shard(root / f"{part}-001.tar", rows[7:])
            else:
                table(root / f"{part}-00000.parquet", rows)
        return kind, root

    return made


OPEN = {"webdataset": open_webdataset, "parquet": open_parquet, "hf": open_hf}


def open_at(kind: str, root: Path | str, tmp_path: Path, **settings: Any) -> Dataset:
    return OPEN[kind](root=str(root), cache_dir=tmp_path / "store", **settings)


# --- the whole way -----------------------------------------------------------------------------------------------------------


def test_shards_and_tables_give_the_answers_of_a_folder(make: Callable[..., tuple[str, Path]], home: Path) -> None:
    answers: dict[str, Any] = {}
    for kind in ("folder", "webdataset", "parquet", "hf"):
        close_shared()
        option, root = make(kind)
        words = ("models=fake", f"dataset={option}", f"dataset.root={root}", "dataset.shots=4", "trigger=always", "evaluation.batch_size=4")
        report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *words))
        rows = [json.loads(line) for line in (report.path / "predictions.jsonl").read_text().splitlines()]
        if kind in ("webdataset", "parquet"):  # a run that was interrupted after its second batch goes on there
            (report.path / "report.json").unlink()
            with RunFile(report.path / "predictions.jsonl") as file:
                file.keep(8)
            fgvr.evaluate(fgvr.load_config("mode=evaluate", *words))
            again = [json.loads(line) for line in (report.path / "predictions.jsonl").read_text().splitlines()]
            assert [row["image"] for row in again] == [row["image"] for row in rows]
        answers[kind] = {row["sha256"]: (row["label"], row["prediction"] if "prediction" in row else row.get("category")) for row in rows}
        assert report.n == 15 and report.skipped == 0
        if kind == "webdataset":  # an image is opened once; the page shows some of them
            assert (report.path / "report.html").read_text().count("data:image/jpeg") > 3
    close_shared()
    assert answers["webdataset"] == answers["parquet"] == answers["hf"] == answers["folder"]


def test_shards_of_unlabelled_images_are_classified(make: Callable[..., tuple[str, Path]], tmp_path: Path, capsys: Any) -> None:
    _, root = make("webdataset")
    tar(tmp_path / "new" / "0.tar", {f"bird {i}.png": data for i, (_, data) in enumerate(images(3000, 2))} | {"9.png": b"no image"})
    words = ("models=fake", "dataset=webdataset", f"dataset.root={root}", "dataset.shots=4", "logging=json")
    assert main(["mode=classify", *words, f"image={tmp_path / 'new'}"]) == 0
    out, err = capsys.readouterr()
    assert [row["image"] for row in json.loads(out)] == [f"0.tar/bird {i}.png".removesuffix(".png") for i in range(6)]
    assert "0.tar/9: not an image in a known format" in " ".join(err.split())
    close_shared()


def test_a_folder_with_a_dot_in_its_name_is_a_folder_of_shards(tmp_path: Path) -> None:
    file = shard(tmp_path / "birds-1.0" / "0.tar", images(0, 1))
    table(tmp_path / "tables.tar" / "0.parquet", images(0, 1))
    assert isinstance(stream_at(file), WebDataset) and isinstance(stream_at(file.parent), WebDataset)
    assert isinstance(stream_at(file.parent / "{0..3}.tar"), WebDataset)
    assert isinstance(stream_at(tmp_path / "tables.tar"), Parquet) and stream_at(tmp_path) is None


# --- splits ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "hf"])
def test_samples_lie_where_the_stream_has_them(kind: str, make: Callable[..., tuple[str, Path]], tmp_path: Path) -> None:
    _, root = make(kind)
    found = open_at(kind, root, tmp_path, shots=3, calibration=1)
    assert [c.name for c in found.catalog] == ["Blau", "Gruen", "Rot"]
    assert (len(found.split.support), len(found.split.calibration), len(found.split.test)) == (9, 3, 15)
    test = found.split.test
    assert isinstance(test, StreamSamples) and [s.label for s in test] == [kind for kind, _ in PARTS["test"]]
    for place in (14, 0, 7, 7, 2):  # in any order
        sample = pickle.loads(pickle.dumps(test[place]))
        assert read_image(sample.image)[1] == sample.sha256
        assert test.position(sample.key) == place and str(test.pictures[sample.key]) == str(sample.image)
    assert len(test.without({test[3].key})) == 14 and test.without({test[3].key})[3].key == test[4].key
    again = open_at(kind, root, tmp_path, shots=3, calibration=1)
    assert again.split.support == found.split.support and again.split.test.digest == test.digest
    other = open_at(kind, root, tmp_path, shots=3, calibration=1, split_seed=1)
    assert other.split.support != found.split.support
    fewer = open_at(kind, root, tmp_path, shots=2, test_per_class=2)
    assert len(fewer.split.test) == 6 and set(fewer.split.support) < {*found.split.support, *found.split.calibration}


def test_without_a_test_part_the_shots_leave_the_test_and_copies_count_once(tmp_path: Path) -> None:
    rows = images(0, 6)
    shard(tmp_path / "s" / "a.tar", [*rows, rows[0], ("Rot", rows[1][1])])  # a copy, and a Blau that is called Rot
    found = open_at("webdataset", tmp_path / "s", tmp_path, shots=2)
    used = {sample.sha256 for sample in (*found.split.support, *found.split.test)}
    assert len(found.split.support) == 6 and len(found.split.test) == 18 - 6 - 1 and len(used) == 17
    assert any("1 exact copies" in note for note in found.notes) and any("2 images are in two classes" in note for note in found.notes)


def test_all_shots_leave_only_the_test_that_is_asked_for(tmp_path: Path) -> None:
    shard(tmp_path / "s" / "a.tar", images(0, 6))
    for tests in (0, 2):
        split = open_at("webdataset", tmp_path / "s", tmp_path, shots="all", test_per_class=tests or None).split
        assert (len(split.support), len(split.test)) == (18 - 3 * tests, 3 * tests)


def test_validation_shards_are_the_test_where_there_is_no_other(tmp_path: Path) -> None:
    shard(tmp_path / "s" / "x-train-0.tar", images(0, 3))
    shard(tmp_path / "s" / "x-val-0.tar", images(500, 2))
    assert len(open_at("webdataset", tmp_path / "s", tmp_path, shots=1).split.test) == 6
    shard(tmp_path / "s" / "x-test-0.tar", images(900, 1))
    found = open_at("webdataset", tmp_path / "s", tmp_path, shots=1)
    assert len(found.split.test) == 3 and any("6 images of a validation part" in note for note in found.notes)


def test_the_leak_guard_finds_support_images_in_a_stream(tmp_path: Path) -> None:
    rows = images(0, 4)
    shard(tmp_path / "s" / "train.tar", rows)
    shard(tmp_path / "s" / "test.tar", [*images(700, 2), rows[5], rows[0]])
    found = open_at("webdataset", tmp_path / "s", tmp_path, shots=4)
    overlaps = leaks.split_overlaps(found.split, PerceptualHash(NoCache()))
    assert [overlap.key for overlap in overlaps if not overlap.near] == ["test.tar/0006", "test.tar/0007"]
    left = leaks.enforce(found.split, overlaps, "drop")
    assert [s.key for s in left.test] == [f"test.tar/{i:04d}" for i in range(6)]
    assert leaks.scope(found.split.test) == leaks.SCOPE


def test_labels_may_be_numbers_or_entries_of_json(tmp_path: Path) -> None:
    members = {}
    for i, (kind, data) in enumerate(images(0, 3)):
        members |= {f"a/{i}.png": data, f"a/{i}.json": json.dumps({"y": list(KINDS).index(kind)}).encode(), f"a/{i}.txt": b"caption"}
    tar(tmp_path / "s" / "0.tar", members)
    (tmp_path / "s" / "classnames.txt").write_text("red\nblue\ngreen\n")
    found = open_at("webdataset", tmp_path / "s", tmp_path, label="json:y", shots=1)
    assert {c.id: c.name for c in found.catalog} == {"0": "red", "1": "blue", "2": "green"}
    with pytest.raises(DatasetError, match="1 names, and there is a label 2"):
        (tmp_path / "names.txt").write_text("red")
        open_at("webdataset", tmp_path / "s", tmp_path, label="json:y", shots=1, names=str(tmp_path / "names.txt"))


def test_only_texts_and_whole_numbers_in_json_are_labels(tmp_path: Path) -> None:
    values = ["a", 7, 0, None, True, ["a"], {"a": 1}, 1.5, " "]
    members = {}
    for i, (value, (_, data)) in enumerate(zip(values, images(0, 3), strict=True)):
        members |= {f"{i}.png": data, f"{i}.json": json.dumps({"y": value}).encode()}
    path = tar(tmp_path / "0.tar", members)
    found = list(WebDataset(tmp_path, "json:y").rows(Shard("0.tar", path)))
    assert [row.label for row in found if isinstance(row, Row)] == ["a", "7", "0"]
    reasons = [row.reason for row in found if isinstance(row, Fault)]
    named = [reason.startswith("has no label: dataset.label=json:y") for reason in reasons]
    assert named == [False, *[True] * 4, False]  # null and a blank say that there is none; True, a list, an object and 1.5 say nothing
    assert reasons[0].endswith("is empty, below 0 or unreadable") and reasons[0] == reasons[-1]


@pytest.mark.parametrize("kind", [Parquet, HuggingFace])
@pytest.mark.parametrize(
    ("cells", "labels", "without"),
    [
        ([1.0, math.nan, None], [], 2),
        ([True, False, None], [], 1),
        ([["a"], [], None], [], 1),
        (["Rot", " ", None], ["Rot"], 2),
        ([3, -1, None], ["3"], 2),
    ],
)
def test_only_texts_and_whole_numbers_in_a_table_are_labels(kind: Any, cells: Any, labels: Any, without: int, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [data for _, data in images(0, 1)], "label": cells}), tmp_path / "train.parquet")
    stream = kind(tmp_path)
    found = [row for part in stream.shards() for row in stream.rows(part)]
    assert [row.label for row in found if isinstance(row, Row)] == labels
    reasons = [row.reason for row in found if isinstance(row, Fault)]
    assert reasons.count("has no label") == without and len(reasons) == 3 - len(labels)
    assert all("neither text nor a whole number" in reason for reason in reasons if reason != "has no label")


# --- bad input ---------------------------------------------------------------------------------------------------------------


def test_bad_rows_are_named_and_counted_and_the_rest_is_done(tmp_path: Path) -> None:
    rows = images(0, 6)
    whole = shard(tmp_path / "s" / "train-0.tar", rows)
    members = {f"{i:04d}.png": data for i, (_, data) in enumerate(rows[:3])} | {"0000.cls": b"Rot", "0001.cls": b" ", "0002.txt": b"x"}
    tar(tmp_path / "s" / "train-1.tar", dict(sorted(members.items())) | {"0009.cls": b"Rot"})
    cut = shard(tmp_path / "s" / "train-2.tar", images(100, 4))
    cut.write_bytes(cut.read_bytes()[: len(whole.read_bytes()) // 3])
    found = open_at("webdataset", f"{tmp_path / 's'}/train-{{0..4}}.tar", tmp_path, shots=2)
    bad = "\n".join(map(str, found.bad_images))
    assert "train-1.tar/0001: its label (dataset.label=cls) is empty" in bad and "train-1.tar/0002: has no label: no member .cls" in bad
    assert "train-1.tar/0009: has no image" in bad and "train-2.tar: ends early or is damaged after" in bad
    assert "train-3.tar: is not there" in bad and "train-4.tar: is not there" in bad
    assert len(found.bad_images) in (6, 7)  # the last row may have lost its label
    assert "left out, the first: " in "\n".join(found.notes) and len(found.split.test) > 10
    with pytest.raises(DatasetError, match="on_bad_image=skip"):
        open_at("webdataset", f"{tmp_path / 's'}/train-{{0..3}}.tar", tmp_path, shots=2, on_bad_image="error")


def test_support_images_that_cannot_be_decoded_are_replaced(tmp_path: Path) -> None:
    rows = [(kind, b"broken") if i in (0, 4, 8) else (kind, data) for i, (kind, data) in enumerate(images(0, 4))]
    shard(tmp_path / "s" / "0.tar", rows)
    found = open_at("webdataset", tmp_path / "s", tmp_path, shots=3)
    assert len(found.split.support) == 9 and len(found.split.test) == 0


def test_damaged_tables_and_unknown_columns_are_named(tmp_path: Path) -> None:
    rows = images(0, 4)
    table(tmp_path / "s" / "0.parquet", rows)
    with pytest.raises(DatasetError, match=r"has no column picture and no column species; it has image, label"):
        open_at("parquet", tmp_path / "s", tmp_path, image="picture", label="species")
    with pytest.raises(DatasetError, match=r"/s, split train, has no column picture; it has image, label"):
        open_at("hf", tmp_path / "s", tmp_path, image="picture")
    labels = [None, *[kind for kind, _ in rows][1:]]
    pq.write_table(pa.table({"image": [*[d for _, d in rows][:-1], b""], "label": labels}), tmp_path / "s" / "1.parquet")
    (tmp_path / "s" / "2.parquet").write_bytes(b"PAR1 no table")
    found = open_at("parquet", tmp_path / "s", tmp_path, shots=1)
    bad = "\n".join(map(str, found.bad_images))
    assert (
        "1.parquet/row 000000000: has no label" in bad
        and "1.parquet/row 000000011: has no image" in bad
        and "2.parquet: ends early or is damaged" in bad
    )


@pytest.mark.parametrize(
    ("kind", "root", "says"),
    [
        ("webdataset", "absent", r"has no \.tar files"),
        ("webdataset", "absent/x-{0..3}.tar", r"has no \.tar files"),
        ("webdataset", "absent/x-{a,b}.tar", "is no pattern of shards"),
        ("parquet", "absent", r"has no \.parquet files"),
        ("hf", "timm/oxford-pets", "downloads nothing: fetch it once"),
        ("hf", "empty", "is no data set that Hugging Face's datasets can read"),
    ],
)
def test_a_stream_that_is_not_there_is_one_line(kind: str, root: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=says) as error:
        open_at(kind, tmp_path / root, tmp_path)
    assert "\n" not in str(error.value)


def test_a_row_that_went_after_the_listing_is_an_error_of_that_image(make: Callable[..., tuple[str, Path]], tmp_path: Path) -> None:
    for kind in ("webdataset", "parquet"):
        _, root = make(kind)
        sample = open_at(kind, root, tmp_path, shots=1).split.test[0]
        min(root.glob("test*")).unlink()
        with pytest.raises(ImageError, match="test-0"):
            read_image(sample.image)


def test_a_folder_as_spark_writes_it_is_a_stream(tmp_path: Path) -> None:
    root = tmp_path / "out"
    for number in range(2):
        table(root / f"part-{number:05d}-c0.snappy.parquet", images(1000 * number, 6))
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-00000-c0.snappy.parquet.crc"):
        (root / name).write_bytes(b"")
    split = open_at("parquet", root, tmp_path, shots=2).split
    assert split.support and split.test and stream_at(root) == Parquet(root, label=None)
    with pytest.raises(DatasetError, match=r"dataset=parquet dataset\.root=") as error:
        open_folder(root=root)
    assert "\n" not in str(error.value)


def paths(root: Path, gone: int) -> Path:
    """A table of nine images that lie beside it, but for one."""
    rows = images(0, 3)
    root.mkdir()
    for i, (_, data) in enumerate(rows):
        (root / f"{i}.png").write_bytes(data)
    (root / f"{gone}.png").unlink()
    cells = [{"bytes": None, "path": f"{i}.png"} for i in range(len(rows))]
    pq.write_table(pa.table({"image": cells, "label": [kind for kind, _ in rows]}), root / "train.parquet")
    return root / "train.parquet"


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_a_row_that_cannot_be_read_leaves_the_others_readable(kind: str, tmp_path: Path) -> None:
    file = paths(tmp_path / "s", gone=4)
    stream, path = (Parquet(file.parent), file) if kind == "parquet" else (HuggingFace(file.parent), file.parent / "train")
    data = [data for _, data in images(0, 3)]
    assert [stream.read(path, i, 0) for i in (0, 1, 6, 3)] == [data[i] for i in (0, 1, 6, 3)]
    with pytest.raises(ImageError, match="row 4: cannot be read"):
        stream.read(path, 4, 0)
    assert [stream.read(path, i, 0) for i in (5, 8)] == [data[5], data[8]]
    (file.parent / "4.png").write_bytes(data[4])
    assert stream.read(path, 4, 0) == data[4]


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_a_missing_image_is_a_fault_of_its_row_and_the_listing_goes_on(kind: str, tmp_path: Path) -> None:
    found = open_at(kind, paths(tmp_path / "s", gone=4).parent, tmp_path, shots=1)
    (bad,) = map(str, found.bad_images)
    assert bad.endswith("/row 000000004: its image cannot be read (No such file or directory)")
    assert len(found.split.support) == 3 and len(found.split.test) == 5


@pytest.mark.parametrize("size, kept", [(10, 128), (4 << 20, 16)])
def test_a_reader_keeps_fewer_large_images(size: int, kept: int) -> None:
    begun: list[int] = []

    def start(place: int) -> Iterator[bytes]:
        begun.append(place)
        return (bytes(size) for _ in range(place, 200))

    reader = ForwardReader(start)
    assert [len(reader(place)) for place in (*range(150), *range(149, 149 - kept, -1))] == [size] * (150 + kept)
    assert begun == [0]
    reader(149 - kept)
    assert begun == [0, 149 - kept]


def test_a_reader_that_broke_begins_anew() -> None:
    trouble = [OSError("EIO")]

    def start(first: int) -> Iterator[bytes]:
        for place in range(first, 6):
            if place == 3 and trouble:
                raise trouble.pop()
            yield b"%d" % place

    read = ForwardReader(start)
    assert read(0) == b"0"
    with pytest.raises(OSError, match="EIO"):
        read(4)
    assert read(4) == b"4"
    with pytest.raises(IndexError):
        read(6)
    assert read(5) == b"5"


# --- listing -----------------------------------------------------------------------------------------------------------------


class Counted:
    """A stream of made-up rows that is killed after some; counts what is read."""

    def __init__(self, sizes: tuple[int, ...], stop: int | None = None) -> None:
        self.sizes, self.stop, self.read_rows = sizes, stop, 0

    def shards(self) -> Iterator[Shard | Fault]:
        return (Shard(f"{i}.tar", Path(f"{i}.tar"), "", str(size)) for i, size in enumerate(self.sizes))

    def rows(self, shard: Shard) -> Iterator[Row | Fault]:
        for place in range(self.sizes[int(shard.name[0])]):
            self.read_rows += 1
            if self.read_rows == self.stop:
                raise KeyboardInterrupt
            yield Fault(str(place), "has no label") if place % 10 == 9 else Row(str(place), f"c{place % 3}", b"%d" % place, place)

    def read(self, path: Path, place: int, size: int) -> bytes:
        return b"%d" % place


def test_an_interrupted_listing_goes_on_and_gives_the_same_index(tmp_path: Path) -> None:
    sizes, commit = (100, indexes.COMMIT + 500), indexes.COMMIT
    whole = StreamIndex(tmp_path / "whole.sqlite")
    whole.update(Counted(sizes), strict=False)
    file = tmp_path / "cut.sqlite"
    with pytest.raises(KeyboardInterrupt):
        StreamIndex(file).update(Counted(sizes, stop=commit + 300), strict=False)
    rest, again = Counted(sizes), StreamIndex(file)
    kept = again.last
    again.update(rest, strict=False)
    assert kept == 90 + commit * 9 // 10 and rest.read_rows == commit + 500  # the first shard is not read again
    assert (again.digest, again.faults, again.parts) == (whole.digest, whole.faults, whole.parts)
    assert again.repeated()[0].tolist() == whole.repeated()[0].tolist() and len(whole.repeated()[0]) == 90
    more = Counted((*sizes, 10))
    again.update(more, strict=False)
    assert more.read_rows == 10  # a shard more is listed alone
    changed = Counted((99, *sizes[1:]))
    again.update(changed, strict=False)
    assert changed.read_rows == 99 + sizes[1] and again.last == 90 + 18_450  # a changed one begins anew


def test_a_fact_computed_while_another_process_lists_is_not_remembered(tmp_path: Path) -> None:
    index, other = StreamIndex(tmp_path / "one.sqlite"), StreamIndex(tmp_path / "one.sqlite")
    index.update(Counted((100,)), strict=False)

    def computed() -> bytes:
        other.update(Counted((100, 100)), strict=False)
        return b"of 100 rows"

    assert index.remembered("fact", computed) == b"of 100 rows"
    assert index.remembered("fact", lambda: b"of 200 rows") == b"of 200 rows"
    assert index.remembered("fact", lambda: b"another") == b"of 200 rows"


def test_an_index_that_cannot_be_used_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(StoreError, match="cannot be opened .*; make it writable, or end the other process"):
        StreamIndex(tmp_path / "folder.sqlite")
    (tmp_path / "text.sqlite").write_text("no database " * 100)
    with pytest.raises(StoreError, match="is damaged .*; delete it"):
        StreamIndex(tmp_path / "text.sqlite")
    file = tmp_path / "holes.sqlite"
    index = StreamIndex(file)
    index.update(Counted((500,)), strict=False)
    del index  # closes it
    pages = file.read_bytes()
    file.write_bytes(pages[:4096] + b"\xff" * (len(pages) - 4096))  # the first page has the schema
    broken = StreamIndex(file)
    for use in (
        lambda: broken.update(Counted((500,)), strict=False),
        lambda: broken.remembered("fact", bytes),
        lambda: list(broken.ranked(None)),
    ):
        with pytest.raises(StoreError, match="is damaged .*; delete it"):
            use()


def test_two_that_begin_an_index_at_once_wait_for_each_other(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "new.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.3, other.execute, ("COMMIT",)).start()
    index = StreamIndex(tmp_path / "new.sqlite")
    index.update(Counted((3,)), strict=True)
    assert index.last == 3
    other.close()


class ImageBytes(bytes):
    """Counts how many of it are there."""

    alive: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self, *_: object) -> None:
        ImageBytes.alive += 1
        ImageBytes.most = max(self.most, self.alive)

    def __del__(self) -> None:
        ImageBytes.alive -= 1


def test_listing_holds_one_image_at_a_time(tmp_path: Path) -> None:
    class Large(Counted):
        def rows(self, shard: Shard) -> Iterator[Row | Fault]:
            return (Row(f"{i}", "a", ImageBytes(b"%d" % i), i) for i in range(500))

    index = StreamIndex(tmp_path / "large.sqlite")
    index.update(Large((500,)), strict=True)
    assert index.last == 500 and ImageBytes.most <= 3


class Flaky(Counted):
    """Its first shard breaks off for as long as there is trouble."""

    trouble = True

    def rows(self, shard: Shard) -> Iterator[Row | Fault]:
        broken = self.trouble and shard.name == "0.tar"
        yield from islice(super().rows(shard), 45 if broken else None)
        if broken:
            yield Fault("", "ends early (EIO)")


def test_a_shard_that_could_not_be_read_is_listed_again(tmp_path: Path) -> None:
    stream, index, whole = Flaky((100, 50)), StreamIndex(tmp_path / "a.sqlite"), StreamIndex(tmp_path / "b.sqlite")
    other = StreamIndex(tmp_path / "a.sqlite")
    for _ in range(2):  # the second finds it as broken, and says so once
        index.update(stream, strict=False)
        assert index.last == 41 + 45 and index.faults == 4 + 5 + 1
        assert index.remembered("fact", lambda: b"first") == b"first"
        index.update(stream, strict=False)
        assert index.remembered("fact", lambda: b"second") == b"first"  # nothing new was listed
    with pytest.raises(DatasetError, match="EIO"):
        index.update(stream, strict=True)
    other.update(stream, strict=False)
    assert len(other.items([1])) == 1
    stream.trouble = False
    index.update(stream, strict=False)
    whole.update(Counted((100, 50)), strict=False)
    assert index.remembered("fact", lambda: b"third") == b"third"
    assert (index.last, index.faults, index.parts) == (whole.last, whole.faults, whole.parts)
    keys = [[f"{shard}/{key}" for shard, key, *_ in one.items(one.ids().tolist())] for one in (index, whole)]
    assert keys[0] == keys[1] and index.digest == whole.digest, "in the order of the stream, as if nothing had been broken"
    assert [index.number(key) for key in keys[0]] == index.ids().tolist()
    with pytest.raises(StoreError, match="listed the stream anew meanwhile"):
        other.items([1])
    stream.read_rows = 0
    index.update(stream, strict=False)
    assert stream.read_rows == 0


def test_a_shard_that_comes_later_stands_where_it_belongs(tmp_path: Path) -> None:
    pattern = tmp_path / "s" / "train-{0..2}.tar"
    shard(tmp_path / "s" / "train-2.tar", images(200, 3))
    open_at("webdataset", pattern, tmp_path, shots=1)
    for i in (1, 0):
        shard(tmp_path / "s" / f"train-{i}.tar", images(100 * i, 3))
        late = open_at("webdataset", pattern, tmp_path, shots=1)
    whole = open_at("webdataset", pattern, tmp_path / "another", shots=1)
    assert [s.key for s in late.split.test] == [s.key for s in whole.split.test] and late.split.support == whole.split.support
    assert isinstance(late.split.test, StreamSamples) and isinstance(whole.split.test, StreamSamples)
    assert late.split.test.digest == whole.split.test.digest


def test_a_wrong_use_of_an_index_is_not_called_damage(tmp_path: Path) -> None:
    index: Any = StreamIndex(tmp_path / "a.sqlite")
    with pytest.raises(sqlite3.ProgrammingError):
        index.ids(object())
    cache: Any = SqliteCache(tmp_path / "b.sqlite")
    with pytest.raises(sqlite3.ProgrammingError):
        cache.get([object()])


def test_the_doctor_does_not_count_near_copies_that_nobody_looked_for(tmp_path: Path) -> None:
    stream, index = Counted((leaks.NEAR_MOST * 10 // 9 + 10,)), StreamIndex(tmp_path / "a.sqlite")
    index.update(stream, strict=False)
    test, catalog = StreamSamples(index, stream, index.ids()), Catalog(tuple(Category(f"c{i}", f"c{i}", "object") for i in range(3)))
    said = {f.topic: f for f in dataset_findings(Dataset("s", "s", catalog, "object", Split((), test), tmp_path))}
    assert said["test apart from support, near"].detail == "not looked for in more than 20,000 images of a stream"
    assert said["test apart from support, exact"].detail == "0 exact copies" and "near copies are not looked for" in leaks.scope(test)


def test_a_listing_killed_with_9_goes_on(tmp_path: Path, python: Callable[..., Any]) -> None:
    root = tmp_path / "s"
    for i in range(3):
        table(root / f"{i}.parquet", images(100 * i, 4))
    program = (
        "import os, sys; from pathlib import Path; from fgvr.data.streams.parquet import Parquet; "
        "from fgvr.data.streams.index import StreamIndex\n"
        "class Dying(Parquet):\n"
        "    def rows(self, shard):\n"
        "        for i, row in enumerate(super().rows(shard)):\n"
        "            if shard.name == '1.parquet' and i == 7: os.kill(os.getpid(), 9)\n"
        "            yield row\n"
        f"StreamIndex(Path({str(tmp_path / 'index.sqlite')!r})).update(Dying(Path({str(root)!r})), strict=False)"
    )
    assert python("-c", program).returncode == -9
    index = StreamIndex(tmp_path / "index.sqlite")
    assert index.last == 12  # what was committed
    index.update(Parquet(root), strict=False)
    whole = StreamIndex(tmp_path / "whole.sqlite")
    whole.update(Parquet(root), strict=False)
    assert (index.digest, index.parts) == (whole.digest, whole.parts) and index.last == 36


def test_shards_written_by_the_webdataset_library_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "s").mkdir()
    with webdataset.TarWriter(str(tmp_path / "s" / "000.tar")) as writer:
        for i, (kind, data) in enumerate(images(0, 4)):
            writer.write({"__key__": f"{i:06d}", "png": data, "cls": list(KINDS).index(kind)})
    found = list(WebDataset(tmp_path / "s").rows(Shard("000.tar", tmp_path / "s" / "000.tar")))
    assert [row.label for row in found if isinstance(row, Row)] == ["0", "1", "2"] * 4


# --- odd names, and what would be lost -----------------------------------------------------------------------------------------


def test_names_that_are_no_utf_8_are_read_as_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9 {a}")
    members = {
        f"{os.fsdecode(b'caf' + bytes([0xE0 + i]))}.{end}": part
        for i, (kind, data) in enumerate(images(0, 5))
        for end, part in (("png", data), ("json", json.dumps({"kind": f"Cafe\u0301 {kind}\ud800"}).encode()))
    }
    tar(root / os.fsdecode(b"caf\xe9.tar"), members)
    dataset = open_at("webdataset", root, tmp_path, shots=2, label="json:kind")
    samples = [*dataset.split.support, *dataset.split.test]
    assert len(samples) == len({sample.key for sample in samples}) == 15
    assert all("\n".join((sample.key, str(sample.label))).encode() for sample in samples)
    assert {str(sample.label)[:4] for sample in samples} == {"Caf\u00e9"}
    assert [read_image(sample.image)[1] for sample in samples] == [sample.sha256 for sample in samples]


def test_rows_of_one_name_are_told_apart(tmp_path: Path) -> None:
    file = shard(tmp_path / "shards" / "000.tar", images(0, 4))
    more = shard(tmp_path / "more.tar", images(1000, 4))
    with tarfile.open(file, "a") as appended, tarfile.open(more) as archive:
        for member in archive:
            appended.addfile(member, archive.extractfile(member))
    samples = open_at("webdataset", file.parent, tmp_path, shots=1).split.test
    assert isinstance(samples, StreamSamples) and len(samples) == 24 - 3
    assert [samples.position(sample.key) for sample in samples] == list(range(21))


def test_images_of_no_part_are_left_out_with_a_note(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "test", "extra")):
        shard(tmp_path / "shards" / f"{part}-0.tar", images(1000 * number, 4))
    dataset = open_at("webdataset", tmp_path / "shards", tmp_path, shots=2)
    assert any("12 images of shards whose names say no part" in note for note in dataset.notes)


def test_a_folder_that_is_called_like_a_table_is_no_missing_shard(tmp_path: Path) -> None:
    table(tmp_path / "tables" / "data.parquet" / "part-0.parquet", images(0, 4))
    assert open_at("parquet", tmp_path / "tables", tmp_path, shots=2, on_bad_image="error").notes == ()


def test_cells_that_are_no_images_are_faults(tmp_path: Path) -> None:
    table(tmp_path / "tables" / "0.parquet", images(0, 4), number=[1 << 40] * 12)
    with pytest.raises(DatasetError, match=r"12 rows .*\(int instead of bytes or a path"):
        open_at("parquet", tmp_path / "tables", tmp_path, shots=2, image="number")


def test_images_that_cannot_be_decoded_are_the_reason_for_too_few(tmp_path: Path) -> None:
    table(tmp_path / "tables" / "0.parquet", [(kind, b"no image %d" % i) for i, (kind, _) in enumerate(images(0, 4))])
    with pytest.raises(DatasetError, match="12 images cannot be decoded, the first: .*not an image"):
        open_at("parquet", tmp_path / "tables", tmp_path, shots=2)


def test_a_file_of_names_in_another_encoding_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "shards" / "0.tar", [(str(list(KINDS).index(kind)), data) for kind, data in images(0, 4)])
    (tmp_path / "shards" / "classnames.txt").write_bytes("Bl\u00fcte\nb\nc\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"classnames\.txt cannot be read as UTF-8"):
        open_at("webdataset", tmp_path / "shards", tmp_path, shots=2)
