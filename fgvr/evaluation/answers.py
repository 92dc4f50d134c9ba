"""`answers.csv`: what a person has answered on a review page, perhaps saved again by a spreadsheet, in place of System 1's guesses.

Columns: `run` (of the page), `image` (as the page calls it), `class_id` and `class_name`. An image is known by its name; a class by its id,
its name or both. "none of these" has no class id. Rows without class are not answered yet.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fgvr.errors import DatasetError
from fgvr.evaluation.review_page import Review
from fgvr.types import UNKNOWN, Prediction, SlowResult
from fgvr.utils.tables import parse_table
from fgvr.utils.text import nearest, normalise_name, printable

COLUMNS = ("run", "image", "class_id", "class_name")
NONE = "none of these"
_AGAIN = "answer the images on the review page, then download answers.csv"
_TOLD = 10  # rows named in one error


def run_of(file: Path) -> str:
    """The run that the answers say they are of. DatasetError where they name none, or several."""
    runs = {row["run"]: line for line, row in _rows(file)}
    if len(runs) > 1:
        told = ", ".join(f"{run or 'none'} (line {line})" for run, line in runs.items())
        raise DatasetError(f"{file} holds answers of several runs: {told}; give the answers of each run in a file of its own")
    (run,) = runs
    if not run:
        raise DatasetError(f"{file} does not say which run its answers are of: the column run is empty; download answers.csv once more")
    return run


def read(file: Path, review: Review) -> dict[str, str]:
    """Image -> class id, or `UNKNOWN` for "none of these". Every row that makes no sense is named in one DatasetError."""
    if (run := run_of(file)) != review.run:
        raise DatasetError(f"{file} holds answers of another run ({run}), not of this one ({review.run}); open the review.html of this run")
    images = {printable(image): image for image in review.images}
    answers: dict[str, tuple[str, int]] = {}
    wrong: list[str] = []
    for line, row in _rows(file):
        image = images.get(row["image"]) or images.get(row["image"].strip())
        if image is None:
            wrong.append(f"line {line}: this run does not ask about {row['image']!r}{_like(row['image'], images)}")
            continue
        try:
            answer = _class(row, review.classes)
        except ValueError as error:
            wrong.append(f"line {line}: {error}")
            continue
        if answer is None:
            continue
        known, first = answers.setdefault(image, (answer, line))
        if known != answer:
            told = [_told(id, review.classes) for id in (known, answer)]
            wrong.append(f"line {line}: {row['image']} is {told[1]}, and {told[0]} in line {first}")
    if wrong:
        more = [f"and {len(wrong) - _TOLD} more"] if len(wrong) > _TOLD else []
        listed = "\n".join(f"  {one}" for one in [*wrong[:_TOLD], *more])
        raise DatasetError(f"{file}: {len(wrong)} rows cannot be used; mend them or take them out, nothing was changed:\n{listed}")
    return {image: answer for image, (answer, _) in answers.items()}


def _class(row: Mapping[str, str], classes: Mapping[str, str]) -> str | None:
    """The class of a row; None where there is no answer yet. ValueError says what is wrong.

    A spreadsheet makes 7 of the id 007: the name then says which class is meant.
    """
    id, name = row["class_id"], row["class_name"]
    if not id and not name:
        return None
    if not id and normalise_name(name) == normalise_name(NONE):
        return UNKNOWN
    named = [known for known, called in classes.items() if called == name] or [
        known for known, called in classes.items() if name and normalise_name(called) == normalise_name(name)
    ]
    if id in classes:
        if name and id not in named:
            raise ValueError(f"class_id {id} is {classes[id]!r}, not {name!r}")
        return id
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        raise ValueError(f"class_name {name!r} means {len(named)} classes: give its class_id")
    raise ValueError(f"no class is called {name or id!r}{_like(name or id, classes.values())}; or write {NONE!r}")


def _told(id: str, classes: Mapping[str, str]) -> str:
    return NONE if id == UNKNOWN else classes[id]


def _like(word: str, known: object) -> str:
    near = nearest(word, list(known), 1)  # type: ignore[call-overload]
    return f" (is it {near[0]!r}?)" if near else ""


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    return read_table(file, COLUMNS, required=("run", "image"), either=("class_id", "class_name"))


def read_table(
    file: Path, wanted: Sequence[str], *, required: Sequence[str], either: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Line number and `wanted` cells of each row that is not empty. DatasetError without the `required` columns, or any of `either`."""
    try:
        columns, found = parse_table(_text(file))
    except csv.Error as error:
        raise DatasetError(f"{file} is no table that can be read ({error}); download answers.csv once more") from error
    if not any(columns):
        raise DatasetError(f"{file} is empty; {_AGAIN}")
    absent = [name for name in required if name not in columns]
    absent += [] if not either or {*either} & {*columns} else [either[-1]]
    if absent:
        told = ", ".join(filter(None, columns)) or "nothing"
        raise DatasetError(f"{file} has no column {' and no column '.join(absent)}; expected {', '.join(wanted)}, found {told}")
    rows = [(line, {name: _cell(row.get(name), name) for name in wanted}) for line, row in found]
    rows = [(line, row) for line, row in rows if any(row.values())]
    if not rows:
        raise DatasetError(f"{file} holds no answer; {_AGAIN}")
    return rows


def _cell(value: str | None, column: str) -> str:
    """A file's name may begin or end with a blank."""
    return (value or "") if column == "image" else (value or "").strip()


def _text(file: Path) -> str:
    """UTF-8 or UTF-16 with their marks, or what a spreadsheet on Windows writes."""
    if file.is_dir() or not file.exists():
        raise DatasetError(
            f"{file} {'is a folder' if file.is_dir() else 'does not exist'}; answers= takes the answers.csv of a review page"
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({error.strerror or error})") from error
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DatasetError(f"{file} is a workbook of a spreadsheet; save it there as CSV")
    encodings = ("utf-16",) if content.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise DatasetError(f"{file} is no text; download answers.csv once more")


def apply_answers(predictions: Sequence[Prediction], answers: Mapping[str, str], names: Mapping[str, str]) -> list[Prediction]:
    """The predictions with a person's answers in place of System 1's guesses. Predictions without an answer do not change.

    Args: answers: by image, a class id, or `UNKNOWN` for "none of these". names: of the classes, by id.
    """
    return [_answered(p, answers[p.image], names) if p.image in answers else p for p in predictions]


def _answered(prediction: Prediction, category: str, names: Mapping[str, str]) -> Prediction:
    if category == UNKNOWN:
        slow = SlowResult(None, {}, status="unknown")
        return replace(prediction, category=UNKNOWN, name="unknown", confidence=0.0, by="person", slow=slow, abstention=None)
    slow = SlowResult(category, {category: 1.0})
    return replace(prediction, category=category, name=names[category], confidence=1.0, by="person", slow=slow, abstention=None)


def waiting(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The escalated predictions that nobody has answered yet, the most doubtful first."""
    return sorted((p for p in predictions if p.decision.escalate and p.by == "fast"), key=lambda p: (p.decision.score, p.confidence))
