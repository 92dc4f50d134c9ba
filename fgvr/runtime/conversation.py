"""What may be asked of an MLLM: turns of images and text, sampling, stop words, log-probabilities, text while it grows.

`MLLM.generate` is a conversation of one user turn, answered greedily.

A loader whose models can do this has a true attribute `converses`; its models have `converse` (see `Conversing`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from fgvr.types import Choice, Picture, Reply

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = Picture | Image
    Images = Sequence[ImageLike | Sequence[ImageLike]]

Finish = Literal["stop", "length", "cancelled"]

TEMPERATURE = 0.7  # of several replies to one question
ALTERNATIVES = 20  # tokens looked at beside the one that was drawn; the OpenAI API's limit
_AROUND = " \t\r\n*_`'\"()[]{}.:#<>\u0120\u2581"  # what a token of one letter may have around it, the tokenizers' own spaces included
_ARTICLES = ("A", "I")
_NEXT_WORD = re.compile(r"[ \t]+\w")  # behind "A" or "I" it is an ordinary sentence, not a letter that answers

Likeliest = Sequence[tuple[str, float]]
"""(token, nats), the likeliest at one place."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; its pictures and texts in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[ImageLike | str, ...]


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

    @classmethod
    def single(cls, images: ImageLike | Sequence[ImageLike], prompt: str, system: str = "", max_new_tokens: int = 128) -> Conversation:
        """One user turn, images before the text, after a system turn if there is one."""
        shown = tuple(images) if isinstance(images, Sequence) else (images,)
        before = (Turn("system", (system,)),) if system else ()
        return cls((*before, Turn("user", (*shown, prompt))), Sampling(max_new_tokens))

    @property
    def shown(self) -> list[ImageLike]:
        """All pictures, in order."""
        return [part for turn in self.turns for part in turn.parts if not isinstance(part, str)]

    @property
    def images(self) -> list[Image]:
        """The same as images alone."""
        return [part.image if isinstance(part, Picture) else part for part in self.shown]

    @property
    def text(self) -> str:
        """All that is said, in order."""
        return " ".join(part for turn in self.turns for part in turn.parts if isinstance(part, str))

    def for_template(self) -> list[dict[str, object]]:
        """The turns as chat templates read them."""
        return [
            {"role": turn.role, "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.parts]}
            for turn in self.turns
        ]


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

    @property
    def reply(self) -> Reply:
        return Reply(self.text.strip(), prompt_tokens=self.prompt_tokens, new_tokens=self.new_tokens)


Watch = Callable[[int, str, Sequence[Token]], bool]
"""Told, after each token, which conversation, its text so far (what may begin a stop word is held back), its tokens; False ends it."""


class Conversing:
    """A model that answers conversations; one call is one batch."""

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        """One answer each. The same ask with the same seed gives the same answer, whatever else is in the batch, up to rounding."""
        raise NotImplementedError

    def generate(self, images: Images, prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128) -> list[Reply]:
        asks = [Conversation.single(*pair, system, max_new_tokens) for pair in zip(images, prompts, strict=True)]
        answers = self.converse(asks, lambda index, text, tokens: True)
        return [answer.reply for answer in answers]

    def choose(
        self,
        images: Images,
        prompts: Sequence[str],
        options: Sequence[Sequence[str]],
        *,
        marker: str,
        system: str = "",
        max_new_tokens: int = 128,
        votes: int = 1,
    ) -> list[tuple[Choice, ...]]:
        """protocols.Chooser. Each vote is a batch of its own, which takes the memory of `generate`."""
        asks = [Conversation.single(*pair, system) for pair in zip(images, prompts, strict=True)]
        rounds = []
        for draw in draws(votes):
            sampling = Sampling(max_new_tokens, top_logprobs=ALTERNATIVES, **draw)
            answers = self.converse([replace(ask, sampling=sampling) for ask in asks], lambda index, text, tokens: True)
            read = ([(token.text, token.top) for token in answer.tokens] for answer in answers)
            nats = [option_nats(tokens, named, marker) for tokens, named in zip(read, options, strict=True)]
            rounds.append([Choice(answer.reply, known) for answer, known in zip(answers, nats, strict=True)])
        return list(zip(*rounds, strict=True))


class GrowingAnswer:
    """One answer of a batch while it grows: ends at an end mark, a stop word, the limit, or at the watcher's word.

    Its text is made of whole characters and is cut at a stop word.
    """

    def __init__(self, sampling: Sampling, decode: Callable[[Sequence[int]], str]) -> None:
        self.sampling = sampling
        self.finish: Finish | None = None
        self._decode = decode
        self._ids: list[int] = []
        self._settled, self._window = "", 0  # text before the window, where the window of undecided ids begins
        self._text = ""
        self._tokens: list[Token] = []
        self._new_tokens = 0

    def take(self, token: int, measured: Token | None, *, is_end: bool) -> None:
        """One more token. `measured`: with its log-probabilities, where they are asked for."""
        self._new_tokens += 1
        if is_end:
            self.finish = "stop"
            return
        if measured is not None:
            self._tokens.append(measured)
        self._extend_text(token)
        found = [at for word in self.sampling.stop if (at := self._text.find(word)) >= 0]
        if found:
            self._text, self.finish = self._text[: min(found)], "stop"
        elif self._new_tokens >= self.sampling.max_new_tokens:
            self.finish = "length"

    def show(self, watch: Watch, index: int) -> None:
        going = watch(index, self._text if self.finish else self._certain, self._tokens)
        if not going and not self.finish:
            self.finish = "cancelled"

    def answer(self, prompt_tokens: int) -> Answer:
        return Answer(self._text, self.finish or "length", prompt_tokens, self._new_tokens, tuple(self._tokens))

    def _extend_text(self, token: int) -> None:
        """The window keeps a few ids: some tokenizers decode a token differently at the start."""
        self._ids.append(token)
        tail = self._decode(self._ids[self._window :])
        self._text = self._settled + tail
        if len(self._ids) - self._window > 24 and not tail.endswith("\ufffd"):
            head = self._decode(self._ids[self._window : -8])
            if tail.startswith(head) and self._decode(self._ids[-8:]) == tail[len(head) :]:
                self._settled, self._window = self._settled + head, len(self._ids) - 8

    @property
    def _certain(self) -> str:
        """What later tokens cannot take back: without half a character, without what may begin a stop word."""
        text = self._text.rstrip("\ufffd")
        held = max((_overlap(text, word) for word in self.sampling.stop), default=0)
        return text[: len(text) - held]


def _overlap(text: str, word: str) -> int:
    """The longest end of `text` that begins `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)


# --- what an answer says of the options that it may name ----------------------------------------------------------------------


def draws(votes: int) -> list[dict[str, Any]]:
    """The settings of each reply: one is greedy, several are sampled, each by its own seed."""
    return [{"temperature": 0}] if votes == 1 else [{"temperature": TEMPERATURE, "seed": vote} for vote in range(votes)]


def option_nats(tokens: Sequence[tuple[str, Likeliest]], options: Sequence[str], marker: str) -> dict[str, float]:
    """At the first option that is named after the last marker; without a marker, at the first token if it is an option.

    A letter that reads as an article ("A small bird") names nothing here: the reply's text is then to be read.
    An option outside the likeliest tokens gets the least of their values: an upper bound of its own.
    """
    whole = "".join(text for text, _ in tokens)
    after = whole.rfind(marker)
    begins = after + len(marker) if after >= 0 else 0
    position = 0
    for text, likeliest in tokens:
        said, position = text.strip(_AROUND), position + len(text)
        if position - len(text) >= begins and said in options:
            article = said in _ARTICLES and text.endswith(said) and _NEXT_WORD.match(whole, position)
            return {} if article else _spread(likeliest, options)
        if after < 0 and said:
            return {}
    return {}


def _spread(likeliest: Likeliest, options: Sequence[str]) -> dict[str, float]:
    listed = [(text.strip(_AROUND), nats) for text, nats in likeliest if math.isfinite(nats)]
    if not listed:
        return {}
    least = min(nats for _, nats in listed)
    each = {option: [math.exp(nats) for text, nats in listed if text == option] for option in options}
    return {option: math.log(total) if (total := math.fsum(shares)) > 0 else least for option, shares in each.items()}
