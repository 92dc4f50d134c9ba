"""Names have one spelling to be compared in; tables show what matters and escape the rest."""

import html.parser
from dataclasses import replace
from pathlib import Path

import pytest

from fgvr.types import Candidate, Decision, FastResult, History, Prediction, Report, SlowResult
from fgvr.utils.text import format_bytes, nearest, normalise_name, plain_name


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (24 << 30, "24.00 GiB"), (5000 << 30, "5000.00 GiB")]
)
def test_bytes_are_shown_in_binary_units(count, text):
    assert format_bytes(count) == text


def test_near_words_are_found_whatever_their_case():
    assert nearest("brids", ["birds", "Folder", "food101"])[0] == "birds"
    assert nearest("FOLDR", ["birds", "Folder"]) == ["Folder"]
    assert nearest("xyz", ["birds"]) == []


@pytest.mark.parametrize(
    "spelling",
    ["Common Raven", "common_raven", "COMMON-RAVEN", "107.Common_Raven", "107. common  raven ", "Cömmon Raven", "n02085620-common_raven"],
)
def test_spellings_of_one_name_are_one(spelling):
    assert normalise_name(spelling) == "common raven"


def test_what_tells_names_apart_stays():
    names = ["Apple 14", "Apple 1", "14 Apple", "737-200", "737-300", "1.5 litre", "が", "か", "C-130", "---", "42.", "n02085620"]
    assert len({normalise_name(name) for name in names}) == len(names)
    assert all(normalise_name(name) for name in names)


@pytest.mark.parametrize(
    ("folder", "name"), [("107.Common_Raven", "Common Raven"), ("long-sleeve_top", "long-sleeve top"), ("x", "x"), ("_", "_")]
)
def test_folder_names_are_read_as_people_write_them(folder, name):
    assert plain_name(folder) == name


class Balanced(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "img")
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


EVIL = "<script>alert('&')</script>"


@pytest.fixture
def prediction():
    candidates = (Candidate("a", 0.7, 0.9, 0.4, joint_score=0.25), Candidate(EVIL, 0.3, 0.8, 0.5))
    fast = FastResult("sha", candidates, 0.71, 0.4, 0.6, True, History(3, 2, 9))
    decision = Decision(True, 0.42, 0.5, {"doubt": 0.125, EVIL: 1})
    slow = SlowResult(EVIL, {"a": 0.2, EVIL: 0.8}, EVIL, (EVIL,))
    return Prediction(EVIL, "sha", "a", EVIL, EVIL, 0.8, "slow", fast, decision, slow, names={"a": "Raven"})


def test_a_prediction_shows_candidates_reasons_and_the_slow_answer(prediction):
    text = Balanced(prediction._repr_html_()).text
    for shown in ("Raven", "0.700", "0.250", "doubt +0.12", "0.420", "0.500", EVIL, "0.800", "is Raven"):
        assert shown in text


def test_a_fast_or_unreadable_prediction_can_be_shown_too(prediction):
    assert "slow" not in Balanced(replace(prediction, slow=None, by="fast", label=None)._repr_html_()).text.replace("slowly", "")
    assert "unreadable" in Balanced(replace(prediction, slow=SlowResult(None, {}, status="unreadable"))._repr_html_()).text


def test_a_report_starts_with_its_notes():
    report = Report(
        9,
        0.5,
        (0.4, 0.6),
        0.5,
        0.3,
        2,
        1,
        {"top5": 0.9},
        {"mllm_calls": 12.0},
        3 << 30,
        {"mllm": 1},
        (EVIL,),
        {},
        EVIL,
        "never",
        Path("/r"),
        2,
    )
    text = Balanced(report._repr_html_()).text
    assert text.strip().startswith(EVIL)
    for shown in ("0.5000 [0.4000, 0.6000]", "9 (2 skipped)", "top5", "mllm_calls", "12", "3.00 GiB", "mllm 1", "/r", "2 / 1"):
        assert shown in text
