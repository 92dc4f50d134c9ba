"""A deeper System 2: find the telling parts, look at each, sum up in one description, retrieve with it, answer."""

import re
from collections.abc import Sequence

import numpy as np

from fgvr.agents import prompts
from fgvr.agents.slow import Judgement, Question, choice, letters_after, with_exemplars
from fgvr.protocols import MLLM, Encoder
from fgvr.types import Picture

PARTS = 3
_MARK = re.compile(r"^[\s\-*\d.)]+")


class AnalyseDecoder:
    """Looks in three steps, then judges the candidates twice: by text-text similarity, and by the MLLM's own letter. The nats add up.

    An image costs one MLLM call to find the parts, one per part, one to sum up and one to answer. The new description ranks the candidates
    again, and it brings in no others.
    """

    independent = False  # the candidates stand in one question

    def __init__(self, mllm: MLLM, encoder: Encoder, *, superclass: str, temperature: float, max_new_tokens: int) -> None:
        """Args: temperature: of the text-text similarities, the encoder's own."""
        self._mllm, self._encoder = mllm, encoder
        self._superclass, self._temperature, self._max_new_tokens = superclass, temperature, max_new_tokens

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Judgement]:
        parts = self._where(pictures, questions)
        notes = self._what(pictures, parts)
        summed = self._write(pictures, [prompts.sum_up(self._superclass, lines) for lines in notes])
        descriptions = [" ".join(text.split()) for text in summed]
        asked = [choice(self._superclass, question, ending="reason") for question in questions]
        told = letters_after(self._mllm, with_exemplars(pictures, questions), asked, descriptions, questions)
        return [
            Judgement(nats + self._retrieve(description, question), "\n".join([*lines, description]))
            for nats, description, question, lines in zip(told, descriptions, questions, notes, strict=True)
        ]

    def _where(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[list[str]]:
        asked = [prompts.tell_apart(self._superclass, [o.name for o in q.options], [o.description for o in q.options]) for q in questions]
        named = [[_MARK.sub("", line).strip() for line in reply.splitlines()] for reply in self._write(pictures, asked)]
        return [[part for part in parts if part][:PARTS] for parts in named]

    def _what(self, pictures: Sequence[Picture], parts: Sequence[Sequence[str]]) -> list[list[str]]:
        """`part: what is visible there`, per image."""
        looks = [(i, part) for i, named in enumerate(parts) for part in named]
        said = self._write([pictures[i] for i, _ in looks], [prompts.look_at(self._superclass, part) for _, part in looks])
        notes: list[list[str]] = [[] for _ in pictures]
        for (i, part), text in zip(looks, said, strict=True):
            notes[i].append(f"{part}: {' '.join(text.split())}")
        return notes

    def _retrieve(self, description: str, question: Question) -> np.ndarray:
        """Log softmax of the text-text similarities. A candidate without words gets their mean; without any words all are equal."""
        texts = [option.description for option in question.options]
        known = np.array([bool(text) for text in texts])
        if not description or not known.any():
            return np.zeros(len(texts))
        vectors = self._encoder.encode_text([description, *(text for text in texts if text)])
        scores = np.zeros(len(texts))
        scores[known] = vectors[1:] @ vectors[0] / self._temperature
        scores[~known] = scores[known].mean()
        return scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()

    def _write(self, pictures: Sequence[Picture], asked: Sequence[str]) -> list[str]:
        if not asked:
            return []
        return list(map(str, self._mllm.generate(pictures, asked, system=prompts.SYSTEM, max_new_tokens=self._max_new_tokens)))
