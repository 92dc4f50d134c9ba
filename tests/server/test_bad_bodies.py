"""Bodies that cost a server much or mean nothing: each is refused quickly with its parameter, and others are answered meanwhile."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

import fgvr
from fgvr.runtime.conversation import Conversation, Sampling, Turn
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders.base import find_loader
from fgvr.session import Session

from .conftest import ADMIN, Serve, Served, chat, data_url

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
ADDRESSES = (CHAT, "/v1/embeddings", "/v1/score", "/v1/match", "/api/v1/query", "/api/v1/classify", "/api/v1/memory/cleanup")


def send(served: Served, path: str, content: bytes) -> tuple[int, dict[str, Any], float]:
    with served.web() as web:
        began = time.process_time()
        answer = web.post(path, content=content, headers=JSON | ADMIN)
        return answer.status_code, answer.json(), time.process_time() - began


def failure(body: dict[str, Any]) -> dict[str, Any]:
    return body.get("error") or body["data"]


MANY = b", ".join([b"1"] * 1_398_000)
COSTLY = {
    "messages": b'{"messages": [' + MANY + b"]}",
    "parts": b'{"messages": [{"role": "user", "content": [' + MANY + b"]}]}",
    "input": b'{"input": [' + b", ".join([b'"a"'] * 800_000) + b"]}",
    "objects": b'{"messages": [' + b", ".join([b"{}"] * 1_000_000) + b"]}",
    "depth": b"[" * 2_000_000,
    "less depth": b'{"messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "keys": b"{" + b", ".join(b'"k%d": 1' % i for i in range(30_000)) + b"}",
    "text": b'{"messages": [{"role": "user", "content": "' + b"a" * (4 << 20) + b'"}]}',
    "key": b'{"' + b"k" * (4 << 20) + b'": 1}',
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_body_is_refused_at_once_everywhere_and_others_are_answered(serve_once: Serve, name: str) -> None:
    served = serve_once()
    waits: list[float] = []
    ended = threading.Event()

    def other() -> None:
        with served.web() as web:
            while not ended.is_set():
                began = time.process_time()
                assert web.get("/api/v1/memory/pressure").status_code == 200
                waits.append(time.process_time() - began)
                time.sleep(0.01)

    watcher = threading.Thread(target=other)
    watcher.start()
    try:
        for path in ADDRESSES:
            status, body, took = send(served, path, COSTLY[name])
            assert status == 400 and len(json.dumps(body)) < 1000, body
            assert took < 0.5, (path, took)  # seconds of computing, the server's included; .2 by itself
    finally:
        ended.set()
        watcher.join()
    assert waits and max(waits) < 1.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"messages": [], "messages": []}', "'messages' stands twice"),
        (b'{"model": "\xff"}', "byte 11 is no UTF-8"),
        (b"[]", "dictionary"),
        (b"7", "dictionary"),
        (b'{"messages": }', "line 1, column 14"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"messages": [1, 2]}', "messages.0: "),
        (b'{"\\ud800": 1}', "unicode"),
    ],
)
def test_what_is_no_request_is_named(serve_once: Serve, content: bytes, said: str) -> None:
    status, body, _ = send(serve_once(), CHAT, content)
    assert status == 400 and said in failure(body)["message"], body


def test_lists_have_limits_that_are_named(serve: Serve) -> None:
    served = serve(max_messages=3)
    turn = {"role": "user", "content": "a"}
    for messages in ([turn] * 4, [turn, {"role": "user", "content": [{"type": "text", "text": "a"}] * 3}]):
        answer = served.post(CHAT, {"messages": messages})
        assert answer.status_code == 400 and "server.max_messages" in answer.text and "4" in answer.text
    assert served.post(CHAT, {"messages": [turn] * 3}).status_code == 200
    assert "server.max_items" in served.post("/v1/embeddings", {"input": ["a"] * 300}).text


# --- chat histories ------------------------------------------------------------------------------------------------------------


def test_what_the_official_client_dumps_can_be_sent_again(serve_once: Serve) -> None:
    openai = pytest.importorskip("openai")
    served = serve_once()
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        history: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "A bird?"}]
        first = client.chat.completions.create(model="mllm", messages=history)
        history += [first.choices[0].message, {"role": "user", "content": "And its beak?"}]
        assert client.chat.completions.create(model="mllm", messages=history).choices[0].message.content
        history[2] = first.choices[0].message.model_dump() | {"annotations": [], "tool_calls": None}
        assert client.chat.completions.create(model="mllm", messages=history).choices[0].message.content


@pytest.mark.parametrize(
    "said",
    [
        {"content": None},
        {"content": None, "refusal": "I cannot."},
        {"content": [{"type": "refusal", "refusal": "I cannot."}]},
        {"content": "x", "refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None},
        {"content": "x", "tool_calls": []},
    ],
)
def test_an_assistants_message_is_taken_in_all_its_forms(serve_once: Serve, said: dict[str, Any]) -> None:
    turn = {"role": "user", "content": "A bird?"}
    answer = serve_once().post(CHAT, {"messages": [turn, {"role": "assistant", **said}, turn]})
    assert answer.status_code == 200, answer.text


def test_parameters_that_are_null_or_empty_are_as_if_they_were_not_there(serve_once: Serve) -> None:
    names = ("temperature", "top_p", "n", "stream", "max_tokens", "max_completion_tokens", "stop", "seed", "logprobs", "top_logprobs",
             "stream_options", "response_format", "tools", "tool_choice", "user", "metadata", "store", "logit_bias", "functions", "audio",
             "parallel_tool_calls", "frequency_penalty", "presence_penalty", "modalities", "service_tier", "prediction")  # fmt: skip
    served = serve_once()
    nothing = served.post(CHAT, chat(**dict.fromkeys(names)))
    assert nothing.status_code == 200, nothing.text
    empty = served.post(CHAT, chat(tools=[], logit_bias={}, metadata={"run": "7"}, modalities=["text"]))
    assert empty.status_code == 200, empty.text
    assert nothing.json()["choices"] == empty.json()["choices"]


@pytest.mark.parametrize("detail", ["low", "high", "auto", None])
def test_images_are_taken_as_the_api_writes_them(serve_once: Serve, detail: str | None) -> None:
    served = serve_once()
    shown = [{"url": data_url(), "detail": detail}, data_url()]
    for image in shown:
        content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "x"}]
        answer = served.post(CHAT, {"messages": [{"role": "user", "content": content}]})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": 7}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "text", "text": 7}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "video"}]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "most"}}]},
         "messages.0.content.0.image_url.detail"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": 7}]}, "messages.0.content.0.image_url"),
        ({"role": "user", "content": "x", "refusal": "no"}, "messages.0.refusal"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}, "messages.0.content.0"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(serve_once: Serve, turn: dict[str, Any], param: str) -> None:
    answer = serve_once().post(CHAT, {"messages": [turn, {"role": "user", "content": "x"}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


# --- extremes of sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "NaN"), ("temperature", "Infinity"), ("temperature", "1e400"), ("temperature", "-1e-310"), ("temperature", "true"),
        ("temperature", "1" + "0" * 400), ("top_p", "NaN"), ("top_p", "-1"), ("top_p", "1.0000001"), ("seed", str(2**70)), ("seed", "NaN"),
        ("max_tokens", "1" + "0" * 30), ("max_tokens", "0"), ("n", "1" + "0" * 30), ("top_logprobs", "1" + "0" * 30),
        ("frequency_penalty", "NaN"),
    ],
)  # fmt: skip
def test_an_extreme_is_refused_by_name(serve_once: Serve, name: str, value: str) -> None:
    content = json.dumps(chat())[:-1] + f', "{name}": {value}}}'
    status, body, _ = send(serve_once(), CHAT, content.encode())
    assert (status, failure(body)["param"]) == (400, name), body


@pytest.fixture(scope="module")
def tiny() -> Any:
    chosen = Session(fgvr.load_config("models=tiny")).specs["mllm"]
    return find_loader(chosen).load(chosen, CpuDevice())


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("sampling", [{"temperature": 1e-310}, {"temperature": 5e-324}, {"temperature": 1.0, "top_p": 0.0},
                                      {"temperature": 1.0, "top_p": 5e-324}])  # fmt: skip
def test_the_limits_of_sampling_are_the_likeliest_answer(tiny: Any, sampling: dict[str, float]) -> None:
    turns = (Turn("user", ("Describe the bird.",)),)
    asks = [Conversation(turns, Sampling(8, seed=1, **more)) for more in ({}, sampling)]
    greedy, extreme = tiny.converse(asks, lambda *_: True)
    assert extreme.text == greedy.text


# --- prompts without end -----------------------------------------------------------------------------------------------------------


def test_a_prompt_beyond_the_models_context_is_an_error_of_ours_in_a_notebook(tiny: Any) -> None:
    with pytest.raises(fgvr.ConfigError, match=r"the prompt has 1,000,\d+ characters .* more than the 4,096 tokens"):
        tiny.generate([[]], ["a" * 1_000_000])
    with pytest.raises(fgvr.ConfigError, match=r"\d,\d+ tokens with its images.*context; shorten"):
        tiny.score([[]], ["q7 " * 5000], [["a"]])
    turns = tuple(Turn("user", ("a",)) for _ in range(10_000))
    with pytest.raises(fgvr.ConfigError, match="more than the 4,096 tokens"):
        tiny.converse([Conversation(turns, Sampling(4))], lambda *_: True)


def test_a_server_refuses_it_with_the_numbers_before_anything_is_loaded(serve: Serve) -> None:
    served = serve()
    chosen = Session(fgvr.load_config("models=tiny")).specs["mllm"]
    served.pool.register(chosen)
    loader = find_loader(chosen)
    served.server.engine.specs["mllm"] = chosen
    served.server.engine.pool.loader = lambda _: loader  # type: ignore[method-assign]
    text = "q7 " * 5000
    bodies = (
        (CHAT, chat(text)),
        ("/v1/score", {"messages": chat(text)["messages"], "continuations": ["a"]}),
        ("/api/v1/query", {"question": text}),
    )
    for path, body in bodies:
        answer = served.post(path, body)
        found = failure(answer.json())
        assert answer.status_code == 400 and found["code"] == "prompt_too_long" and "4,096 tokens" in found["message"], answer.text
    assert sum(served.pool.loads.values()) == 0
    with httpx.Client(base_url=served.url, trust_env=False, timeout=5) as web:
        empty = web.post(CHAT, json={"messages": [{"role": "user", "content": ""}] * 200_000})
    assert empty.status_code == 400 and "at most" in empty.text
