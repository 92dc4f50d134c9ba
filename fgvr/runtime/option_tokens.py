"""What a generated answer says of the options it may name: log-probabilities at the token that names one, and how votes are drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

TEMPERATURE = 0.7  # of several replies to one question
ALTERNATIVES = 20  # tokens looked at beside the one that was drawn; the OpenAI API's limit
_AROUND = " \t\r\n*_`'\"()[]{}.:#<>\u0120\u2581"  # what a token of one letter may have around it, the tokenizers' own spaces included

_ARTICLES = ("A", "I")
_NEXT_WORD = re.compile(r"[ \t]+\w")  # behind "A" or "I" it is an ordinary sentence, not a letter that answers

Likeliest = Sequence[tuple[str, float]]
"""(token, nats), the likeliest at one place."""


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
