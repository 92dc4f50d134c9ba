"""Log-likelihoods of given answers over HTTP: our server computes them itself; vLLM tells them of a prompt that holds the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fgvr.runtime.remote import wire
from fgvr.runtime.remote.engine import Engine
from fgvr.runtime.remote.wire import Message
from fgvr.types import Scores

_TOGETHER = 128  # continuations in one request: our server takes 256 by default
_CURE = "write slow=reason, or have a server of fgvr (fgvr serve) or vLLM hold the model"


def score(engine: Engine, asked: Sequence[Sequence[Message]], continuations: Sequence[Sequence[str]]) -> list[Scores]:
    """Per prompt. Raises RemoteError with the cure when the other side gives no log-likelihoods of given text."""
    if engine.identity.ours:
        starts = [range(0, max(1, len(texts)), _TOGETHER) for texts in continuations]
        calls = [
            [_ours(engine, turns, texts[i : i + _TOGETHER]) for i in at]
            for turns, texts, at in zip(asked, continuations, starts, strict=True)
        ]
        found = iter(engine.link.each([call for several in calls for call in several]))
        return [_joined([next(found) for _ in several]) for several in calls]
    return [_by_prompt(engine, turns, texts) for turns, texts in zip(asked, continuations, strict=True)]


def _joined(parts: Sequence[Scores]) -> Scores:
    """Of one prompt whose continuations went in several requests."""
    likelihoods = tuple(value for part in parts for value in part.log_likelihoods)
    return Scores(likelihoods, tuple(count for part in parts for count in part.tokens), parts[0].prompt_tokens)


def _ours(engine: Engine, turns: Sequence[Message], texts: Sequence[str]) -> Any:
    body = {"model": engine.identity.name, "messages": list(turns), "continuations": list(texts)}

    def read(found: Any) -> Scores:
        return Scores(tuple(map(float, found["log_likelihoods"])), tuple(map(int, found["tokens"])), int(found["prompt_tokens"]))

    return wire.post("/score", body, read)


# --- vLLM: `prompt_logprobs` of a chat whose last turn is the answer ---------------------------------------------------------


def _by_prompt(engine: Engine, turns: Sequence[Message], texts: Sequence[str]) -> Scores:
    before = engine.link.ask(engine.chat(turns, {"max_tokens": 1, "temperature": 0}, lambda found: wire.usage(found, "prompt_tokens")))
    with_answers = [[*turns, {"role": "assistant", "content": text}] for text in texts]
    found = engine.link.each([engine.chat(said, wire.PROMPT_LOGPROBS, wire.prompt_row) for said in with_answers])
    rows = [row for row in found if row is not None]
    if not before or len(rows) < len(found):
        raise engine.lacks("gives no log-likelihoods of given text (prompt_logprobs)", _CURE)
    answers = [_answer(engine, row[before:]) for row in rows]
    return Scores(tuple(math.fsum(answer) for answer in answers), tuple(map(len, answers)), before)


def _answer(engine: Engine, row: Sequence[Mapping[str, Any] | None]) -> list[float]:
    """Of the answer and the end of its turn; the template's line break after it is no part of what the model would say."""
    entries = [next(iter(entry.values())) for entry in row if entry]
    while len(entries) > 1 and not str(entries[-1].get("decoded_token") or "").strip():
        entries.pop()
    if not entries:
        raise engine.lacks("leaves the answer's turn out of its prompt_logprobs", _CURE)
    return [float(entry["logprob"]) for entry in entries]
