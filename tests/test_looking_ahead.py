"""Building and evaluating tell the pool what they use next: it is there when it is asked for, and never at the budget's cost."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import fgvr
from fgvr.modes import runs
from fgvr.runtime.events import Event
from fgvr.runtime.housekeeping import NAME
from fgvr.runtime.leased_models import LeasedEncoder
from fgvr.runtime.loaders import fake
from fgvr.runtime.pool import close_shared, shared
from fgvr.types import ModelSpec
from tests.runtime.helpers import until

WORLD = ("models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=4", "dataset.shots=2", "dataset.calibration=0")
SIZES = ("models.encoder.source='encoder 30MiB'", "models.mllm.source='mllm 40MiB'", "evaluation.batch_size=4", "models.mllm.batch_size=2")
OURS = tuple(f"models.{role}.loader={__name__}.LOADER" for role in ("encoder", "mllm"))


class Watched:
    """Who loaded what, what the pool expected then, and the greatest use as a share of the limit."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str]] = []  # role, thread
        self.expected: list[dict[str, int | None]] = []
        self.most = 0.0

    def on_load(self, spec: ModelSpec) -> None:
        self.loaded.append((spec.role, threading.current_thread().name))

    def hear(self, event: Event) -> None:
        self.most = max(self.most, event.used / event.limit)
        if event.kind == "loaded":
            self.expected.append({m.role: m.next_use for m in shared().status()})


WATCHERS: list[Watched] = []
LOADER = fake.FakeLoader(on_load=lambda spec: WATCHERS[-1].on_load(spec), work=1 << 20)


@pytest.fixture
def watched():
    close_shared()
    found = Watched()
    WATCHERS.append(found)
    yield found
    WATCHERS.clear()
    close_shared()


@pytest.fixture
def unhurried(intercept) -> None:
    """An encoder whose user goes on only when the MLLM is there, for at most 20 seconds: who loads it cannot be a matter of luck."""

    def slowly(encode: Any, self: LeasedEncoder, images: Any) -> Any:
        vectors = encode(self, images)
        assert until(lambda: any(m.role == "mllm" and m.state == "resident" for m in shared().status()), 20)
        return vectors

    intercept(LeasedEncoder, "encode", slowly)


def answers(report: fgvr.Report) -> list[tuple[str, str, str]]:
    rows = [json.loads(line) for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]
    return [(row["image"], row["prediction"], row["by"]) for row in rows]


def config(home: Path, budget: str, *words: str):
    return fgvr.load_config(
        *WORLD, *SIZES, *OURS, f"paths.home={home}", "runtime.device=simulated:1GiB", f"runtime.budget={budget}", *words
    )


@pytest.mark.parametrize("mode", ["build", "evaluate"])
def test_the_mllm_is_loaded_while_the_encoder_has_work(mode: str, watched: Watched, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cfg = config(tmp_path, "200MiB", "trigger=always")
    if mode == "evaluate":
        fgvr.build_knowledge_base(cfg)
        close_shared()
        watched.loaded.clear()
    request.getfixturevalue("unhurried")
    pool = fgvr.shared_pool(cfg)
    pool.subscribe(watched.hear)
    fgvr.build_knowledge_base(cfg) if mode == "build" else fgvr.evaluate(cfg)
    assert watched.loaded == [("encoder", "MainThread"), ("mllm", NAME)]
    assert watched.expected[0] == {"encoder": 0, "mllm": 1, "joint": None}
    assert all(m.next_use is None for m in pool.status())
    assert 0 < watched.most <= 1


def test_with_room_for_one_nothing_is_loaded_ahead_and_the_answers_are_the_same(watched: Watched, tmp_path: Path) -> None:
    wide = answers(fgvr.evaluate(config(tmp_path / "wide", "200MiB", "trigger=always")))
    close_shared()
    tight = config(tmp_path / "tight", "45MiB", "trigger=always")
    pool = fgvr.shared_pool(tight)
    pool.subscribe(watched.hear)
    assert answers(fgvr.evaluate(tight)) == wide
    assert 0 < watched.most <= 1 and pool.peak_bytes <= 45 << 20


def test_what_is_never_asked_is_never_loaded(watched: Watched, tmp_path: Path) -> None:
    fgvr.build_knowledge_base(config(tmp_path, "200MiB"))
    close_shared()
    watched.loaded.clear()
    cfg = config(tmp_path, "200MiB", "trigger=never")
    fgvr.evaluate(cfg)
    assert [role for role, _ in watched.loaded] == ["encoder"]
