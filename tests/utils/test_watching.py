"""Logging and progress: what a person sees while waiting."""

import logging
import sys

from fgvr.utils.logging import setup_logging
from fgvr.utils.progress import track


def test_lines_go_to_stderr_and_to_the_file(tmp_path, capsys):
    setup_logging(level="warning", file=tmp_path / "run" / "log.txt")
    log = logging.getLogger("fgvr.some.module")
    log.info("quiet %s", "words")
    log.warning("loud words")
    shown = capsys.readouterr()
    assert "loud words" in shown.err and "quiet words" not in shown.err and shown.out == ""
    assert "quiet words" in (tmp_path / "run" / "log.txt").read_text()


def test_quiet_shows_warnings_only(capsys):
    setup_logging(level="debug", quiet=True)
    logging.getLogger("fgvr").info("hello")
    assert capsys.readouterr().err == ""


def test_setting_up_twice_does_not_say_things_twice(capsys):
    setup_logging()
    setup_logging()
    logging.getLogger("fgvr").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_a_program_that_shows_all_records_shows_ours_once(capsys, tmp_path):
    root, theirs = logging.getLogger(), logging.StreamHandler(sys.stderr)  # as after logging.basicConfig() in a notebook
    root.addHandler(theirs)
    try:
        setup_logging(quiet=True, file=tmp_path / "log.txt")
        logging.getLogger("fgvr").warning("once")
        logging.getLogger("fgvr").info("never")
    finally:
        root.removeHandler(theirs)
        setup_logging()
    shown = capsys.readouterr().err
    assert shown.count("once") == 1 and "never" not in shown and "once" in (tmp_path / "log.txt").read_text()


def test_progress_is_silent_where_nobody_watches(capsys, monkeypatch):
    monkeypatch.delenv("FGVR_PROGRESS", raising=False)
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_where_nobody_watches_long_work_says_now_and_then_how_far_it_is(capsys, monkeypatch):
    monkeypatch.delenv("FGVR_PROGRESS", raising=False)
    setup_logging()
    assert list(track(iter("abc"), "counting", 6, every=0.0, weigh=lambda letter: 2)) == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert "counting: 4 of 6" in shown.err and "s left" in shown.err and "iB" in shown.err and shown.out == ""
    monkeypatch.setenv("FGVR_PROGRESS", "0")
    assert list(track(iter("abc"), "counting", 3, every=0.0)) == ["a", "b", "c"] and capsys.readouterr().err == ""


def test_progress_can_be_asked_for_and_goes_to_stderr(capsys, monkeypatch):
    monkeypatch.setenv("FGVR_PROGRESS", "1")
    assert list(track(iter("abc"), "counting", 3)) == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert "counting" in shown.err and "3/3" in shown.err and shown.out == ""


def test_bars_may_nest(capsys):
    assert [list(track(range(2), "inner", show=True)) for _ in track(range(2), "outer", show=True)] == [[0, 1], [0, 1]]
    assert "outer" in capsys.readouterr().err


def test_the_bar_says_how_many_are_done_and_what_the_process_holds(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert len(list(track(range(3), "images", show=True))) == 3
    shown = capsys.readouterr().err
    assert "3/3" in shown and "iB" in shown
