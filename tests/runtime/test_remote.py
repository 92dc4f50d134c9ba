"""models=remote against an engine with an OpenAI API: equal answers, honest refusals, patience, and nothing loaded here."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr.errors import ConfigError, RemoteError
from fgvr.protocols import MLLM, Encoder, JointEncoder
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import remote
from fgvr.runtime.pool import ModelPool, close_shared
from fgvr.runtime.remote import link
from fgvr.session import Session
from fgvr.types import ModelSpec
from tests.runtime.openai_fake import SPECS, Engine
from tests.webfake import Answer, WebFake, serving

BATCH = {"mllm": 8, "encoder": 32, "joint": 32}
IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30, 3), np.uint8)) for i in range(5)]
PROMPTS = [f"Describe it, attempt {i}." for i in range(5)]
BUSY = Answer(429, {"error": {"message": "busy"}}, {"Retry-After": "0.2"})


def spec(server: WebFake, role: str, name: str = "", patience: float = 20.0) -> ModelSpec:
    return ModelSpec(role, "remote", f"{server.url}#{name or role}", batch_size=BATCH[role], patience=patience)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for key in link.KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.02)
    yield
    remote.LOADER.close()


@pytest.fixture
def pool() -> Iterator[ModelPool]:
    pool = ModelPool(CpuDevice(), budget=1 << 30)
    yield pool
    pool.close()


def test_answers_are_those_of_the_model_itself_and_nothing_is_loaded_here(pool: ModelPool) -> None:
    engine = Engine()
    with serving(engine) as server:
        mllm, encoder = pool.leased(spec(server, "mllm")), pool.leased(spec(server, "encoder"))
        joint = pool.leased(spec(server, "joint"))
        assert (isinstance(mllm, MLLM), isinstance(encoder, Encoder), isinstance(joint, JointEncoder)) == (True, True, True)
        local = engine.models["mllm"].generate(IMAGES, PROMPTS, max_new_tokens=6)
        replies = mllm.generate(IMAGES, PROMPTS, max_new_tokens=6)
        assert replies == local and [r.new_tokens for r in replies] == [r.new_tokens for r in local] and replies[0].prompt_tokens > 10
        texts = [["a red bird", "blue"], ["one"], [], ["a", "b", "c"], ["x y z"]]
        assert mllm.score(IMAGES, PROMPTS, texts) == engine.models["mllm"].score(IMAGES, PROMPTS, texts)
        assert np.array_equal(encoder.encode(IMAGES), engine.models["encoder"].encode(IMAGES))
        assert np.array_equal(encoder.encode_text(PROMPTS), engine.models["encoder"].encode_text(PROMPTS))
        assert np.array_equal(joint.match(IMAGES, PROMPTS), engine.models["joint"].match(IMAGES, PROMPTS))
        assert mllm.score(IMAGES[:1], PROMPTS[:1], [[f"bird {i}" for i in range(300)]]) == engine.models["mllm"].score(
            IMAGES[:1], PROMPTS[:1], [[f"bird {i}" for i in range(300)]]
        )
        many = [*IMAGES * 4, Image.new("RGB", (3000, 3000)), *IMAGES]
        assert np.array_equal(encoder.encode(many), engine.models["encoder"].encode(many))
        sizes = [len(a.body["input"]) for a in server.asked if a.path.endswith("embeddings") and a.body["input"][0].startswith("data:")]
        assert sorted(sizes[-5:]) == [1, 4, 5, 8, 8], "few enough images in each request, and a huge one alone"
        assert (encoder.logit_scale, mllm.fingerprint, encoder.fingerprint) == (42.0, "weights-1-mllm", "weights-1-encoder")
    assert sum(pool.loads.values()) == 0 and sum(model.bytes for model in pool.status()) == 0
    assert pool.counters.snapshot().mllm_calls == 11


def test_a_foreign_engines_models_work_by_the_same_protocols(pool: ModelPool) -> None:
    engine = Engine(ours=False)
    with serving(engine) as server:
        mllm, encoder = pool.leased(spec(server, "mllm")), pool.leased(spec(server, "encoder", "vision-7b"))
        assert mllm.generate(IMAGES, PROMPTS) == engine.models["mllm"].generate(IMAGES, PROMPTS)
        texts = [["a red bird", "blue"]] * 5
        assert mllm.score(IMAGES, PROMPTS, texts)[0].tokens == (4, 2)
        for found, expected in zip(mllm.score(IMAGES, PROMPTS, texts), engine.models["mllm"].score(IMAGES, PROMPTS, texts), strict=True):
            assert found.log_likelihoods == pytest.approx(expected.log_likelihoods)
        assert np.allclose(encoder.encode(IMAGES), engine.models["encoder"].encode(IMAGES), atol=1e-6)
        assert np.array_equal(encoder.encode_text(PROMPTS), engine.models["encoder"].encode_text(PROMPTS))
        assert encoder.logit_scale == 100.0 and mllm.fingerprint.startswith("remote-")
        other = pool.leased(replace(mllm.spec, source=f"http://localhost:{server.port}/v1#vision-7b"))
        assert other.fingerprint != mllm.fingerprint, "the same name elsewhere may be another model"


def test_what_the_other_side_lacks_is_said_with_the_cure(pool: ModelPool) -> None:
    with serving(Engine(ours=False, scores=False)) as server:
        with pytest.raises(RemoteError, match=r"vision-7b at .* no log-likelihoods .*slow=reason"):
            pool.leased(spec(server, "mllm")).score(IMAGES[:1], PROMPTS[:1], [["a"]])
        with pytest.raises(RemoteError, match=r"has no model 'gone'; it has vision-7b\. .*models\.mllm\.model=vision-7b$"):
            pool.leased(spec(server, "mllm", "gone")).generate(IMAGES[:1], PROMPTS[:1])
        with pytest.raises(ConfigError, match="models/joint=blip_itm_base"):
            pool.leased(spec(server, "joint")).match(IMAGES[:1], PROMPTS[:1])
    with serving(Engine(ours=False, images=False)) as server, pytest.raises(RemoteError, match="does not look at images"):
        pool.leased(spec(server, "mllm")).generate(IMAGES[:1], PROMPTS[:1])
    with pytest.raises(ConfigError, match=r"server\.url=http"):
        fgvr.runtime.loaders.remote.LOADER.fingerprint(ModelSpec("mllm", "remote", "None#mllm"))


def test_a_role_that_a_server_does_not_lend_is_answered_with_what_it_lends_and_what_works_without(pool: ModelPool, tmp_path) -> None:
    with serving(Engine(roles=("encoder",))) as server:
        encoder = SPECS["encoder"].key
        for role, cure in (("mllm", r"models/mllm=none slow=person"), ("joint", r"models/joint=none")):
            with pytest.raises(RemoteError, match=rf"it has {encoder} \(encoder\).*{cure}") as refused:
                pool.leased(spec(server, role)).fingerprint  # noqa: B018
            assert f"models.{role}.model=" not in str(refused.value), "an encoder is no MLLM"
        with pytest.raises(RemoteError, match=rf"models\.encoder\.model={encoder}$"):
            pool.leased(spec(server, "encoder", "gone")).fingerprint  # noqa: B018
        words = ["models=remote", f"server.url={server.url}", "dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.shots=2"]
        words += ["dataset.calibration=0", f"paths.home={tmp_path}"]
        with pytest.raises(RemoteError, match="models/mllm=none slow=person"):
            fgvr.evaluate(fgvr.load_config("mode=evaluate", *words))
        close_shared()
        report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *words, "models/mllm=none", "slow=person"))
        assert report.n > 0 and report.asked["mllm_calls"] == 0, "the advice works as it is written"
    close_shared()


def test_a_busy_engine_is_asked_again_after_the_seconds_it_names(pool: ModelPool) -> None:
    engine = Engine()
    with serving(engine) as server:
        mllm = pool.leased(spec(server, "mllm"))
        assert mllm.fingerprint
        engine.troubles += [BUSY, BUSY]
        began = time.monotonic()
        assert mllm.generate(IMAGES[:1], PROMPTS[:1]) == engine.models["mllm"].generate(IMAGES[:1], PROMPTS[:1])
        assert time.monotonic() - began >= 0.4
        assert [a.path for a in server.asked].count("/v1/chat/completions") == 3


@pytest.mark.parametrize(("status", "times"), [(400, 1), (404, 1), (401, 1), (500, 3)])
def test_a_refusal_is_final_and_a_fault_is_tried_a_few_times(pool: ModelPool, status: int, times: int) -> None:
    engine = Engine(troubles=[Answer(status, {"error": {"message": "no such thing"}})] * 9)
    with serving(engine) as server:
        with pytest.raises(RemoteError, match="no such thing") as caught:
            pool.leased(spec(server, "mllm")).generate(IMAGES[:1], PROMPTS[:1])
        assert caught.value.status == status and 9 - len(engine.troubles) == times
        assert ("FGVR_API_KEY" in str(caught.value)) == (status == 401)


def test_one_refusal_ends_the_whole_batch_without_waiting_for_patience(pool: ModelPool) -> None:
    engine = Engine(troubles=[replace(BUSY, headers={"Retry-After": "15"})] * 4 + [Answer(400, {"error": {"message": "bad image"}})])
    with serving(engine) as server:
        began = time.monotonic()
        with pytest.raises(RemoteError, match="bad image"):
            pool.leased(spec(server, "mllm")).generate(IMAGES, PROMPTS)
        assert time.monotonic() - began < 10


def test_an_engine_that_dies_and_comes_back_is_waited_for(pool: ModelPool) -> None:
    engine = Engine()
    with serving(engine) as server:
        mllm, port = pool.leased(spec(server, "mllm")), server.port
        expected = mllm.generate(IMAGES, PROMPTS)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(mllm.generate(IMAGES, PROMPTS)))
    asking.start()
    time.sleep(0.5)
    assert asking.is_alive() and not answers
    with serving(engine, port):
        asking.join(timeout=30)
    assert answers == [expected]


def test_an_engine_that_comes_back_with_another_model_is_not_mixed_in(pool: ModelPool) -> None:
    with serving(Engine()) as server:
        mllm, port = pool.leased(spec(server, "mllm")), server.port
        mllm.generate(IMAGES[:1], PROMPTS[:1])
    returning = threading.Timer(0.5, lambda: again.append(WebFake(Engine(fingerprint="weights-2"), port)))
    again: list[WebFake] = []
    returning.start()
    with pytest.raises(RemoteError, match=r"another mllm .*weights-2-mllm; it was .*weights-1-mllm"):
        mllm.generate(IMAGES[:1], PROMPTS[:1])
    again[0].close()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_an_engine_that_said_it_is_away_is_verified_when_it_is_back(pool: ModelPool, status: int) -> None:
    """Drained, and started again with other weights, while its clients obey Retry-After: they never find the port closed."""
    engine = Engine()
    away = Answer(status, {"error": {"message": "draining"}}, {"Retry-After": "0.2"})
    with serving(engine) as server:
        mllm = pool.leased(spec(server, "mllm"))
        before = mllm.generate(IMAGES[:1], PROMPTS[:1])
        engine.troubles += [away, away]
        assert mllm.generate(IMAGES[:1], PROMPTS[:1]) == before, "the same one"
        engine.troubles += [away]
        engine.fingerprint = "weights-2"
        with pytest.raises(RemoteError, match=r"another mllm .*weights-2-mllm; it was .*weights-1-mllm"):
            mllm.generate(IMAGES[:1], PROMPTS[:1])


def test_patience_ends(pool: ModelPool) -> None:
    nobody = ModelSpec("mllm", "remote", "http://127.0.0.1:9/v1#mllm", patience=0.3)
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9/v1 does not answer .*gave up after 0\.3 s"):
        pool.leased(nobody).generate(IMAGES[:1], PROMPTS[:1])
    began = time.monotonic()
    with pytest.raises(RemoteError):
        remote.LOADER.check(replace(nobody, patience=60.0))
    assert time.monotonic() - began < 10, "the doctor does not wait"


def test_waiting_for_an_engine_keeps_nobody_here_from_computing(pool: ModelPool) -> None:
    engine = Engine()
    with serving(engine) as server:
        mllm = pool.leased(spec(server, "mllm"))
        assert mllm.fingerprint
        engine.troubles += [replace(BUSY, headers={"Retry-After": "3"})]
        waiting = threading.Thread(target=lambda: mllm.generate(IMAGES[:1], PROMPTS[:1]))
        waiting.start()
        time.sleep(0.3)
        began = time.monotonic()
        with pool.lease(SPECS["encoder"], timeout=10) as encoder:  # has to be constructed
            assert encoder.encode(IMAGES[:1]).shape == (1, 64)
        assert waiting.is_alive() and time.monotonic() - began < 2.5
        waiting.join(timeout=20)


def test_the_key_is_sent_and_never_shown(pool: ModelPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("FGVR_API_KEY", "s3cret")
    engine = Engine(troubles=[Answer(403, {"error": {"message": "not you"}})])
    with serving(engine) as server, caplog.at_level("DEBUG"):
        with pytest.raises(RemoteError, match="not you") as caught:
            pool.leased(spec(server, "mllm")).generate(IMAGES[:1], PROMPTS[:1])
        assert server.asked[0].headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value) + caplog.text


def test_an_evaluation_with_the_tiny_models_elsewhere_equals_the_one_in_process(tmp_path) -> None:
    from fgvr.runtime.loaders.base import find_loader

    def evaluate(home: str, *words: str) -> dict[str, dict]:
        close_shared()
        small = ("dataset.genera=[2]", "dataset.test_per_class=2", "dataset.shots=2", "dataset.calibration=0", "trigger=always")
        report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *small, *words, f"paths.home={tmp_path / home}"))
        assert (sum(report.model_loads.values()) == 0) == (home == "remote")
        rows = [json.loads(line) for line in (report.path / "predictions.jsonl").read_text().splitlines()]
        return {row["image"]: row for row in rows}

    cfg = fgvr.load_config("models=tiny")
    specs = {role: Session(cfg).specs[role] for role in SPECS}
    loaders = {role: find_loader(spec) for role, spec in specs.items()}
    engine = Engine(models={role: loaders[role].load(spec, CpuDevice()) for role, spec in specs.items()})
    engine.fingerprints = {role: loaders[role].fingerprint(spec) for role, spec in specs.items()}
    engine.logit_scale = loaders["encoder"].logit_scale(specs["encoder"])
    with serving(engine) as server:
        remote_words = [f"models/{role}=remote" for role in SPECS]
        there = evaluate("remote", "models=tiny", *remote_words, f"server.url={server.url}")
    here = evaluate("local", "models=tiny")
    assert there.keys() == here.keys()
    for image, row in there.items():
        for key in ("sha256", "label", "prediction", "by"):
            assert row[key] == here[image][key]
        assert row["slow"]["category"] == here[image]["slow"]["category"]
        assert row["slow"]["probabilities"] == pytest.approx(here[image]["slow"]["probabilities"], abs=1e-4)
        assert row["fast"]["candidates"][0]["probability"] == pytest.approx(here[image]["fast"]["candidates"][0]["probability"], abs=1e-5)
    assert {p.name for p in (tmp_path / "local/knowledge/birds").glob("*/")} == {
        p.name for p in (tmp_path / "remote/knowledge/birds").glob("*/")
    }, "the base is known by the weights, wherever they are"
    close_shared()
