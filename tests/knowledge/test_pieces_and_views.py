"""Descriptions in pieces, name templates, several views of a support image: each an option of a base, off by default."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr.knowledge.build import views
from fgvr.runtime.pool import close_shared
from fgvr.types import Picture
from fgvr.utils.text import pieces

SMALL = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=1", "dataset.calibration=0")


@pytest.fixture
def own_pool():
    close_shared()
    yield
    close_shared()


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("length", ("A red crown, a white belly. Long legs.",)),
        ("sentences", ("A red crown, a white belly.", "Long legs.")),
        ("clauses", ("A red crown", "a white belly.", "Long legs.")),
    ],
)
def test_a_description_is_cut_at_its_marks(split: str, expected: tuple[str, ...]) -> None:
    assert pieces("A red crown, a white belly. Long legs.", split) == expected
    assert pieces("one", split) == ("one",)


def test_views_are_mirrored_and_middle_and_known_apart() -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = 255  # a white left edge
    shown = views(Picture(Image.fromarray(pixels), "sha"), 4)
    assert [view.sha256 for view in shown] == ["sha", "sha#view1", "sha#view2", "sha#view3"]
    left = [np.asarray(view.image)[:, 0].mean() for view in shown]
    right = [np.asarray(view.image)[:, -1].mean() for view in shown]
    assert left == [255, 0, 255, 0] and right == [0, 255, 0, 255]
    assert shown[2].image.size == (34, 16)  # margins of 3 and 1.5 pixels, rounded
    assert views(Picture(Image.fromarray(pixels), "sha"), 1)[0].sha256 == "sha"


def test_each_option_makes_a_base_of_its_own_and_the_defaults_none(own_pool) -> None:
    plain = fgvr.build_knowledge_base(fgvr.load_config(*SMALL))
    same = fgvr.build_knowledge_base(fgvr.load_config(*SMALL, "knowledge.views=1", "knowledge.split=length", "knowledge.templates=2"))
    assert same.path == plain.path  # without name prompts their number changes nothing
    named = fgvr.build_knowledge_base(fgvr.load_config(*SMALL, "models.name_prompts=true"))
    one = fgvr.build_knowledge_base(fgvr.load_config(*SMALL, "models.name_prompts=true", "knowledge.templates=1"))
    assert named.prototypes.name is not None and one.prototypes.name is not None
    assert not np.allclose(named.prototypes.name, one.prototypes.name)
    cut = fgvr.build_knowledge_base(fgvr.load_config(*SMALL, "knowledge.split=clauses"))
    assert np.linalg.norm(cut.prototypes.text, axis=1) == pytest.approx(1.0, abs=1e-5)
    seen = fgvr.shared_pool().counters.snapshot().encoder_forwards
    viewed = fgvr.build_knowledge_base(fgvr.load_config(*SMALL, "knowledge.views=2"))
    assert fgvr.shared_pool().counters.snapshot().encoder_forwards == seen + 24  # the mirrored ones; the pictures themselves are remembered
    assert np.linalg.norm(viewed.prototypes.shots, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert len({base.path for base in (plain, named, one, cut, viewed)}) == 5


@pytest.mark.parametrize("wrong", ["knowledge.views=5", "knowledge.split=words", "knowledge.templates=4"])
def test_an_option_that_does_not_exist_is_refused(wrong: str) -> None:
    with pytest.raises(fgvr.ConfigError, match=r"must be one of"):
        fgvr.load_config(wrong)
