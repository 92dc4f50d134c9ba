"""Rules learned and tried with the side network beside the frozen model, without generating: a world takes seconds instead of minutes.

    python scripts/rules_by_side.py WORK --worlds 9010-9014    # WORK: the folder of the stage `compare` (mllm-alone, compare.pt)

What the model says of a picture is read once, after the true values of the attributes before; the letters and the nouns of a rule are the
side network's. Everything else is the experience builder's own code. Development only: what counts is `scripts/reason_table.py`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from reason_table import RULES, interval, plant, warning
from tiny import common, ruling
from tiny.compare import Reader, held_out_cases
from tiny.comparing import Species
from tiny.side import LETTERS, Rows, Side
from tiny.world import held_out

import fgvr
from fgvr.agents import prompts
from fgvr.agents.answer_fusion import fuse_answers
from fgvr.agents.experience_learning import ExperienceLearner
from fgvr.agents.reflect import Proposal, WrongAnswer
from fgvr.agents.rule_validation import AcceptanceCriteria
from fgvr.agents.slow import Judgement, Question, SlowThinking, choice
from fgvr.data import birds
from fgvr.data.pictures import open_picture
from fgvr.knowledge.experience import Library
from fgvr.modes.building import _examples
from fgvr.session import Session
from fgvr.types import Experience, FastResult
from fgvr.utils.batches import chunks

SIZE = 96
"""Questions per pass."""
WEIGHTS = (0.3, 0.5, 0.6, 0.8, 1.0)
"""System 2's share in the fused answer."""


@dataclass(frozen=True, slots=True)
class Voice:
    """The side network as a decoder and a reflector. In the place of pictures stand the words that the frozen model says of them."""

    reader: Reader
    side: Side
    before: torch.Tensor  # the frozen model's mean logits of the letters
    independent: bool = False

    @torch.no_grad()
    def __call__(self, said: Sequence[Species], questions: Sequence[Question]) -> list[Judgement]:
        found: list[Judgement] = []
        for part in chunks(list(zip(said, questions, strict=True)), SIZE):
            asked = [choice("bird", question, ending="reason") for _, question in part]
            replies = [f"{birds.describe(words)} {prompts.ANSWER}" for words, _ in part]
            logits = self._said(asked, [self.reader.scribe.ids(reply) for reply in replies])[:, : len(LETTERS)] + self.before
            for (words, question), row in zip(part, logits, strict=True):
                shares = row[: len(question.options)].log_softmax(-1).double().numpy()
                found.append(Judgement(shares, birds.describe(words)))
        return found

    def reflect(self, said: Sequence[Species], failures: Sequence[WrongAnswer]) -> list[Proposal | None]:
        """Of a rule the words between are given, and the nouns are the side network's."""
        found: list[Proposal | None] = []
        for words, failure in zip(said, failures, strict=True):
            truth, wrong = failure.truth, failure.taken_for
            asked = prompts.reflect("bird", (truth.name, truth.description), (wrong.name, wrong.description))
            more = self._noun(asked, words, "Rule: look at the")
            less = self._noun(asked, words, f"Rule: look at the {ruling.NAMES[more]} rather than the")
            rule, name = ruling.rule(more, less), f"{failure.pair}{failure.fold}{more}{less}"
            found.append(Proposal(Experience(name, rule, "", "", failure.pair, "high", (failure.sha256,), "undecided"), failure.fold))
        return found

    @torch.no_grad()
    def _noun(self, asked: str, words: Species, begun: str) -> int:
        ids = self.reader.scribe.ids
        return int(self._said([asked], [[*ids(birds.describe(words)), *ids("\n"), *ids(begun)]])[0, -len(ruling.NAMES) :].argmax())

    def _said(self, asked: Sequence[str], replies: Sequence[list[int]]) -> torch.Tensor:
        """The logits after the replies, [n, words]."""
        rows = [[*self.reader.scribe.prefix(1, 16, a), *reply] for a, reply in zip(asked, replies, strict=True)]
        ids = torch.full((len(rows), max(map(len, rows))), self.reader.scribe.pad)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        last, length = torch.tensor([len(row) - 1 for row in rows]), max(map(len, replies)) + 2
        return self.side(Rows(ids, last, length, self.reader.second))[1][:, -1]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """The accepted rules of a world, and its test images: what is said of them, their classes, System 1's results."""

    session: Session
    counts: tuple[int, int]
    accepted: tuple[Experience, ...]
    said: list[Species]
    labels: list[str]
    fast: list[FastResult]

    def right(self, voice: Voice, rules: Sequence[Experience]) -> np.ndarray:
        """Whether the fused answer is right, by weight and image of the classes that the accepted rules speak of."""
        think = SlowThinking(voice, self.session.shortlist, Library(rules, most=self.session.config.slow.rules))  # pyright: ignore[reportArgumentType]
        classes, rows = {c for rule in self.accepted for c in rule.pair}, []
        kept = [i for i, label in enumerate(self.labels) if label in classes]
        for i, slow in zip(kept, think([self.said[i] for i in kept], [self.fast[i] for i in kept]), strict=True):  # pyright: ignore[reportArgumentType]
            ids, known = list(slow.probabilities), {c.category: c.probability for c in self.fast[i].candidates}
            fast, shares = np.array([known.get(c, 0.0) for c in ids]), np.array(list(slow.probabilities.values()))
            rows.append([ids[int(fuse_answers(fast, shares, w).argmax())] == self.labels[i] for w in WEIGHTS])
        return np.array(rows, float).T


def live(seed: int, voice: Voice, folder: Path, words: Sequence[str]) -> World:
    """Build the world's knowledge with planted errors, and learn rules."""
    world = ("slow=reason", "trigger=always", "dataset=birds", f"dataset.seed={seed}", *RULES, *words, f"knowledge.path={folder}")
    plant(seed, world, folder)
    session = Session(fgvr.load_config("mode=evaluate", *world))
    learning = fgvr.load_config("mode=build_experience_base", *world).experience
    species = {s.name: s.attributes for s in birds.make_world(seed, tuple(session.config.dataset.genera)).species}
    truth = {record.id: species[record.name] for record in session.knowledge.classes}
    results, _ = session.left_out()
    examples = _examples(session.knowledge, results, session.shortlist)

    def say(pictures: Sequence, labels: Sequence[str]) -> list[Species]:
        pixels = common.to_tensor(np.stack([np.asarray(p.image.convert("RGB")) for p in pictures]))
        return [tuple(row) for row in voice.reader.say(pixels, np.array([truth[c] for c in labels])).tolist()]

    said: dict[int, Species] = {}
    for part in chunks(examples, SIZE):
        places = [e.index for e in part]
        said |= dict(zip(places, say(session.support_pictures(places), [e.truth for e in part]), strict=True))
    learner = ExperienceLearner(
        decoder=voice,  # pyright: ignore[reportArgumentType]
        reflector=voice.reflect,  # pyright: ignore[reportArgumentType]
        encoder=session.encoder,
        pictures=lambda places: [said[i] for i in places],  # pyright: ignore[reportArgumentType]
        batches=lambda n: [range(n)] if n else [],
        failures=learning.failures,
        alike=learning.alike,
        criteria=AcceptanceCriteria(learning.level, learning.least),
        most=session.config.slow.rules,
    )
    report = learner.learn(examples, [e.index for e in examples])
    for rule in report.rules:
        print(f"  {rule.status} {rule.pair}: {rule.rule} n={rule.n} p={rule.p:.4f} fixed={rule.fixed} broken={rule.broken}", flush=True)
    accepted = tuple(rule for rule in report.rules if rule.status == "accepted")
    tests, labels, fast = list[Species](), list[str](), list[FastResult]()
    for part in chunks(session.dataset.split.test, SIZE):
        pictures = [open_picture(sample.image) for sample in part]
        labels += [str(sample.label) for sample in part]
        fast += session.fast(pictures)
        tests += say(pictures, labels[-len(part) :])
    print(f"{seed}: {report}", flush=True)
    return World(session, (len(report.rules), len(accepted)), accepted, tests, labels, fast)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder with mllm-alone and compare.pt")
    parser.add_argument("--worlds", default="9010-9014", help="one seed, or FIRST-LAST; development worlds only")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    first, _, last = options.worlds.partition("-")
    reader = Reader(options.work / "mllm-alone")
    side = Side(reader.core.embed_tokens.weight.pow(2).mean(1).sqrt(), reader.marks, reader.scribe.image)
    side.load_state_dict(torch.load(options.work / "compare.pt")["side"])
    held = held_out_cases(reader)["own words"]
    before, _ = reader.beforehand(held, common.to_tensor(held_out(9000, shots=1, tests=4).test.reshape(-1, 112, 112, 3)))
    voice, chance = Voice(reader, side, before.mean(0)), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        worlds = [live(s, voice, Path(folder, str(s)), options.overrides) for s in range(int(first), int(last or first) + 1)]
        changes, dealt = [], []
        for one in worlds:
            warned = {warning(rule) for rule in one.accepted}
            others = [rule.rule for w in worlds if w is not one for rule in w.accepted if warning(rule) not in warned]
            nothing = np.zeros((len(WEIGHTS), 0))
            without = one.right(voice, ()) if one.accepted else nothing
            changes.append(one.right(voice, one.accepted) - without if one.accepted else nothing)
            shuffled = [replace(rule, rule=chance.choice(others)) for rule in one.accepted] if others else []
            dealt.append(one.right(voice, shuffled) - without if shuffled else nothing)
    print("proposed, accepted:", [one.counts for one in worlds])
    for name, found in (("gain", changes), ("shuffled", dealt)):
        every = np.concatenate(found, 1)
        for i, weight in enumerate(WEIGHTS):
            half = 1.96 * every[i].std() / np.sqrt(max(every.shape[1], 1))
            by_world = [float(c[i].mean()) if c.shape[1] else 0.0 for c in found]
            print(f"{name} at weight {weight}: {every[i].mean():.4f} +- {half:.4f} of {every.shape[1]} images; worlds {interval(by_world)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
