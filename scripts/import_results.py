"""Make other people's result files our predictions, so that one scorer scores them all.

    python scripts/import_results.py FILE [--out FOLDER]
    python discovering.py mode=replay predictions=FOLDER

FILE is the public SARE code's classify_result.json or classification_results.json, its precursor's folder infer/ (one file per image,
before the decision), rows of these as JSON lines, or FineR's lists dumped as one object: it prints scores and saves no answers.
Names are compared as everywhere here: number prefix, case, `-` and `_` do not count, anything else does. What a file does not hold is not
invented: an unknown cost is noted as unknown, and so is System 1's answer where it wrote the word "conflict".

FOLDER gets predictions.jsonl and imported.json (classes, the accuracy that the file claims, notes). Ends with 3 when FILE cannot be read;
the error names every wrong row by its line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from foreign_rows import Row, WrongRow, class_name, is_number, part, read_json, read_text, required, rows_of, said_name, share, shown

from fgvr.errors import FgvrError, StoreError
from fgvr.evaluation import records
from fgvr.modes.replaying import MARK
from fgvr.modes.runs import PREDICTIONS
from fgvr.types import Candidate, Cost, Decision, FastResult, History, Prediction, SlowResult
from fgvr.utils.files import atomic_write, short_hash, write_json
from fgvr.utils.text import normalise_name, plain_name

CONFLICT = "conflict"  # what SARE writes for System 1's answer when it is in doubt
UNKNOWN = "(not recorded)"
SHOWN = 5  # wrong rows that an error names
_COST = "cost is not recorded in such files"


@dataclass(frozen=True, slots=True)
class Imported:
    """Predictions with everything that had to be noted, and the score the file itself claims (None: it claims none)."""

    predictions: tuple[Prediction, ...]
    classes: Mapping[str, str]  # id -> name of every class that is true for some image
    kind: str
    claimed: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """One image as a foreign file tells it; "" = not told."""

    path: str
    truth: str
    final: str
    confidence: float
    slow: str | None = None  # System 2's answer; None = not asked
    slow_confidence: float = 0.0
    rationale: str = ""
    fast: tuple[tuple[str, float], ...] = ()  # System 1's ranking
    fast_confidence: float = 0.0
    agreement: bool = True


def read_results(path: Path) -> Imported:
    """Read a result file, or a folder of one file per image.

    Raises:
        StoreError: not readable, or in no known form; it says which forms are known, and which rows are wrong.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise StoreError(f"{path} holds no .json file; give SARE's folder infer/, or one result file")
        rows = [Row(str(file), read_json(read_text(file), str(file))) for file in files]
        return _built("SARE infer/", path, _answers(path, rows, _inferred), None, ["no final decision is recorded"])
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        return _json_lines(text, path)
    body = read_json(text, str(path))
    if isinstance(body, dict) and isinstance(body.get("results"), list):
        answers = _answers(path, rows_of(text, "results", body["results"]), _result)
        return _built("SARE classify_result.json", path, answers, *_claim(path, body, "metadata"))
    saves = [body] if isinstance(body, dict) else body
    if (
        isinstance(saves, list)
        and saves
        and all(isinstance(save, dict) and isinstance(save.get("detailed_results"), list) for save in saves)
    ):
        return _appended(text, saves, path)
    if isinstance(body, dict) and all(isinstance(body.get(key), list) for key in _FINER):
        return _finer(body, path)
    if isinstance(body, list) and all(isinstance(name, str) for name in body):
        raise StoreError(f"{path} is a list of {len(body)} names, as FineR writes its guesses: there is no answer about any image in it")
    raise StoreError(f"{path} is in no known form; known are {', '.join(_KNOWN)}")


_FINER = ("total_img_paths", "total_label_names", "total_pred_names")
_KNOWN = (
    "SARE's classify_result.json and classification_results.json, a folder infer/, their rows as JSON lines (.jsonl)",
    f"FineR's lists {', '.join(_FINER)} in one object",
)


def _answers(path: Path, rows: Iterable[Row], read: Callable[[Mapping[str, Any]], _Answer]) -> list[_Answer]:
    """The answers of all rows. StoreError that names the wrong ones."""
    answers: list[_Answer] = []
    wrong: list[str] = []
    for row in rows:
        try:
            if not isinstance(row.body, dict):
                raise WrongRow(f"{shown(row.body)} is no object")
            answers.append(read(row.body))
        except WrongRow as error:
            wrong.append(f"{row.place}: {error}")
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        rows_are = f"{len(wrong)} row is" if len(wrong) == 1 else f"{len(wrong)} rows are"
        raise StoreError("\n  ".join([f"{path}: {rows_are} wrong; mend the file, or leave them out", *wrong[:SHOWN], *more]))
    return answers


# --- SARE --------------------------------------------------------------------------------------------------------------------


def _result(row: Mapping[str, Any]) -> _Answer:
    """`{"image_path", "label", "prediction", "fast_result", "slow_result"}` of a classify_result.json"""
    slow = part(row, "slow_result") if "slow_result" in row else {}
    return _Answer(
        path=class_name(row, "image_path", "the path of an image in quotes"),
        truth=class_name(row, "label"),
        final=said_name(row, "prediction"),
        confidence=share(row, "confidence", 0.0),
        **_system1(part(row, "fast_result")),
        **_system2(slow if slow else None),
    )


def _appended(text: str, saves: Sequence[Mapping[str, Any]], path: Path) -> Imported:
    """`[{"summary": {"accuracy"}, "detailed_results": [{"query_image", "true_category", "final_prediction", ...}]}]`, one per save."""
    last, start = saves[-1], 0
    for _ in saves:
        start = text.index('"detailed_results"', start) + 1
    answers = _answers(path, rows_of(text, "detailed_results", last["detailed_results"], start - 1), _detailed)
    notes = [f"the file holds {len(saves)} results, one appended to the other; the last one is read"] if len(saves) > 1 else []
    claimed, more = _claim(path, last, "summary")
    return _built("SARE classification_results.json", path, answers, claimed, [*notes, *more])


def _detailed(row: Mapping[str, Any]) -> _Answer:
    said, confidence = said_name(row, "fast_prediction"), share(row, "fast_confidence")
    asked = bool(required(row, "used_slow_thinking"))
    return _Answer(
        path=class_name(row, "query_image", "the path of an image in quotes"),
        truth=class_name(row, "true_category"),
        final=said_name(row, "final_prediction"),
        confidence=share(row, "final_confidence"),
        slow=said_name(row, "slow_prediction") if asked else None,
        slow_confidence=share(row, "slow_confidence"),
        fast=((said, confidence),) if said and said != CONFLICT else (),
        fast_confidence=confidence,
    )


def _inferred(row: Mapping[str, Any]) -> _Answer:
    """One file of `infer/`: both systems' answers; the slow one counts where it was asked, as SARE's code intends."""
    fast = _system1(part(row, "fast_result"))
    slow = _system2(part(row, "slow_result") if required(row, "need_slow_thinking") else None)
    own = fast["fast"][0][0] if fast["fast"] else ""
    return _Answer(
        path=class_name(row, "query_image", "the path of an image in quotes"),
        truth=class_name(row, "true_category"),
        final=own if slow["slow"] is None else slow["slow"],
        confidence=fast["fast_confidence"] if slow["slow"] is None else slow["slow_confidence"],
        **fast,
        **slow,
    )


def _json_lines(text: str, path: Path) -> Imported:
    rows = [
        Row(f"line {number}", read_json(line, f"{path}, line {number}")) for number, line in enumerate(text.splitlines(), 1) if line.strip()
    ]

    def read(row: Mapping[str, Any]) -> _Answer:
        for key, form in (("final_prediction", _detailed), ("need_slow_thinking", _inferred), ("prediction", _result)):
            if key in row:
                return form(row)
        raise WrongRow("neither final_prediction, prediction nor need_slow_thinking is there: no row of SARE's results")

    return _built("SARE rows", path, _answers(path, rows, read), None)


def _system1(fast: Mapping[str, Any]) -> dict[str, Any]:
    """Ranking, confidence and agreement of a `fast_result`; its `predicted_category` may be the word "conflict"."""
    ranked = tuple(map(_scored, fast.get("fused_results") or ()))
    keys = [key for key in ("fused_top1", "predicted_fast") if fast.get(key)]
    top = class_name(fast, next(iter(keys), "predicted_category"))
    confidence = share(fast, "confidence", 0.0)
    if not ranked and top != CONFLICT:
        ranked = ((top, share(fast, "fused_top1_prob", confidence)),)
    same = fast.get("img_category") == fast.get("text_category")
    return {"fast": ranked, "fast_confidence": confidence, "agreement": same}


def _scored(pair: Any) -> tuple[str, float]:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not is_number(pair[1]):
        raise WrongRow(f"fused_results holds {shown(pair)}; write [name, number]")
    return pair[0], float(pair[1])


def _system2(slow: Mapping[str, Any] | None) -> dict[str, Any]:
    if slow is None:
        return {"slow": None}
    said, why = said_name(slow, "predicted_category"), slow.get("reasoning")
    return {"slow": said, "slow_confidence": share(slow, "confidence", 0.0), "rationale": str(why or "")}


# --- FineR -------------------------------------------------------------------------------------------------------------------


def _finer(body: Mapping[str, Any], path: Path) -> Imported:
    """`{"total_img_paths": [...], "total_label_names": [...], "total_pred_names": [...]}`: FineR's lists by FineR's names."""
    lists = [body[key] for key in _FINER]
    if len({len(values) for values in lists}) != 1:
        counts = ", ".join(f"{len(values)} {key}" for key, values in zip(_FINER, lists, strict=True))
        raise StoreError(f"{path}: {counts}: one per image each")
    rows = [Row(f"image {number}", dict(zip(_FINER, three, strict=True))) for number, three in enumerate(zip(*lists, strict=True), 1)]

    def read(row: Mapping[str, Any]) -> _Answer:
        said = class_name(row, "total_pred_names")
        return _Answer(class_name(row, "total_img_paths"), class_name(row, "total_label_names"), said, 1.0, fast=((said, 1.0),))

    notes = ["FineR keeps no scores: every confidence is 1"]
    return _built("FineR", path, _answers(path, rows, read), _accuracy(path, body, "acc_clustering"), notes)


# --- both --------------------------------------------------------------------------------------------------------------------


def _claim(path: Path, body: Mapping[str, Any], part: str) -> tuple[float | None, list[str]]:
    """The accuracy that a file claims in one of its parts, and a note where it claims none."""
    told = body.get(part)
    if told is None:
        return None, [f"{part} is {'null' if part in body else 'missing'}: the file claims no accuracy"]
    if not isinstance(told, dict):
        raise StoreError(f'{path}: {part} is {shown(told)}; write an object such as {{"accuracy": 0.98}}, or null')
    return _accuracy(path, told, "accuracy"), []


def _accuracy(path: Path, part: Mapping[str, Any], key: str) -> float | None:
    try:
        return None if part.get(key) is None else share(part, key)
    except WrongRow as error:
        raise StoreError(f"{path}: {error}") from error


def _built(kind: str, path: Path, answers: Sequence[_Answer], claimed: float | None, notes: Iterable[str] = ()) -> Imported:
    if not answers:
        raise StoreError(f"{path} holds no answer")
    names = _names(answer.truth for answer in answers)
    predictions = tuple(_prediction(answer, names) for answer in answers)
    doubted = sum(not answer.fast for answer in answers)
    unread = sum(not answer.final for answer in answers)
    said = [_COST, *notes]
    if doubted:
        said.append(f"System 1's answer is not recorded for {doubted} of {len(answers)} images: what System 2 fixed or broke is not known")
    if unread:
        said.append(f"{unread} images have no final answer and count as wrong")
    return Imported(predictions, names, kind, claimed, tuple(said))


def _names(truths: Iterable[str]) -> dict[str, str]:
    """Class id (the normalised name) -> the name as it was first written, without number prefix."""
    names: dict[str, str] = {}
    for name in truths:
        names.setdefault(normalise_name(name), plain_name(name))
    return names


def _prediction(answer: _Answer, classes: Mapping[str, str]) -> Prediction:
    """A name that is no class keeps its own id, and so can be matched with none but by clustering accuracy and text protocols."""
    ranked = answer.fast or ((UNKNOWN, 0.0),)
    said = [*(name for name, _ in ranked), answer.final or UNKNOWN, *([answer.slow] if answer.slow else [])]
    names = dict(classes) | {key: plain_name(name) for name in said if (key := normalise_name(name)) not in classes}
    key = "/".join(PurePosixPath(answer.path.replace("\\", "/")).parts[-2:])
    sha256 = f"path-{short_hash(key)}"  # the content is not here; enough to pair runs on the same images
    category = normalise_name(answer.final) if answer.final else ""
    asked = answer.slow is not None
    probabilities = [score for _, score in ranked]
    return Prediction(
        image=key,
        sha256=sha256,
        label=normalise_name(answer.truth),
        category=category,
        name=names.get(category, ""),
        confidence=answer.confidence,
        by="slow" if asked else "fast",
        fast=FastResult(
            sha256=sha256,
            candidates=tuple(Candidate(normalise_name(name), score, None, None) for name, score in ranked),
            confidence=answer.fast_confidence,
            margin=probabilities[0] - probabilities[1] if len(probabilities) > 1 else 0.0,
            entropy=0.0,
            agreement=answer.agreement,
            history=History(0, 0, 0),
        ),
        decision=Decision(asked, 0.0 if asked else 1.0, 0.5),
        slow=_slow(answer) if asked else None,
        cost=Cost(asked=None),
        names=names,
    )


def _slow(answer: _Answer) -> SlowResult:
    if not answer.slow:
        return SlowResult(None, {}, answer.rationale, status="unreadable")
    category = normalise_name(answer.slow)
    return SlowResult(category, {category: answer.slow_confidence}, answer.rationale)


# --- files -------------------------------------------------------------------------------------------------------------------


def write(found: Imported, source: Path, folder: Path) -> None:
    """What mode=replay reads."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {key: name for prediction in found.predictions for key, name in prediction.names.items()}
    told = {"from": str(source), "kind": found.kind, "claimed": found.claimed, "notes": list(found.notes)}
    atomic_write(folder / PREDICTIONS, "".join(map(records.to_line, found.predictions)))
    write_json(folder / MARK, told | {"classes": dict(found.classes), "names": names})


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a result file, or a folder infer/")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to; imported/NAME by default")
    args = parser.parse_args(words)
    folder: Path = args.out or Path("imported") / args.file.stem
    try:
        found = read_results(args.file)
        write(found, args.file, folder)
    except FgvrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 3
    except OSError as error:
        sys.stderr.write(f"error: {folder} cannot be written ({error.strerror or error}); name another folder with --out\n")
        return 3
    sys.stdout.write("".join(f"{note}\n" for note in found.notes))
    sys.stdout.write(
        f"{len(found.predictions)} answers of {found.kind}. Score them: python discovering.py mode=replay predictions={folder}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
