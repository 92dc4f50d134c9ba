"""Final answers with abstention: what is withheld, what is promised, and that the promise is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fgvr
from fgvr import modes
from fgvr.agents.calibration import Abstainer, Calibrator, certainty, fit_abstention
from fgvr.errors import ConfigError
from fgvr.evaluation.records import from_row, to_row
from fgvr.modes import runs
from fgvr.runtime.pool import close_shared
from fgvr.session import Session
from fgvr.types import Decision, Prediction
from tests.agents.doubles import fast_result

EPSILON, DELTA, DRAWS, MOST_VIOLATIONS = 0.1, 0.1, 2000, 232


def prediction(score: float, *, right: bool = True, by: str = "slow") -> Prediction:
    decision = Decision(by == "slow", score if by == "fast" else 0.0, 0.5, {})
    confidence = score if by == "slow" else 0.01
    return Prediction("i", "s", "a", "a" if right else "b", "A", confidence, by, fast_result([0.9, 0.1]), decision)  # type: ignore[arg-type]


def drawn(rng: np.random.Generator, n: int) -> list[Prediction]:
    """Answers whose certainty s is uniform and which are right with probability .5 + .5 s."""
    scores = rng.random(n)
    return [prediction(s, right=bool(r)) for s, r in zip(scores, rng.random(n) < 0.5 + 0.5 * scores, strict=True)]


def test_certainty_is_that_of_the_system_that_answered() -> None:
    assert certainty(prediction(0.7, by="slow")) == certainty(prediction(0.7, by="fast")) == 0.7


@pytest.mark.parametrize(("form", "risk"), [("joint", lambda t: (1 - t) ** 2 / 4), ("selective", lambda t: (1 - t) / 4)])
@pytest.mark.parametrize("n", [160, 400])
def test_the_promise_about_final_answers_is_kept(form, risk, n) -> None:
    """True risks in closed form: answered iff s >= t, wrong with probability (1 - s) / 2."""
    rng = np.random.default_rng(5)
    scores, right = rng.random((DRAWS, n)), rng.random((DRAWS, n))
    expected = rng.random(160)
    broken = 0
    for s, r in zip(scores, right < 0.5 + 0.5 * scores, strict=True):
        answers = _Answers(s, r)
        threshold = fit_abstention(answers, epsilon=EPSILON, delta=DELTA, form=form, expected=expected).threshold  # type: ignore[arg-type]
        broken += threshold < 1 and risk(threshold) > EPSILON
    assert broken <= MOST_VIOLATIONS


class _Answers(list):
    """Predictions made of arrays, without two thousand times four hundred records of candidates."""

    def __init__(self, scores: np.ndarray, right: np.ndarray) -> None:
        super().__init__(_Answer(float(s), bool(r)) for s, r in zip(scores, right, strict=True))


class _Answer:
    by = "slow"

    def __init__(self, confidence: float, correct: bool) -> None:
        self.confidence, self.correct = confidence, correct


def test_answers_below_the_threshold_are_withheld_with_their_reason() -> None:
    guarantee = fit_abstention(drawn(np.random.default_rng(1), 400), epsilon=0.1, delta=0.1, form="joint", expected=np.empty(0))
    assert guarantee.certified and "of all images are answered and wrong" in str(guarantee)
    low, high = Abstainer(lambda: guarantee)([prediction(guarantee.threshold - 0.01), prediction(guarantee.threshold)])
    assert low.abstention is not None and low.abstention.withheld
    assert low.answer.startswith("no answer: certainty") and low.answer.endswith("(best guess: A)")
    assert high.answer == "A" and from_row(to_row(high)).abstention is not None
    assert from_row(to_row(low)).abstention == pytest.approx(low.abstention) or from_row(to_row(low)).abstention.withheld


def test_too_few_images_withhold_every_answer_and_say_how_many_are_needed() -> None:
    guarantee = fit_abstention([prediction(0.9)] * 10, epsilon=0.05, delta=0.1, form="joint", expected=np.empty(0))
    assert "needs >= 45 error-free accepted): all answers are withheld" in str(guarantee)
    (answer,) = Abstainer(lambda: guarantee)([prediction(1.0)])
    assert answer.abstention is not None and answer.abstention.withheld


def test_both_promises_from_the_same_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="neither promise"):
        fgvr.load_config("trigger.target=risk:0.1@0.1", "trigger.abstain=risk:0.1@0.1")
    with pytest.raises(ConfigError, match=r"trigger\.abstain='precision:0\.9'"):
        fgvr.load_config("trigger.abstain=precision:0.9")
    with pytest.raises(ConfigError, match=r"trigger\.abstain='risk:2'"):
        Calibrator(target="slow_rate:0.6", abstain="risk:2")


# --- through the modes --------------------------------------------------------------------------------------------------------

SMALL = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=3", "evaluation.batch_size=5", "trigger.target=slow_rate:0.5")


@pytest.fixture
def own_pool():
    close_shared()
    yield
    close_shared()


def test_an_evaluation_states_what_was_withheld_and_what_is_promised(own_pool, tmp_path) -> None:
    words = (*SMALL, "dataset.calibration=4", "trigger.abstain=risk:0.4@0.2")
    report = fgvr.evaluate(fgvr.load_config(*words))
    body = json.loads((report.path / "report.json").read_text())
    rows = [json.loads(line) for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]
    withheld = [row["abstention"]["withheld"] for row in rows]
    assert body["abstention"]["withheld"] == sum(withheld)
    assert body["abstention"]["answered"] == pytest.approx(1 - np.mean(withheld))
    wrong = [not row["abstention"]["withheld"] and row["prediction"] != row["label"] for row in rows]
    assert body["abstention"]["answered_and_wrong"] == pytest.approx(np.mean(wrong))
    assert any(note.startswith("final answers: ") for note in report.notes)
    assert "Answers given" in (report.path / "report.html").read_text()
    with pytest.raises(ConfigError, match="use mode=evaluate"):
        modes.perform(fgvr.load_config(*words, "mode=replay", f"predictions={report.path / runs.PREDICTIONS}"))


def test_without_calibration_images_nothing_is_promised(own_pool) -> None:
    with pytest.raises(ConfigError, match=r"write dataset\.calibration=4"):
        fgvr.evaluate(fgvr.load_config(*SMALL, "dataset.calibration=0", "trigger.abstain=risk:0.4@0.2"))


def test_classify_says_no_answer_with_its_reason(own_pool) -> None:
    words = (*SMALL, "dataset.calibration=1", "trigger.abstain=risk:0.05@0.1")  # six images cannot carry it: everything is withheld
    image = next(iter(Session(fgvr.load_config(*words)).dataset.split.test)).image
    (answer,) = modes.perform(fgvr.load_config(*words, "mode=classify", f"image='{image}'"))
    assert str(answer).split(": ", 1)[1].startswith("no answer: certainty")
    run = next((Session(fgvr.load_config(*words)).home / "runs" / "classify").iterdir())
    assert "no answer: certainty" in (run / "report.html").read_text()
