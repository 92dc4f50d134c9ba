"""The shipped, trained models end to end on a small development world: they really recognise, and each part does its share."""

from __future__ import annotations

import pytest

import fgvr
from fgvr.runtime.pool import close_shared
from fgvr.session import Session

WORLD = ("models=tiny", "dataset.seed=9002", "dataset.genera=[4,4,4]", "dataset.test_per_class=5", "dataset.calibration=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    """One home, hence one knowledge base, for the whole file; nothing of it reaches other tests."""
    close_shared()
    yield f"paths.home={tmp_path_factory.mktemp('tiny')}"
    close_shared()


def load(home: str, *overrides: str):
    return fgvr.load_config(*WORLD, home, *overrides)


def test_the_mllm_describes_what_the_species_really_look_like(home):
    from fgvr.data import birds

    base = fgvr.build_knowledge_base(load(home))
    truth = birds.make_world(9002, (4, 4, 4)).species
    read = [birds.read(record.description.text) for record in base.classes]
    right = [seen == real for one, species in zip(read, truth, strict=True) for seen, real in zip(one, species.attributes, strict=True)]
    assert sum(right) / len(right) > 0.9


def test_slow_thinking_beats_fast_thinking_and_both_beat_chance(home):
    fast, slow = fgvr.evaluate(load(home, "trigger=never")), fgvr.evaluate(load(home, "trigger=always"))
    assert fast.top1 > 0.4, "chance is 1/12"
    assert slow.top1 > fast.top1
    assert slow.top1 > 0.75
    assert fast.notes[0].startswith("these models know only rendered birds")


@pytest.mark.slow
def test_comparing_candidates_in_words_beats_fast_thinking(home):
    fast, reason = fgvr.evaluate(load(home, "trigger=never")), fgvr.evaluate(load(home, "trigger=always", "slow=reason"))
    assert reason.top1 > fast.top1
    assert reason.top1 > 0.75


def test_the_calibrated_trigger_keeps_most_of_the_gain_at_a_part_of_the_cost(home):
    report = fgvr.evaluate(load(home, "trigger=calibrated"))
    fast, slow = fgvr.evaluate(load(home, "trigger=never")), fgvr.evaluate(load(home, "trigger=always"))
    assert 0.3 < report.slow_rate < 0.85
    assert report.top1 - fast.top1 >= 0.5 * (slow.top1 - fast.top1)
    assert report.cost["mllm_calls"] == 0, "every answer it needed is remembered from trigger=always"


def test_a_prediction_can_be_explained(home):

    cfg = load(home)
    prediction = fgvr.build_recognizer(cfg)(Session(cfg).dataset.split.test[0])
    assert prediction.decision.terms and prediction.names[prediction.fast.top.category]
    assert sum(c.probability for c in prediction.fast.candidates) == pytest.approx(1, abs=1e-5)


def test_batches_and_single_images_are_answered_alike(home):

    cfg = load(home, "trigger=always", "store.enabled=false")
    samples = Session(cfg).dataset.split.test[:6]
    recognizer = fgvr.build_recognizer(cfg)
    together = recognizer.batch(samples)
    alone = [recognizer(sample) for sample in reversed(samples)][::-1]
    assert [p.category for p in together] == [p.category for p in alone]
    assert [p.confidence for p in together] == pytest.approx([p.confidence for p in alone], abs=1e-3)


def test_the_matcher_prefers_a_birds_own_description_to_its_siblings(home):
    from fgvr.data import birds
    from fgvr.data.pictures import open_picture

    cfg = load(home)
    said = [species.describe() for species in birds.make_world(9002, (4, 4, 4)).species]
    samples = Session(cfg).dataset.split.test[::3]
    with fgvr.shared_pool(cfg).lease("joint") as joint:
        scores = [joint.match([open_picture(sample.image)] * len(said), said) for sample in samples]
    right = [int(row.argmax()) == int(sample.label or -1) for row, sample in zip(scores, samples, strict=True)]
    assert sum(right) / len(right) > 0.6, "chance is 1/12"
    assert Session(cfg).specs["joint"].source == "tiny"
