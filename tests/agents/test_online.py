"""Learning while running: what is learned, that it replays bit for bit, and that the base stays as it was."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

import fgvr
from fgvr.agents.fusion import Fusion
from fgvr.agents.online import OnlineRetrieval, OnlineState, OnlineUpdate, quality_of
from fgvr.knowledge.prototypes import Prototypes, unit
from fgvr.knowledge.statistics import Statistics
from fgvr.modes import runs
from fgvr.runtime.pool import close_shared
from fgvr.types import Decision, History, Prediction, SlowResult
from tests.agents.doubles import fast_result, picture

IDS = ("a", "b", "c")
RNG = np.random.default_rng(0)
SHOTS = unit(RNG.normal(size=(6, 8)))
OWNERS = np.array([0, 0, 1, 1, 2, 2])
BASE = Prototypes(IDS, SHOTS, OWNERS, np.array([0, 1] * 3), unit(RNG.normal(size=(3, 8))), np.zeros((2, 3, 8), np.float32))
STATISTICS = Statistics.count(IDS, OWNERS, np.array([0, 0, 1, 1, 2, 1]))


class Pixels:
    """An encoder that reads the vector off the picture's name."""

    fingerprint, logit_scale = "pixels", 20.0

    def encode(self, images):
        return unit(np.stack([np.random.default_rng(int(image.sha256)).normal(size=8) for image in images]))


def answer(sha256: str, fast: str, final: str, *, by="slow", confidence=0.95, top=0.9) -> Prediction:
    ids = [fast, *(c for c in IDS if c != fast)]
    seen = fast_result([top, (1 - top) * 0.6, (1 - top) * 0.4], ids=ids, sha256=sha256, history=History(60, 58, 100))
    slow = SlowResult(final, {final: confidence}) if by == "slow" else None
    return Prediction(f"{sha256}.png", sha256, None, final, final, confidence, by, seen, Decision(by == "slow", 0, 0), slow)


def learner(kind) -> OnlineRetrieval:
    return OnlineRetrieval(Pixels(), BASE, STATISTICS, fusion=Fusion(top_k=3), kind=kind)  # type: ignore[arg-type]


def test_system_2_judges_what_system_1_said_and_a_fast_answer_is_not_counted() -> None:
    online = learner("statistics")
    before = online.state.histories()
    online.learn([answer("1", "a", "a"), answer("2", "a", "b"), answer("3", "c", "c", by="fast"), answer("4", "b", "c", confidence=0.5)])
    a, b, c = online.state.histories()
    assert (a.seen - before[0].seen, a.correct - before[0].correct) == (2, 1)
    assert (b.seen, b.correct, c.seen) == (before[1].seen, before[1].correct, before[2].seen)
    assert {h.total for h in (a, b, c)} == {before[0].total + 2}


def test_a_good_answer_moves_its_prototype_a_small_step_towards_the_picture() -> None:
    online = learner("prototypes")
    pictures = [picture("7"), picture("8")]
    online(pictures)
    vector = Pixels().encode(pictures)[0]
    online.learn([answer("7", "a", "a"), answer("8", "b", "c", confidence=0.3, top=0.35)])
    moved, untouched = online.state.image, BASE.image
    assert moved[0] @ vector > untouched[0] @ vector
    assert np.linalg.norm(moved[0] - untouched[0]) <= 0.1 * np.linalg.norm(vector - untouched[0]) + 1e-6
    assert np.array_equal(moved[1:], untouched[1:])
    assert np.linalg.norm(moved[0]) == pytest.approx(1, abs=1e-6)


def test_doubt_disagreement_and_a_poor_history_lower_the_quality() -> None:
    best = answer("1", "a", "a")
    worse = [answer("1", "a", "a", confidence=0.4), answer("1", "b", "a"), replace(best, fast=replace(best.fast, history=History(0, 0, 9)))]
    assert quality_of(best) >= 0.7
    assert all(quality_of(p) < quality_of(best) for p in worse)


@pytest.mark.parametrize("kind", ["statistics", "prototypes"])
def test_the_journal_replays_to_the_identical_state(kind) -> None:
    online, journal = learner(kind), []
    online.journal = lambda updates: journal.extend(json.dumps(asdict(update)) for update in updates)
    for batch in range(5):
        shas = [str(10 * batch + i) for i in range(4)]
        online([picture(sha) for sha in shas])
        online.learn([answer(sha, IDS[i % 3], IDS[(i + batch) % 3]) for i, sha in enumerate(shas)])
    assert journal
    again = OnlineState(BASE, STATISTICS)
    again.apply(OnlineUpdate(**json.loads(line)) for line in journal)
    assert np.array_equal(again.image, online.state.image)
    assert again.histories() == online.state.histories()


def test_before_the_first_lesson_nothing_differs_and_the_base_is_never_touched() -> None:
    online, before = learner("prototypes"), (BASE.image.copy(), STATISTICS.confusion.copy())
    queries = Pixels().encode([picture("5")])
    assert np.allclose(online.state.compare(queries).image, BASE.compare(queries).image)
    online([picture("7")])
    online.learn([answer("7", "a", "a")])
    assert np.array_equal(BASE.image, before[0]) and np.array_equal(STATISTICS.confusion, before[1])


# --- in a run ------------------------------------------------------------------------------------------------------------------

SMALL = (
    "mode=evaluate",
    "models=fake",
    "dataset.genera=[3,3]",
    "dataset.test_per_class=8",
    "dataset.calibration=1",
    "evaluation.batch_size=6",
)


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch):
    """Updates from any answer: the fake models are never sure."""
    become(monkeypatch, CONFIDENT=0.0, GOOD=0.0)


def become(monkeypatch: pytest.MonkeyPatch, **constants: float) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(f"fgvr.agents.online.{name}", value)


def answers(report: fgvr.Report) -> list:
    rows = [json.loads(line) for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "cost"} for row in rows]


@pytest.mark.parametrize("kind", ["statistics", "prototypes"])
def test_an_interrupted_run_learns_and_answers_the_same(kind, eager, intercept, tmp_path) -> None:
    words = (*SMALL, "trigger=always", f"online={kind}")
    whole = fgvr.evaluate(fgvr.load_config(*words, f"paths.home={tmp_path / 'whole'}"))
    cfg = fgvr.load_config(*words, f"paths.home={tmp_path / 'parts'}")

    def dies(learn, self, predictions, calls=[]):  # noqa: B006 - counts over calls
        learn(self, predictions)
        calls.append(1)
        if len(calls) == 4:  # learned and journalled, but never recorded
            raise KeyboardInterrupt

    with intercept(OnlineRetrieval, "learn", dies), pytest.raises(KeyboardInterrupt):
        fgvr.evaluate(cfg)
    close_shared()
    resumed = fgvr.evaluate(cfg)
    assert answers(resumed) == answers(whole)
    assert (resumed.path / runs.LESSONS).read_text() == (whole.path / runs.LESSONS).read_text() != ""


def test_learning_changes_later_answers_and_switched_off_nothing_is_left_of_it(eager, monkeypatch) -> None:
    off = answers(fgvr.evaluate(fgvr.load_config(*SMALL, "trigger=never")))
    learning = fgvr.load_config(*SMALL, "trigger=never", "online=prototypes")
    become(monkeypatch, RATE=5.0, MOST=0.9)
    on = answers(fgvr.evaluate(learning))
    assert on[:6] == off[:6]  # the first batch is answered before anything is learned
    assert on != off
    again = fgvr.evaluate(fgvr.load_config(*SMALL, "trigger=never", "run.fresh=true"))
    assert answers(again) == off


def test_no_risk_is_promised_for_a_system_that_changes() -> None:
    with pytest.raises(fgvr.ConfigError, match="online=off"):
        fgvr.load_config(*SMALL, "online=statistics", "trigger.target=risk:0.1@0.1")
    with pytest.raises(fgvr.ConfigError, match="off, statistics, prototypes"):
        fgvr.load_config(*SMALL, "online=always")
