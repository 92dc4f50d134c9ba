"""An OpenAI-compatible engine that only generates, in all the odd ways engines and what stands before them answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.utils import formatdate
from itertools import cycle
from math import log
from typing import Any

from tests.webfake import Answer, Asked

HTML = {"Content-Type": "text/html"}
TEXT = "A. The bird is a kite"


def completion(**message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT} | message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 310, "completion_tokens": 5, "total_tokens": 315}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "q", "choices": [choice], "usage": usage}


def finished(reason: str | None) -> dict[str, Any]:
    found = completion()
    found["choices"][0]["finish_reason"] = reason
    return found


def busy(retry_after: str) -> Answer:
    return Answer(429, {"error": "x"}, {"Retry-After": retry_after})


def without_usage(**message: Any) -> dict[str, Any]:
    found = completion(**message)
    del found["usage"]
    return found


ANSWERED: dict[str, Callable[[], Any]] = {  # to what a chat is answered
    "ok": completion,
    "listcontent": lambda: completion(content=[{"type": "text", "text": "A. "}, {"type": "text", "text": "kite"}]),
    "partusage": lambda: completion() | {"usage": {"total_tokens": 3}},
    "nousage": without_usage,
    "nullusage": lambda: completion() | {"usage": None},
    "filter": lambda: finished("content_filter"),
    "toolc": lambda: finished("tool_calls"),
    "weird": lambda: finished("eos"),
    "nofinish": lambda: finished(None),
    "bare": completion,  # its list of models is a bare list
    "html": completion,  # shows a web page outside of /v1
}
UNREADABLE: dict[str, Callable[[], Any]] = {
    "null": lambda: completion(content=None),
    "think": lambda: completion(content="", reasoning_content="thinking"),
    "toolsonly": lambda: completion(
        content=None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    ),
    "prose": lambda: completion(content="A bird of prey, I should think."),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {  # and what the error quotes
    "nochoices": (lambda: completion() | {"choices": []}, '"choices": []'),
    "err200": (lambda: {"error": {"message": "upstream overloaded", "code": 502}}, "upstream overloaded"),
    "html200": (lambda: Answer(200, b"<html>login</html>", HTML), "<html>login</html>"),
    "badjson": (lambda: Answer(200, b'{"choices": [' + b"x" * 500), '{"choices": [' + "x" * 187 + "'..."),
    "nomessage": (lambda: without_usage() | {"choices": [{"index": 0, "message": None}]}, '"message": null'),
    "number": (lambda: without_usage(content=5), '"content": 5'),
    "402": (lambda: Answer(402, {"error": "no credit"}), "answered 402: no credit"),
    "413": (lambda: Answer(413, b"<html>413 Request Entity Too Large</html>", HTML), "413 Request Entity Too Large"),
    "retrydate": (lambda: busy("Wed, 21 Oct 2015 07:28:00 GMT"), "answered 429: x; gave up"),
    "retrylater": (lambda: busy(formatdate(time.time() + 3600, usegmt=True)), "answered 429: x; gave up"),
    "retryhuge": (lambda: busy("86400"), "answered 429: x; gave up"),
    "retrynan": (lambda: busy("nan"), "answered 429: x; gave up"),
    "retryzero": (lambda: busy("0"), "answered 429: x; gave up"),
    "cut": (lambda: Answer(200, b'{"id":', {"Content-Length": "5000", "Connection": "close"}), "does not answer"),
    "key": (lambda: Answer(401, {"error": {"message": "invalid api key"}}), "invalid api key; set FGVR_API_KEY"),
    "redirect": (lambda: Answer(308, b"", {"Location": "https://127.0.0.1:9/v1"}), "redirects to https://127.0.0.1:9/v1"),
    "nulldata": (completion, '"data": null'),
}


class Generating:
    """`modes`: how its chats are answered, in turn. `alternatives`: gives top_logprobs, with this share on B. `replies`: what it writes, in
    turn, instead of one text."""

    def __init__(self, *modes: str, alternatives: float | None = None, replies: tuple[str, ...] = ()) -> None:
        self._modes, self._alternatives, self._replies, self.chats = modes, alternatives, list(replies), 0
        self._turns = cycle(modes)

    def __call__(self, asked: Asked) -> Any:
        if asked.path == "/v1/models":
            row = {"id": "q", "object": "model", "created": 0, "owned_by": "x"}
            if "bare" in self._modes:
                return [row]
            return {"object": "list", "data": None if "nulldata" in self._modes else [row]}
        if asked.path != "/v1/chat/completions":
            return Answer(200, b"<html>open webui</html>", HTML) if "html" in self._modes else Answer(404, {"detail": "Not Found"})
        return self._chat(asked.body)

    def _chat(self, body: Any) -> Any:
        mode = next(self._turns)
        if mode in REFUSED:
            return REFUSED[mode][0]()
        found = json.loads(json.dumps((ANSWERED | UNREADABLE)[mode]()))
        parts = [part for turn in body["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
        images = sum(part["type"] == "image_url" for part in parts)
        if isinstance(found.get("usage"), dict) and "prompt_tokens" in found["usage"]:
            found["usage"]["prompt_tokens"] = 10 + 300 * images
        if self._replies and body["max_tokens"] > 1:
            found["choices"][0]["message"]["content"] = self._replies[self.chats % len(self._replies)]
            self.chats += 1
        if body.get("logprobs") and self._alternatives is not None:
            found["choices"][0]["logprobs"] = {"content": self._tokens(found["choices"][0]["message"]["content"], self._alternatives)}
        return found

    def _tokens(self, text: str, share: float) -> list[Any]:
        """One token per word, with B beside A at its share."""
        likeliest = [{"token": " B", "logprob": log(share)}, {"token": " A", "logprob": log(1 - share)}]
        words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split())]
        return [{"token": word, "logprob": -1.0, "top_logprobs": likeliest} for word in words]
