import numpy as np
import pytest

from fgvr.agents import prompts
from fgvr.agents.answer_fusion import LogLinearFusion, fit_weight, fuse_answers
from fgvr.agents.describe import Describer
from fgvr.agents.slow import ReasonDecoder, ScoreDecoder, Shortlist, SlowThinking, posterior
from fgvr.errors import ConfigError
from fgvr.knowledge.classes import DescribeRequest
from fgvr.types import SlowResult
from tests.agents.doubles import TableMLLM, class_record, fast_result, picture

RECORDS = {f"c{i}": class_record(f"c{i}", f"words {i}") for i in range(8)}


def decoder(mllm, *, candidates=5, target="description", records=RECORDS):
    return SlowThinking(ScoreDecoder(mllm, superclass="bird", target=target), Shortlist(records, candidates=candidates))


def test_the_candidate_whose_description_fits_best_wins():
    mllm = TableMLLM(lambda sha256, words: 0.0 if words == "words 2" else -3.0)
    (answer,) = decoder(mllm)([picture("a")], [fast_result([0.5, 0.3, 0.2])])
    assert answer.category == "c2"
    assert answer.probabilities["c2"] == pytest.approx(1 / (1 + 2 * np.exp(-3)))
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert mllm.systems == {prompts.SYSTEM}


def test_an_answer_outside_the_shortlist_cannot_happen():
    mllm = TableMLLM(lambda sha256, words: 10.0 if words == "words 7" else 0.0)
    (answer,) = decoder(mllm, candidates=3)([picture("a")], [fast_result([0.3, 0.25, 0.2, 0.15, 0.1])])
    assert set(answer.probabilities) == {"c0", "c1", "c2"}


def test_all_classes_can_be_shown():
    mllm = TableMLLM(lambda sha256, words: 10.0 if words == "words 7" else 0.0)
    (answer,) = decoder(mllm, candidates="all")([picture("a")], [fast_result([0.6, 0.4])])
    assert answer.category == "c7" and len(answer.probabilities) == 8


def test_a_class_without_description_keeps_its_fast_share():
    records = RECORDS | {"c1": class_record("c1", "")}
    mllm = TableMLLM(lambda sha256, words: 0.0)
    (answer,) = decoder(mllm, records=records)([picture("a")], [fast_result([0.5, 0.3, 0.2])])
    assert answer.probabilities["c1"] == pytest.approx(0.3)
    assert answer.probabilities["c0"] == pytest.approx(0.35)


@pytest.mark.parametrize("target", ["name", "letter"])
def test_multiple_choice_lists_every_candidate_with_its_description(target):
    mllm = TableMLLM()
    decoder(mllm, target=target)([picture("a")], [fast_result([0.5, 0.3, 0.2])])
    assert mllm.prompts == [prompts.choose("bird", [f"name c{i}" for i in range(3)], [f"words {i}" for i in range(3)], (), ending=target)]


def test_reasoning_keeps_its_words_and_answers_with_a_letter_it_was_shown():
    mllm = TableMLLM(lambda sha256, words: 0.0 if words.endswith("Answer: B") else -2.0, reply="A red crown. Answer: Z")
    thinking = SlowThinking(ReasonDecoder(mllm, superclass="bird", max_new_tokens=60), Shortlist(RECORDS, candidates=3))
    (answer,) = thinking([picture("a")], [fast_result([0.5, 0.3, 0.2])])
    assert answer.category == "c1" and answer.status == "answered"
    assert answer.rationale == "A red crown."
    assert all(prompt.endswith("First say what you see, then answer with its letter.") for prompt in mllm.prompts)


def test_more_candidates_than_letters_are_refused():
    many = {f"c{i}": class_record(f"c{i}") for i in range(30)}
    with pytest.raises(ConfigError, match=r"letters tell 26.*slow.target=name"):
        decoder(TableMLLM(), candidates="all", target="letter", records=many)([picture("a")], [fast_result([0.6, 0.4])])


@pytest.mark.parametrize("candidates", [0, -1, "most", True])
def test_a_shortlist_of_no_size_is_refused(candidates):
    with pytest.raises(ConfigError, match="slow.candidates"):
        Shortlist(RECORDS, candidates=candidates)


def test_a_support_image_meets_only_the_words_of_the_other_half_for_its_own_class():
    options = Shortlist(RECORDS, candidates=3)(fast_result([0.5, 0.3, 0.2]), own=("c1", 0))
    assert [o.description for o in options] == ["words 0", "fold zero", "words 2"]


def test_nothing_scored_leaves_the_prior():
    assert posterior(np.array([np.nan, np.nan]), np.array([0.75, 0.25])) == pytest.approx([0.75, 0.25])


def test_pooling_between_the_two_systems():
    fast, slow = np.array([0.8, 0.2]), np.array([0.1, 0.9])
    assert fuse_answers(fast, slow, 0.0) == pytest.approx(fast)
    assert fuse_answers(fast, slow, 1.0) == pytest.approx(slow)
    assert fuse_answers(fast, slow, 0.5) == pytest.approx(np.sqrt(fast * slow) / np.sqrt(fast * slow).sum())


def test_the_fitted_weight_trusts_whoever_is_right():
    good, bad = {"c0": 0.9, "c1": 0.1}, {"c0": 0.1, "c1": 0.9}
    assert fit_weight([(fast_result([0.1, 0.9]), good, "c0")] * 5) == 1.0
    assert fit_weight([(fast_result([0.9, 0.1]), bad, "c0")] * 5) == 0.0
    mixed = [(fast_result([0.6, 0.4]), good, "c0")] * 3 + [(fast_result([0.6, 0.4]), bad, "c0")]
    assert 0 < fit_weight(mixed) < 1


def test_without_leave_one_out_system_2_is_trusted():
    assert fit_weight([]) == 1.0


def test_the_arbiter_answers_among_what_system_2_judged():
    slow = SlowResult("c2", {"c1": 0.2, "c2": 0.8})
    category, confidence = LogLinearFusion(weight=0.5)(fast_result([0.6, 0.3, 0.1]), slow)
    assert category in ("c1", "c2") and 0.5 <= confidence <= 1


def test_a_description_that_failed_is_recorded_as_failed():
    requests = [DescribeRequest("crake", "bird", (picture("a"), picture("b")))]
    mllm = TableMLLM(reply="  a   red crown ")
    assert Describer(mllm, max_new_tokens=40)(requests)[0].text == "a red crown"
    assert mllm.images == [requests[0].pictures]
    (failed,) = Describer(TableMLLM(reply="  "), max_new_tokens=40)(requests)
    assert failed.status == "failed" and failed.text == ""
