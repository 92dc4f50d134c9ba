"""The deeper decoder, exemplars beside the picture, and asking again where the two systems disagree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fgvr
from fgvr.agents import prompts
from fgvr.agents.analyse import PARTS, AnalyseDecoder
from fgvr.agents.answer_fusion import Reprompt, winner
from fgvr.agents.slow import Exemplars, Option, Question, ReasonDecoder, ScoreDecoder, Shortlist, SlowThinking
from fgvr.types import History, Reply, Scores, SlowResult
from tests.agents.doubles import TableMLLM, class_record, fast_result, picture

OPTIONS = tuple(Option(c, f"name {c}", f"looks like {c}", 0.3) for c in "abc")


class Looker:
    """Names parts, says what it sees there, sums up as it was told to; remembers every prompt."""

    fingerprint = "looker"

    def __init__(self, summary="looks like b", parts="1. the tail\n- the beak\n\nthe wing\nthe feet", letter="A") -> None:
        self.summary, self.parts, self.letter = summary, parts, letter
        self.asked: list[str] = []
        self.shown: list[object] = []

    def generate(self, images, asked, *, system="", max_new_tokens=128):
        self.asked += asked
        kinds = {"Which parts": self.parts, "Look at this part": "it is  red", "What was seen": self.summary}
        return [Reply(next(reply for words, reply in kinds.items() if words in prompt)) for prompt in asked]

    def score(self, images, asked, continuations, *, system=""):
        self.shown += images
        return [Scores(tuple(0.0 if c.endswith(self.letter) else -1.0 for c in cs), (1,) * len(cs), 9) for cs in continuations]


class Words:
    """Each distinct sentence its own direction."""

    def encode_text(self, texts):
        known = sorted({*texts, *(o.description for o in OPTIONS)})
        return np.eye(len(known), dtype=np.float32)[[known.index(text) for text in texts]]


def analyse(mllm, options=OPTIONS, temperature=0.1):
    decoder = AnalyseDecoder(mllm, Words(), superclass="bird", temperature=temperature, max_new_tokens=50)  # type: ignore[arg-type]
    return decoder([picture("x")], [Question(options)])[0]


def test_an_analysis_looks_at_the_parts_sums_up_and_judges_by_words_and_by_letter() -> None:
    mllm = Looker()
    judged = analyse(mllm)
    assert [words for words in mllm.asked if "part of the bird" in words] == [
        prompts.look_at("bird", p) for p in ("the tail", "the beak", "the wing")
    ]
    assert "the tail: it is red" in next(words for words in mllm.asked if "What was seen" in words)
    assert judged.rationale.splitlines() == ["the tail: it is red", "the beak: it is red", "the wing: it is red", "looks like b"]
    assert int(judged.log_likelihoods.argmax()) == 1  # words for b outweigh the letter A
    assert int(analyse(Looker(), temperature=100.0).log_likelihoods.argmax()) == 0  # and without them the letter decides
    assert len(mllm.asked) == 1 + PARTS + 1


def test_an_analysis_that_finds_nothing_leaves_the_answer_to_the_letter() -> None:
    judged = analyse(Looker(summary=" ", parts="", letter="C"))
    assert int(judged.log_likelihoods.argmax()) == 2
    assert np.allclose(np.diff(judged.log_likelihoods[:2]), 0)


def test_a_candidate_without_words_is_neither_lifted_nor_sunk() -> None:
    options = (OPTIONS[0], replace(OPTIONS[1], description=""), OPTIONS[2])
    nats = analyse(Looker(summary="looks like a", letter="Z"), options).log_likelihoods
    assert nats[0] > nats[1] > nats[2]


# --- exemplars -----------------------------------------------------------------------------------------------------------------

RECORDS = {c: class_record(c) for c in "abc"}


def exemplars() -> Exemplars:
    return Exemplars("abc", [0, 0, 1, 1, 2], [0, 1, 0, 1, 0], lambda i: picture(f"shot {i}"))


def test_each_candidate_is_shown_in_its_order_after_the_picture() -> None:
    mllm = TableMLLM(reply="Red. Answer: A")
    shortlist = Shortlist(RECORDS, candidates=2, exemplar=exemplars())
    for decoder in (ScoreDecoder(mllm, superclass="bird", target="letter"), ReasonDecoder(mllm, superclass="bird", max_new_tokens=9)):
        seen: list = []
        original = mllm.score
        mllm.score = lambda images, *rest, original=original, seen=seen, **more: (  # type: ignore[method-assign]
            seen.extend(images) or original([image[0] for image in images], *rest, **more)
        )
        SlowThinking(decoder, shortlist)([picture("x")], [fast_result([0.6, 0.4], ids=["b", "a"])])
        assert [[p.sha256 for p in image] for image in seen] == [["x", "shot 2", "shot 0"]]
        mllm.score = original  # type: ignore[method-assign]
    assert all(prompt.startswith("The first picture is the one in question") for prompt in mllm.prompts)


def test_a_support_image_never_meets_its_own_half() -> None:
    shown = exemplars()
    assert [shown("a", half).sha256 for half in (None, 0, 1)] == ["shot 0", "shot 1", "shot 0"]  # type: ignore[union-attr]
    assert shown("c", 0) is None
    options = Shortlist(RECORDS, candidates=3, exemplar=shown)(fast_result([0.5, 0.3, 0.2], ids=list("abc")), own=("c", 0))
    assert Question(tuple(options)).exemplars == ()  # one is missing: none is shown


def test_exemplars_without_candidates_in_the_question_are_refused() -> None:
    with pytest.raises(fgvr.ConfigError, match=r"slow.target=name or letter, or slow=reason"):
        fgvr.load_config("slow.exemplars=true")


# --- asking again ----------------------------------------------------------------------------------------------------------------

PROVEN, UNPROVEN = History(60, 60, 100), History(1, 0, 100)


def results(first: float, history: History):
    rest = [(1 - first) * 0.9, (1 - first) * 0.1, *[0.0] * 7]
    return fast_result([first, *rest], ids=["a", "b", "c", *map(str, range(7))], history=history)


@pytest.mark.parametrize(
    ("sure", "first", "history", "whose"),
    [
        (0.85, 0.90, PROVEN, "slow"),
        (0.60, 0.95, PROVEN, "fast"),
        (0.60, 0.95, UNPROVEN, "ask"),
        (0.72, 0.60, PROVEN, "slow"),
        (0.60, 0.60, PROVEN, "ask"),
    ],
)
def test_who_stands_without_asking(sure, first, history, whose) -> None:
    assert winner(results(first, history), SlowResult("b", {"b": sure, "a": 1 - sure})) == whose
    assert winner(results(first, history), SlowResult("a", {"a": sure, "b": 1 - sure})) == "slow"


def test_the_open_cases_are_asked_between_the_two_answers_only() -> None:
    answers = [
        SlowResult("b", {"b": 0.5, "a": 0.3, "c": 0.2}),
        SlowResult("b", {"b": 0.9, "a": 0.1}),
        SlowResult("b", {"b": 0.6, "a": 0.4}),
    ]
    fast = [results(0.6, UNPROVEN), results(0.6, UNPROVEN), results(0.95, PROVEN)]
    mllm = TableMLLM(lambda sha256, words: 2.0 if words == "A" else 0.0)
    decoder = ScoreDecoder(mllm, superclass="bird", target="letter")
    records = {c: class_record(c) for c in "abc0123456"}
    asking = Reprompt(lambda pictures, results: answers, decoder, Shortlist(records, candidates=5))
    settled = asking([picture("x"), picture("y"), picture("z")], fast)
    assert [answer.category for answer in settled] == ["a", "b", "a"]
    (asked,) = mllm.prompts
    assert "A. name a" in asked and "B. name b" in asked and "name c" not in asked
    assert settled[0].probabilities["a"] + settled[0].probabilities["b"] == pytest.approx(0.8)
    assert settled[0].probabilities["c"] == 0.2
    assert settled[1] == answers[1]
    assert "System 1 stands" in settled[2].rationale


def test_few_exemplars_stay_open_however_many_classes_there_are() -> None:
    opened: list[int] = []
    shown = Exemplars([f"{i:03d}" for i in range(100)], list(range(100)), [0] * 100, lambda i: (opened.append(i), picture(f"shot {i}"))[1])
    for category in ("000", "000", *(f"{i:03d}" for i in range(1, 100)), "000"):
        assert shown(category, None) is not None
    assert opened == [*range(100), 0], "the one in use is opened once, the first one again after a hundred others"
