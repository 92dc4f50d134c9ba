"""System 2 behind engines that only generate, by the command line: answers, or a RemoteError that quotes what came; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.agents.replies import DOUBT, distribution, rationale_of, read_answer
from fgvr.cli import main
from fgvr.runtime.conversation import TEMPERATURE, option_nats
from fgvr.runtime.loaders import remote
from fgvr.runtime.pool import close_shared
from fgvr.runtime.remote import link
from fgvr.types import Choice, Reply
from tests.engine_modes import ANSWERED, REFUSED, UNREADABLE, Generating
from tests.webfake import WebFake, serving

WORLD = ("dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.calibration=0", "dataset.shots=2")
NAMES = ["Great Kite", "Kite", "Tern"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for key in link.KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.02)
    close_shared()
    yield
    remote.LOADER.close()
    close_shared()


def words(server: WebFake, home: Path, *more: str, mode: str = "evaluate") -> list[str]:
    source = f"models.mllm.source='{server.url}/v1#q'"
    asked = ("models=fake", "models/mllm=remote", source, "models.mllm.patience=0.2", "slow=reason", "trigger=always")
    return [f"mode={mode}", *asked, *WORLD, f"paths.home={home}", *more]


def rows(home: Path) -> list[dict]:
    (found,) = home.glob("runs/evaluate/*/predictions.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


def report(home: Path) -> dict:
    (found,) = home.glob("runs/evaluate/*/report.json")
    return json.loads(found.read_text())


def test_an_answer_is_read_whatever_is_odd_about_it(tmp_path: Path) -> None:
    with serving(Generating(*ANSWERED)) as server:
        assert main(words(server, tmp_path, "dataset.test_per_class=3", "models.mllm.batch_size=1")) == 0
    found = rows(tmp_path)
    assert len(found) == 12 > len(ANSWERED) and {row["slow"]["status"] for row in found} == {"answered"}
    assert all(max(row["slow"]["probabilities"].values()) == pytest.approx(1 - DOUBT + DOUBT / 4) for row in found)
    assert all(row["by"] == "slow" and row["cost"]["mllm_calls"] == 1 for row in found)


def test_a_reply_that_names_no_option_is_counted_and_system_1_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Generating(*UNREADABLE)) as server:
        assert main(words(server, tmp_path, "models.mllm.batch_size=1")) == 0
    assert "unreadable answers of System 2" in capsys.readouterr().out
    found = rows(tmp_path)
    assert {(row["slow"]["status"], row["slow"]["category"], row["by"]) for row in found} == {("unreadable", None, "fast")}
    assert report(tmp_path)["unreadable"] == len(found) == 8 > len(UNREADABLE)


def test_unreadable_answers_are_replayed_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Generating("null")) as server:
        asked = words(server, tmp_path)
        assert main(asked) == 0
        (recorded,) = tmp_path.glob("runs/evaluate/*/predictions.jsonl")
        capsys.readouterr()
        again = [word for word in words(server, tmp_path, mode="replay") if not word.startswith("models")]
        assert (
            main([*again, f"predictions='{recorded}'", "models=fake", *[w for w in asked if w.startswith("models.") or "/mllm" in w]]) == 0
        )
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("mode", REFUSED)
def test_an_answer_that_is_none_is_quoted(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Generating(mode)) as server:
        assert main(words(server, tmp_path)) == 3
    said = capsys.readouterr().err
    assert f"error: http://127.0.0.1:{server.port}/v1" in said and REFUSED[mode][1] in said and "Traceback" not in said


def test_letters_become_a_distribution_where_the_engine_tells_the_alternatives(tmp_path: Path) -> None:
    engine = Generating("ok", alternatives=0.75, replies=("A dark bird. Answer: B",))
    with serving(engine) as server:
        assert main(words(server, tmp_path)) == 0
        asked = [a.body for a in server.asked if a.body and a.body.get("max_tokens") == 192]
    assert {body["top_logprobs"] for body in asked} == {20}
    for row in rows(tmp_path):
        shares = sorted(row["slow"]["probabilities"].values(), reverse=True)
        assert shares == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6]), "an option that is not listed has the least listed value, at most"
        assert row["slow"]["rationale"] == "A dark bird."


def test_votes_are_shares_of_sampled_replies(tmp_path: Path) -> None:
    engine = Generating("ok", replies=("Answer: A", "Answer: A", "Answer: B", "no idea"))
    with serving(engine) as server:
        assert (
            main(words(server, tmp_path, "slow.votes=4", "models.mllm.batch_size=1", "knowledge.leave_one_out=false", "slow.weight=1")) == 0
        )
        sampled = [a.body for a in server.asked if a.body and a.body.get("max_tokens") == 192]
    assert {(body["temperature"], body["seed"]) for body in sampled} == {(TEMPERATURE, seed) for seed in range(4)}
    for row in rows(tmp_path):
        assert row["cost"]["mllm_calls"] == 4
        assert sum(row["slow"]["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("slow", ["score", "analyse"])
def test_what_needs_log_likelihoods_is_refused_before_anything_is_built(
    slow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Generating("ok")) as server:
        assert main([*words(server, tmp_path), f"slow={slow}"]) == 2
        assert "write slow=reason" in capsys.readouterr().err and not list(tmp_path.glob("knowledge/**/*.json"))
        assert len([a for a in server.asked if a.method == "POST"]) <= 4, "the engine is tried out with a few short requests"
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for shade in range(3):
            Image.new("RGB", (40, 40), (90 * shade, 0, 0)).save(pictures / f"{shade}.png")
        assert main(words(server, tmp_path, f"images={pictures}", mode="discover")) == 2
        assert "mode=discover compares its guesses by log-likelihoods" in capsys.readouterr().err


def test_votes_of_a_local_model_are_sampled_and_equal_when_run_again(tmp_path: Path) -> None:
    def run(home: str, *more: str) -> list[tuple]:
        close_shared()
        asked = ("models=fake", "slow=reason", "slow.votes=3", "trigger=always", f"paths.home={tmp_path / home}")
        assert main(["mode=evaluate", *asked, *WORLD, *more]) == 0
        return [(row["image"], row["prediction"], row["slow"], row["cost"]["mllm_calls"]) for row in rows(tmp_path / home)]

    first, again = run("a"), run("b", "models.mllm.batch_size=1")
    assert first == again and {calls for *_, calls in first} == {3}
    assert report(tmp_path / "a")["unreadable"] == sum(slow["status"] == "unreadable" for _, _, slow, _ in first)
    assert sum(slow["status"] == "answered" for _, _, slow, _ in first) > 4


def test_votes_of_a_loader_that_does_not_sample_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("models=fake", "models/mllm=mlx", "models.force=true", "slow=reason", "slow.votes=3", *WORLD)
    assert main(["mode=evaluate", *words, f"paths.home={tmp_path}"]) == 2
    assert "models.mllm.loader=mlx gives none: write 1" in capsys.readouterr().err


def test_the_doctor_says_what_an_engine_can_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Generating("ok", alternatives=0.5)) as server:
        main([*words(server, tmp_path, mode="doctor"), "logging.json=true"])
        said = capsys.readouterr().out
        assert "generates only, with top_logprobs (20): slow=reason works" in said
        assert main([*words(server, tmp_path, mode="doctor"), "slow=score", "logging.json=true"]) == 3
        assert "write slow=reason" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("It soars. Answer: B", 1),
        ("**Answer:** (c)", 2),
        ("The answer is A.", 0),
        ("Answer: Tern", 2),
        ("Answer: A\nWait. Answer: B", 1),
        ("A. The bird is a kite", 0),
        ("(B)", 1),
        ("It has a forked tail.\n\nC", 2),
        ("This is a great kite.", 0),
        ("<think>Answer: A, or is it?</think>Answer: C", 2),
        ("A bird with a forked tail", None),
        ("A kite or a tern", None),
        ("The answer is a tern.", 2),
        ("Answer: A tern (C)", 2),
        ("Answer: a long-tailed one", None),
        ("Answer: A because of its tail", 0),
        ("Answer: A because a tern has no such tail", 0),
        ("answer: a since a tern has another tail", 0),
        ("Answer: D", None),
        ("Answer: Great Kite or Tern", None),
        ("<think>Answer: A", None),
        ("I cannot tell", None),
        ("", None),
    ],
)
def test_the_answer_in_a_reply(reply: str, place: int | None) -> None:
    assert read_answer(reply, NAMES) == place


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (["A", " small", " bird", "."], False),
        (["A", ".", " kite"], True),
        ([" A"], True),
        (["I", " see", " it.", " Answer:", " B", " because"], True),
        (["It", " is.", " Answer:", " A", " hawk"], False),
    ],
)
def test_an_article_is_no_letter(tokens: list[str], named: bool) -> None:
    likeliest = [("A", -0.1), (" B", -2.5)]
    assert bool(option_nats([(token, likeliest) for token in tokens], ["A", "B"], "Answer:")) is named


def test_a_reply_as_a_distribution() -> None:
    assert distribution(Choice(Reply("Answer: B")), NAMES) == pytest.approx(np.array([DOUBT / 3, 1 - DOUBT + DOUBT / 3, DOUBT / 3]))
    assert distribution(Choice(Reply("Answer: B"), {"A": -2.0, "B": -2.0, "C": -1e9}), NAMES) == pytest.approx(np.array([0.5, 0.5, 0]))
    assert distribution(Choice(Reply("who knows")), NAMES) is None
    assert rationale_of("<think>hm</think>A long tail. **Answer:** B") == "A long tail."
