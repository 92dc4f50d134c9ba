"""Clients against a server process with the tiny models: the tutorial as printed, the official openai client, shell and sweeps."""

from __future__ import annotations

import base64
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

import fgvr
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders.base import find_loader
from fgvr.session import Session

ROOT = Path(__file__).resolve().parents[2]
WORLD = ("dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.shots=2", "dataset.calibration=1")
sys.path.insert(0, str(ROOT / "scripts"))

from serving import Server, environment  # noqa: E402

pytestmark = pytest.mark.timeout(900)
PROMPT = "Describe the bird."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), WORLD)
    server.wait()
    yield server
    assert server.stop() == 0, "".join(server.said)


@pytest.fixture(scope="module")
def bird(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fgvr.utils.images import read_image

    folder = tmp_path_factory.mktemp("bird")
    sample = Session(fgvr.load_config(f"paths.home={folder / 'home'}", *WORLD)).dataset.split.test[0]
    read_image(sample.image)[0].save(folder / "bird.png")
    return folder / "bird.png"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def local() -> dict[str, Any]:
    cfg = fgvr.load_config("models=tiny")
    return {role: find_loader(spec).load(spec, CpuDevice()) for role in ("mllm", "encoder") if (spec := Session(cfg).specs[role])}


def turn(bird: Path) -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(bird.read_bytes()).decode()
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT}]}]


def tutorial(language: str) -> str:
    """The last block in that language of the page for a lab."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/tutorials/server.md").read_text(), re.DOTALL)[-1]


def run(command: list[str], server: Server, bird: Path, **more: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = environment(PATH=path, FGVR_ADMIN_TOKEN=server.token, FGVR_HOME=str(bird.parent / "home"), **more)
    done = subprocess.run(command, cwd=bird.parent, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- as printed --------------------------------------------------------------------------------------------------------------


def test_the_tutorials_openai_example_works_as_printed(server: Server, bird: Path, local) -> None:
    said = run([sys.executable, "-c", tutorial("python").replace(":8000", f":{server.port}")], server, bird).splitlines()
    [reply] = local["mllm"].generate([Image.open(bird)], [PROMPT], max_new_tokens=60)
    assert said == [str(reply), f"2 {local['encoder'].encode_text(['x']).shape[1]}"]


def test_the_classes_are_those_of_the_base_on_disk_and_a_reload_keeps_every_answer(server: Server, bird: Path) -> None:
    found = server.service.get("/api/v1/classes")
    assert len(found["classes"]) == 4 and {row["photographs"] for row in found["classes"]} == {2} and len(found["content_hash"]) == 64
    body = {"images": [turn(bird)[0]["content"][0]["image_url"]["url"]]}
    before = server.service.post("/api/v1/classify", body)["predictions"][0]
    limit = server.service.post("/api/v1/memory/limit", limit_gb=7)["memory_limit"]
    assert server.service.post("/api/v1/knowledge/reload") == found
    assert server.service.get("/api/v1/memory/stats")["memory_limit"] == limit, "what was set while it ran stays"
    after = server.service.post("/api/v1/classify", body)["predictions"][0]
    assert (after["prediction"], after["confidence"]) == (before["prediction"], before["confidence"])
    assert before["name"] in [row["name"] for row in found["classes"]]


# --- the official client -----------------------------------------------------------------------------------------------------


def test_a_chat_with_an_image_says_what_the_model_says(client: openai.OpenAI, bird: Path, local) -> None:
    [expected] = local["mllm"].generate([Image.open(bird)], [PROMPT], max_new_tokens=40)
    found = client.chat.completions.create(model="mllm", messages=turn(bird), max_tokens=40)
    assert found.choices[0].message.content.strip() == expected and found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected.prompt_tokens, expected.new_tokens)
    short = client.chat.completions.create(model="mllm", messages=turn(bird), max_tokens=3, n=2, seed=1, stop=["zzz"])
    assert [choice.finish_reason for choice in short.choices] == ["length", "length"]


def test_a_stream_says_the_same_piece_by_piece(client: openai.OpenAI, bird: Path) -> None:
    whole = client.chat.completions.create(model="mllm", messages=turn(bird), max_tokens=40)
    stream = client.chat.completions.create(
        model="mllm", messages=turn(bird), max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content and sum(map(bool, pieces)) > 3
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_logprobs_are_those_of_the_tokens_and_agree_with_score(client: openai.OpenAI, bird: Path) -> None:
    found = client.chat.completions.create(model="mllm", messages=turn(bird), max_tokens=60, logprobs=True, top_logprobs=2)
    choice = found.choices[0]
    assert choice.finish_reason == "stop" and choice.logprobs is not None and choice.logprobs.content is not None
    tokens = choice.logprobs.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    assert all(token.logprob == pytest.approx(max(t.logprob for t in token.top_logprobs), abs=1e-5) for token in tokens), "greedy"
    body = {"model": "mllm", "messages": turn(bird), "continuations": [choice.message.content]}
    scored: Any = client.post("/score", body=body, cast_to=object)
    told = math.fsum(token.logprob for token in tokens)
    assert scored["tokens"][0] - len(tokens) in (0, 1)  # the end of the turn is scored, whether or not it is told as a token
    assert scored["log_likelihoods"][0] == pytest.approx(told, abs=0.05)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_of_images_and_texts_are_the_encoders(client: openai.OpenAI, bird: Path, local, encoding: str) -> None:
    url = turn(bird)[0]["content"][0]["image_url"]["url"]
    found = client.embeddings.create(model="encoder", input=[url, "a red bird"], encoding_format=encoding)  # type: ignore[arg-type]
    rows = [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row := one.embedding, str) else np.array(row) for one in found.data]
    expected = [local["encoder"].encode([Image.open(bird).convert("RGB")])[0], local["encoder"].encode_text(["a red bird"])[0]]
    assert np.allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 0.5), ("presence_penalty", 1.0), ("logit_bias", {"5": 1}), ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}), ("best_of", 2), ("top_logprobs", 50), ("n", 1000), ("temperature", 9), ("audio", {}),
        ("reasoning_effort", "high"), ("max_tokens", 10**9),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(client: openai.OpenAI, name: str, value: Any) -> None:
    words: Any = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="mllm", messages=words, extra_body={name: value, "logprobs": True} if "top" in name else {name: value}
        )
    assert refused.value.param is not None and refused.value.param.split(".")[0] == name and name in refused.value.message


def test_unknown_models_are_not_found_and_known_ones_are_listed(client: openai.OpenAI) -> None:
    assert {model.to_dict()["role"] for model in client.models.list()} == {"mllm", "encoder", "joint"}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Hello"}])


# --- whole programs ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_kinds_of_client_share_one_copy() -> None:
    done = subprocess.run([sys.executable, "scripts/serve_demo.py"], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "loads on this machine: encoder 1, joint 1, mllm 1; by the clients themselves: 0"


@pytest.mark.slow
def test_a_sweep_outlives_its_server() -> None:
    done = subprocess.run([sys.executable, "scripts/kill_server.py"], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") == 2
