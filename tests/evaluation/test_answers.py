"""answers.csv as a page writes it, as spreadsheets save it again, and as nobody can use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgvr.errors import DatasetError
from fgvr.evaluation import answers
from fgvr.evaluation.review_page import Review
from fgvr.types import UNKNOWN

IMAGES = ("a b.jpg", "ä,1.jpg", " blank.jpg", "d/é;2.jpg")
CLASSES = {"001": "Äpfel, grün", "1": "Pear", "012": "Kiwi", "003": "none such"}
REVIEW = Review("review-0123456789ab", dict.fromkeys(IMAGES, "00"), CLASSES, None)
ROWS = [
    ("run", "image", "class_id", "class_name"),
    (REVIEW.run, "a b.jpg", "001", "Äpfel, grün"),
    (REVIEW.run, "ä,1.jpg", "", "none of these"),
    (REVIEW.run, " blank.jpg", "012", "Kiwi"),
]
RIGHT = {"a b.jpg": "001", "ä,1.jpg": UNKNOWN, " blank.jpg": "012"}


def text(rows: list[tuple[str, ...]] = ROWS, *, delimiter: str = ",", end: str = "\r\n") -> str:
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + end for row in rows)


def read(tmp_path: Path, content: bytes | str) -> dict[str, str]:
    file = tmp_path / "answers.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return answers.read(file, REVIEW)


@pytest.mark.parametrize(
    "content",
    {
        "as the page writes it": text().encode("utf-8-sig"),
        "without mark, Unix lines": text(end="\n").encode(),
        "old Macintosh lines": text(end="\r").encode(),
        "semicolons": text(delimiter=";").encode("utf-8-sig"),
        "tabs in UTF-16": text(delimiter="\t").encode("utf-16"),
        "the code page of Windows": text(delimiter=";").encode("cp1252"),
        "a line that names the separator": ("sep=;\r\n" + text(delimiter=";")).encode("utf-8-sig"),
        "empty lines and empty rows": ("\n" + text().replace("\r\n", "\r\n\r\n") + ",,,\r\n").encode(),
        "ids as numbers": text([ROWS[0], *((r, i, {"001": "9", "012": "12"}.get(c, c), n) for r, i, c, n in ROWS[1:])]).encode(),
        "names alone, in another spelling": text(
            [("Run", "Image", "Class name"), *((r, i, n.lower()) for r, i, _, n in ROWS[1:])]
        ).encode(),
        "ids alone": text([ROWS[0], *((r, i, c, "" if c else n) for r, i, c, n in ROWS[1:])]).encode(),
        "more columns, in another order": text([(*reversed(row), "x") for row in ROWS]).encode(),
        "the same row twice": text([*ROWS, ROWS[1]]).encode(),
        "a row without answer": text([*ROWS, (REVIEW.run, "d/é;2.jpg", "", "")]).encode(),
    }.items(),
    ids=lambda case: case[0],
)
def test_every_dialect_is_read_right(tmp_path: Path, content: tuple[str, bytes]) -> None:
    assert read(tmp_path, content[1]) == RIGHT


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty; answer the images"),
        ("  \r\n", "is empty"),
        (text(ROWS[:1]), "holds no answer"),
        (text([("image", "class_id", "class_name"), ("a b.jpg", "1", "Pear")]), "no column run; expected run, image"),
        (text([("run", "image"), (REVIEW.run, "a b.jpg")]), "no column class_name"),
        ("just a letter\nto you", "no column run and no column image"),
        (text([ROWS[0], ("review-ffffffffffff", "a b.jpg", "1", "Pear")]), r"another run \(review-ffffffffffff\), not of this one"),
        (text([*ROWS, ("review-ffffffffffff", "a b.jpg", "1", "Pear")]), r"several runs: .*\(line 4\).*\(line 5\)"),
        (text([ROWS[0], ("", "a b.jpg", "1", "Pear")]), "column run is empty"),
        (text([*ROWS, (REVIEW.run, "a_b.jpg", "1", "Pear")]), r"line 5: this run does not ask about 'a_b.jpg' \(is it 'a b.jpg'\?\)"),
        (text([*ROWS, (REVIEW.run, "d/é;2.jpg", "", "Kivi")]), r"line 5: no class is called 'Kivi' \(is it 'Kiwi'\?\); or write"),
        (text([*ROWS, (REVIEW.run, "d/é;2.jpg", "77", "")]), "no class is called '77'"),
        (text([*ROWS, (REVIEW.run, "d/é;2.jpg", "1", "Kiwi")]), "class_id 1 is 'Pear', not 'Kiwi'"),
        (text([*ROWS, (REVIEW.run, "a b.jpg", "1", "Pear")]), "line 5: a b.jpg is Pear, and Äpfel, grün in line 2"),
        (text([*ROWS, (REVIEW.run, "a b.jpg", "", "none of these")]), "line 5: a b.jpg is none of these, and Äpfel"),
        (b"PK\x03\x04 a workbook", "workbook of a spreadsheet; save it there as CSV"),
        (b"\x00\x01\x02", "is no text"),
        (text()[:-5], "no table that can be read"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_cure(tmp_path: Path, content: bytes | str, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        read(tmp_path, content)


def test_all_wrong_rows_are_told_at_once(tmp_path: Path) -> None:
    wrong = [(REVIEW.run, f"{i}.jpg", "1", "Pear") for i in range(12)]
    with pytest.raises(DatasetError, match=r"(?s)12 rows cannot be used.*line 5.*line 14.*and 2 more"):
        read(tmp_path, text([*ROWS, *wrong]))


def test_a_folder_or_nothing_is_no_answer(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "absent.csv", "does not exist")):
        with pytest.raises(DatasetError, match=told):
            answers.read(path, REVIEW)


def test_a_name_that_two_classes_share_needs_its_id(tmp_path: Path) -> None:
    twins = Review(REVIEW.run, REVIEW.images, {"a": "Kiwi", "b": "kiwi", "c": "KIWI"}, None)
    file = tmp_path / "answers.csv"
    file.write_text(text([ROWS[0], (REVIEW.run, "a b.jpg", "", "kiwi")]))
    assert answers.read(file, twins) == {"a b.jpg": "b"}, "the exact spelling decides"
    file.write_text(text([ROWS[0], (REVIEW.run, "a b.jpg", "", "Kiwí")]))
    with pytest.raises(DatasetError, match="means 3 classes: give its class_id"):
        answers.read(file, twins)
