"""One model at several addresses: the least busy is asked, a dead one is left out and tried again, different models are refused."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr.cli import main
from fgvr.errors import ConfigError, RemoteError
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import remote
from fgvr.runtime.pool import ModelPool, close_shared
from fgvr.runtime.remote import link
from fgvr.types import ModelSpec
from tests.engine_modes import Generating
from tests.runtime.openai_fake import Engine
from tests.webfake import Answer, Asked, WebFake, serving

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30, 3), np.uint8)) for i in range(6)]
PROMPTS = [f"Describe it, attempt {i}." for i in range(6)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for key in link.KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.02)
    yield
    remote.LOADER.close()
    close_shared()


@pytest.fixture
def pool() -> Iterator[ModelPool]:
    pool = ModelPool(CpuDevice(), budget=1 << 30)
    yield pool
    pool.close()


def spec(*servers: WebFake, model: str | None = None, patience: float = 20.0) -> ModelSpec:
    return ModelSpec("mllm", "remote", ",".join(server.url for server in servers), patience=patience, model=model)


def chats(server: WebFake) -> int:
    return sum(asked.path.endswith("completions") for asked in server.asked)


def test_requests_go_to_the_least_busy_and_answers_are_the_same(pool: ModelPool) -> None:
    first, second = Engine(), Engine()
    with serving(first) as one, serving(second) as two:
        mllm = pool.leased(spec(one, two))
        assert mllm.generate(IMAGES, PROMPTS) == first.models["mllm"].generate(IMAGES, PROMPTS)
        assert chats(one) == chats(two) == 3
        alone = pool.leased(spec(one))
        assert mllm.fingerprint == alone.fingerprint, "what is remembered of one serves both"


def test_a_dead_address_is_left_out_and_asked_again_when_it_is_back(pool: ModelPool, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    with serving(engine) as one:
        with serving(engine) as two:
            mllm, port = pool.leased(spec(one, two)), two.port
            expected = mllm.generate(IMAGES, PROMPTS)
            before = chats(two)
        with caplog.at_level(logging.WARNING):
            assert [mllm.generate(IMAGES, PROMPTS) for _ in range(3)] == [expected] * 3
        with serving(engine, port) as two:
            deadline = time.monotonic() + 20
            while not chats(two) and time.monotonic() < deadline:
                assert mllm.generate(IMAGES, PROMPTS) == expected
            assert before and chats(two), "it takes its part again"
        assert mllm.generate(IMAGES, PROMPTS) == expected
        with serving(Engine(fingerprint="weights-2"), port), pytest.raises(RemoteError, match="came back with another mllm"):
            while time.monotonic() < deadline + 20:
                mllm.generate(IMAGES, PROMPTS)


def test_an_address_that_is_dead_at_the_start_costs_a_warning(pool: ModelPool, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    with serving(engine) as one:
        both = ModelSpec("mllm", "remote", f"http://127.0.0.1:9/v1,{one.url}", patience=5.0)
        with caplog.at_level(logging.WARNING):
            assert pool.leased(both).generate(IMAGES, PROMPTS) == engine.models["mllm"].generate(IMAGES, PROMPTS)
        assert "http://127.0.0.1:9/v1 does not answer" in caplog.text and "left out" in caplog.text
        assert remote.LOADER.describe(both).endswith("every slow=... works; http://127.0.0.1:9/v1 does not answer")
    nobody = ModelSpec("mllm", "remote", "http://127.0.0.1:9/v1,http://127.0.0.1:10/v1", patience=0.2)
    with pytest.raises(RemoteError, match=r"does not answer .*gave up after 0\.2 s"):
        pool.leased(nobody).generate(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (Engine(), Engine(fingerprint="weights-2"), r"hold different models \(.*weights-1-mllm; .*weights-2-mllm\)"),
        (Engine(ours=False), Engine(ours=False, names=("other",)), r"hold different models \(.*vision-7b, .*; .*other, "),
        (Engine(ours=False), Engine(ours=False, scores=False), r"can do different things \(.*every slow=.*generates only"),
    ],
)
def test_different_models_and_engines_under_one_source_are_refused(first: Engine, second: Engine, said: str) -> None:
    with serving(first) as one, serving(second) as two, pytest.raises(ConfigError, match=said):
        remote.LOADER.describe(spec(one, two))


def test_a_name_that_one_address_lacks_is_refused() -> None:
    with serving(Engine(ours=False)) as one, serving(Engine(ours=False, names=("other",))) as two:
        both = spec(one, two, model="vision-7b")
        with pytest.raises(RemoteError, match=rf"{two.url}/v1 has no model 'vision-7b'; it has other"):
            remote.LOADER.check(both)
    with pytest.raises(ConfigError, match="a, b are different models; name one for all"):
        remote.LOADER.fingerprint(ModelSpec("mllm", "remote", "http://h:1/v1#a,http://h:2/v1#b"))
    with pytest.raises(ConfigError, match="no address of a server"):
        remote.LOADER.fingerprint(ModelSpec("mllm", "remote", "http://h:1/v1,https://"))


def test_an_address_that_is_killed_in_the_middle_of_an_evaluation_costs_no_row(tmp_path: Path) -> None:
    answer = Generating("ok", alternatives=0.25)
    killed: list[WebFake] = []

    def mortal(asked: Asked) -> Any:
        """Dies at its fourth question about an image, which is never answered."""
        if asked.method == "POST" and asked.body["max_tokens"] > 1:
            asked_before.append(asked)
            if len(asked_before) == 4:
                threading.Thread(target=dying.close).start()
                killed.append(dying)
                time.sleep(0.3)
                return Answer(200, b"{", {"Content-Length": "9999"})
        return answer(asked)

    def run(home: str, source: str) -> dict[str, Any]:
        close_shared()
        words = ("dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.calibration=0", "dataset.shots=2", "trigger=always")
        asked = ("models=fake", "models/mllm=vllm", "models.mllm.model=q", "models.mllm.batch_size=2", "slow=reason")
        assert main(["mode=evaluate", *asked, source, *words, f"paths.home={tmp_path / home}"]) == 0
        (found,) = (tmp_path / home).glob("runs/evaluate/*/predictions.jsonl")
        rows = [json.loads(line) for line in found.read_text().splitlines()]
        return {row["image"]: (row["prediction"], row["slow"]["probabilities"], row["cost"]["mllm_calls"]) for row in rows}

    asked_before: list[Asked] = []
    dying = WebFake(mortal)
    with serving(answer) as one:
        both = run("both", f"models.mllm.source=[{one.url}/v1,{dying.url}/v1]")
        alone = run("alone", f"models.mllm.source={one.url}/v1")
    assert killed and len(both) == 8 and both == alone


@pytest.mark.parametrize(
    ("engine", "address"),
    [("ollama", "http://127.0.0.1:11434/v1"), ("vllm", "http://127.0.0.1:8000/v1"), ("sglang", "http://127.0.0.1:30000/v1"),
     ("openai", "https://api.openai.com/v1")],
)  # fmt: skip
def test_engines_have_names_and_a_local_encoder_beside_them_is_the_ordinary_case(engine: str, address: str) -> None:
    config = fgvr.load_config("models=photos", f"models/mllm={engine}", "slow=reason", "models.mllm.model=qwen2.5vl:7b")
    assert (config.models.mllm.source, config.models.mllm.model) == (address, "qwen2.5vl:7b")
    assert (config.models.mllm.loader, config.models.encoder.loader) == ("remote", "timm")


def test_a_list_without_an_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mode=plan", "models/mllm=vllm", "models.mllm.source=[]"]) == 2
    assert "models.mllm.source=[]: must be text" in capsys.readouterr().err


def test_a_model_is_found_by_the_name_people_use_and_in_the_words_it_takes(pool: ModelPool) -> None:
    """Ollama leaves out `:latest`; some of OpenAI's models refuse `max_tokens` and a temperature."""
    engine = Engine(ours=False, names=("qwen2.5vl:latest", "other"))
    bodies: list[Any] = []

    def particular(asked: Asked) -> Any:
        for refused, cure in (("max_tokens", "Use 'max_completion_tokens' instead."), ("temperature", "'temperature' does not support 0.")):
            if asked.method == "POST" and refused in asked.body:
                return Answer(400, {"error": {"message": f"Unsupported {refused}. {cure}"}})
        if asked.method == "POST":
            bodies.append(asked.body)
            asked.body["max_tokens"] = asked.body["max_completion_tokens"]
        return engine(asked)

    with serving(particular) as server:
        mllm = pool.leased(spec(server, model="qwen2.5vl"))
        assert mllm.generate(IMAGES, PROMPTS) == engine.models["mllm"].generate(IMAGES, PROMPTS)
    assert {body["model"] for body in bodies} == {"qwen2.5vl:latest"}


def test_openai_gets_its_own_key_and_others_that_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGVR_TOKEN", "ours")
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert [link.client(url).api_key for url in ("https://api.openai.com/v1", "http://127.0.0.1:8000/v1")] == ["theirs", "ours"]
