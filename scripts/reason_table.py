"""Does System 2 reason? The `reason` decoder of the shipped MLLM by free generation, beside `score` and System 1, and what its rules pay.

    python scripts/reason_table.py                                        # final worlds 9050-9054, for acceptance only
    python scripts/reason_table.py --worlds 9010 dataset.test_per_class=5 # development

Per world: the right letter of the free reply where the truth is listed; top-1 of System 1, `score` and `reason`; whether the rationale
names an attribute that the picture shows and in which the chosen species differs from the runner-up; errors of seeing and of comparing;
tokens per image; rules proposed and accepted, the gain of the accepted ones on new images, and the same with other worlds' sentences.

Rules are learned in the same world with fewer, larger genera and more support images (`RULES`): a rule about two species is tried on images
that list both, and eight of them are the least evidence. A third of the species is described wrong, in one attribute each (`--as-described`
leaves that out): rules can teach only what System 2 gets wrong again and again, and what the tiny MLLM misreads is mostly noise.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from reply_sheet import Shown, draw_sheet
from scipy import stats

import fgvr
from fgvr import modes
from fgvr.agents import prompts
from fgvr.agents.replies import rationale_of, read_answer
from fgvr.agents.slow import Question, SlowThinking, choice
from fgvr.data import birds
from fgvr.data.pictures import open_picture
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.classes import Description
from fgvr.knowledge.experience import Library
from fgvr.session import Session
from fgvr.types import Experience, Picture
from fgvr.utils.batches import chunks
from fgvr.utils.files import atomic_write

SIZE = 50
"""Images per call."""
RULES = (
    "dataset.genera=[6,6]",
    "dataset.shots=24",
    "dataset.calibration=0",
    "dataset.test_per_class=20",
    "knowledge.leave_one_out=false",
    "slow.weight=0.5",
)
"""The world in which rules are learned and tried. Nothing is fitted on System 2's answers, as the descriptions change afterwards."""
MISDESCRIBED = 2
"""Species of a genus that are described wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The test images of a world with System 1's results, opened once."""

    pictures: tuple[tuple[Picture, ...], ...]
    labels: tuple[str, ...]
    fast: tuple


def look(session: Session) -> Seen:
    samples = session.dataset.split.test
    batches = tuple(tuple(open_picture(s.image) for s in part) for part in chunks(samples, SIZE))
    return Seen(batches, tuple(str(s.label) for s in samples), tuple(tuple(session.fast(part)) for part in batches))


def answers(session: Session, seen: Seen, think: SlowThinking) -> list[str]:
    """The final class of every image, all of them thought about, fused as at inference."""
    found = []
    for pictures, results in zip(seen.pictures, seen.fast, strict=True):
        found += [session.answer_fusion(fast, slow)[0] for fast, slow in zip(results, think(pictures, results), strict=True)]
    return found


def attributes_of(text: str) -> dict[int, int]:
    """Attribute -> value, for the attributes that a text names."""
    return {place: value for place, value in enumerate(birds.read(text)) if value is not None}


def fitting(said: dict[int, int], question: Question) -> list[int]:
    """The options whose descriptions share the most of what is said: what comparing should find, seen right or wrong."""
    shared = [sum(attributes_of(option.description).get(p) == v for p, v in said.items()) for option in question.options]
    return [i for i, count in enumerate(shared) if count == max(shared)]


def replies(session: Session, seen: Seen, truth: dict[str, tuple[int, ...]]) -> tuple[dict[str, float], list[Shown]]:
    """What the free replies say, without rules and with the candidates in an order that tells nothing; and each reply."""
    called = {record.id: record.name for record in session.knowledge.classes}
    chance, labels, limit = random.Random(0), iter(seen.labels), session.config.slow.max_new_tokens
    decoder, rows = session.decoder("bird"), []
    each: dict[str, list[float]] = {name: [] for name in ("letter", "readable", "telling", "seen", "compared", "tokens", "new tokens")}
    for pictures, results in zip(seen.pictures, seen.fast, strict=True):
        shown = [session.shortlist(result) for result in results]  # in System 1's order, which would tell what it believes
        questions = [Question(tuple(chance.sample(some, len(some)))) for some in shown]
        asked = [choice("bird", q, ending="reason") for q in questions]
        written = session.mllm.generate(pictures, asked, system=prompts.SYSTEM, max_new_tokens=limit)
        for picture, question, judgement, prompt, reply in zip(
            pictures, questions, decoder(pictures, questions), asked, written, strict=True
        ):
            label, ids = next(labels), [o.category for o in question.options]
            read, said = read_answer(str(reply), [o.name for o in question.options]), attributes_of(rationale_of(str(reply)))
            chosen = ids[read] if read is not None else None
            second = next(ids[k] for k in np.argsort(-judgement.log_likelihoods) if ids[k] != chosen)
            if label in ids:
                each["letter"].append(chosen == label)
            each["readable"].append(chosen is not None)
            tells = chosen and any(truth[label][p] == v == truth[chosen][p] and truth[second][p] != v for p, v in said.items())
            each["telling"].append(bool(tells))
            each["seen"] += [truth[label][p] == v for p, v in said.items()]
            each["compared"].append(read in fitting(said, question))
            each["tokens"].append(reply.prompt_tokens + reply.new_tokens)
            each["new tokens"].append(reply.new_tokens)
            rows.append(Shown(picture.image, called[label], prompt, str(reply), chosen == label))
    return {name: float(np.mean(values)) for name, values in each.items() if values}, rows


def measure(seed: int, words: Sequence[str]) -> tuple[dict[str, float], list[Shown]]:
    """The quantities of one world, without rules."""
    world = ("dataset=birds", f"dataset.seed={seed}", *words)
    session = Session(fgvr.load_config("mode=evaluate", "slow=reason", "trigger=always", *world))
    truth = {s.name: s.attributes for s in birds.make_world(seed, tuple(session.config.dataset.genera)).species}
    seen = look(session)
    by_id = {record.id: truth[record.name] for record in session.knowledge.classes}
    found, rows = replies(session, seen, by_id)
    labels = np.array(seen.labels)
    plain = SlowThinking(session.decoder("bird"), session.shortlist, Library((), most=0))
    without = np.array(answers(session, seen, plain)) == labels
    fast = np.array([r.top.category for part in seen.fast for r in part]) == labels
    scored = Session(fgvr.load_config("mode=evaluate", "slow=score", "trigger=always", "slow.rules=0", *world))
    by_score = np.array(answers(scored, seen, SlowThinking(scored.decoder("bird"), scored.shortlist))) == labels
    return found | {"fast": float(fast.mean()), "reason": float(without.mean()), "score": float(by_score.mean())}, rows


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """The rules of a world that were accepted, and the test images of the classes that they speak of."""

    session: Session
    seen: Seen
    accepted: tuple[Experience, ...]

    def right(self, rules: Sequence[Experience]) -> np.ndarray:
        """Who is answered right with these rules."""
        think = SlowThinking(self.session.decoder("bird"), self.session.shortlist, Library(rules, most=self.session.config.slow.rules))
        return np.array(answers(self.session, self.seen, think)) == np.array(self.seen.labels)


def experience(seed: int, words: Sequence[str], folder: Path, *, planted: bool) -> tuple[dict[str, float], Learned]:
    """Rules learned on the support images: how many. Args: folder: for the knowledge base."""
    world = ("slow=reason", "trigger=always", "dataset=birds", f"dataset.seed={seed}", *RULES, *words, f"knowledge.path={folder}")
    base = modes.perform(fgvr.load_config("mode=build_knowledge_base", *world))
    if planted:
        species = birds.make_world(seed, tuple(fgvr.load_config("mode=evaluate", *world).dataset.genera)).species
        misdescribed(base, species, seed).save(folder, created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=0.0)
    base = modes.perform(fgvr.load_config("mode=build_experience_base", "experience.failures=48", *world))
    for rule in base.experience:
        evidence = f"n={rule.n} p={rule.p:.4f} gain={rule.gain} fixed={rule.fixed} broken={rule.broken}"
        print(f"  {rule.status} {rule.pair}: {rule.rule} {evidence}", flush=True)
    session, accepted = Session(fgvr.load_config("mode=evaluate", *world)), [r for r in base.experience if r.status == "accepted"]
    seen = about(look(session), {c for rule in accepted for c in rule.pair})
    return {"proposed": len(base.experience), "accepted": len(accepted)}, Learned(session, seen, tuple(accepted))


def misdescribed(base: KnowledgeBase, species: Sequence[birds.Species], seed: int) -> KnowledgeBase:
    """The base with one attribute wrong in every description of some species of each genus, drawn at random."""
    chance, classes = np.random.default_rng(seed), {record.name: record for record in base.classes}
    for genus in sorted({one.genus for one in species}):
        members = [one for one in species if one.genus == genus]
        for at in chance.choice(len(members), size=MISDESCRIBED, replace=False):
            place, other = int(chance.choice(birds.FINE)), int(chance.integers(1, 3))
            record, wrong = classes[members[at].name], (members[at].attributes[place] + other) % 3
            texts = [_with(d, place, wrong) for d in (record.description, *record.fold_descriptions)]
            classes[record.name] = replace(record, description=texts[0], fold_descriptions=(texts[1], texts[2]))
    return replace(base, classes=tuple(classes.values()))


def _with(description: Description, place: int, value: int) -> Description:
    said = list(birds.read(description.text))
    said[place] = value
    return replace(description, text=birds.describe([v or 0 for v in said]))


def gains(learned: Sequence[Learned]) -> list[dict[str, float]]:
    """By world, what the accepted rules change on new images, and what sentences of other worlds change in their places, as long as these
    warn of nothing that this world's own rules warn of."""
    found, chance = list[dict[str, float]](), random.Random(0)
    for one in learned:
        if not one.accepted:
            found.append({"gain": 0.0, "gain shuffled": 0.0})
            continue
        without, warned = one.right(()), {warning(rule) for rule in one.accepted}
        found.append({"gain": one.right(one.accepted).mean() - without.mean(), "doubtful": len(without), "without": without.mean()})
        others = [rule.rule for other in learned if other is not one for rule in other.accepted if warning(rule) not in warned]
        if others:  # else there is no control
            dealt = [replace(rule, rule=chance.choice(others)) for rule in one.accepted]
            found[-1]["gain shuffled"] = one.right(dealt).mean() - without.mean()
    return [{name: float(value) for name, value in one.items()} for one in found]


def warning(rule: Experience) -> str:
    """What a rule of the form `look at ... rather than ...` warns of; another rule whole."""
    return rule.rule.partition(" than ")[2] or rule.rule


def about(seen: Seen, classes: set[str]) -> Seen:
    """The images of some classes only."""
    pictures, fast = [p for part in seen.pictures for p in part], [r for part in seen.fast for r in part]
    kept = [i for i, label in enumerate(seen.labels) if label in classes]
    parts = [tuple(part) for part in chunks(kept, SIZE)]
    shown = tuple(tuple(pictures[i] for i in part) for part in parts)
    return Seen(shown, tuple(seen.labels[i] for i in kept), tuple(tuple(fast[i] for i in part) for part in parts))


def interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ({np.mean(values) - half:.3f} to {np.mean(values) + half:.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="9050-9054", help="one seed, or FIRST-LAST")
    parser.add_argument("--as-described", action="store_true", help="rules without wrong descriptions")
    parser.add_argument("--rule-words", nargs="*", default=[], metavar="key=value", help="overrides for the worlds of rules")
    parser.add_argument("--only", choices=("replies", "rules"), help="one of the two parts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="quantities by world, and every reply")
    parser.add_argument("--show", type=int, default=9, help="replies printed, the first ones, unselected")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="these replies with their pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides for every run")
    options = parser.parse_args(arguments)
    first, _, last = options.worlds.partition("-")
    seeds, table, rows = range(int(first), int(last or first) + 1), [], []
    if any(seed in range(9070, 9100) for seed in seeds):
        parser.error("worlds 9070-9099 are never run")
    for seed in seeds:
        found, shown = measure(seed, options.overrides) if options.only != "rules" else ({}, [])
        table.append(found)
        rows.append(shown)
        print(seed, json.dumps({k: round(v, 4) for k, v in found.items()}), flush=True)
    if options.only != "replies":
        with tempfile.TemporaryDirectory() as folder:
            bases = [experience(s, options.rule_words, Path(folder, str(s)), planted=not options.as_described) for s in seeds]
            for seed, found, (count, _), gain in zip(seeds, table, bases, gains([one for _, one in bases]), strict=True):
                found |= count | gain
                print(seed, json.dumps({k: round(v, 4) for k, v in (count | gain).items()}), flush=True)
    for one in rows[0][: options.show]:
        print(f"--- {one.name} ---\n{one.asked}\n>>> {one.reply}")
    for name in dict.fromkeys(name for found in table for name in found):
        print(f"{name:14} {interval([found[name] for found in table if name in found])}")
    if options.sheet and rows[0]:
        draw_sheet(rows[0][: options.show]).save(options.sheet, optimize=True)
    if options.json:
        written = [[{"label": one.name, "asked": one.asked, "reply": one.reply, "right": one.right} for one in shown] for shown in rows]
        worlds = dict(zip(map(str, seeds), table, strict=True))
        atomic_write(options.json, json.dumps({"worlds": worlds, "replies": written}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fgvr.FgvrError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, fgvr.ConfigError) else 3)
