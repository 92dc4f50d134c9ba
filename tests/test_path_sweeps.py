"""Commas between paths: a job for each in a sweep, and names that hold a comma stay whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgvr import cli


def jobs(*words: str, key: str = "dataset.root") -> list[Any]:
    seen: list[Any] = []
    assert cli.main(words, job=lambda cfg: seen.append(cfg.get(key))) == 0
    return seen


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name in ("a", "b", "a, b"):
        (tmp_path / name).mkdir()
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_a_sweep_over_folders_is_a_job_for_each(folders: tuple[str, str]) -> None:
    assert jobs("-m", "dataset=folder", f"dataset.root={folders[0]},{folders[1]}") == list(folders)


def test_a_name_with_a_comma_that_exists_stays_whole(tmp_path: Path, folders: tuple[str, str]) -> None:
    whole = str(tmp_path / "a, b")
    assert jobs("-m", "dataset=folder", f"dataset.root={whole},{folders[1]}") == [whole, folders[1]]
    assert jobs("dataset=folder", f"dataset.root={whole}") == [whole]


def test_quotes_keep_a_comma(folders: tuple[str, str]) -> None:
    assert jobs("-m", "dataset=folder", "dataset.root='not/there, yet',other") == ["not/there, yet", "other"]


def test_without_a_sweep_two_folders_are_explained(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dataset=folder", f"dataset.root={folders[0]},{folders[1]}"], job=lambda cfg: None) == 2
    assert "write -m for a job with each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "key"),
    [("evaluate", "knowledge.path"), ("evaluate", "paths.home"), ("replay", "predictions"), ("classify", "image"), ("discover", "images")],
)
def test_every_key_of_a_path_is_swept_alike(mode: str, key: str, folders: tuple[str, str]) -> None:
    assert jobs("-m", f"mode={mode}", f"{key}={folders[0]},{folders[1]}", key=key) == list(folders)


def test_lists_of_runs_are_swept_by_their_brackets(folders: tuple[str, str]) -> None:
    a, b = folders
    assert [list(runs) for runs in jobs("-m", "mode=compare", f"runs=[{a},{b}],[{b},{a}]", key="runs")] == [[a, b], [b, a]]
    assert list(jobs("mode=compare", f"runs={a},{b}", key="runs")[0]) == [a, b]
