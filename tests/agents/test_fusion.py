import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvr.agents.fusion import Fusion, entropy, fuse, ranks
from fgvr.knowledge.prototypes import Similarities
from fgvr.types import History

NOBODY = History(0, 0, 0)


def run(image, text, *, fusion=Fusion(), tau=0.1, name=None):
    image, text = np.atleast_2d(np.array(image, float)), np.atleast_2d(np.array(text, float))
    ids = [f"c{i}" for i in range(image.shape[1])]
    similarities = Similarities(image, text, None if name is None else np.atleast_2d(np.array(name, float)))
    return fuse([f"h{i}" for i in range(len(image))], similarities, ids, [NOBODY] * len(ids), fusion=fusion, temperature=tau)


def test_the_formula_of_the_specification_by_hand():
    (result,) = run([0.9, 0.5, 0.1], [0.2, 0.8, 0.1], fusion=Fusion(top_k=2), tau=0.5)
    # Both top-2 lists hold classes 0 and 1, so the softmax runs over these two alone.
    p_image = np.exp(0.9 / 0.5) / (np.exp(0.9 / 0.5) + np.exp(0.5 / 0.5))
    p_text = np.exp(0.2 / 0.5) / (np.exp(0.2 / 0.5) + np.exp(0.8 / 0.5))
    expected = 0.3 * p_image + 0.7 * p_text
    shares = {c.category: c.probability for c in result.candidates}
    assert shares == pytest.approx({"c1": 1 - expected, "c0": expected})
    assert result.top.category == "c1"
    assert result.confidence == pytest.approx(1 - expected + 0.1 * (1 / 62 + 1 / 61))
    assert result.margin == pytest.approx(1 - 2 * expected)
    assert not result.agreement


def test_the_shortlist_is_the_union_of_both_modalities():
    (result,) = run([5, 4, 0, 0, 0], [0, 0, 0, 4, 5], fusion=Fusion(top_k=2))
    assert {c.category for c in result.candidates} == {"c0", "c1", "c3", "c4"}
    by_id = {c.category: c for c in result.candidates}
    assert (by_id["c0"].image_rank, by_id["c0"].text_rank) == (1, 3), "ranks are those among all classes"


def test_a_class_without_description_is_neither_lifted_nor_sunk():
    (with_text,) = run([0.5, 0.5, 0.5], [0.6, 0.3, 0.0])
    (without,) = run([0.5, 0.5, 0.5], [0.6, np.nan, 0.0])
    assert without.top.category == with_text.top.category
    missing = next(c for c in without.candidates if c.category == "c1")
    assert missing.text_score is None
    assert missing.probability == pytest.approx(next(c for c in with_text.candidates if c.category == "c1").probability)


def test_names_carry_a_class_whose_description_failed():
    (result,) = run([0.5, 0.5], [np.nan, 0.2], name=[0.9, 0.2])
    assert result.top.category == "c0"


def test_one_class_alone_is_certain():
    (result,) = run([0.1], [0.1])
    assert result.top.probability == pytest.approx(1)
    assert result.entropy == 0 and result.ambiguity == 0 and result.margin == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_probabilities_are_a_distribution_in_descending_order(batch, classes, seed, top_k):
    rng = np.random.default_rng(seed)
    for result in run(rng.normal(size=(batch, classes)), rng.normal(size=(batch, classes)), fusion=Fusion(top_k=top_k)):
        p = [c.probability for c in result.candidates]
        assert sum(p) == pytest.approx(1)
        assert p == sorted(p, reverse=True)
        assert 0 <= result.entropy <= np.log(len(p)) + 1e-9
        assert result.entropy == entropy(np.array(p)), "to the bit, though all images of a batch are summed together"
        assert min(top_k, classes) <= len(p) <= min(2 * top_k, classes)


def test_an_image_is_ranked_the_same_alone_and_in_a_batch():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(7, 9)), rng.normal(size=(7, 9))
    together = run(image, text)
    alone = [run(image[i], text[i])[0] for i in range(7)]
    assert [r.candidates for r in together] == [r.candidates for r in alone]


def test_ranks_break_ties_in_class_order():
    assert ranks(np.array([[1.0, 2.0, 2.0]])).tolist() == [[3, 1, 2]]
