"""System 2 behind an engine that only generates: the answer is read from the MLLM's reply.

A reply that names no option is unreadable. System 1's answer then stands, and the report counts the reply.
"""

import re
from collections.abc import Sequence

import numpy as np

from fgvr.agents import prompts
from fgvr.agents.fusion import softmax
from fgvr.agents.slow import Judgement, Question, choice, letters, with_exemplars
from fgvr.protocols import Chooser
from fgvr.types import Choice, Picture

DOUBT = 0.1  # share of a reply that is spread evenly over the options, as one letter says nothing of how sure the MLLM is
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"\banswer(?:\W*\s+is)?\W*[:=]\W*|\banswer\s+is\W*", re.IGNORECASE)
_LETTER = re.compile(r"\W*(?:option\s+)?([A-Z])(?![\w'])", re.IGNORECASE)
_ARTICLE = re.compile(r"\W*(an?)\s+(?!(?:as|because|but|due|given|since|with)\b)\w", re.IGNORECASE)  # "The answer is a kite"
_FIRST = re.compile(r"[\W_]*([A-Z])(?:[.):\]*]|\s*$)")  # "A. kite" or "(A)", not "A bird"


class ReplyDecoder:
    """Asks as `ReasonDecoder` does, for engines that give no log-likelihoods of given text.

    Each readable reply is a distribution over the options. It is that of the letter's token where the engine tells it (`top_logprobs`).
    Else the named letter gets 1 - DOUBT, and DOUBT is spread evenly over all. Several replies (`votes`) are averaged.
    """

    independent = False  # the candidates stand in one question

    def __init__(self, mllm: Chooser, *, superclass: str, max_new_tokens: int, votes: int = 1) -> None:
        self._mllm, self._superclass = mllm, superclass
        self._max_new_tokens, self._votes = max_new_tokens, votes

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Judgement]:
        chosen = self._mllm.choose(
            with_exemplars(pictures, questions),
            [choice(self._superclass, question, ending="reason") for question in questions],
            [letters(question.options) for question in questions],
            marker=prompts.ANSWER,
            system=prompts.SYSTEM,
            max_new_tokens=self._max_new_tokens,
            votes=self._votes,
        )
        return [judge(choices, question) for choices, question in zip(chosen, questions, strict=True)]


def judge(choices: Sequence[Choice], question: Question) -> Judgement:
    """The mean of the readable replies, with the words of the first. Without one the judgement is unreadable."""
    names = [option.name for option in question.options]
    read = [(c.reply, shares) for c in choices if (shares := distribution(c, names)) is not None]
    if not read:
        return Judgement(np.full(len(names), np.nan), rationale_of(choices[0].reply) if choices else "", readable=False)
    return Judgement(np.log(np.mean([shares for _, shares in read], axis=0)), rationale_of(read[0][0]))


def distribution(chosen: Choice, names: Sequence[str]) -> np.ndarray | None:
    """(K,) shares of the options in one reply; None where it names no option."""
    if chosen.log_likelihoods:
        return softmax(np.array(list(chosen.log_likelihoods.values())))
    named = read_answer(chosen.reply, names)
    if named is None:
        return None
    shares = np.full(len(names), DOUBT / len(names))
    shares[named] += 1 - DOUBT
    return shares


def read_answer(reply: str, names: Sequence[str]) -> int | None:
    """The option that a reply names; None where it names none, or more than one.

    A reply names an option by letter or name after its last "Answer:". Else the letter at its beginning or end counts, or its only name.
    """
    text = _THOUGHT.sub("", reply).strip()
    after = list(_ANSWER.finditer(text))
    if after:
        said = text[after[-1].end() :]
        if (article := _ARTICLE.match(said)) and ((named := _by_name(said, names)) is not None or article[1] != "A"):
            return named
        return first if (first := _by_letter(_LETTER.match(said), names)) is not None else _by_name(said, names)
    lines = text.splitlines() or [""]
    ends = (_FIRST.match(lines[0]), re.fullmatch(r"[\W_]*([A-Z])[\W_]*", lines[-1]))
    found = next((place for match in ends if (place := _by_letter(match, names)) is not None), None)
    return found if found is not None else _by_name(text, names)


def rationale_of(reply: str) -> str:
    """The text before the answer."""
    text = _THOUGHT.sub("", reply).strip()
    marks = list(_ANSWER.finditer(text))
    return text[: marks[-1].start()].strip(" *_#\n") if marks else text


def _by_letter(match: re.Match[str] | None, names: Sequence[str]) -> int | None:
    place = ord(match[1].upper()) - ord("A") if match else len(names)
    return place if place < len(names) else None


def _by_name(text: str, names: Sequence[str]) -> int | None:
    """The only option whose name occurs. A name inside a longer name that occurs does not count."""
    lowered = text.lower()
    found = [i for i, name in enumerate(names) if re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", lowered)]
    whole = [i for i in found if not any(i != j and names[i].lower() in names[j].lower() for j in found)]
    return whole[0] if len(whole) == 1 else None
