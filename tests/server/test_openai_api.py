"""`/v1` with OpenAI's own client: chat with images, streams, log-probabilities, embeddings; what is not supported is named."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from fgvr.types import Decision, Picture, Prediction, Sample
from fgvr.utils.images import read_image
from tests.runtime.fakes import FakeLoader

from .conftest import MIB, SPECS, FakeRecognizer, Serve, Served, chat, data_url, png


def client(served: Served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, http_client=openai.DefaultHttpxClient(trust_env=False))


IDLE = {"budget": 99 * MIB}  # of the server of those tests that load nothing


def turns(text: str = "Describe the bird.", *images: str) -> Any:
    return chat(text, *images)["messages"]


def test_a_chat_with_an_image_is_what_the_model_says_in_process(serve_once: Serve) -> None:
    served = serve_once()
    picture = Picture(*read_image(png()))
    with served.pool.lease("mllm") as mllm:
        (here,) = mllm.generate([[picture]], ["Describe the bird."], max_new_tokens=32)
    with client(served) as web:
        there = web.chat.completions.create(model="mllm", messages=turns("Describe the bird.", data_url()), max_tokens=32)
    choice = there.choices[0]
    assert (choice.message.content, choice.finish_reason, there.model) == (str(here), "stop", SPECS["mllm"].key)
    assert there.usage and there.usage.completion_tokens == here.new_tokens, "the end mark counts in both"
    assert there.usage.total_tokens == there.usage.prompt_tokens + there.usage.completion_tokens


def test_a_stream_adds_up_to_the_answer(serve_once: Serve) -> None:
    served = serve_once()
    with client(served) as web:
        whole = web.chat.completions.create(model="mllm", messages=turns(), max_tokens=32)
        chunks = list(
            web.chat.completions.create(model="mllm", messages=turns(), max_tokens=32, stream=True, stream_options={"include_usage": True})
        )
    told = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert told == whole.choices[0].message.content
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 3, "it came in pieces"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"


def test_log_probabilities_with_their_rivals(serve_once: Serve) -> None:
    served = serve_once()
    with client(served) as web:
        answer = web.chat.completions.create(model="mllm", messages=turns(), max_tokens=4, logprobs=True, top_logprobs=3)
        streamed = list(
            web.chat.completions.create(model="mllm", messages=turns(), max_tokens=4, logprobs=True, top_logprobs=3, stream=True)
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 4
    for token in logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3 and bytes(token.bytes or []).decode() == token.token
        assert token.top_logprobs[0].logprob == token.logprob
    told = [t for c in streamed if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content or []]
    assert told == logprobs.content


def test_n_seeds_and_stop_words(serve_once: Serve) -> None:
    served = serve_once()
    with client(served) as web:

        def ask(**more: Any) -> list[str]:
            return [
                c.message.content or "" for c in web.chat.completions.create(model="mllm", messages=turns(), max_tokens=32, **more).choices
            ]

        assert len(set(ask(n=3))) == 1, "greedy"
        drawn = ask(n=3, temperature=1.0, seed=7)
        assert len(set(drawn)) > 1 and ask(n=3, temperature=1.0, seed=7) == drawn != ask(n=3, temperature=1.0, seed=9)
        (whole,) = ask()
        word = whole.split()[3]
        assert ask(stop=word) == [whole[: whole.index(word)]] == ask(stop=["not in it", word])
        streamed = web.chat.completions.create(model="mllm", messages=turns(), max_tokens=32, stop=word, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed) == whole[: whole.index(word)]
        short = web.chat.completions.create(model="mllm", messages=turns(), max_completion_tokens=2).choices[0]
        assert (short.finish_reason, len((short.message.content or "").split())) == ("length", 2)


UNSUPPORTED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "functions": [],
    "response_format": {"type": "json_object"},
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "logit_bias": {"5": 1},
    "best_of": 2,
    "prompt_logprobs": 0,
    "audio": {},
    "modalities": ["audio"],
    "reasoning_effort": "high",
    "store": True,
    "n": 100,
    "max_tokens": 10**6,
    "temperature": 3,
    "top_p": 1.5,
    "top_logprobs": 21,
    "seed": "7",
    "stop": ["a"] * 5,
    "stream_options": {"include_usage": True},
    "anything_else": 1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_a_400_that_names_the_parameter(serve_once: Serve, name: str) -> None:
    served = serve_once(**IDLE)
    answer = served.post("/v1/chat/completions", chat(**{name: UNSUPPORTED[name]}))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").split(".")[0] == name and name in error["message"]
    assert served.pool.loads["mllm"] == 0


def test_what_a_client_sends_without_wanting_anything_is_accepted(serve_once: Serve) -> None:
    served = serve_once()
    harmless = {"response_format": {"type": "text"}, "frequency_penalty": 0, "presence_penalty": 0, "n": 1, "user": "me", "stop": None,
                "store": False, "logprobs": False, "temperature": 0, "top_p": 1, "seed": 3, "stream": False}  # fmt: skip
    assert served.post("/v1/chat/completions", chat(**harmless)).status_code == 200


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "hello"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": data_url()}}]}, {"role": "user", "content": "x"}],
        [{"role": "user", "content": "x", "name": "me"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(), "detail": "lowest"}}]}],
        [{"role": "user", "content": "x" * 30_000}],
        "hello",
    ],
)
def test_messages_that_cannot_be_answered_are_named(serve_once: Serve, messages: Any) -> None:
    served = serve_once(**IDLE)
    answer = served.post("/v1/chat/completions", {"model": "mllm", "messages": messages})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("messages"), answer.text


def test_several_turns_are_one_conversation(serve_once: Serve) -> None:
    served = serve_once()
    shown = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": data_url()}}]
    said = (("system", "You name birds."), ("user", "Hello."), ("assistant", "Yes?"), ("user", shown))
    messages = [{"role": role, "content": content} for role, content in said]
    assert served.post("/v1/chat/completions", {"model": SPECS["mllm"].key, "messages": messages}).status_code == 200


class OnlyGenerates(FakeLoader):
    converses = False


def test_an_engine_that_only_generates_says_what_it_cannot(serve: Serve) -> None:
    served = serve(loader=OnlyGenerates())
    plain = served.post("/v1/chat/completions", chat("Describe the bird.", data_url()))
    assert plain.status_code == 200 and plain.json()["choices"][0]["message"]["content"]
    for name, value in (("temperature", 0.5), ("stop", "a"), ("logprobs", True)):
        answer = served.post("/v1/chat/completions", chat(**{name: value}))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_embeddings_of_texts_and_images_are_exact(serve_once: Serve) -> None:
    served = serve_once()
    picture = Picture(*read_image(png()))
    with served.pool.lease("encoder") as encoder:
        wanted = np.concatenate([encoder.encode_text(["a crow"]), encoder.encode([picture]), encoder.encode_text(["a jay"])])
    with client(served) as web:
        found = web.embeddings.create(model="encoder", input=["a crow", data_url(), "a jay"])  # base64 below
    assert np.array_equal(np.array([row.embedding for row in found.data], np.float32), wanted)
    floats = served.post("/v1/embeddings", {"input": ["a crow", data_url(), "a jay"], "dimensions": wanted.shape[1]}).json()
    assert np.array_equal(np.array([row["embedding"] for row in floats["data"]], np.float32), wanted)
    assert [row["index"] for row in floats["data"]] == [0, 1, 2]
    encoded = served.post("/v1/embeddings", {"input": "a crow", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(encoded), "<f4"), wanted[0])
    for body, name in (
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": [1, 2]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 1000}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ):
        answer = served.post("/v1/embeddings", body)
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(name), answer.text


def test_scores_and_matches_are_those_of_the_process(serve_once: Serve) -> None:
    served = serve_once()
    picture, texts = Picture(*read_image(png())), ["a crow", "a blue jay"]
    with served.pool.lease("mllm", "joint") as (mllm, joint):
        (wanted,) = mllm.score([[picture]], ["Which?"], [texts], system="Birds.")
        pairs = joint.match([picture, picture], texts)
    messages = [{"role": "system", "content": "Birds."}, *turns("Which?", data_url())]
    found = served.post("/v1/score", {"model": "mllm", "messages": messages, "continuations": texts}).json()
    assert found == {"log_likelihoods": list(wanted.log_likelihoods), "tokens": list(wanted.tokens), "prompt_tokens": wanted.prompt_tokens}
    matched = served.post("/v1/match", {"model": "joint", "images": [data_url()] * 2, "texts": texts}).json()["probabilities"]
    assert all(math.isclose(a, b) for a, b in zip(matched, pairs, strict=True))
    two_turns = [*turns(), {"role": "assistant", "content": "x"}, *turns()]
    assert served.post("/v1/score", {"messages": two_turns, "continuations": texts}).json()["error"]["param"] == "messages"


def test_models_are_listed_with_what_identifies_them(serve_once: Serve) -> None:
    served = serve_once(**IDLE)
    with client(served) as web:
        rows = {row.to_dict()["role"]: row.to_dict() for row in web.models.list()}
        assert set(rows) == {"mllm", "encoder", "joint"}
        assert all(row["fingerprint"] for row in rows.values())
        assert rows["encoder"]["logit_scale"] == 100.0
        assert web.models.retrieve("mllm").id == SPECS["mllm"].key
        with pytest.raises(openai.NotFoundError):
            web.models.retrieve("gpt-4")
        with pytest.raises(openai.NotFoundError) as refused:
            web.chat.completions.create(model="gpt-4", messages=turns())
        assert refused.value.param == "model"
    assert sum(served.pool.loads.values()) == 0, "listing loads nothing"


def test_classification_by_upload_and_by_data_url(serve_once: Serve) -> None:
    served = serve_once()
    files = [("images", ("my crow.png", png(), "image/png")), ("images", ("other.png", png(seed=1), "image/png"))]
    uploaded = served.post("/api/v1/classify", files=files).json()["data"]["predictions"]
    assert [row["image"] for row in uploaded] == ["my crow.png", "other.png"]
    assert {"prediction", "name", "fast", "decision", "slow", "confidence", "by", "unsure", "cost", "names"} <= set(uploaded[0])
    sent = served.post("/api/v1/classify", {"images": [data_url()], "names": ["a"]}).json()["data"]["predictions"]
    assert (sent[0]["image"], sent[0]["name"], sent[0]["names"]) == ("a", "crow", {"1": "crow"})


@dataclass
class Doubting(FakeRecognizer):
    """Never sure, and without a System 2."""

    def batch(self, images: Sequence[Sample]) -> list[Prediction]:
        return [replace(p, decision=Decision(True, 0.4, 0.5)) for p in super().batch(images)]


def test_a_classification_says_in_one_field_whether_it_is_unsure_and_what_holds_for_all_its_answers(serve: Serve) -> None:
    notice = "these models know only rendered birds"
    sure, doubting = serve(bundle={"notice": None}), serve(recognizer=Doubting(), bundle={"notice": notice})
    told = {}
    for served in (sure, doubting):
        data = served.post("/api/v1/classify", {"image": data_url()}).json()["data"]
        told[served.url] = (data["predictions"][0]["unsure"], data["predictions"][0]["answer"], data["warnings"])
    assert told == {sure.url: (False, "crow", []), doubting.url: (True, "crow (unsure)", [notice])}
    schemas = sure.get("/openapi.json").json()["components"]["schemas"]
    assert "nobody has looked again" in schemas["ClassifiedImage"]["properties"]["unsure"]["description"]
    assert schemas["Classification"]["required"] == ["predictions", "warnings"]


def test_one_image_is_classified_by_its_own_name(serve_once: Serve) -> None:
    served = serve_once()
    (expected,) = served.post("/api/v1/classify", {"images": [data_url()], "names": ["crow.png"]}).json()["data"]["predictions"]
    cost = expected.pop("cost")
    bodies = [{"json": {"image": data_url(), "names": ["crow.png"]}}]
    bodies += [{"files": {field: ("crow.png", png(), "image/png")}} for field in ("image", "file")]
    for body in bodies:
        answer = served.post("/api/v1/classify", **body)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["data"]["predictions"]
        assert set(row.pop("cost")) == set(cost) and row == expected
    for wrong, param in (
        ({}, "images"),
        ({"image": data_url(), "images": [data_url()]}, "images"),
        ({"image": "data:image/png;base64,AAAA"}, "image"),
        ({"image": data_url(), "names": ["a", "b"]}, "names"),
        ({"images": []}, "images"),
    ):
        refused = served.post("/api/v1/classify", wrong)
        assert (refused.status_code, refused.json()["data"]["param"]) == (400, param), refused.text
    broken = served.post("/api/v1/classify", files={"file": ("a.txt", b"hello", "image/png")})
    assert (broken.status_code, broken.json()["data"]["param"]) == (400, "file")
    for names in (("image", "images"), ("image", "image")):
        both = served.post("/api/v1/classify", files=[(name, ("crow.png", png(), "image/png")) for name in names])
        assert both.status_code == 400 and "the only one" in both.text


def test_a_recognizer_that_cannot_be_built_is_told_and_tried_again(serve: Serve) -> None:
    from fgvr.errors import KnowledgeError

    from .conftest import FakeRecognizer

    tries: list[int] = []

    def build() -> FakeRecognizer:
        tries.append(1)
        if len(tries) == 1:
            raise KnowledgeError("no knowledge base here; run mode=build_knowledge_base")
        return FakeRecognizer()

    served = serve(recognizer=build)
    first = served.post("/api/v1/classify", {"images": [data_url()]})
    assert (first.status_code, "no knowledge base" in first.text) == (503, True)
    assert served.post("/api/v1/classify", {"images": [data_url()]}).status_code == 200


def test_query_with_and_without_an_image(serve_once: Serve) -> None:
    served = serve_once()
    for body in ({"question": "Describe the bird."}, {"question": "Describe the bird.", "image": data_url()}):
        data = served.post("/api/v1/query", body).json()["data"]
        assert data["answer"].startswith("A bird with") and data["model"] == SPECS["mllm"].key
    assert served.post("/api/v1/query", {"question": ""}).json()["data"]["param"] == "question"
    assert served.post("/api/v1/query", {"question": "a", "max_tokens": 10**6}).json()["data"]["param"] == "max_tokens"


def test_a_model_that_cannot_fit_or_load_is_no_500(serve: Serve) -> None:
    def broken(spec: Any) -> None:
        raise RuntimeError("no such file")

    small, failing = serve(budget=5 * MIB), serve(loader=FakeLoader(on_load=broken))
    answer = small.post("/v1/chat/completions", chat())
    assert (answer.status_code, answer.json()["error"]["plan"]["budget"]) == (507, 5 * MIB)
    answer = failing.post("/v1/chat/completions", chat())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
    assert failing.get("/health").status_code == 503
    assert isinstance(answer, httpx.Response)


def test_a_server_without_an_mllm_is_ready_and_says_what_it_lacks(serve: Serve) -> None:
    """As `models=photos` is: an encoder alone."""
    served = serve(roles=("encoder",))
    assert served.get("/health").status_code == 200
    assert [row["role"] for row in served.get("/v1/models").json()["data"]] == ["encoder"]
    assert served.post("/api/v1/classify", {"images": [data_url()]}).status_code == 200
    for path, body in (("/v1/chat/completions", chat()), ("/v1/match", {"images": [data_url()], "texts": ["a"]})):
        answer = served.post(path, body)
        assert (answer.status_code, answer.json()["error"]["code"], "=none" in answer.text) == (404, "model_not_found", True)
    assert served.post("/api/v1/query", {"question": "what"}).status_code == 404
