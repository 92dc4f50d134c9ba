"""When two commands may share a knowledge base and when they may not, on models without weights."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import fgvr
from fgvr.agents import discover_prompts
from fgvr.data import birds
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.build import workspace
from fgvr.knowledge.statistics import Statistics
from fgvr.modes.building import learn_experience
from fgvr.runtime.loaders.fake import FakeMLLM
from fgvr.runtime.pool import close_shared
from fgvr.session import Session
from fgvr.types import Reply
from fgvr.utils import files

SMALL = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=4", "dataset.calibration=1", "evaluation.batch_size=5")


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


def load(*overrides: str):
    return fgvr.load_config(*SMALL, *overrides)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two kinds, four pictures each, whose ids are given: their names may be mended."""
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(8):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(root / f"{i}.png")
    return label(root, "kite", "buzzard")


def label(root: Path, *names: str) -> Path:
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("filename", "class_name", "class_id"), *((f"{i}.png", names[i % 2], f"{i % 2}") for i in range(8))])
    return root


def of(root: Path, *overrides: str):
    return fgvr.load_config("models=fake", "dataset=folder", f"dataset.root={root}", "dataset.shots=2", "trigger=never", *overrides)


# --- what is in the key ------------------------------------------------------------------------------------------------------


def test_what_the_classes_are_called_is_part_of_the_key(folder):
    first = fgvr.build_knowledge_base(of(folder))
    other = fgvr.build_knowledge_base(of(folder, "dataset.superclass=bird"))
    assert other.path != first.path and {record.superclass for record in other.classes} == {"bird"}
    label(folder, "red kite", "buzzard")
    mended = fgvr.build_knowledge_base(of(folder))
    assert mended.path not in (first.path, other.path) and {record.name for record in mended.classes} == {"red kite", "buzzard"}
    label(folder, "kite", "buzzard")
    assert fgvr.build_knowledge_base(of(folder)).path == first.path


def test_a_base_of_the_same_images_under_other_names_is_refused(folder):
    base = fgvr.build_knowledge_base(of(folder))
    with pytest.raises(fgvr.KnowledgeError, match="another superclass"):
        fgvr.build_recognizer(of(folder, "dataset.superclass=bird", f"knowledge.path={base.path}"))
    assert fgvr.build_recognizer(of(folder, f"knowledge.path={base.path}")) is not None
    assert fgvr.build_recognizer(load(f"knowledge.path={base.path}")) is not None, "other images may be looked at with it"


OTHER_FUSION = ("fusion.top_k=1", "fusion.image_weight=1", "fusion.temperature=1")


@pytest.mark.parametrize("overrides", [OTHER_FUSION, ("slow.max_new_tokens=7", "slow.candidates=2", "slow.rules=0"), ("trigger=never",)])
def test_what_a_base_holds_does_not_depend_on_which_run_builds_it(overrides, tmp_path):
    usual = fgvr.build_knowledge_base(load())
    other = fgvr.build_knowledge_base(load(*overrides, f"paths.home={tmp_path / 'other'}"))
    assert other.origin.key == usual.origin.key
    assert other.manifest.content_hash == usual.manifest.content_hash


def test_how_much_a_decoder_may_write_is_part_of_the_key_where_it_writes():
    keys = {fgvr.build_knowledge_base(load("slow=reason", f"slow.max_new_tokens={n}")).path for n in (8, 9)}
    assert len(keys) == 2


def test_another_question_is_another_discovery(folder, monkeypatch):
    words = ("models=fake", "knowledge.leave_one_out=false", "slow.weight=0.5", "discover.superclass=bird", "trigger=never")
    fgvr.discover(folder, *words)

    def asked_again() -> int:
        before = fgvr.shared_pool().counters.snapshot().mllm_calls
        fgvr.discover(folder, *words, "store.enabled=false")
        return fgvr.shared_pool().counters.snapshot().mllm_calls - before

    assert asked_again() == 0, "what is done is not done again"
    monkeypatch.setattr(discover_prompts, "_HOWTO", "How do kinds of {superclass} differ?")
    assert asked_again() > 0


# --- two who need the same base ----------------------------------------------------------------------------------------------


def in_a_thread(*overrides: str) -> Future[KnowledgeBase]:
    return ThreadPoolExecutor(1).submit(Session(load(*overrides)).open_knowledge)


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_waits_for_a_base_takes_it_instead_of_building_it_again(intercept, caplog):
    begun, go_on = Event(), Event()

    def generate(original, *args, **kwargs):
        begun.set()
        assert go_on.wait(60)
        return original(*args, **kwargs)

    intercept(FakeMLLM, "generate", generate)
    first = in_a_thread("store.enabled=false")
    assert begun.wait(60)
    second = in_a_thread("store.enabled=false")
    until(lambda: f"waiting for process {os.getpid()} on " in caplog.text)
    go_on.set()
    assert second.result(60).manifest == first.result(60).manifest
    assert fgvr.shared_pool().counters.snapshot().mllm_calls == 3 * 6 + 24
    assert caplog.text.count("waiting for") == 1
    assert not list(first.result().path.parent.glob("*.partial"))


def test_a_living_builder_is_waited_for_and_a_dead_one_not_at_all(caplog, home, tmp_path):
    built = fgvr.build_knowledge_base(load(f"paths.home={tmp_path / 'other'}"))
    folder = home / "knowledge" / built.path.parent.name / built.path.name
    work = f"from fgvr.knowledge.build import workspace; from pathlib import Path; w = workspace(Path({str(folder)!r})); w.__enter__()"
    builder = subprocess.Popen([sys.executable, "-c", f"{work}; print('at work', flush=True); input()"], stdin=-1, stdout=-1, text=True)
    try:
        assert builder.stdout is not None and builder.stdout.readline() == "at work\n"
        waiting = in_a_thread()
        until(lambda: f"waiting for process {builder.pid} on " in caplog.text)
        assert not wait([waiting], timeout=1).done
    finally:
        builder.kill()
        builder.communicate()
    assert waiting.result(60).manifest.content_hash == built.manifest.content_hash


def test_rules_are_added_to_the_base_as_it_is_when_their_turn_comes(caplog):
    cfg, base = load("mode=build_experience_base", "trigger=always"), fgvr.build_knowledge_base(load())
    assert base.path is not None
    with workspace(base.path) as partial:
        waiting = ThreadPoolExecutor(1).submit(learn_experience, Session(cfg))
        until(lambda: "waiting for" in caplog.text)
        mended = [dataclasses.replace(record, aliases=("mended",)) for record in base.classes]
        dataclasses.replace(base, classes=tuple(mended)).save(partial, created="", seconds=0)
    learned, _ = waiting.result(60)
    assert {record.aliases for record in learned.classes} == {("mended",)}


# --- knowledge.path ----------------------------------------------------------------------------------------------------------


def test_the_mode_that_builds_does_so_where_it_is_told(tmp_path):
    usual = fgvr.build_knowledge_base(load())
    place = f"knowledge.path={tmp_path / 'bases' / 'my base'}"
    built = fgvr.build_knowledge_base(load(place))
    assert built.path == tmp_path / "bases" / "my base" and built.manifest.content_hash == usual.manifest.content_hash
    assert fgvr.build_recognizer(load(place)) is not None
    calls = fgvr.shared_pool().counters.snapshot()
    assert fgvr.build_knowledge_base(load(place)).manifest == built.manifest
    assert fgvr.shared_pool().counters.snapshot() == calls
    anew = fgvr.build_knowledge_base(load(place, "dataset.split_seed=1", "knowledge.build=always"))
    assert anew.path == built.path and anew.origin.key != built.origin.key
    with pytest.raises(fgvr.KnowledgeError, match=r"a base made of birds .* split 1 .*, not of birds .* split 0 .*build=always"):
        fgvr.build_knowledge_base(load(place))


@pytest.mark.parametrize("build", ["missing", "always", "never"])
def test_other_modes_only_look_at_a_path_and_say_how_to_build_there(build, tmp_path):
    with pytest.raises(fgvr.KnowledgeError, match=f"fgvr build_knowledge_base .*knowledge.path={tmp_path / 'tpyo'}"):
        fgvr.build_recognizer(load(f"knowledge.path={tmp_path / 'tpyo'}", f"knowledge.build={build}"))
    assert not (tmp_path / "tpyo").exists()


def test_building_at_a_path_obeys_never_and_the_models(tmp_path):
    place = f"knowledge.path={tmp_path / 'base'}"
    with pytest.raises(fgvr.KnowledgeError, match="no knowledge base at"):
        fgvr.build_knowledge_base(load(place, "knowledge.build=never"))
    fgvr.build_knowledge_base(load(place))
    with pytest.raises(fgvr.KnowledgeError, match="was built with encoder"):
        fgvr.build_knowledge_base(load(place, "models.encoder.source='other 9MiB'"))


@pytest.mark.parametrize("build", ["missing", "always"])
def test_nothing_else_that_lies_at_a_path_is_replaced(build, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    for place in ("letters", "letters/dear.txt"):
        with pytest.raises(fgvr.KnowledgeError, match=r"dear.txt, which is no part"):
            fgvr.build_knowledge_base(load(f"knowledge.path={tmp_path / place}", f"knowledge.build={build}"))
    assert (tmp_path / "letters" / "dear.txt").read_text() == "dear"
    with pytest.raises(fgvr.KnowledgeError, match=r"dear.txt is a file, so nothing can lie below it"):
        fgvr.build_knowledge_base(load(f"knowledge.path={tmp_path / 'letters' / 'dear.txt' / 'base'}", f"knowledge.build={build}"))


ASKED = [
    (),
    ("dataset=birds", "dataset.seed=9001", "dataset.genera=[2,3]", "dataset.shots=2", "dataset.split_seed=3", "dataset.calibration=0"),
    ("models=fake", "models.encoder.source='other 9MiB'", "slow=reason", "slow.max_new_tokens=9", "seed=5", "trigger=never"),
    ("models=fake", "models/encoder=tiny", "models.description_tokens=7", "slow.target=name", "models.mllm.batch_size=3"),
    (
        "models=fake",
        "knowledge.leave_one_out=false",
        "slow.weight=0.5",
        "knowledge.views=2",
        "knowledge.split=clauses",
        "knowledge.templates=1",
    ),
    ("models=qwen2_5_vl_7b", "models/mllm=tiny", "models/encoder=fake", "models.slow_target=letter", "mode=slowonly"),
    ("dataset.tail_shots=1", "dataset.shots=3", "paths.home=./a home", "paths.data=some-data"),
]


@pytest.mark.parametrize("asked", ASKED)
def test_the_command_that_is_told_builds_the_base_that_was_missing(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = fgvr.load_config("dataset.genera=[2,2]", "dataset.test_per_class=1", *asked, "knowledge.build=never")
    with pytest.raises(fgvr.KnowledgeError) as told:
        Session(cfg).open_knowledge()
    program, mode, *words = shlex.split(str(told.value).partition("build it with: ")[2])
    assert (program, mode) == ("fgvr", "build_knowledge_base")
    build = fgvr.load_config(f"mode={mode}", *words)
    place = {key: build.paths[key] for key in ("home", "data")}
    assert place == {key: cfg.paths[key] for key in place}
    origins = [Session(c).origin for c in (cfg, build)]
    assert origins[0].key == origins[1].key


def test_the_command_that_is_told_for_a_folder_and_a_path(folder, tmp_path):
    words = ("dataset.superclass=bird of prey", f"knowledge.path={tmp_path / 'my base'}", "dataset.cache_dir=null")
    with pytest.raises(fgvr.KnowledgeError) as told:
        fgvr.build_recognizer(of(folder, *words))
    words_told = shlex.split(str(told.value).partition("build it with: ")[2])[2:]
    assert fgvr.build_knowledge_base(fgvr.load_config("mode=build_knowledge_base", *words_told)).path == tmp_path / "my base"
    assert fgvr.build_recognizer(of(folder, *words)) is not None


# --- descriptions that failed ------------------------------------------------------------------------------------------------


def test_a_half_that_was_not_described_is_asked_for_again_and_rules_are_kept(intercept):
    rule, calls = fgvr.Experience("r", "Look twice.", "", "", (), "low", (), "accepted"), itertools.count()

    def generate(original, *args, **kwargs):
        replies, second = original(*args, **kwargs), next(calls) == 1  # the classes without the first half of their shots
        return [Reply("") if second and i == 3 else reply for i, reply in enumerate(replies)]

    with intercept(FakeMLLM, "generate", generate):
        broken = fgvr.build_knowledge_base(load("models.mllm.batch_size=6"))
    assert broken.described == 6 and broken.failed == (broken.classes[3].name,)
    assert [description.status for description in broken.classes[3].fold_descriptions] == ["failed", "described"]
    dataclasses.replace(broken, experience=(rule,)).save(broken.path, created="", seconds=0)
    assert fgvr.build_recognizer(load()) is not None, "others take it as it is"
    mended = fgvr.build_knowledge_base(load())
    assert mended.failed == () and mended.described == 6 and mended.experience == (rule,)


def test_what_had_no_picture_to_be_written_from_is_not_asked_for_again():
    base = fgvr.build_knowledge_base(load("dataset.shots=1"))
    assert {d.status for record in base.classes for d in record.fold_descriptions} == {"described", "absent"} and not base.failed
    assert fgvr.build_knowledge_base(load("dataset.shots=1")).manifest == base.manifest


# --- the manifest and the records --------------------------------------------------------------------------------------------


def test_a_manifest_says_for_people_which_models_made_the_base(tmp_path):
    base = fgvr.build_knowledge_base(load("models.encoder.dtype=float32"))
    assert base.manifest is not None
    assert base.manifest.sources["encoder"] == {"source": "fake", "revision": None, "dtype": "float32"}
    other = load("models.encoder.source='other 9MiB'", f"knowledge.path={base.path}")
    named = r"with encoder fake float32 \(fake-\w+\), .* has encoder other 9MiB auto \(fake-\w+\)"
    with pytest.raises(fgvr.KnowledgeError, match=named):
        fgvr.build_recognizer(other)
    assert dataclasses.replace(base.origin, sources={}).key == base.origin.key, "where a model lies says nothing of the base"


def test_a_manifest_without_what_was_added_since_still_opens():
    base = fgvr.build_knowledge_base(load())
    manifest = json.loads((base.path / "manifest.json").read_text())
    del manifest["sources"], manifest["catalog"]
    (base.path / "manifest.json").write_text(json.dumps(manifest))
    opened = knowledge_base.load(base.path)
    assert opened.origin.sources == {} and opened.origin.models == base.origin.models and len(opened.classes) == 6


def test_classes_have_their_counts_in_one_column_and_older_ones_are_read(tmp_path):
    base = fgvr.build_knowledge_base(load())
    table = parquet.read_table(base.path / "classes.parquet", use_threads=False)
    assert set("id name aliases description status counts".split()) <= set(table.column_names)
    counts = table.column("counts").to_pylist()
    assert [row["shots"] for row in counts] == [4] * 6 and sum(row["occurred"] for row in counts) == 24
    assert [row["correct"] for row in counts] == base.statistics.correct.tolist()

    older = table.drop_columns(["counts", "fold_status"])
    for name in ("shots", "predicted", "correct", "occurred"):
        older = older.append_column(name, [[row[name] for row in counts]])
    parquet.write_table(older, base.path / "classes.parquet")
    manifest = json.loads((base.path / "manifest.json").read_text())
    manifest["files"]["classes.parquet"] = files.sha256_file(base.path / "classes.parquet")
    (base.path / "manifest.json").write_text(json.dumps(manifest))
    assert knowledge_base.load(base.path).classes == base.classes


def test_a_rule_without_its_measured_gain_is_read():
    base = fgvr.build_knowledge_base(load())
    rule = fgvr.Experience("r", "Look twice.", "", "", ("000", "001"), "low", (), "accepted", 0.01, 9, 2, 1, gain=0.25)
    written = dataclasses.replace(base, experience=(rule,)).save(base.path, created="", seconds=0)
    assert knowledge_base.load(base.path).experience == (rule,)
    row = json.loads((base.path / "experience.jsonl").read_text())
    assert row.pop("gain") == 0.25
    (base.path / "experience.jsonl").write_text(json.dumps(row) + "\n")
    sums = {**written.manifest.files, "experience.jsonl": files.sha256_file(base.path / "experience.jsonl")}
    (base.path / "manifest.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(written.manifest, files=sums))))
    assert knowledge_base.load(base.path).experience == (dataclasses.replace(rule, gain=None),)


def test_what_is_doubtful_is_judged_by_the_fusion_that_is_configured_not_by_the_one_of_the_build():
    words = ("mode=build_experience_base", "trigger.target=risk:0.4@0.5", "fusion.image_weight=1", "dataset.calibration=4")
    cfg, base = load(*words), fgvr.build_knowledge_base(load(*words[2:]))
    _, lessons = learn_experience(Session(cfg))
    nobody_right = np.roll(np.eye(6, dtype=np.int64) * 4, 1, axis=1)
    dataclasses.replace(base, statistics=Statistics(base.prototypes.ids, nobody_right)).save(base.path, created="", seconds=0)
    assert learn_experience(Session(cfg))[1].answered == lessons.answered


# --- copies within the support -----------------------------------------------------------------------------------------------


def test_copies_among_the_shots_are_known_and_go_into_one_half(tmp_path: Path) -> None:
    world, root = birds.make_world(difficulty=0.3), tmp_path / "birds"
    for species in (0, 1):
        for split, count in (("train", 4), ("test", 2)):
            (root / split / f"kind {species}").mkdir(parents=True)
            for i in range(count):
                birds.render(world, species, split, i).save(root / split / f"kind {species}" / f"{i}.png")
    with Image.open(root / "train/kind 0/0.png") as first:
        first.save(root / "train/kind 0/1.png", "JPEG", quality=75)
    words = ("models=fake", "dataset=folder", f"dataset.root={root}", "dataset.shots=4")
    built = fgvr.build_knowledge_base(fgvr.load_config(*words))
    known = fgvr.build_knowledge_base(fgvr.load_config(*words)).prototypes
    assert built.prototypes.families is not None and known.families is not None
    assert built.prototypes.families.tolist() == known.families.tolist() == [0, 0, 2, 3, 4, 5, 6, 7]
    assert known.folds.tolist() == [0, 0, 1, 0, 0, 1, 0, 1]
    shutil.rmtree(root / "train/kind 0")
    (root / "train/kind 0").mkdir()
    for i in range(4):
        birds.render(world, 0, "train", i).save(root / "train/kind 0" / f"{i}.png")
    assert fgvr.build_knowledge_base(fgvr.load_config(*words)).prototypes.families is None
