"""What a chat asks of a model beyond `MLLM.generate`: several turns, sampling, stop words, log-probabilities, text while it grows.

A loader whose models can do this has a true attribute `converses`; its models have `converse` (see `Conversing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fgvr.types import Picture

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; its pictures and texts in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Picture | str, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. Temperature 0 is greedy; `top_logprobs`: None = no log-probabilities wanted."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One prompt and how to answer it."""

    turns: tuple[Turn, ...]
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, in nats before temperature; `top`: the likeliest at its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """`new_tokens` counts the end mark; `tokens` (where asked for) does not have it."""

    text: str
    finish: Finish
    prompt_tokens: int
    new_tokens: int
    tokens: tuple[Token, ...] = ()


Watch = Callable[[int, str, Sequence[Token]], bool]
"""Told, after each token, which conversation, its text so far (what may begin a stop word is held back), its tokens; False ends it."""


class Conversing(Protocol):
    """A model that answers conversations; one call is one batch."""

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        """One answer each. The same ask with the same seed gives the same answer, whatever else is in the batch, up to rounding."""
        ...


class Writer:
    """Token ids of one answer -> text: whole characters only, cut at a stop word."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._ids: list[int] = []
        self._settled, self._window = "", 0  # text before the window, where the window of undecided ids begins
        self._text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """The window keeps a few ids: some tokenizers decode a token differently at the start."""
        self._ids.append(token)
        tail = self._decode(self._ids[self._window :])
        self._text = self._settled + tail
        if len(self._ids) - self._window > 24 and not tail.endswith("\ufffd"):
            head = self._decode(self._ids[self._window : -8])
            if tail.startswith(head) and self._decode(self._ids[-8:]) == tail[len(head) :]:
                self._settled, self._window = self._settled + head, len(self._ids) - 8
        found = [at for word in self._stop if (at := self._text.find(word)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    @property
    def text(self) -> str:
        """All of it."""
        return self._text

    @property
    def certain(self) -> str:
        """What later tokens cannot take back: without half a character, without what may begin a stop word."""
        if self.stopped:
            return self._text
        text = self._text.rstrip("\ufffd")
        held = max((_overlap(text, word) for word in self._stop), default=0)
        return text[: len(text) - held] if held else text


def _overlap(text: str, word: str) -> int:
    """The longest end of `text` that begins `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
