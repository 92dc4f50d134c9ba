"""What "correct" means: named, versioned ways to score one predictions file. A number is comparable only within one id and version.

A new protocol is one function on `Outcomes` and a row of `PROTOCOLS`; its version rises whenever any score could change. The function says
what each image is worth, and the score is their mean, which can then be given intervals; or it says the score itself. Class identity is the
class id. The text protocols compare *names*; they exist to reproduce other people's numbers, and the scorer's audit says how
many wrong answers each of them accepts. Definitions as published: FineR's utils/metrics.py (cacc, sacc), lmms-owc (text_inclusion),
FOCI (multiple_choice), the public SARE code's `is_similar` (sare_fuzzy).
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fgvr.errors import ConfigError, DatasetError
from fgvr.evaluation import metrics
from fgvr.evaluation.records import Outcomes

OPTIONS = 4
"""Of a multiple-choice question: the truth and three others; chance is one in four."""


@dataclass(frozen=True, slots=True)
class Sentences:
    """A text encoder, and what it is called: scores of two encoders must not stand in one column."""

    name: str
    encode: Callable[[Sequence[str]], np.ndarray]  # (n, d) unit rows


@dataclass(frozen=True, slots=True)
class Protocol:
    """One definition of the score; `title` is what a reader sees.

    `measure(outcomes)` is what each image is worth, (n,), or a score that is no mean over images. `by_class`: the mean of class means.
    `accepts(answer, truth)` is the rule of a text protocol that calls an answer right or wrong; the others have none.
    """

    name: str
    version: int
    title: str
    measure: Callable[..., np.ndarray | float]
    accepts: Callable[[str, str], bool] | None = None
    encoder: bool = False  # `measure` also takes Sentences
    by_class: bool = False

    def scored(self, measured: np.ndarray | float, labels: np.ndarray) -> float:
        """The score of what was measured."""
        return metrics.macro(labels, np.asarray(measured)) if self.by_class else float(np.mean(measured))

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


DEFAULT = ("exact", "top5", "macro")


def get(name: str) -> Protocol:
    """The protocol of that name, e.g. `exact` or `sare_fuzzy@0.3`."""
    family, at, number = name.partition("@")
    if family in FAMILIES:
        try:
            level = float(number)
        except ValueError:
            level = -1.0
        if not at or not 0 <= level <= 1:
            raise ConfigError(f"protocol {name!r}: write its threshold from 0 to 1, e.g. {family}@0.3")
        return FAMILIES[family](level)
    if name not in PROTOCOLS:
        known = [*PROTOCOLS, *(f"{family}@T" for family in FAMILIES)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"no protocol {name!r}{hint}; there are {', '.join(sorted(known))}")
    return PROTOCOLS[name]


def score(outcomes: Outcomes, names: Iterable[str] = DEFAULT, sentences: Sentences | None = None) -> dict[str, float]:
    """Name -> score. `sentences` is what `sacc` and `multiple_choice` compare names with; without it they are a ConfigError."""
    return {name: get(name).scored(value, outcomes.labels) for name, value in measured(outcomes, names, sentences).items()}


def measured(outcomes: Outcomes, names: Iterable[str] = DEFAULT, sentences: Sentences | None = None) -> dict[str, np.ndarray | float]:
    """Name -> what each image is worth, or a score that is no mean over images."""
    return {name: _measured(get(name), outcomes, sentences) for name in names}


def _measured(chosen: Protocol, outcomes: Outcomes, sentences: Sentences | None) -> np.ndarray | float:
    if not chosen.encoder:
        return chosen.measure(outcomes)
    if sentences is None:
        raise ConfigError(f"{chosen} compares names with a text encoder, and here is none: leave it out, or score with mode=evaluate")
    return chosen.measure(outcomes, sentences)


# --- by class id -------------------------------------------------------------------------------------------------------------


def _cacc(outcomes: Outcomes) -> float:
    """The best one-to-one matching of answers with classes, whatever either is called; an image without an answer is matched with none."""
    given = outcomes.answers != ""
    if not given.any():
        return 0.0
    return metrics.clustering_accuracy(outcomes.answers[given], outcomes.labels[given]) * float(np.mean(given))


def _multiple_choice(outcomes: Outcomes, sentences: Sentences) -> np.ndarray:
    """Whether an image's truth stands before its three rivals in the final ranking; a truth that is not ranked counts as wrong.

    The rivals are the three wrong classes whose names the encoder puts nearest, as in FOCI (there by CLIP ViT-L-14).
    """
    classes = list(outcomes.classes)
    vectors = sentences.encode([outcomes.classes[c] for c in classes])
    alike = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")
    others = {label: [classes[i] for i in alike[row] if i != row] for row, label in enumerate(classes)}
    options = {label: {label, *rivals[: OPTIONS - 1]} for label, rivals in others.items()}
    pairs = zip(outcomes.labels.tolist(), outcomes.rankings, strict=True)
    return np.array([next((c for c in ranked if c in options[label]), None) == label for label, ranked in pairs])


# --- by name: for reproducing others -----------------------------------------------------------------------------------------


def _sacc(outcomes: Outcomes, sentences: Sentences) -> np.ndarray:
    """FineR's semantic accuracy, its encoder (all-mpnet-base-v2) being replaceable: never compare across encoders. No answer counts 0."""
    texts = sorted({text for pair in outcomes.texts for text in pair if text})
    vectors = dict(zip(texts, sentences.encode(texts), strict=True))
    return np.array([float(vectors[answer] @ vectors[truth]) if answer else 0.0 for answer, truth in outcomes.texts])


def includes(answer: str, truth: str) -> bool:
    """lmms-owc's textual inclusion: the truth is a piece of the answer, case and outer blanks aside; "rose" is in "primrose"."""
    return truth.lower().strip() in answer.lower().strip()


def similar(answer: str, truth: str, threshold: float) -> bool:
    """`is_similar` of the public SARE code: difflib's ratio, case-sensitive, answer first (the ratio is not symmetric)."""
    matcher = difflib.SequenceMatcher(None, answer, truth)
    return matcher.real_quick_ratio() >= threshold and matcher.quick_ratio() >= threshold and matcher.ratio() >= threshold


def _sare_fuzzy(threshold: float) -> Protocol:
    def accepts(answer: str, truth: str) -> bool:
        return similar(answer, truth, threshold)

    title = f"Spelling at least {threshold:.0%} alike (as the public SARE code scores)"
    return Protocol(f"sare_fuzzy@{threshold:g}", 1, title, lambda outcomes: _accepted(outcomes, accepts), accepts)


def _accepted(outcomes: Outcomes, accepts: Callable[[str, str], bool]) -> np.ndarray:
    verdicts = {pair: bool(pair[0]) and accepts(*pair) for pair in set(outcomes.texts)}
    return np.array([verdicts[pair] for pair in outcomes.texts])


_HARD = "Four options, three of them the wrong classes most alike in name; chance 1/4"
PROTOCOLS = {
    one.name: one
    for one in (
        Protocol("exact", 1, "Top-1 accuracy, exact class id", lambda outcomes: outcomes.right),
        Protocol("top5", 1, "Top-5 accuracy", lambda outcomes: metrics.among(outcomes.place, 5)),
        Protocol("macro", 1, "Macro accuracy", lambda outcomes: outcomes.right, by_class=True),
        Protocol("cacc", 1, "Clustering accuracy: answers matched one-to-one with classes (Hungarian)", _cacc),
        Protocol("multiple_choice", 1, _HARD, _multiple_choice, encoder=True),
        Protocol("sacc", 1, "Mean cosine of the answered and the true name's embeddings", _sacc, encoder=True),
        Protocol("text_inclusion", 1, "The true name is a piece of the answered one", lambda o: _accepted(o, includes), includes),
    )
}
FAMILIES = {"sare_fuzzy": _sare_fuzzy}
"""Protocols with a number in their name: `sare_fuzzy@0.3`."""


# --- the audit of a scorer: how many wrong answers it would call right ----------------------------------------------------------


def accepted_wrong(names: Sequence[str], chosen: Protocol) -> float:
    """Share of the ordered pairs (answer, truth) of two different classes that the protocol accepts."""
    if chosen.accepts is None:
        raise ConfigError(f"{chosen} calls no single name right or wrong, so there is nothing to audit")
    if len(names) < 2:
        raise DatasetError("an audit needs at least two classes")
    wrong = sum(chosen.accepts(answer, truth) for i, truth in enumerate(names) for j, answer in enumerate(names) if i != j)
    return wrong / (len(names) * (len(names) - 1))


def remarks(measure: Sequence[str], names: Sequence[str], sentences: Sentences | None) -> list[str]:
    """What a reader of these protocols' numbers must know about the protocols themselves."""
    chosen = [get(name) for name in measure]
    told = [
        f"{one} calls {accepted_wrong(names, one):.1%} of all wrong answers right (ordered pairs of the {len(names)} class names)"
        for one in chosen
        if one.accepts is not None and len(names) > 1
    ]
    encoded = [str(one) for one in chosen if one.encoder and sentences is not None]
    return told + ([f"{', '.join(encoded)}: names are compared by {sentences.name}"] if sentences is not None and encoded else [])
