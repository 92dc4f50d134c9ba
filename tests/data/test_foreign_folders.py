"""Folders as people have them: other formats, deeper folders, foreign names, paths of another machine."""

import os
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image, features

from fgvr import cli
from fgvr.data.benchmarks import open_benchmark
from fgvr.data.datasets import open_folder
from fgvr.data.diagnosis import dataset_findings
from fgvr.data.folder import read_listing
from fgvr.data.unlabelled import open_unlabelled
from fgvr.errors import DatasetError, ImageError
from fgvr.utils.images import read_image
from tests.data.archives import TREES, mat
from tests.data.test_folder import classes, keys, paint

FORMATS = ("n.avif", "n.jp2", "n.mpo", "n.jpe", "n.tga")


def all_keys(dataset):
    return keys([sample for _, sample in dataset.split])


# --- what is read, and what is passed over -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_read(tmp_path, name):
    paint(classes(tmp_path) / "red_kite" / name, 77)
    assert f"red_kite/{name}" in all_keys(open_folder(root=tmp_path, shots=2))


def test_a_picture_without_suffix_is_read_and_other_files_are_counted_and_named(tmp_path, caplog):
    shutil.move(paint(classes(tmp_path) / "red_kite" / "x.png", 77), tmp_path / "red_kite" / "photo")
    for name in ("a.mp4", "b.mp4", "README"):
        (tmp_path / "red_kite" / name).write_text("no picture")
    dataset = open_folder(root=tmp_path, shots=2)
    assert "red_kite/photo" in all_keys(dataset)
    [note] = dataset.notes
    assert "3 files are not images and were passed over (2 .mp4, 1 without suffix)" in note and note in caplog.text
    assert any(note in finding.detail for finding in dataset_findings(dataset))
    assert all(str(tmp_path / "red_kite" / name) in note for name in ("a.mp4", "b.mp4", "README")), "each is listed"
    assert note in open_unlabelled(tmp_path).notes


@pytest.mark.parametrize("name", ["n.HEIC", "photo"])
def test_a_heic_photograph_is_read_where_its_package_is(tmp_path, name):
    heif = pytest.importorskip("pillow_heif")
    picture = paint(tmp_path / "x.png", 77)
    heif.from_pillow(Image.open(picture).resize((64, 64))).save(tmp_path / "n.heic")
    shutil.move(tmp_path / "n.heic", classes(tmp_path / "kites") / "red_kite" / name)
    dataset = open_folder(root=tmp_path / "kites", shots=2)
    assert f"red_kite/{name}" in all_keys(dataset) and not dataset.bad_images


def test_a_heic_photograph_is_named_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    (classes(tmp_path) / "red_kite" / "n.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    dataset = open_folder(root=tmp_path, shots=2)
    assert [bad.key for bad in dataset.bad_images] == ["red_kite/n.HEIC"]
    assert any("pip install pillow-heif" in f.cure for f in dataset_findings(dataset) if not f.well)


def test_folders_within_a_class_are_part_of_it_and_said(tmp_path):
    paint(classes(tmp_path, each=2) / "red_kite" / "male" / "adult" / "0.png", 77)
    dataset = open_folder(root=tmp_path, shots=1)
    assert "red_kite/male/adult/0.png" in all_keys(dataset) and dataset.catalog.ids == ("Black Kite", "red_kite")
    assert "1 folders within class folders were read as part of their class, the first: red_kite/male" in dataset.notes


def test_a_class_of_only_unreadable_files_is_named(tmp_path):
    for file in (classes(tmp_path) / "red_kite").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"too few: red kite \(0\)\. 6 unusable images .* the first: red_kite/0\.png: not an"):
        open_folder(root=tmp_path, shots=1)


def test_parts_that_differ_by_case_are_read_together(tmp_path):
    classes(tmp_path / "train", each=2)
    classes(tmp_path / "Train", each=2, start=40)
    classes(tmp_path / "test", each=1, start=90)
    assert len(open_folder(root=tmp_path, shots=4).split.support) == 8


def test_linked_folders_are_read_and_links_that_lead_back_are_not(tmp_path):
    root = classes(tmp_path / "kites", each=2)
    (root / "red_kite" / "young").symlink_to(classes(tmp_path / "other", names=("x",), each=2, start=900) / "x")
    for link, target in (("loop", "loop"), ("red_kite/up", ".."), ("red_kite/self", "."), ("all", "."), ("Black Kite/deep/in", "../..")):
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(target)
    dataset = open_folder(root=root, shots=1)
    assert dataset.catalog.ids == ("Black Kite", "red_kite")
    assert len(all_keys(dataset)) == 6 and {f"red_kite/young/{i}.png" for i in (0, 1)} < all_keys(dataset)
    assert len(open_unlabelled(root).samples) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    closed = classes(tmp_path) / "red_kite" / "closed"
    closed.mkdir(mode=0)
    assert any("1 folders cannot be read, the first:" in note and "closed" in note for note in open_folder(root=tmp_path, shots=2).notes)


def test_accents_that_another_system_wrote_otherwise_are_the_same_class(tmp_path):
    name = "K\u00e4uzchen \U0001f989"  # composed, as on Linux
    classes(tmp_path / "train", names=(name, "Eule"), each=2)
    classes(tmp_path / "test", names=(unicodedata.normalize("NFD", name), "Eule"), each=1, start=500)  # as a Mac writes it
    dataset = open_folder(root=tmp_path, shots=2)
    assert dataset.catalog.names() == ("Eule", name) and len(dataset.split.test) == 2


@pytest.mark.parametrize(
    ("head", "kind"), [(b"\0\0\0\x20ftypavif", "AVIF"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b"\xff\x0a", "JPEG XL")]
)
def test_a_format_that_pillow_lacks_is_named(tmp_path, head, kind):
    if kind == "AVIF" and features.check("avif"):
        pytest.skip("this Pillow decodes AVIF")
    (tmp_path / "x.png").write_bytes(head + bytes(64))
    with pytest.raises(ImageError, match=f"in the format {kind}, which this Pillow cannot decode; save it as JPEG or PNG"):
        read_image(tmp_path / "x.png")


def test_a_name_that_begins_like_a_home_folder_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paint(classes(Path("~nobody-known"), each=2) / "~draft" / "0.png", 7)
    assert len(all_keys(open_folder(root="~nobody-known", shots=1))) == 5
    monkeypatch.chdir("~nobody-known")
    assert len(all_keys(open_folder(root=".", shots=1))) == 5


# --- paths in labels.csv -----------------------------------------------------------------------------------------------------


def labelled(root: Path, written) -> Path:
    """Class folders below `root`/img, and a table that names their files as `written` does."""
    files = sorted(classes(root / "img").rglob("*.png"))
    (root / "labels.csv").write_text("filename,class_name\n" + "".join(f"{written(file)},{file.parent.name}\n" for file in files))
    return root


@pytest.mark.parametrize(
    "written",
    [
        "\ufefffilename;class_name\r\nimg/red_kite/0.png;Rotmilan, jung\r\n;\r\n\r\nimg/Black Kite/0.png;Wei\u00dfkopf \U0001f985\r\n",
        "filename\tclass_name\nimg/red_kite/0.png\tRotmilan, jung\n\t\nimg/Black Kite/0.png\tWei\u00dfkopf \U0001f985\n",
        'filename,class_name\rimg/red_kite/0.png,"Rotmilan, jung",\r,\rimg/Black Kite/0.png,Wei\u00dfkopf \U0001f985\r',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path, written, encoding):
    classes(tmp_path / "img", each=1)
    (tmp_path / "labels.csv").write_bytes(written.encode(encoding))
    assert read_listing(tmp_path, superclass="bird").catalog.names() == ("Rotmilan, jung", "Wei\u00dfkopf \U0001f985")


def test_a_name_that_was_cut_at_its_comma_is_refused(tmp_path):
    classes(tmp_path / "img", each=1)
    table = tmp_path / "labels.csv"
    table.write_text("filename,class_name\n\nimg/red_kite/0.png,Kite, red\n")
    with pytest.raises(DatasetError, match=r"line 3: more cells than columns; put a name that holds ',' into quotes"):
        open_folder(root=tmp_path, shots=1)
    table.write_text('filename,class_name\nimg/red_kite/0.png,"Kite\nimg/Black Kite/0.png,Rook\n')  # the rest would be one name
    with pytest.raises(DatasetError, match="line 3: unexpected end of data"):
        open_folder(root=tmp_path, shots=1)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_paths_of_a_table_are_found_however_accents_are_written(tmp_path, form):
    listed = paint(tmp_path / "img" / unicodedata.normalize(form, "K\u00e4uzchen") / "0.png", 1)
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], listed.relative_to(tmp_path).as_posix())
    (tmp_path / "labels.csv").write_text(f"filename,class_name\n{other},a\n", encoding="utf-8")
    [sample] = read_listing(tmp_path, superclass="bird").pool
    assert sample.image == listed


@pytest.mark.parametrize("way", ["below", "above", "absolute", "dotted", "windows"])
def test_paths_of_a_table_are_found(tmp_path, way):
    root = tmp_path / "birds"

    def written(file: Path) -> str:
        inner = file.relative_to(root)
        return {
            "below": file.relative_to(root / "img").as_posix(),
            "above": f"data/birds/{inner.as_posix()}",
            "absolute": str(file),
            "dotted": f"../birds/{inner.as_posix()}",
            "windows": ".\\" + str(inner).replace("/", "\\"),
        }[way]

    dataset = open_folder(root=labelled(root, written), shots=2)
    assert len(all_keys(dataset)) == 12 and all((root / key).is_file() for key in all_keys(dataset))


def test_files_that_are_nowhere_are_counted_and_the_first_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"12 listed images are not there, the first: x/Black Kite/0\.gone"):
        open_folder(root=labelled(tmp_path, lambda file: f"x/{file.parent.name}/{file.stem}.gone"), shots=2)


def test_a_path_outside_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="must lie inside"):
        open_folder(root=labelled(tmp_path, lambda file: f"/elsewhere/{file.name}"), shots=2)


# --- copies of published sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [".", "stanford_cars"])
def test_of_several_layouts_the_one_with_the_pictures_is_read(tmp_path, where):
    for name in ("cars196_twice", "cars196_one_file"):
        tree = TREES[name](tmp_path / name)
    twice = shutil.copytree(tmp_path / "cars196_twice", tmp_path / "copy")
    (twice / where).mkdir(exist_ok=True)
    shutil.copy(tree.root / "cars_annos.mat", twice / where)
    dataset = open_benchmark(name="cars196", root=twice, shots=2)
    assert {key.split("/")[0] for key in all_keys(dataset)} == {"cars_train", "cars_test"} and not dataset.bad_images


def test_lists_that_lie_above_the_archive_do_not_hide_it(tmp_path):
    tree = TREES["cub200"](tmp_path)
    [marker] = tree.root.rglob("images.txt")
    if marker.parent == tree.root:
        shutil.copytree(tree.root, tmp_path / "all" / "CUB_200_2011")
        shutil.copy(marker, tmp_path / "all")
        tree_root = tmp_path / "all"
    else:
        shutil.copy(marker, tree.root)
        tree_root = tree.root
    assert not open_benchmark(name="cub200", root=tree_root, shots=2).bad_images


def test_a_damaged_list_of_the_only_layout_is_still_named(tmp_path):
    mat(tmp_path / "cars_annos.mat", other=[1])
    with pytest.raises(DatasetError, match="has no variable 'annotations'"):
        open_benchmark(name="cars196", root=tmp_path, shots=2)


# --- names -------------------------------------------------------------------------------------------------------------------

FAKE = ("models=fake", "trigger=always", "dataset.calibration=0", "dataset.shots=2")


def bytes_folder(root: Path) -> Path:
    """A class and a file whose names are no UTF-8."""
    classes(root)
    os.rename(os.fsencode(root / "red_kite"), os.fsencode(root) + b"/caf\xe9")
    os.rename(os.fsencode(root / "Black Kite" / "0.png"), os.fsencode(root) + b"/Black Kite/\xe8 [b].png")
    return root


def test_names_that_are_no_utf8_work_from_end_to_end(tmp_path, capfd):
    root = bytes_folder(tmp_path / os.fsdecode(b"d\xe9"))
    dataset = open_folder(root=root, shots=2)
    assert dataset.catalog.names() == ("Black Kite", "caf\ufffd") and dataset.catalog.ids == ("Black Kite", "caf\\xe9")
    assert all(sample.image.is_file() for _, sample in dataset.split)
    assert cli.main(["mode=evaluate", "dataset=folder", f"dataset.root={root}", *FAKE]) == 0
    assert cli.main(["mode=classify", f"image={root}", "dataset=folder", f"dataset.root={root}", *FAKE]) == 0
    shown = capfd.readouterr()
    assert "\ufffd [b].png" in shown.out.replace("\n", "") and "Traceback" not in shown.err
    home = Path(os.environ["FGVR_HOME"])
    pages, rows = list(home.rglob("report.html")), list(home.rglob("predictions.jsonl"))
    assert len(pages) == 2 and len(rows) == 2 and all(page.read_text(encoding="utf-8") for page in pages)
    assert any("\\udce8 [b].png" in file.read_text(encoding="utf-8") for file in rows)


def test_names_that_look_like_markup_are_shown_whole(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FGVR_HOME", str(tmp_path / "home [b]"))
    monkeypatch.setenv("FGVR_PROGRESS", "1")
    root = labelled(tmp_path / "marks [red]", lambda file: file.relative_to(tmp_path / "marks [red]").as_posix())
    table = (root / "labels.csv").read_text().replace(",red_kite", ",kite [/b] :bird:")
    (root / "labels.csv").write_text(table)
    shutil.move(paint(tmp_path / "asked" / "x.png", 5), tmp_path / "asked" / "photo [copy 1] :bird:.png")
    words = ["dataset=folder", f"dataset.root={root}", *FAKE]
    for mode in (["mode=evaluate"], ["mode=build_knowledge_base"], ["mode=doctor"], ["mode=classify", f"image={tmp_path / 'asked'}"]):
        assert cli.main([*mode, *words]) in (0, 3)
        shown = capfd.readouterr()
        assert "Traceback" not in shown.err and "[" in shown.out
    assert "photo [copy 1] :bird:.png" in shown.out and "kite [/b] :bird:" in shown.out


def test_discover_writes_a_table_that_opens_again(tmp_path):
    bytes_folder(tmp_path / "found")
    assert cli.main(["mode=discover", f"images={tmp_path / 'found'}", "models=fake"]) == 0
    [written] = Path(os.environ["FGVR_HOME"]).rglob("labels.csv")
    shutil.copy(written, tmp_path / "found")
    listed = read_listing(tmp_path / "found", superclass="bird")
    assert len(listed.pool) == 12 and all(sample.image.is_file() for sample in listed.pool)
