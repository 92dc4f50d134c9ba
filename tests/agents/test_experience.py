"""Learning from failures with an MLLM that obeys rules: what is learned, what is refused, and that the truth is never shown to System 2."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from fgvr.agents.experience_learning import ExperienceLearner
from fgvr.agents.reflect import Proposal, Reflector, WrongAnswer, merge, sample
from fgvr.agents.rule_validation import AcceptanceCriteria, Example, RuleEffect, benjamini_hochberg, sign_flip_p
from fgvr.agents.slow import Option, Question, ScoreDecoder, Shortlist, SlowThinking
from fgvr.knowledge.experience import Library
from fgvr.types import Experience, Picture, Reply, Scores
from tests.agents.doubles import class_record, fast_result, picture

REFLECTION = "was taken for"
GOOD = "Rule: Compare the tails.\nWhen: a and b are both candidates.\nCause: their wings are alike.\nPriority: high."


class Pupil:
    """Takes every `a` for a `b` until a rule about tails is in the prompt; a rule about wings confuses it; other rules change nothing."""

    fingerprint = "pupil"

    def __init__(self, *lessons: str) -> None:
        self.lessons = lessons or (GOOD,)
        self.reflections: list[str] = []
        self.questions: list[str] = []

    def generate(self, images, prompts, *, system="", max_new_tokens=128):
        self.reflections += prompts
        return [Reply(self.lessons[i % len(self.lessons)]) for i in range(len(prompts))]

    def score(self, images, prompts, continuations, *, system=""):
        self.questions += prompts
        return [
            Scores(tuple(self.nats(image.sha256[0], prompt, words) for words in options), (1,) * len(options), 5)
            for image, prompt, options in zip(images, prompts, continuations, strict=True)
        ]

    @staticmethod
    def nats(truth: str, prompt: str, words: str) -> float:
        sees = "b" if truth == "a" and "tails" not in prompt else truth
        if "wings" in prompt:
            sees = {"a": "b", "b": "a"}.get(truth, truth)
        return 2.0 if words == f"looks like {sees}" else 0.0


class Words:
    """An encoder to which sentences with the same first word mean the same."""

    def encode_text(self, texts):
        heads = sorted({text.split()[0] for text in texts})
        return np.eye(len(heads) or 1, dtype=np.float32)[[heads.index(text.split()[0]) for text in texts]]


def option(category: str) -> Option:
    return Option(category, f"name {category}", f"looks like {category}", 0.3)


def examples(per_class: int = 12, classes: str = "abc") -> list[Example]:
    question = Question(tuple(option(c) for c in classes))
    return [Example(i, i % 2, question, c, f"{c}{n}") for i, (c, n) in enumerate((c, n) for c in classes for n in range(per_class))]


def learner(mllm, cases, *, failures: int = 24, criteria: AcceptanceCriteria | None = None) -> ExperienceLearner:
    return ExperienceLearner(
        decoder=ScoreDecoder(mllm, superclass="bird", target="description"),
        reflector=Reflector(mllm, superclass="bird", max_new_tokens=100),
        encoder=Words(),  # type: ignore[arg-type]
        pictures=lambda indices: [picture(cases[i].sha256) for i in indices],
        batches=lambda n: [range(i, min(i + 5, n)) for i in range(0, n, 5)],
        failures=failures,
        alike=0.9,
        criteria=criteria or AcceptanceCriteria(),
        most=3,
    )


def learn(mllm, cases=None, **settings):
    cases = cases or examples()
    return learner(mllm, cases, **settings).learn(cases, range(len(cases)))


def test_a_rule_that_helps_is_learned_with_its_evidence_and_obeyed_at_inference() -> None:
    pupil = Pupil()
    lessons = learn(pupil)
    assert (lessons.failures, lessons.unreadable) == (12, 0)
    assert [rule.status for rule in lessons.rules] == ["accepted", "accepted"]  # one from each half of the shots
    for rule in lessons.rules:
        assert rule.pair == ("a", "b") and rule.priority == "high" and rule.root_cause == "their wings are alike."
        assert (rule.n, rule.fixed, rule.broken) == (18, 6, 0)
        assert rule.p is not None and rule.p < 0.05
        assert rule.gain is not None and rule.gain > 0

    shortlist = Shortlist({c: class_record(c, f"looks like {c}") for c in "abc"}, candidates=3)
    result = fast_result([0.4, 0.35, 0.25], ids=list("bac"))
    decoder = ScoreDecoder(pupil, superclass="bird", target="description")
    criteriae = SlowThinking(decoder, shortlist)([picture("a99")], [result])[0]
    taught = SlowThinking(decoder, shortlist, Library(lessons.rules, most=1))([picture("a99")], [result])[0]
    assert (criteriae.category, criteriae.rules) == ("b", ())
    assert (taught.category, taught.rules) == ("a", ("Compare the tails.",))


def test_a_harmful_rule_is_rejected_and_a_useless_one_left_undecided() -> None:
    lessons = learn(Pupil("Rule: Look at the wings.", "Rule: Be careful."))
    assert {rule.rule: rule.status for rule in lessons.rules} == {"Look at the wings.": "rejected", "Be careful.": "undecided"}
    assert all(rule.broken > rule.fixed for rule in lessons.rules if rule.status == "rejected")
    assert {rule.rule: np.sign(rule.gain) for rule in lessons.rules} == {"Look at the wings.": -1, "Be careful.": 0}


def test_what_a_rule_gained_is_the_mean_over_the_images_it_was_tried_on() -> None:
    assert RuleEffect(np.array([1.0, -0.5]), fixed=1, broken=0).gain == 0.25
    assert RuleEffect(np.zeros(0), fixed=0, broken=0).gain is None


def test_a_rule_tried_on_too_few_images_is_undecided() -> None:
    lessons = learn(Pupil(), examples(per_class=4))
    assert [(rule.n, rule.status) for rule in lessons.rules] == [(6, "undecided"), (6, "undecided")]


def test_a_rule_is_never_tried_on_the_half_it_was_learned_from() -> None:
    cases = examples()
    for rule in learn(Pupil(), cases).rules:
        learned_on = {case.fold for case in cases if case.sha256 in rule.sources}
        assert len(learned_on) == 1
        assert rule.n == sum(case.fold not in learned_on for case in cases)


def test_answers_that_state_no_rule_are_counted_and_nothing_enters_the_library() -> None:
    lessons = learn(Pupil("I am sorry."))
    assert lessons.rules == ()
    assert lessons.unreadable == lessons.reflected == 12
    assert "12 answers stated none" in str(lessons)


def test_rules_that_only_harm_together_are_switched_off() -> None:
    class Crowded(Pupil):
        """Each rule helps alone; two at once are too much."""

        @staticmethod
        def nats(truth, prompt, words):
            if prompt.count("Rule:") > 1:
                return 5.0 if words == "looks like c" and truth != "c" else 0.0
            return Pupil.nats(truth, prompt, words)

    first, second = GOOD, GOOD.replace("Compare the", "Regard both")
    assert [rule.status for rule in learn(Crowded(first)).rules] == ["accepted"] * 2
    together = learn(Crowded(first, second))
    assert len(together.rules) == 4
    assert {rule.status for rule in together.rules} == {"undecided"}
    assert all(rule.p is not None and rule.p < 0.05 for rule in together.rules)


def test_system_2_is_never_told_what_is_true() -> None:
    """Whatever the truth, System 2 reads the same words; only the reflections name it."""

    def questions(truths: tuple[str, ...]) -> list[str]:
        pupil = Pupil("I am sorry.")
        cases = [replace(case, truth=dict(zip("abc", truths, strict=True))[case.truth]) for case in examples()]
        learn(pupil, cases)
        assert all(REFLECTION in prompt for prompt in pupil.reflections)
        assert not any(REFLECTION in prompt for prompt in pupil.questions)
        return pupil.questions[: len(cases)]

    asked = [questions(truths) for truths in permutations("abc")]
    assert all(words == asked[0] for words in asked)


def test_the_same_study_comes_to_the_same_rules() -> None:
    assert learn(Pupil()) == learn(Pupil())


# --- parts ---------------------------------------------------------------------------------------------------------------------


def failure(truth: str, wrong: str, n: int) -> WrongAnswer:
    return WrongAnswer(n, f"{truth}{n}", n % 2, option(truth), option(wrong))


def test_failures_are_taken_in_turn_from_every_pair() -> None:
    failures = [*(failure("a", "b", n) for n in range(5)), failure("c", "d", 9), failure("b", "a", 7)]
    assert [f.pair for f in sample(failures, 3)] == [("a", "b"), ("c", "d"), ("a", "b")]
    assert len(sample(failures, 99)) == 7


def test_rules_that_mean_the_same_are_merged_within_a_pair_and_a_half_only() -> None:
    def proposal(words: str, pair: tuple[str, str], fold: int, source: str) -> Proposal:
        return Proposal(Experience(source, words, "", "", pair, "low", (source,), "undecided"), fold)

    ab, cd = ("a", "b"), ("c", "d")
    merged = merge(
        [
            proposal("Tail first", ab, 0, "1"),
            proposal("Tail again", ab, 0, "2"),
            proposal("Beak", ab, 0, "3"),
            proposal("Tail", ab, 1, "4"),
            proposal("Tail", cd, 0, "5"),
        ],
        Words(),  # type: ignore[arg-type]
        alike=0.9,
    )
    assert [(p.rule.rule, p.rule.sources, p.fold) for p in merged] == [
        ("Tail first", ("1", "2"), 0),
        ("Beak", ("3",), 0),
        ("Tail", ("4",), 1),
        ("Tail", ("5",), 0),
    ]


@pytest.mark.parametrize(
    "reply", ["rule : look at the tail", "Well.\n**Rule:** look at the tail\nRule: second", "- RULE: look at the tail"]
)
def test_a_rule_is_read_however_it_is_marked(reply: str) -> None:
    (proposal,) = Reflector(Pupil(reply), superclass="bird", max_new_tokens=9)([picture("a1")], [failure("a", "b", 1)])
    assert proposal is not None and proposal.rule.rule == "look at the tail"
    assert proposal.rule.priority == "medium"


def test_only_accepted_rules_about_the_candidates_are_recalled_the_weightiest_first() -> None:
    def rule(id: str, pair: tuple[str, ...], priority="medium", status="accepted", p=0.01) -> Experience:
        return Experience(id, id, "", "", pair, priority, (), status, p)

    rules = [rule("late", ("a", "b"), p=0.05), rule("early", ("a", "b")), rule("other", ("a", "z")), rule("any", (), priority="high")]
    library = Library([*rules, rule("tried", ("a", "b"), status="undecided")], most=2)
    assert [r.id for r in library.recall({"a", "b", "c"})] == ["any", "early"]
    assert [r.id for r in library.recall({"c"})] == ["any"]
    assert Library(rules, most=0).recall({"a", "b"}) == ()


def test_sign_flips_are_enumerated_and_agree_with_drawn_ones() -> None:
    assert sign_flip_p([1.0] * 5) == 1 / 32
    assert sign_flip_p([]) == sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([-1.0, -2.0]) == 1.0
    rng = np.random.default_rng(1)
    values = rng.normal(0.4, 1, 14)
    exact = sign_flip_p(values)
    signs = rng.choice((-1.0, 1.0), (40_000, 14))
    assert exact == pytest.approx(np.mean(signs @ values >= values.sum()), abs=0.01)
    assert sign_flip_p(rng.normal(0, 1, 40)) > 0.001
    assert sign_flip_p(np.full(40, 0.5)) < 0.001


def test_benjamini_and_hochbergs_example() -> None:
    """Their own table of 15 p-values: four are rejected at .05."""
    p = [.0001, .0004, .0019, .0095, .0201, .0278, .0298, .0344, .0459, .3240, .4262, .5719, .6528, .7590, 1.0]  # fmt: skip
    assert benjamini_hochberg(p, 0.05) == [True] * 4 + [False] * 11
    assert benjamini_hochberg([], 0.1) == []


def test_null_rules_are_rarely_accepted() -> None:
    """Rules whose effect is pure noise: the false discovery rate holds."""
    rng = np.random.default_rng(0)
    accepted = [any(benjamini_hochberg([sign_flip_p(rng.normal(0, 1, 8)) for _ in range(20)], 0.1)) for _ in range(100)]
    assert np.mean(accepted) <= 0.17


def test_pictures_are_shown_to_the_reflector() -> None:
    seen: list[Picture] = []

    class Watching(Pupil):
        def generate(self, images, prompts, *, system="", max_new_tokens=128):
            seen.extend(images)
            return super().generate(images, prompts)

    learn(Watching())
    assert {image.sha256[0] for image in seen} == {"a"}
