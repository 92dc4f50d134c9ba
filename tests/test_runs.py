"""A run is its configuration, its base, its images and its models: another of these is another run. One process writes it at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr import modes
from fgvr.errors import DatasetError
from fgvr.modes import runs
from fgvr.runtime.loaders.fake import FakeEncoder, FakeLoader
from fgvr.runtime.pool import close_shared
from fgvr.store.journal import RunFile

KINDS = {"Rot": (200, 30, 30), "Blau": (30, 30, 200)}


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 40, (24, 24, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype("uint8")).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two kinds of noise: two pictures each to learn from, four to test."""
    for k, (kind, colour) in enumerate(KINDS.items()):
        for i in range(2):
            draw(tmp_path / "set/train" / kind / f"{i}.png", colour, 100 * k + i)
        for i in range(1, 5):
            draw(tmp_path / "set/test" / kind / f"{i}.png", colour, 100 * k + 10 + i)
    return tmp_path / "set"


def load(folder: Path, *words: str):
    small = ("models=fake", "dataset=folder", f"dataset.root={folder}", "dataset.shots=2", "evaluation.batch_size=2", "trigger=always")
    return fgvr.load_config("mode=evaluate", *small, *words)


def answered(report: fgvr.Report) -> list[str]:
    return [json.loads(line)["image"] for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]


def images(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / "test").rglob("*.png"))


def interrupt(intercept, at: int) -> ExitStack:
    """The n-th batch that the encoder is given stops the process as Ctrl-C would, until what is returned is left."""
    calls = []

    def encode(original, model, pictures):
        calls.append(pictures)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(model, pictures)

    return intercept(FakeEncoder, "encode", encode)


# --- what a run was made of --------------------------------------------------------------------------------------------------


def change(folder: Path, how: str) -> None:
    if how == "added":
        draw(folder / "test/Blau/0.png", (90, 90, 90), 77)  # before those answered already
    elif how == "removed":
        (folder / "test/Blau/1.png").unlink()
    else:
        draw(folder / "test/Blau/1.png", KINDS["Rot"], 78)


def test_a_finished_run_is_made_anew_when_its_test_images_have_changed(folder: Path, caplog: pytest.LogCaptureFixture):
    first = fgvr.evaluate(load(folder))
    for how in ("added", "replaced", "removed"):
        before = (first.path / runs.PREDICTIONS).read_text()
        change(folder, how)
        caplog.clear()
        with caplog.at_level("INFO", logger="fgvr"):
            again = fgvr.evaluate(load(folder))
        assert "complete already" not in caplog.text, how
        assert "changed since this run was begun: images; starting anew" in caplog.text, how
        assert again.path == first.path and sorted(answered(again)) == images(folder), how
        assert (again.path / runs.PREDICTIONS).read_text() != before, how
    with caplog.at_level("INFO", logger="fgvr"):
        fgvr.evaluate(load(folder))
    assert "complete already" in caplog.text


@pytest.mark.parametrize("role", ["encoder", "mllm"])
def test_a_finished_run_is_made_anew_when_a_model_has_other_weights(folder: Path, intercept, caplog, role: str):
    fgvr.evaluate(load(folder))
    intercept(FakeLoader, "fingerprint", lambda read, self, spec: read(self, spec)[:: -1 if spec.role == role else 1])
    with caplog.at_level("INFO", logger="fgvr"):
        fgvr.evaluate(load(folder))
    assert "complete already" not in caplog.text and f"{role}, knowledge base; starting anew" in caplog.text


@pytest.mark.parametrize("how", ["added", "removed", "replaced"])
def test_an_interrupted_run_whose_images_have_changed_answers_each_image_once(folder: Path, intercept, how: str):
    fgvr.build_knowledge_base(load(folder))
    with interrupt(intercept, at=3), pytest.raises(KeyboardInterrupt):
        fgvr.evaluate(load(folder))
    change(folder, how)
    assert sorted(answered(fgvr.evaluate(load(folder)))) == images(folder)


def test_an_interrupted_run_whose_last_answered_image_is_gone_is_no_bug(folder: Path, intercept):
    fgvr.build_knowledge_base(load(folder))
    with interrupt(intercept, at=3), pytest.raises(KeyboardInterrupt):
        fgvr.evaluate(load(folder))
    (rows,) = (folder.parent / "home/runs/evaluate").glob("*/predictions.jsonl")
    (folder / json.loads(rows.read_text().splitlines()[-1])["image"]).unlink()
    assert sorted(answered(fgvr.evaluate(load(folder)))) == images(folder)


def test_a_first_batch_without_a_readable_image_stops_nothing(folder: Path):
    """The data set knows the file by its size and time; what is in it has gone since."""
    fgvr.build_knowledge_base(load(folder))
    first = folder / images(folder)[0]
    there = first.stat()
    first.write_bytes(b"x" * there.st_size)
    os.utime(first, ns=(there.st_atime_ns, there.st_mtime_ns))
    report = fgvr.evaluate(load(folder, "evaluation.batch_size=1", "store.enabled=false"))
    assert answered(report) == images(folder)[1:] and report.skipped == 1
    assert any(note.startswith("1 test images could not be read any more, the first: ") and first.name in note for note in report.notes)


def test_images_whose_disk_goes_away_end_the_run_and_are_answered_when_it_is_back(folder: Path, intercept):
    fgvr.build_knowledge_base(load(folder))
    away, calls = folder.with_name("away"), []

    def encode(original, model, pictures):
        calls.append(pictures)
        if len(calls) == 2 and folder.exists():
            folder.rename(away)
        return original(model, pictures)

    with intercept(FakeEncoder, "encode", encode), pytest.raises(DatasetError, match="was there when this run began, and is not any more"):
        fgvr.evaluate(load(folder))
    (rows,) = (folder.parent / "home/runs/evaluate").glob("*/predictions.jsonl")
    kept = rows.read_bytes()
    away.rename(folder)
    report = fgvr.evaluate(load(folder))
    assert kept and rows.read_bytes().startswith(kept)
    assert sorted(answered(report)) == images(folder) and report.skipped == 0


def test_a_replay_says_first_that_the_recorded_test_had_leaks(folder: Path):
    for kind in KINDS:
        (folder / "test" / kind / "copy.png").write_bytes((folder / "train" / kind / "0.png").read_bytes())
    recorded = fgvr.evaluate(load(folder, "evaluation.on_overlap=allow"))
    words = ("mode=replay", f"predictions={recorded.path / runs.PREDICTIONS}", "trigger=never")
    replayed = modes.perform(fgvr.load_config(*words))
    assert (
        replayed.notes[0]
        == recorded.notes[0]
        == (
            "2 of 10 test images resemble images of the knowledge base or the calibration, and were tested all the same "
            "(evaluation.on_overlap=allow)"
        )
    )
    (recorded.path / "report.json").unlink()  # as if the run had not finished
    assert modes.perform(fgvr.load_config(*words)).notes[0].startswith("test images may resemble")


def test_what_was_remembered_is_counted_also_by_a_run_that_was_interrupted(folder: Path, intercept):
    def found(report: fgvr.Report) -> dict:
        return json.loads((report.path / "report.json").read_text())

    first = found(fgvr.evaluate(load(folder, "trigger=never")))
    assert first["cost"]["cache_hits"] == 0 and first["stage_seconds"].keys() >= {"encoder"} and first["peak_host_bytes"] > 1 << 20
    second = found(fgvr.evaluate(load(folder)))
    assert (second["cost"]["cache_hits"], second["cost"]["mllm_calls"]) == (8, 8), "the embeddings; nobody had thought before"
    batches = []

    def append(original, file: RunFile, rows) -> None:
        if file.path.name == runs.PREDICTIONS and batches.append(1) is None and len(batches) == 3:
            raise KeyboardInterrupt
        original(file, rows)

    with intercept(RunFile, "append", append), pytest.raises(KeyboardInterrupt):
        fgvr.evaluate(load(folder, "online=statistics"))
    third = found(fgvr.evaluate(load(folder, "online=statistics")))
    assert (third["cost"]["cache_hits"], third["cost"]["mllm_calls"]) == (16, 0)


# --- one at a time -----------------------------------------------------------------------------------------------------------

spawn = multiprocessing.get_context("spawn")


def _slowly(folder: Path, words: tuple[str, ...], begun: Any, go_on: Any) -> None:
    """A process that answers one batch, says so, and waits to go on."""
    original, calls = FakeEncoder.encode, []

    def encode(model, pictures):
        calls.append(pictures)
        if len(calls) == 2:
            begun.set()
            go_on.wait(60)
        return original(model, pictures)

    FakeEncoder.encode = encode
    cfg = load(folder, *words)
    modes.perform(cfg)


@pytest.mark.parametrize("words", [("mode=evaluate",), ("mode=classify",)], ids=["evaluate", "classify"])
def test_who_begins_anew_beside_a_running_one_is_told_so_and_spoils_nothing(folder: Path, home: Path, words: tuple[str, ...]):
    fgvr.build_knowledge_base(load(folder))
    words = (*words, f"image={folder / 'test'}") if "mode=classify" in words else words
    begun, go_on = spawn.Event(), spawn.Event()
    first = spawn.Process(target=_slowly, args=(folder, words, begun, go_on))
    first.start()
    try:
        assert begun.wait(60)
        cfg = load(folder, *words)
        with pytest.raises(fgvr.StoreError, match="is being written by another run; wait for it or end it"):
            modes.perform(cfg)
        fresh = load(folder, *words, "run.fresh=true")
        with pytest.raises(fgvr.StoreError, match="is being written by another run; wait for it or end it"):
            modes.perform(fresh)
    finally:
        go_on.set()
        first.join(60)
    assert first.exitcode == 0
    (rows,) = home.glob(f"runs/{cfg.mode}/*/predictions.jsonl")
    assert len(rows.read_text().splitlines()) == 8 and (rows.parent / "report.html").exists()
    modes.perform(fresh)
    assert len(rows.read_text().splitlines()) == 8
