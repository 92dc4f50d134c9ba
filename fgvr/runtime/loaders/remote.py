"""Models held elsewhere, behind the OpenAI API. Nothing is loaded here: they weigh nothing, take no turns, and cost only the waiting.

`source`: `http://host:port[/v1]`, or several joined by commas; `model`: a name of the other side's list. A server of fgvr needs none.
"""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.errors import ConfigError
from fgvr.runtime.conversation import draws
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders.base import Loader
from fgvr.runtime.remote import wire
from fgvr.runtime.remote.engine import Abilities, Engine
from fgvr.runtime.remote.wire import Message, data_url, messages, parcels
from fgvr.types import Choice, ModelSpec, Reply, Scores

if TYPE_CHECKING:
    from PIL.Image import Image

    from fgvr.protocols import ImageLike
    from fgvr.runtime.conversation import Images

CLIP_SCALE = 100.0  # every published CLIP's inverse temperature; a foreign engine does not tell its own
_UNIT = 1e-3  # a vector's length may differ from 1 by so much before it is scaled: scaling again would change its last digits
_TOGETHER = 128  # continuations in one request: our server takes 256 by default
_CURE = "write slow=reason, or have a server of fgvr (fgvr serve) or vLLM hold the model"


class RemoteLoader(Loader):
    """Every role that the other side has."""

    elsewhere = True

    def __init__(self) -> None:
        self._engines: dict[ModelSpec, Engine] = {}  # what each has learned of the other side stays
        self._lock = threading.Lock()

    def check(self, spec: ModelSpec) -> None:
        """Raises RemoteError: nobody there, or no such model. Waits for nobody."""
        engine = Engine(replace(spec, patience=0.0))
        with closing(engine.link):
            _ = engine.identity

    def describe(self, spec: ModelSpec) -> str:
        """What the engine can do, in words; an MLLM is tried out with two short requests. Waits for nobody; raises RemoteError."""
        engine = Engine(replace(spec, patience=0.0))
        with closing(engine.link):
            told = f"{engine.identity.name} at {engine.address}" + (f" {engine.abilities}" if spec.role == "mllm" else "")
            return told + "".join(f"; {address} does not answer" for address in engine.link.absent)

    def abilities(self, spec: ModelSpec) -> Abilities:
        """Of the engine that holds an MLLM. Raises RemoteError."""
        return self._engine(spec).abilities

    def estimate(self, spec: ModelSpec) -> int:
        return 0

    def fingerprint(self, spec: ModelSpec) -> str:
        """The weights' own where a server of fgvr holds them, so that its answers and those computed here are remembered as one."""
        return self._engine(spec).identity.fingerprint

    def logit_scale(self, spec: ModelSpec) -> float:
        return self._engine(spec).identity.logit_scale or CLIP_SCALE

    def load(self, spec: ModelSpec, device: Device) -> Any:
        """Asks nothing yet: this is called while nothing else may compute."""
        return {"mllm": RemoteMLLM, "encoder": RemoteEncoder, "joint": RemoteJoint}[spec.role](self._engine(spec))

    def close(self) -> None:
        """Forget every engine, and let go of the connections."""
        with self._lock:
            engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.link.close()

    def _engine(self, spec: ModelSpec) -> Engine:
        with self._lock:
            if spec not in self._engines:
                self._engines[spec] = Engine(spec)
            return self._engines[spec]


class _Remote:
    nbytes = 0
    movable = None

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def fingerprint(self) -> str:
        return self._engine.identity.fingerprint


class RemoteMLLM(_Remote):
    """protocols.MLLM: the prompts of a batch go out together."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._seen, self._looking = False, threading.Lock()

    def generate(self, images: Images, prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128) -> list[Reply]:
        if not prompts:
            return []
        self._sees(images)
        body = {"max_tokens": max_new_tokens, "temperature": 0}
        turns = [messages(i, p, system) for i, p in zip(images, prompts, strict=True)]
        return self._engine.link.each([self._engine.chat(asked, body, wire.reply) for asked in turns])

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
        """protocols.Chooser; the replies of one prompt differ by their seeds."""
        if not prompts:
            return []
        self._sees(images)
        common: dict[str, Any] = {"max_tokens": max_new_tokens}
        if count := self._engine.abilities.top_logprobs:
            common |= {"logprobs": True, "top_logprobs": count}
        calls = [
            self._engine.chat(turns, common | draw, partial(wire.choice, options=named, marker=marker))
            for turns, named in ((messages(i, p, system), named) for i, p, named in zip(images, prompts, options, strict=True))
            for draw in draws(votes)
        ]
        found = self._engine.link.each(calls)
        return [tuple(found[i : i + votes]) for i in range(0, len(found), votes)]

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        if not prompts:
            return []
        self._sees(images)
        return _score(self._engine, [messages(i, p, system) for i, p in zip(images, prompts, strict=True)], continuations)

    def _sees(self, images: Images) -> None:
        """Once: does a foreign engine look at images? Some take them and look away; then the prompt is no longer with one than without."""
        with self._looking:
            shows = any(len(item) if isinstance(item, Sequence) else True for item in images)
            if self._seen or not shows or self._engine.identity.ours:
                return
            without, with_one = (self._engine.tries(self._length(shown)) for shown in ([], [_blank()]))
            if without and with_one and with_one <= without:
                raise self._engine.lacks("does not look at images", "name a multimodal model: models.mllm.model=NAME")
            self._seen = True

    def _length(self, images: list[Image]) -> Callable[[Any], int]:
        shortest = {"max_tokens": 1, "temperature": 0}
        return self._engine.chat(messages(images, "What is this?"), shortest, lambda found: wire.usage(found, "prompt_tokens"))


class RemoteEncoder(_Remote):
    """protocols.Encoder: a batch goes out at once, in requests of a few images to our server, of one image to others."""

    @property
    def logit_scale(self) -> float:
        return self._engine.identity.logit_scale or CLIP_SCALE

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        name, urls = self._engine.identity.name, [data_url(image) for image in images]
        if self._engine.identity.ours:
            inputs = [urls[some] for some in parcels(images)]
            calls = [self._post({"model": name, "input": some, "encoding_format": "base64"}, len(some)) for some in inputs]
        else:
            turns = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]} for url in urls]
            calls = [self._post({"model": name, "messages": [turn], "encoding_format": "float"}, 1) for turn in turns]
        rows = self._engine.link.each(calls)
        return _unit(np.concatenate(rows)) if rows else np.zeros((0, 0), np.float32)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, 0), np.float32)
        body = {"model": self._engine.identity.name, "input": list(texts), "encoding_format": "base64"}
        return _unit(self._engine.link.ask(self._post(body, len(texts))))

    def _post(self, body: dict[str, Any], count: int) -> Any:
        def read(found: Any) -> np.ndarray:
            rows = [_row(entry["embedding"]) for entry in sorted(found["data"], key=lambda entry: entry["index"])]
            if len(rows) != count or len({len(row) for row in rows}) != 1:
                raise self._engine.lacks(
                    f"gave {len(rows)} embeddings for {count} items", "name an image-text encoder in models.encoder.source"
                )
            return np.stack(rows)

        return wire.post("/embeddings", body, read)


class RemoteJoint(_Remote):
    """protocols.JointEncoder, which only our server lends: the OpenAI API has no such call."""

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        if not self._engine.identity.ours:
            raise ConfigError(f"{self._engine.address} matches no images with texts: write models/joint=blip_itm_base, which runs here")

        def ask(some: slice) -> Any:
            body = {"model": self._engine.identity.name, "images": [data_url(i) for i in images[some]], "texts": list(texts[some])}
            return wire.post("/match", body, lambda found: np.asarray(found["probabilities"], np.float32))

        parts = self._engine.link.each([ask(some) for some in parcels(images)])
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


# --- log-likelihoods of given answers: our server computes them itself; vLLM tells them of a prompt that holds the answer ---------


def _score(engine: Engine, asked: Sequence[Sequence[Message]], continuations: Sequence[Sequence[str]]) -> list[Scores]:
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


# --- vectors ---------------------------------------------------------------------------------------------------------------------


def _row(embedding: str | Sequence[float]) -> np.ndarray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4").astype(np.float32)
    return np.asarray(embedding, np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows if np.all(np.abs(lengths - 1) < _UNIT) else (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def _blank() -> Image:
    from PIL import Image

    return Image.new("RGB", (56, 56), (128, 128, 128))


LOADER = RemoteLoader()
