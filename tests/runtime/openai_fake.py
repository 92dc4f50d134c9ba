"""An engine with an OpenAI API for tests, around the fakes of runtime.loaders.fake: as our server answers, or as vLLM and others do."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders.fake import FakeLoader
from fgvr.types import ModelSpec
from tests.webfake import Answer, Asked

SPECS = {role: ModelSpec(role, "fake", "fake") for role in ("mllm", "encoder", "joint")}  # type: ignore[arg-type]
END = "<|im_end|>"


@dataclass
class Engine:
    """`ours`: speaks as our server does, and lends `roles`.

    `images`, `scores`: what a foreign one can. `troubles`: answers given before all others.
    """

    ours: bool = True
    roles: tuple[str, ...] = tuple(SPECS)
    images: bool = True
    scores: bool = True
    names: tuple[str, ...] = ("vision-7b",)
    fingerprint: str = "weights-1"
    troubles: list[Answer] = field(default_factory=list)
    logit_scale: float = 42.0
    fingerprints: dict[str, str] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=lambda: {r: FakeLoader().load(s, CpuDevice()) for r, s in SPECS.items()})
    computing: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, asked: Asked) -> Any:
        if self.troubles and asked.method == "POST":
            return self.troubles.pop(0)
        answer = getattr(self, "_" + asked.path.rpartition("/")[2], None)
        with self.computing:
            return Answer(404, {"detail": "not found"}) if answer is None else answer(asked.body)

    def _models(self, body: Any) -> Any:
        if self.ours:
            prints = {role: f"{self.fingerprint}-{role}" for role in SPECS} | self.fingerprints
            scales = {"encoder": self.logit_scale}
            rows = [
                {"id": s.key, "role": r, "fingerprint": prints[r], "logit_scale": scales.get(r)}
                for r, s in SPECS.items()
                if r in self.roles
            ]
        else:
            rows = [{"id": name} for name in self.names]
        return {"object": "list", "data": [row | {"object": "model", "created": 0, "owned_by": "x"} for row in rows]}

    def _completions(self, body: Any) -> Any:
        if "prompt_logprobs" in body:
            return self._with_logprobs(body)
        images, prompt = self._read(body["messages"])
        if images and not self.images:
            images = []
        system = _system(body["messages"])
        [reply] = self.models["mllm"].generate([images], [prompt], system=system, max_new_tokens=body["max_tokens"])
        used = {"prompt_tokens": self._length(images, prompt), "completion_tokens": reply.new_tokens, "total_tokens": 0}
        message = {"role": "assistant", "content": f" {reply}\n"}
        return self._chat(message, used)

    def _chat(self, message: Any, used: Any, **extra: Any) -> Any:
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "x", "choices": [choice], "usage": used} | extra

    def _with_logprobs(self, body: Any) -> Any:
        images, prompt = self._read(body["messages"][:-1])
        [scores] = self.models["mllm"].score([images], [prompt], [[body["messages"][-1]["content"]]], system=_system(body["messages"]))
        each = scores.log_likelihoods[0] / scores.tokens[0]
        words = [*body["messages"][-1]["content"].split(), END]
        said = [{str(i): {"logprob": each, "rank": 1, "decoded_token": word}} for i, word in enumerate(words)]
        row = [None, *[{"0": {"logprob": -9.0, "decoded_token": "x"}}] * (self._length(images, prompt) - 1), *said]
        row.append({"9": {"logprob": -5.0, "decoded_token": "\n"}})
        return self._chat({"role": "assistant", "content": ""}, None, **({"prompt_logprobs": row} if self.scores else {}))

    def _score(self, body: Any) -> Any:
        images, prompt = self._read(body["messages"])
        [scores] = self.models["mllm"].score([images], [prompt], [body["continuations"]], system=_system(body["messages"]))
        return {"log_likelihoods": scores.log_likelihoods, "tokens": scores.tokens, "prompt_tokens": scores.prompt_tokens}

    def _embeddings(self, body: Any) -> Any:
        encoder = self.models["encoder"]
        if "messages" in body:
            images, _ = self._read(body["messages"])
            vectors = 3.0 * encoder.encode(images)  # foreign engines need not normalise
        elif str(body["input"][0]).startswith("data:"):
            vectors = encoder.encode([_image(url) for url in body["input"]])
        else:
            vectors = encoder.encode_text(body["input"])
        rows = [{"index": i, "embedding": self._packed(row, body["encoding_format"])} for i, row in enumerate(vectors)]
        return {"object": "list", "data": rows[::-1], "model": "x", "usage": {"prompt_tokens": 0, "total_tokens": 0}}

    def _match(self, body: Any) -> Any:
        matches = self.models["joint"].match([_image(url) for url in body["images"]], body["texts"])
        return {"probabilities": [float(p) for p in matches]}

    def _packed(self, row: np.ndarray, encoding: str) -> Any:
        return base64.b64encode(row.astype("<f4").tobytes()).decode() if encoding == "base64" else [float(x) for x in row]

    def _read(self, turns: list[Any]) -> tuple[list[Image.Image], str]:
        content = turns[-1]["content"]
        if isinstance(content, str):
            return [], content
        return [_image(p["image_url"]["url"]) for p in content if p["type"] == "image_url"], "".join(p.get("text", "") for p in content)

    def _length(self, images: list[Any], prompt: str) -> int:
        return 10 * len(images) + len(prompt.split()) + 1


def _system(turns: list[Any]) -> str:
    return turns[0]["content"] if turns[0]["role"] == "system" else ""


def _image(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
