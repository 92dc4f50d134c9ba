"""Other people's result files as our predictions, so that one scorer scores them all.

Known are the public SARE code's `classify_result.json` and `classification_results.json`, its precursor's folder `infer/` (one file per
image, before the decision), and what FineR's evaluation holds in memory: it prints scores and saves no answers, so its lists have to be
dumped. Names are compared as everywhere here: number prefix, case, `-` and `_` do not count, anything else does. What a file does
not hold is not invented: an unknown cost is noted as unknown, and so is System 1's answer where it wrote the word "conflict".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fgvr.errors import StoreError
from fgvr.types import Candidate, Cost, Decision, FastResult, History, Prediction, SlowResult
from fgvr.utils.files import short_hash
from fgvr.utils.text import normalise_name, plain_name

MARK = "imported.json"
"""Beside imported predictions: where they come from."""
CONFLICT = "conflict"  # what SARE writes for System 1's answer when it is in doubt
UNKNOWN = "(not recorded)"
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
        StoreError: not readable, or in no known form; it says which forms are known.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise StoreError(f"{path} holds no .json file; give SARE's folder infer/, or one result file")
        return _built("SARE infer/", path, [_inferred(_json(file), file) for file in files], None, ["no final decision is recorded"])
    body = _json(path)
    for fits, read in _FORMS:
        if fits(body):
            return read(body, path)
    if isinstance(body, list) and all(isinstance(name, str) for name in body):
        raise StoreError(f"{path} is a list of {len(body)} names, as FineR writes its guesses: there is no answer about any image in it")
    raise StoreError(f"{path} is in no known form; known are {', '.join(_KNOWN)}")


# --- SARE --------------------------------------------------------------------------------------------------------------------


def _classify_result(body: Mapping[str, Any], path: Path) -> Imported:
    """`{"metadata": {"accuracy"}, "results": [{"image_path", "label", "prediction", "fast_result", "slow_result"}]}`"""
    return _built(
        "SARE classify_result.json", path, [_result(row, path) for row in body["results"]], body.get("metadata", {}).get("accuracy")
    )


def _result(row: Mapping[str, Any], path: Path) -> _Answer:
    try:
        slow = row.get("slow_result") or {}
        return _Answer(
            path=row["image_path"],
            truth=row["label"],
            final=row["prediction"],
            confidence=float(row.get("confidence") or 0.0),
            slow=slow.get("predicted_category") if slow else None,
            slow_confidence=float(slow.get("confidence") or 0.0),
            rationale=str(slow.get("reasoning") or ""),
            **_system1(row["fast_result"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"{path}: not a row of SARE's results: {error!r}") from error


def _classification_results(body: Sequence[Mapping[str, Any]], path: Path) -> Imported:
    """`[{"summary": {"accuracy"}, "detailed_results": [{"query_image", "true_category", "final_prediction", ...}]}]`, one per save."""
    last = body[-1]
    answers = [_detailed(row, path) for row in last["detailed_results"]]
    notes = [f"the file holds {len(body)} results, one appended to the other; the last one is read"] if len(body) > 1 else []
    return _built("SARE classification_results.json", path, answers, last.get("summary", {}).get("accuracy"), notes)


def _detailed(row: Mapping[str, Any], path: Path) -> _Answer:
    try:
        said, confidence = row["fast_prediction"], float(row["fast_confidence"] or 0.0)
        return _Answer(
            path=row["query_image"],
            truth=row["true_category"],
            final=row["final_prediction"],
            confidence=float(row["final_confidence"] or 0.0),
            slow=(row["slow_prediction"] or "") if row["used_slow_thinking"] else None,
            slow_confidence=float(row["slow_confidence"] or 0.0),
            fast=((said, confidence),) if said and said != CONFLICT else (),
            fast_confidence=confidence,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: not a row of SARE's detailed results: {error!r}") from error


def _inferred(row: Any, path: Path) -> _Answer:
    """One file of `infer/`: both systems' answers; the slow one counts where it was asked, as SARE's code intends."""
    try:
        fast, slow = _system1(row["fast_result"]), row["slow_result"] if row["need_slow_thinking"] else None
        own = fast["fast"][0][0] if fast["fast"] else ""
        return _Answer(
            path=row["query_image"],
            truth=row["true_category"],
            final=(slow["predicted_category"] or "") if slow else own,
            confidence=float((slow["confidence"] if slow else fast["fast_confidence"]) or 0.0),
            slow=(slow["predicted_category"] or "") if slow else None,
            slow_confidence=float(slow["confidence"] or 0.0) if slow else 0.0,
            rationale=str(slow.get("reasoning") or "") if slow else "",
            **fast,
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise StoreError(f"{path}: not a file of SARE's infer/: {error!r}") from error


def _system1(fast: Mapping[str, Any]) -> dict[str, Any]:
    """Ranking, confidence and agreement of a `fast_result`; its `predicted_category` may be the word "conflict"."""
    ranked = tuple((str(name), float(score)) for name, score in fast.get("fused_results") or ())
    top = fast.get("fused_top1") or fast.get("predicted_fast") or fast["predicted_category"]
    if not ranked and top != CONFLICT:
        ranked = ((str(top), float(fast.get("fused_top1_prob") or fast.get("confidence") or 0.0)),)
    same = fast.get("img_category") == fast.get("text_category")
    return {"fast": ranked, "fast_confidence": float(fast.get("confidence") or 0.0), "agreement": same}


# --- FineR -------------------------------------------------------------------------------------------------------------------


def _finer(body: Mapping[str, Any], path: Path) -> Imported:
    """`{"total_img_paths": [...], "total_label_names": [...], "total_pred_names": [...]}`: FineR's lists by FineR's names."""
    lists = [body[key] for key in _FINER]
    if len({len(values) for values in lists}) != 1:
        raise StoreError(
            f"{path}: {', '.join(f'{len(values)} {key}' for key, values in zip(_FINER, lists, strict=True))}: one per image each"
        )
    answers = [_Answer(str(image), str(truth), str(said), 1.0, fast=((str(said), 1.0),)) for image, truth, said in zip(*lists, strict=True)]
    notes = ["FineR keeps no scores: every confidence is 1"]
    return _built("FineR", path, answers, body.get("acc_clustering"), notes)


# --- both --------------------------------------------------------------------------------------------------------------------

_FINER = ("total_img_paths", "total_label_names", "total_pred_names")
_FORMS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Path], Imported]], ...] = (
    (lambda body: isinstance(body, dict) and isinstance(body.get("results"), list), _classify_result),
    (lambda body: isinstance(body, list) and bool(body) and all("detailed_results" in part for part in body), _classification_results),
    (lambda body: isinstance(body, dict) and "detailed_results" in body, lambda body, path: _classification_results([body], path)),
    (lambda body: isinstance(body, dict) and all(isinstance(body.get(key), list) for key in _FINER), _finer),
)
_KNOWN = (
    "SARE's classify_result.json and classification_results.json, a folder infer/",
    f"FineR's lists {', '.join(_FINER)} in one object",
)


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
    return Imported(predictions, names, kind, None if claimed is None else float(claimed), tuple(said))


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


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as JSON ({error})") from error
