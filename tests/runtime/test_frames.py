"""How far a call travels: the project's own frames between the recognizer and a resident model's method."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fgvr
from fgvr import pipeline
from fgvr.runtime.loaders import fake
from fgvr.runtime.pool import close_shared

MOST = 8
WORLD = ("models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=1", "dataset.shots=2", "dataset.calibration=0", "trigger=always")


def frames_to_the_recognizer() -> list[str]:
    """Of fgvr, from the model's method outward to the recognizer; without both. Empty when no recognizer asked."""
    frame, found = sys._getframe(2), []
    while frame is not None:
        if frame.f_code.co_filename == pipeline.__file__:
            return found
        if f"{Path(fgvr.__file__).parent}" in frame.f_code.co_filename:
            found.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    return []


@pytest.fixture
def seen(intercept) -> Iterator[dict[str, list[str]]]:
    """Method -> the longest way to it."""
    longest: dict[str, list[str]] = {}

    def watched(kind: type, name: str) -> None:
        def call(method: Callable[..., object], self: object, *args: object, **settings: object) -> object:
            longest[name] = max(longest.get(name, []), frames_to_the_recognizer(), key=len)
            return method(self, *args, **settings)

        intercept(kind, name, call)

    watched(fake.FakeEncoder, "encode")
    watched(fake.FakeMLLM, "generate")
    watched(fake.FakeMLLM, "score")
    close_shared()
    yield longest
    close_shared()


@pytest.mark.parametrize(("decoder", "methods"), [("score", ["encode", "score"]), ("reason", ["encode", "generate", "score"])])
def test_at_most_eight_frames_lead_from_the_recognizer_to_a_model(
    decoder: str, methods: list[str], seen: dict[str, list[str]], tmp_path: Path
) -> None:
    cfg = fgvr.load_config(*WORLD, f"slow={decoder}", f"paths.home={tmp_path}", "store.enabled=false")
    fgvr.evaluate(cfg)
    assert {name: way for name, way in seen.items() if len(way) > MOST} == {}
    assert [name for name in methods if not seen.get(name)] == [], "the recognizer asked them"
