"""Named protocols against independent implementations, and the audit of what they would accept."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

from fgvr.errors import ConfigError
from fgvr.evaluation import scoring_protocols
from fgvr.evaluation.records import Outcomes, outcomes
from fgvr.evaluation.scoring_protocols import Sentences
from scripts import audit_scorer

rng = np.random.default_rng(5)
LISTS = Path(os.environ.get("FGVR_TEST_DATA", Path(__file__).parents[3] / "shared/data")) / "class_names/class_names.json"


def seen(answers: list[str], labels: list[str], **more) -> Outcomes:
    n = len(labels)
    zeros = np.zeros(n)
    texts = tuple(zip(answers, labels, strict=True))
    rankings = tuple([a] for a in answers)
    given = {"rankings": rankings, "texts": texts, "classes": {c: c for c in sorted({*labels, *answers} - {""})}} | more
    no = np.zeros(n, bool)
    return Outcomes(
        np.arange(n), np.array(labels), np.array(answers), np.array(answers), no, no, zeros, zeros, zeros, zeros, zeros, **given
    )


def score(name: str, outcomes: Outcomes) -> float:
    return scoring_protocols.score(outcomes, [name])[name]


def best_by_trying(answers: list[str], labels: list[str]) -> float:
    """Every injective map from the smaller side to the larger one."""
    a, b = sorted(set(answers)), sorted(set(labels))
    pairs = list(zip(answers, labels, strict=True))
    if len(a) <= len(b):
        maps = (dict(zip(a, chosen, strict=True)) for chosen in itertools.permutations(b, len(a)))
        return max(sum(m[x] == y for x, y in pairs) for m in maps) / len(pairs)
    maps = (dict(zip(b, chosen, strict=True)) for chosen in itertools.permutations(a, len(b)))
    return max(sum(m[y] == x for x, y in pairs) for m in maps) / len(pairs)


def test_cacc_is_the_best_of_all_matchings_in_1000_random_cases():
    for _ in range(1000):
        n, k_answers, k_labels = (int(x) for x in rng.integers((1, 1, 1), (25, 6, 6)))
        answers, labels = rng.integers(0, k_answers, n).astype(str).tolist(), rng.integers(0, k_labels, n).astype(str).tolist()
        assert score("cacc", seen(answers, labels)) == pytest.approx(best_by_trying(answers, labels), abs=1e-12)


def test_cacc_ignores_what_classes_are_called_and_matches_no_image_without_an_answer():
    assert score("cacc", seen(["x", "x", "y"], ["a", "a", "b"])) == 1
    assert score("cacc", seen(["", "", "y"], ["a", "a", "b"])) == pytest.approx(1 / 3)
    assert score("cacc", seen(["", ""], ["a", "a"])) == 0


def test_sare_fuzzy_accepts_other_classes_and_is_as_ordered_as_difflib():
    fuzzy = scoring_protocols.get("sare_fuzzy@0.3")
    assert str(fuzzy) == "sare_fuzzy@0.3 v1"
    assert score(fuzzy.name, seen(["Acura TL Sedan 2012", "Kite"], ["Acura RL Sedan 2012", "Bowl"])) == 0.5
    assert fuzzy.accepts is not None
    for a, b in [("tide", "diet"), ("diet", "tide"), ("Rose", "rose"), ("Common Tern", "Arctic Tern")]:
        assert fuzzy.accepts(a, b) == (SequenceMatcher(None, a, b).ratio() >= 0.3)
        assert scoring_protocols.similar(a, b, 0.5) == (SequenceMatcher(None, a, b).ratio() >= 0.5)
    assert scoring_protocols.similar("tide", "diet", 0.5) != scoring_protocols.similar("diet", "tide", 0.5)


def test_text_inclusion_is_a_substring_so_a_rose_is_in_a_primrose():
    score = scoring_protocols.get("text_inclusion").score
    assert score(seen(["Pink Primrose", "a COLLIE ", "dog", ""], ["rose", "Collie", "Border Collie", "rose"])) == 0.5


def vectors(texts):
    table = {"a": [1.0, 0, 0], "b": [0.8, 0.6, 0], "c": [0, 1.0, 0], "d": [0, 0, 1.0], "e": [0.6, 0.8, 0]}
    return np.array([table[text] for text in texts])


SENTENCES = Sentences("a table", vectors)


def test_sacc_is_the_mean_cosine_and_no_answer_counts_zero():
    assert scoring_protocols.score(seen(["a", "b", ""], ["a", "a", "a"]), ["sacc"], SENTENCES) == {"sacc": pytest.approx((1 + 0.8) / 3)}


def test_a_protocol_that_needs_an_encoder_says_so_when_there_is_none():
    with pytest.raises(ConfigError, match="sacc v1 compares names with a text encoder"):
        scoring_protocols.score(seen(["a"], ["a"]), ["sacc"])


def test_multiple_choice_asks_among_the_classes_most_alike_in_name():
    classes = {c: c for c in "abcde"}
    run = seen(["d", "c"], ["a", "a"], rankings=(["d", "a"], ["c", "a"]), classes=classes)
    # The rivals of a are b, e and one of the orthogonal c and d (the first): d is no option, so a stands first; c is one, and wins.
    assert scoring_protocols.score(run, ["multiple_choice"], SENTENCES) == {"multiple_choice": 0.5}
    nobody = seen(["d"], ["a"], rankings=(["d"],), classes=classes)
    assert scoring_protocols.score(nobody, ["multiple_choice"], SENTENCES) == {"multiple_choice": 0}


def test_names_and_rankings_come_with_the_predictions(run, classes):
    predictions = [replace(p, names=classes) for p in run(60)]
    everything = outcomes(predictions)
    assert everything.texts[0] == (predictions[0].name, classes[str(predictions[0].label)])
    assert everything.classes == classes
    assert scoring_protocols.score(everything, ["text_inclusion", "exact"]) == pytest.approx(
        {"text_inclusion": np.mean([p.correct for p in predictions]), "exact": np.mean([p.correct for p in predictions])}
    )


@pytest.mark.parametrize(
    ("name", "told"), [("sare_fuzzy", "write its threshold"), ("sare_fuzzy@2", "0 to 1"), ("cac", "did you mean cacc")]
)
def test_a_wrong_name_is_answered_with_the_right_one(name, told):
    with pytest.raises(ConfigError, match=told):
        scoring_protocols.get(name)


# --- the audit ---------------------------------------------------------------------------------------------------------------


def test_the_audit_counts_ordered_pairs_as_a_double_loop_does():
    names = ["".join(rng.choice(list("abcd "), int(n))) for n in rng.integers(3, 12, 25)]
    for threshold in (0.3, 0.5, 0.7):
        pairs = [(a, b) for i, a in enumerate(names) for j, b in enumerate(names) if i != j]
        expected = np.mean([SequenceMatcher(None, a, b).ratio() >= threshold for a, b in pairs])
        assert scoring_protocols.accepted_wrong(names, scoring_protocols.get(f"sare_fuzzy@{threshold}")) == pytest.approx(expected)


def test_a_protocol_by_id_cannot_be_audited():
    with pytest.raises(ConfigError, match="exact v1"):
        scoring_protocols.accepted_wrong(["a", "b"], scoring_protocols.get("exact"))


@pytest.mark.skipif(not LISTS.exists(), reason=f"no class lists at {LISTS}")
@pytest.mark.parametrize(("classes", "share"), [("stanford_car196", 0.688), ("cub_bird200", 0.318), ("stanford_dog120", 0.241)])
def test_the_known_shares_of_the_public_scorer(classes, share):
    names = json.loads(LISTS.read_text())[classes]
    assert round(scoring_protocols.accepted_wrong(names, scoring_protocols.get("sare_fuzzy@0.3")), 3) == share


def test_the_command_prints_one_line_per_list(tmp_path: Path, capsys):
    (tmp_path / "kinds.txt").write_text("Rose\nPrimrose\nIris\n")
    assert audit_scorer.main([str(tmp_path / "kinds.txt"), "--protocols", "text_inclusion"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "kinds     3 classes  0.167"
    assert audit_scorer.main([str(tmp_path / "none.txt")]) == 3
    assert "none.txt cannot be read" in capsys.readouterr().err
