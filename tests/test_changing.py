"""`fgvr add`, `remove`, `classes`, `sort`: a base changes by one class and back; a folder is sorted and stays as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import fgvr
from fgvr import cli
from fgvr.knowledge import base as knowledge_base
from fgvr.modes.sorting import folder_name
from fgvr.types import Decision, FastResult
from tests.data.test_folder import classes, paint

FAKE = ["models=fake", "dataset=folder", "dataset.shots=3"]


@pytest.fixture
def kites(tmp_path: Path) -> Path:
    return classes(tmp_path / "kites", names=("red_kite", "Black Kite", "Osprey"))


@pytest.fixture
def base(tmp_path: Path, kites: Path) -> Path:
    folder = tmp_path / "base"
    fgvr.build_knowledge_base(fgvr.load_config(*FAKE, f"dataset.root={kites}", f"knowledge.path={folder}"))
    return folder


@pytest.fixture
def said(capfd, kites: Path, base: Path):
    """`fgvr WORDS` on that base: exit code, and what it printed."""

    def command(*words: str) -> tuple[int, str, str]:
        code = cli.main([*words, *FAKE, f"dataset.root={kites}", f"knowledge.path={base}"])
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return command


def photos(folder: Path, count: int = 3, start: int = 9000) -> list[Path]:
    return [paint(folder / f"{i}.png", start + i) for i in range(count)]


def test_a_class_joins_with_its_photographs_alone_and_leaves_without_a_trace(said, base: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    former = knowledge_base.load(base)
    done = fgvr.shared_pool().counters.snapshot().encoder_forwards
    code, out, err = said("add", "Sea Eagle", *map(str, photos(tmp_path / "eagle")), "logging=json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["classes"], told["encoded"]) == (4, 3) and told["what"] == "Sea Eagle added with 3 photographs"
    joined = knowledge_base.load(base)
    assert [r.name for r in joined.classes] == ["Black Kite", "Osprey", "red kite", "Sea Eagle"]
    assert joined.classes[-1].shots == 3 and joined.statistics.occurred.tolist() == [3, 3, 3, 3]
    assert np.array_equal(joined.prototypes.shots[:9], former.prototypes.shots)
    images = fgvr.shared_pool().counters.snapshot().encoder_forwards - done
    assert images <= 3 + 3 * 1 + 2, "three photographs, and the texts of one class"
    code, out, _ = said("remove", "sea eagle")
    assert code == 0 and "Sea Eagle removed: 3 classes now" in out
    again = knowledge_base.load(base)
    assert again.manifest.content_hash == former.manifest.content_hash
    assert {name: content for name, content in before.items() if name != "manifest.json"} == {
        file.name: file.read_bytes() for file in base.iterdir() if file.name != "manifest.json"
    }


def test_building_again_keeps_what_was_added_and_says_how_to_begin_anew(capfd, kites: Path, tmp_path: Path) -> None:
    words = [*FAKE, f"dataset.root={kites}", "logging=json"]

    def built(*more: str) -> tuple[int, str]:
        assert cli.main(["build_knowledge_base", *words, *more]) == 0
        shown = capfd.readouterr()
        return json.loads(shown.out)["counts"]["classes"], " ".join(shown.err.split())

    assert built()[0] == 3
    assert cli.main(["add", "Sea Eagle", *map(str, photos(tmp_path / "eagle")), *words]) == 0
    capfd.readouterr()
    count, err = built()
    assert count == 4 and "fgvr add or remove has changed it" in err and "knowledge.build=always builds it anew" in err
    assert built("knowledge.build=always")[0] == 3


def test_a_named_base_that_was_changed_is_not_built_over(said, base: Path, tmp_path: Path) -> None:
    assert said("add", "Sea Eagle", *map(str, photos(tmp_path / "eagle")))[0] == 0
    code, _, err = said("build_knowledge_base")
    told = " ".join(err.split())
    assert code == 3 and "such as fgvr add and remove leave" in told and "every other mode uses it as it is" in told
    assert len(knowledge_base.load(base).classes) == 4


def test_a_new_class_is_recognised(said, base: Path, kites: Path, tmp_path: Path) -> None:
    eagle = photos(tmp_path / "eagle", 4)
    assert said("add", "Sea Eagle", str(eagle[0].parent))[0] == 0
    words = [*FAKE, f"dataset.root={kites}", f"knowledge.path={base}", "trigger=never", "fusion.image_weight=1", "fusion.name_weight=0"]
    assert fgvr.build_recognizer(fgvr.load_config(*words))(eagle[0]).name == "Sea Eagle"


def test_more_photographs_join_a_class_under_any_spelling(said, base: Path, tmp_path: Path) -> None:
    assert said("add", "RED-KITE", *map(str, photos(tmp_path / "more", 2)))[0] == 0
    joined = knowledge_base.load(base)
    assert len(joined.classes) == 3 and joined.records["red_kite"].shots == 5 and len(joined.support) == 11
    assert [image.category for image in joined.support] == sorted(
        (image.category for image in joined.support), key=["Black Kite", "Osprey", "red_kite"].index
    )
    rows = {image.sha256: joined.prototypes.ids[owner] for image, owner in zip(joined.support, joined.prototypes.owners, strict=True)}
    assert all(rows[image.sha256] == image.category for image in joined.support)


def test_copies_among_the_new_photographs_are_left_out_together_and_the_former_base_returns(said, base: Path, tmp_path: Path) -> None:
    former = knowledge_base.load(base).manifest.content_hash
    first = classes(tmp_path / "big", names=("eagle",), each=2, start=700) / "eagle"
    from PIL import Image

    picture = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    picture.save(first / "a.png")
    picture.save(first / "b.jpg", quality=80)
    assert said("add", "Eagle", str(first))[0] == 0
    families = knowledge_base.load(base).prototypes.families
    assert families is not None and len(np.unique(families)) == len(families) - 1
    assert said("remove", "Eagle")[0] == 0 and knowledge_base.load(base).manifest.content_hash == former


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["add", "Eagle", "nowhere.png"], 3, "none of 1 photographs of Eagle can be read: nowhere.png: no such file"),
        (
            ["add", "Eagle", "KITES/Osprey/1.png", "KITES/Osprey/0.png", "KITES/Osprey/2.png", "KITES/Osprey/3.png"],
            3,
            "is in the base already, as Osprey",
        ),
        (["add", "Osprey", "KITES/Osprey"], 0, ""),
        (["remove", "Eagle"], 3, "has no class 'Eagle'; fgvr classes lists"),
        (["add", "Eagle"], 2, "the following arguments are required: PHOTO"),
        (["sort", "KITES"], 2, "required: --into"),
        (["sort", "KITES", "--int", "KITES/out"], 2, "did you mean --into?"),
        (["sort", "KITES", "--lin", "--into", "OUT"], 2, "unrecognized arguments: --lin; did you mean --link?"),
        (["sort", "KITES", "--into", "KITES/out"], 2, "lies within"),
        (["sort", "KITES", "--into", "KITES"], 2, "there is something already"),
    ],
)
def test_words_that_make_no_sense_change_nothing(said, base: Path, kites: Path, words, code, complaint) -> None:
    former = knowledge_base.load(base).manifest.content_hash
    found, _, err = said(*(word.replace("KITES", str(kites)) for word in words))
    assert found == code and complaint in err.replace("\n", " ") and "Traceback" not in err
    assert (knowledge_base.load(base).manifest.content_hash == former) == (code != 0)
    assert not [file for file in base.parent.iterdir() if file.name.endswith((".partial", ".old"))]


def test_the_work_of_an_interrupted_build_is_kept(said, base: Path) -> None:
    journal = base.with_name("base.partial") / "journal.sqlite"
    journal.parent.mkdir()
    journal.write_bytes(b"hours of work")
    code, _, err = said("remove", "Osprey")
    assert code == 3 and "finish it first" in err.replace("\n", " ") and journal.read_bytes() == b"hours of work"


def test_the_last_class_stays(said, base: Path) -> None:
    assert [said("remove", name)[0] for name in ("Osprey", "Black Kite")] == [0, 0]
    code, _, err = said("remove", "red kite")
    assert code == 3 and "is the only class" in err


def test_a_base_of_another_encoder_is_refused(said, base: Path, tmp_path: Path) -> None:
    code, _, err = said("add", "Eagle", *map(str, photos(tmp_path / "eagle")), "models.encoder.source=fake:other")
    assert code in (2, 3) and "Traceback" not in err and len(knowledge_base.load(base).classes) == 3


def test_classes_are_listed(said, base: Path) -> None:
    code, out, _ = said("classes")
    assert code == 0 and "Black Kite" in out and "3 photographs, leave-one-out" in out
    [record] = [json.loads(said("classes", "logging=json")[1])]
    assert [row["name"] for row in record["classes"]] == ["Black Kite", "Osprey", "red kite"]


# --- sort --------------------------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("how", [[], ["--link"]])
def test_photographs_are_sorted_and_the_originals_stay(said, kites: Path, tmp_path: Path, how) -> None:
    before, out = tree(kites), tmp_path / "sorted"
    code, told, err = said("sort", str(kites), "--into", str(out), *how, "trigger=never")
    assert code == 0, err
    assert tree(kites) == before and "the originals are as they were" in told
    files = [file for file in out.rglob("*.png")]
    assert sorted(file.read_bytes() for file in files) == sorted(before.values()), "equal names of several folders are kept apart"
    assert {file.parent.name for file in files} <= {"Black Kite", "Osprey", "red kite"}
    assert all(file.is_symlink() == bool(how) for file in files) and (out / "predictions.csv").is_file()
    code, _, err = said("sort", str(kites), "--into", str(out), "trigger=never")
    assert code == 2 and "there is something already" in err


@pytest.mark.parametrize("made", [True, False])
def test_photographs_are_sorted_to_where_a_link_leads(said, kites: Path, tmp_path: Path, made: bool) -> None:
    link, place = tmp_path / "link", tmp_path / "elsewhere"
    link.symlink_to(place)
    if made:
        place.mkdir()
    code, _, err = said("sort", str(kites), "--into", str(link), "trigger=never")
    assert code == 0, err
    assert link.is_symlink() and len(list(place.rglob("*.png"))) == len(list(kites.rglob("*.png")))


class Thief:
    """Never thinks slowly; takes a photograph away as soon as it is answered."""

    name = "thief"
    wanted: ClassVar[list[Path]] = []

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        for file in self.wanted:
            file.unlink(missing_ok=True)
        return [Decision(False, 1.0, 0.5) for _ in results]


def test_a_photograph_that_goes_while_others_are_sorted_is_named(said, kites: Path, tmp_path: Path) -> None:
    Thief.wanted[:] = [kites / "Black Kite" / "0.png"]
    code, told, err = said(
        "sort", str(kites), "--into", str(tmp_path / "out"), "trigger=never", "trigger._target_=tests.test_changing.Thief"
    )
    assert code == 0 and "has gone since it was classified" in " ".join(err.split()) and "copied into" in told
    assert len(list((tmp_path / "out").rglob("*.png"))) == 17


def test_the_doubtful_have_a_page_the_unreadable_are_counted_and_nothing_of_others_goes(capfd, kites: Path, tmp_path: Path) -> None:
    (kites / "broken.png").write_bytes(b"no picture")
    other = tmp_path / ".out.partial" / "letter.txt"
    other.parent.mkdir()
    other.write_text("mine")
    words = [*FAKE, f"dataset.root={kites}", "trigger=always", "slow=none", f"paths.home={tmp_path / 'home'}"]
    code = cli.main(["sort", str(kites), "--into", str(tmp_path / "out"), *words, "logging.json=true"])
    told, err = capfd.readouterr()
    assert code == 0, err
    found = json.loads(told)
    assert found["counts"] == {"unsure": 18} and found["unreadable"] == 1 and "name" in Path(found["review"]).read_text()
    assert other.read_text() == "mine" and [file.name for file in tmp_path.glob(".out*")] == [".out.partial"]
    err = " ".join(err.split())
    assert err.index("among the 3 classes of kites (Black Kite, Osprey, red kite)") < err.index("wait for a person")
    assert cli.main(["sort", str(kites), "--into", str(tmp_path / "again"), *words]) == 0
    told = capfd.readouterr().out
    assert "1  unreadable, in no folder" in told and "name the unsure ones on" in told


def test_models_of_birds_are_named_before_anything_is_built(capfd, kites: Path, tmp_path: Path) -> None:
    words = ["dataset.genera=[2]", "dataset.test_per_class=1", "dataset.calibration=0", "dataset.shots=2", "trigger=never"]
    code = cli.main(["sort", str(kites), "--into", str(tmp_path / "out"), *words, f"paths.home={tmp_path / 'home'}"])
    err = " ".join(capfd.readouterr().err.split())
    assert code == 0 and err.index("these models know only rendered birds") < err.index("knowledge base complete"), err
    assert "answered with tiny and tiny, among the 2 classes of birds" in err


def test_classes_that_are_one_alone_are_warned_of(capfd, tmp_path: Path) -> None:
    root, home = classes(tmp_path / "kites", names=("red_kite",)), f"paths.home={tmp_path / 'home'}"
    words = [*FAKE, f"dataset.root={root}", home, "trigger=never"]
    for command in (
        ["sort", str(root), "--into", str(tmp_path / "out")],
        ["classify", f"image={root / 'red_kite' / '0.png'}"],
        ["evaluate"],
    ):
        assert cli.main([*command, *words]) == 0
        shown = capfd.readouterr()
        assert "there is one class alone, red kite: every image gets it" in " ".join((shown.out + shown.err).split()), command


def test_shards_are_not_sorted(said, tmp_path: Path) -> None:
    (tmp_path / "new.tar").write_bytes(bytes(1024))
    code, _, err = said("sort", str(tmp_path / "new.tar"), "--into", str(tmp_path / "out"))
    assert code == 2 and "holds shards" in err


def test_names_of_classes_become_names_of_folders() -> None:
    assert [folder_name(name) for name in ("a/b", "Unsure", "con", "kite.", "..", "Épervier")] == [
        "a_b",
        "Unsure_",
        "con_",
        "kite",
        "_",
        "Épervier",
    ]


def test_a_home_without_a_base_says_how_to_build_it(capfd, kites: Path) -> None:
    assert cli.main(["classes", *FAKE, f"dataset.root={kites}"]) == 3
    assert "fgvr build_knowledge_base" in capfd.readouterr().err
    assert not (Path(os.environ["FGVR_HOME"]) / "knowledge").exists()
    shutil.rmtree(kites)
