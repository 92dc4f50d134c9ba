"""models=remote: what the server says of its models is part of the configuration."""

from __future__ import annotations

import pytest

import fgvr
from fgvr.config import served
from fgvr.errors import RemoteError
from tests.webfake import Answer, serving

TINY = {"name_prompts": False, "description_tokens": 80, "notice": "only birds", "slow_target": "description"}


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FGVR_SERVER_URL", raising=False)
    served.bundle.cache_clear()
    yield
    served.bundle.cache_clear()


def test_the_servers_word_holds_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda asked: {"status": "success", "data": TINY}) as server:
        monkeypatch.setenv("FGVR_SERVER_URL", server.url)
        cfg = fgvr.load_config("models=remote")
        assert {key: cfg.models[key] for key in TINY} == TINY
        assert cfg.slow.target == "description" and cfg.models.mllm.source == f"{server.url}#mllm"
        fgvr.load_config("models=remote")
        assert [asked.path for asked in server.asked] == [served.BUNDLE]
        assert fgvr.load_config("models=remote", "models.name_prompts=true").models.name_prompts is True
        fgvr.load_config("models=tiny")
        assert len(server.asked) == 1


def test_nobody_there_is_said_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_PATIENCE", 0.0)
    with pytest.raises(RemoteError, match=r"^no server answers at http://127\.0\.0\.1:9 .*start one with: fgvr serve$"):
        fgvr.load_config("models=remote", "server.url=http://127.0.0.1:9")


def test_another_engine_has_no_word_and_none_is_asked_where_none_is_named() -> None:
    with serving(lambda asked: Answer(404, {"detail": "Not Found"})) as server:
        cfg = fgvr.load_config("models=remote", f"server.url={server.url}")
    assert (cfg.models.name_prompts, cfg.models.description_tokens, cfg.models.notice, cfg.slow.target) == (True, 256, None, "name")
    assert fgvr.load_config("models=remote").models.slow_target == "name"


def test_a_server_that_starts_is_waited_for_and_one_that_refuses_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_PAUSE", 0.01)
    answers = [Answer(503, {"status": "error", "data": {"message": "starting"}})] * 2
    with serving(lambda asked: answers.pop() if answers else {"status": "success", "data": TINY}) as server:
        assert fgvr.load_config("models=remote", f"server.url={server.url}").models.description_tokens == 80
    with (
        serving(lambda asked: Answer(401, {"detail": "a token"})) as server,
        pytest.raises((RemoteError, fgvr.ConfigError), match="a token"),
    ):
        fgvr.load_config("models=remote", f"server.url={server.url}")
