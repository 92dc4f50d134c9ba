"""Names for images of unknown kinds, in five stages: identify, howto, describe, guess, postprocess (docs/method.md, section 6).

The class list cannot be reached from here. The input is a `PictureSet`: decoded images by number, without paths, file names or labels. A
model sees only these images and words that models have said before. The number of kinds is found, not given.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import TypeAdapter

from fgvr.agents import discover_prompts as ask
from fgvr.agents import prompts
from fgvr.agents.mixture_selection import Selection, complexity_penalty, fill, select_mixture
from fgvr.errors import FgvrError, UnreadableReply
from fgvr.protocols import MLLM, Each, Encoder
from fgvr.types import Picture, Scores
from fgvr.utils.batches import batches
from fgvr.utils.progress import track
from fgvr.utils.text import normalise_name

Target = Literal["description", "name"]
Stage = Callable[[str, Callable[[], Any]], Any]
"""(name of the stage, how to compute it) -> its result, plain JSON values. A stage that is done is read instead."""


class PictureSet(Protocol):
    """Unlabelled images by number. The implementation does not tell where they come from."""

    def __len__(self) -> int: ...

    def __call__(self, indices: Sequence[int]) -> list[Picture]: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One discovered kind and the images that show it, the most certain first."""

    name: str
    aliases: tuple[str, ...]
    description: str
    pictures: tuple[int, ...]  # their numbers in the set
    certainty: tuple[float, ...]  # of each of them, in [0, 1]
    votes: int  # pictures that guessed it by themselves


@dataclass(frozen=True, slots=True)
class Discovered:
    """The kinds that the images show, and what was found on the way to them."""

    superclass: str
    attributes: tuple[str, ...]
    kinds: tuple[Kind, ...]
    guesses: int  # different guesses, before any was voted out
    complexity_penalty: float  # nats a guess had to save
    notes: tuple[str, ...]

    @property
    def owners(self) -> dict[int, int]:
        """Number of each picture -> place of its kind."""
        return {picture: place for place, kind in enumerate(self.kinds) for picture in kind.pictures}


@dataclass(frozen=True, slots=True)
class _Guesses:
    """The different guesses: their words, other spellings, and the images that guessed them."""

    words: list[str]  # the name or description that is judged
    aliases: list[tuple[str, ...]]
    voters: list[list[int]]


@dataclass(frozen=True, eq=False)
class Discoverer:
    """Asks an MLLM and an encoder about a set of pictures, stage by stage."""

    mllm: MLLM
    encoder: Encoder
    _: KW_ONLY
    target: Target  # names are guessed and judged, or descriptions for a model that knows no names
    stage: Stage = lambda name, compute: compute()
    superclass: str | None = None  # given by a person, so that `identify` need not ask
    shortlist: int = 10  # guesses judged per image besides its own, the nearest by the encoder
    alike: float = 0.95  # cosine of the text encoder from which two names mean the same
    complexity_penalty: float | None = None  # nats that a guess must save to stay; None: its code length
    looked_at: int = 12  # images shown to `identify`, one by one
    max_new_tokens: int = 96
    mllm_batch: int = 8
    encode_batch: int = 32
    each: Each = map

    def __call__(self, picture_set: PictureSet) -> Discovered:
        """The five stages in their order."""
        if not len(picture_set):
            raise FgvrError("there is no picture to discover anything in")
        identified = self.stage("identify", lambda: self.identify(picture_set))
        superclass = identified["superclass"]
        attributes = self.stage("howto", lambda: self.howto(picture_set, superclass))["attributes"]
        descriptions = self.stage("describe", lambda: self.describe(picture_set, superclass, attributes))
        guesses = self.stage("guess", lambda: self.guess(picture_set, superclass, descriptions))
        found = self.stage("postprocess", lambda: self.postprocess(picture_set, superclass, attributes, descriptions, guesses))
        return Discovered(
            superclass=superclass,
            attributes=tuple(attributes),
            kinds=TypeAdapter(tuple[Kind, ...]).validate_python(found["kinds"]),
            guesses=found["guesses"],
            complexity_penalty=found["complexity_penalty"],
            notes=self._notes(identified, attributes, descriptions, guesses),
        )

    # --- the stages, each with plain JSON values in and out ---------------------------------------------------------------------

    def identify(self, picture_set: PictureSet) -> dict[str, Any]:
        """The superclass that most replies name."""
        if self.superclass:
            return {"superclass": self.superclass, "asked": 0, "agreed": 0}
        numbers = [int(i) for i in np.linspace(0, len(picture_set) - 1, min(self.looked_at, len(picture_set))).round()]
        replies = self._ask(picture_set, numbers, [ask.IDENTIFY] * len(numbers), "identify", max_new_tokens=24)
        votes = Counter(kind for reply in replies if (kind := ask.read_kind(reply)))
        if not votes:
            raise UnreadableReply(f"no reply names a kind of thing, the first: {replies[0]!r}; write discover.superclass=bird, say")
        superclass, agreed = votes.most_common(1)[0]
        return {"superclass": superclass, "asked": len(numbers), "agreed": agreed}

    def howto(self, picture_set: PictureSet, superclass: str) -> dict[str, Any]:
        """The attributes to look at. An unreadable answer gives none, and descriptions are then asked for without them."""
        [reply] = self._ask(picture_set, [0], [ask.howto(superclass)], "howto", max_new_tokens=self.max_new_tokens)
        return {"attributes": list(ask.read_attributes(reply)), "reply": reply}

    def describe(self, picture_set: PictureSet, superclass: str, attributes: Sequence[str]) -> list[str]:
        """One description per image; "" where the model said nothing."""
        numbers = range(len(picture_set))
        question = ask.describe(superclass, attributes)
        replies = self._ask(picture_set, numbers, [question] * len(numbers), "describe", max_new_tokens=self.max_new_tokens)
        return [" ".join(reply.split()) for reply in replies]

    def guess(self, picture_set: PictureSet, superclass: str, descriptions: Sequence[str]) -> list[list[str]]:
        """Names for each image, best first. The guess of a model that knows no names is its description."""
        if self.target == "description":
            return [[text] if text else [] for text in descriptions]
        questions = [ask.guess(superclass, text) for text in descriptions]
        replies = self._ask(picture_set, range(len(picture_set)), questions, "guess", max_new_tokens=self.max_new_tokens)
        return [list(ask.read_names(reply, superclass)) for reply in replies]

    def postprocess(
        self,
        picture_set: PictureSet,
        superclass: str,
        attributes: Sequence[str],
        descriptions: Sequence[str],
        guesses: Sequence[Sequence[str]],
    ) -> dict[str, Any]:
        """Merge the guesses that mean the same, judge each on the images it may fit, and remove those that no image needs."""
        merged = self._merge(guesses)
        if not merged.words:
            raise UnreadableReply(f"not one of {len(picture_set)} pictures was given a name that can be read; the store has the replies")
        nats = self._judge(picture_set, superclass, attributes, merged)
        penalty = (
            self.complexity_penalty if self.complexity_penalty is not None else complexity_penalty(len(merged.words), len(picture_set))
        )
        kept = select_mixture(fill(nats), np.array([len(voters) for voters in merged.voters], float), penalty)
        return {"kinds": self._kinds(superclass, descriptions, merged, kept), "guesses": len(merged.words), "complexity_penalty": penalty}

    # --- the parts of postprocess -----------------------------------------------------------------------------------------------

    def _merge(self, guesses: Sequence[Sequence[str]]) -> _Guesses:
        """Merge guesses by spelling, and names also by meaning: the one with fewer votes joins the other."""
        voters: dict[str, list[int]] = {}
        spelled: dict[str, Counter[str]] = {}
        for number, some in enumerate(guesses):
            for text in some:
                key = normalise_name(text)
                voters.setdefault(key, []).append(number)
                spelled.setdefault(key, Counter())[text] += 1
        keys = sorted(voters, key=lambda key: (-len(voters[key]), key))
        words = [min(spelled[key], key=lambda text: (-spelled[key][text], text)) for key in keys]
        leaders = self._leaders(words) if self.target == "name" and words else list(range(len(words)))
        groups: dict[int, list[int]] = {}
        for i, leader in enumerate(leaders):
            groups.setdefault(leader, []).append(i)
        return _Guesses(
            words=[words[leader] for leader in groups],
            aliases=[tuple(words[i] for i in members[1:]) for members in groups.values()],
            voters=[sorted({number for i in members for number in voters[keys[i]]}) for members in groups.values()],
        )

    def _leaders(self, words: Sequence[str]) -> list[int]:
        """For each word the first one that means the same. The words come with the most votes first."""
        vectors = self._encode_text(words)
        leaders: list[int] = []
        for i, vector in enumerate(vectors):
            heads = [j for j in range(i) if leaders[j] == j]
            cosines = vectors[heads] @ vector if heads else np.zeros(0)
            leaders.append(heads[int(cosines.argmax())] if heads and cosines.max() >= self.alike else i)
        return leaders

    def _judge(self, picture_set: PictureSet, superclass: str, attributes: Sequence[str], guesses: _Guesses) -> np.ndarray:
        """(N, M) nats of each guess given each image; NaN where it was not worth asking."""
        vectors = np.concatenate(
            list(self.each(lambda batch: self.encoder.encode(picture_set(batch)), batches(len(picture_set), self.encode_batch)))
        )
        near = np.argsort(-(vectors @ self._encode_text(guesses.words).T), axis=1, kind="stable")[:, : self.shortlist]
        asked = [set(row.tolist()) for row in near]
        for guess, voters in enumerate(guesses.voters):
            for number in voters:
                asked[number].add(guess)
        question = ask.describe(superclass, attributes) if self.target == "description" else ask.name(superclass)
        nats = np.full((len(picture_set), len(guesses.words)), np.nan)
        options = [sorted(guesses_of) for guesses_of in asked]

        def score(batch: Sequence[int]) -> list[Scores]:
            words = [[guesses.words[guess] for guess in options[number]] for number in batch]
            return self.mllm.score(picture_set(batch), [question] * len(batch), words, system=prompts.SYSTEM)

        scored = track(self.each(score, batches(len(picture_set), self.mllm_batch)), "postprocess", len(picture_set), weigh=len)
        for number, judged in enumerate(one for some in scored for one in some):
            nats[number, options[number]] = judged.log_likelihoods
        return nats

    def _kinds(self, superclass: str, descriptions: Sequence[str], guesses: _Guesses, kept: Selection) -> list[dict[str, Any]]:
        """The kinds as plain values, the largest first."""
        words = [guesses.words[i] for i in kept.indices]
        named = ask.short_names(superclass, words) if self.target == "description" else words
        kinds = []
        for place, (i, name) in enumerate(zip(kept.indices.tolist(), named, strict=True)):
            own = np.flatnonzero(kept.owners == place)
            own = own[np.argsort(-kept.certainty[own], kind="stable")]
            description = words[place] if self.target == "description" else descriptions[int(own[0])]
            kinds.append(
                {
                    "name": name,
                    "aliases": list(guesses.aliases[i]),
                    "description": description,
                    "pictures": own.tolist(),
                    "certainty": [round(float(kept.certainty[n]), 6) for n in own],
                    "votes": len(guesses.voters[i]),
                }
            )
        return sorted(kinds, key=lambda kind: (-len(kind["pictures"]), kind["name"]))

    # --- asking ----------------------------------------------------------------------------------------------------------------

    def _ask(
        self, picture_set: PictureSet, numbers: Sequence[int], questions: Sequence[str], stage: str, *, max_new_tokens: int
    ) -> list[str]:
        def reply(batch: Sequence[int]) -> list[str]:
            pictures, asked = picture_set([numbers[i] for i in batch]), [questions[i] for i in batch]
            return [str(said) for said in self.mllm.generate(pictures, asked, system=prompts.SYSTEM, max_new_tokens=max_new_tokens)]

        replies = track(self.each(reply, batches(len(numbers), self.mllm_batch)), stage, len(numbers), weigh=len)
        return [said for some in replies for said in some]

    def _encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self.encoder.encode_text([texts[i] for i in batch]) for batch in batches(len(texts), 256)])

    def _notes(
        self, identified: dict[str, Any], attributes: Sequence[str], descriptions: Sequence[str], guesses: Sequence[Sequence[str]]
    ) -> tuple[str, ...]:
        notes = []
        if identified["asked"] > identified["agreed"]:
            notes.append(f"{identified['agreed']} of {identified['asked']} replies say {identified['superclass']}")
        if not attributes:
            notes.append("howto: the reply was no list, so descriptions were asked for without one")
        if self.target == "description":
            notes.append("guess: this model knows no names, so its guesses are descriptions, and names are what tells these apart")
        for what, count in (
            ("without a description", descriptions.count("")),
            ("without a readable guess", sum(not some for some in guesses)),
        ):
            if count:
                notes.append(f"{count} pictures {what}")
        return tuple(notes)
