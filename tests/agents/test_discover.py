"""Names for unlabelled pictures: found by five stages that never meet a class list."""

import ast
import inspect
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fgvr.agents import discover as module
from fgvr.agents import discover_prompts as ask
from fgvr.agents.discover import Discoverer
from fgvr.agents.mixture_selection import complexity_penalty, fill, select_mixture
from fgvr.data.unlabelled import open_unlabelled
from fgvr.errors import DatasetError, UnreadableReply
from fgvr.store.journal import StageCache
from fgvr.types import Reply, Scores

COLOURS = {"Crimson Finch": (200, 30, 30), "Azure Jay": (30, 60, 200), "Moss Wren": (40, 140, 60)}
SECRETS = {"Crimson Finch": "001.Alphabird", "Azure Jay": "002.Betabird", "Moss Wren": "003.Gammabird"}  # what the folders are called
SLIPS = {2: "Crimson-finch", 5: "Grey Nothing"}  # another spelling; a slip of the tongue


@pytest.fixture
def folder(tmp_path):
    """Eight pictures of each colour in class-named folders, their file names saying it again, and one file twice."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "in" / SECRETS[name]).mkdir(parents=True)
        for i in range(8):
            noisy = np.clip(np.array(colour) + rng.normal(0, 12, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "in" / SECRETS[name] / f"{SECRETS[name]}_{i}.png")
    twice = tmp_path / "in" / SECRETS["Moss Wren"]
    (twice / "copy.png").write_bytes((twice / f"{SECRETS['Moss Wren']}_0.png").read_bytes())
    return tmp_path / "in"


def colour_of(picture):
    mean = np.asarray(picture.image, float).mean((0, 1))
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())


class Eye:
    """An encoder that sees mean colours, and reads words as the colours they mean."""

    fingerprint, logit_scale = "eye", 20.0

    def encode(self, images):
        rows = np.stack([np.asarray(p.image, np.float32).mean((0, 1)) for p in images])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_text(self, texts):
        rows = np.array(
            [next((c for n, c in COLOURS.items() if n.split()[0].lower() in t.lower()), (90, 90, 90)) for t in texts], np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Speaker:
    """A scripted MLLM that knows the names, with slips; it keeps every word and picture it is given."""

    fingerprint = "speaker"

    def __init__(self, fail_at=None):
        self.prompts, self.shown, self.asked, self.fail_at = [], [], Counter(), fail_at

    def generate(self, images, prompts, *, system="", max_new_tokens=128):
        return [Reply(self._say(picture, prompt, system)) for picture, prompt in zip(images, prompts, strict=True)]

    def _say(self, picture, prompt, system):
        self.prompts += [prompt, system]
        self.shown.append(picture)
        kind = next(key for key in ("kind of thing", "List at most", "Describe the visible", "up to three names") if key in prompt)
        if kind == self.fail_at:
            raise KeyboardInterrupt
        self.asked[kind] += 1
        name = colour_of(picture)
        said = {
            "kind of thing": "A bird.",
            "List at most": "1. colour\n2. size",
            "Describe the visible": f"It is {name.split()[0].lower()}.",
        }
        slip = SLIPS.get(self.asked[kind])
        return said.get(kind) or f"1. {slip or name}; a bird"

    def score(self, images, prompts, continuations, *, system=""):
        found = []
        for picture, prompt, words in zip(images, prompts, continuations, strict=True):
            self.prompts += [prompt, *words]
            self.shown.append(picture)
            self.asked["score"] += 1
            found.append(Scores(tuple(-0.5 if w.lower().startswith(colour_of(picture).lower()[:4]) else -9.0 for w in words), (1,), 5))
        return found


def test_kinds_are_found_named_and_counted_without_being_told_how_many(folder):
    images = open_unlabelled(folder)
    assert len(images.picture_set) == 24 and images.copies == 1
    found = Discoverer(Speaker(), Eye(), target="name", mllm_batch=5, encode_batch=7)(images.picture_set)
    assert found.superclass == "bird" and found.attributes == ("colour", "size")
    assert {kind.name for kind in found.kinds} == set(COLOURS) and found.guesses > 3
    for kind in found.kinds:
        assert {images.samples[i].key.split("/")[0] for i in kind.pictures} == {SECRETS[kind.name]}
    assert sorted(found.owners) == list(range(24))


def test_no_prompt_and_no_picture_says_where_it_comes_from(folder):
    mllm = Speaker()
    Discoverer(mllm, Eye(), target="name")(open_unlabelled(folder).picture_set)
    words = " ".join(mllm.prompts).lower()
    assert len(mllm.prompts) > 24 and "alphabird" not in words and "betabird" not in words and "gammabird" not in words
    assert str(folder).lower() not in words and ".png" not in words
    for picture in mllm.shown:
        assert not getattr(picture.image, "filename", "") and not any("bird" in str(value) for value in picture.image.info.values())
        assert set(picture.__slots__) == {"image", "sha256", "content"}


def test_the_agent_cannot_reach_a_dataset():
    names = {node.module for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)}
    assert not any(name and name.startswith("fgvr.data") for name in names)


def test_an_album_has_pictures_and_nothing_else(folder):
    images = open_unlabelled(folder)
    assert [name for name in dir(images.picture_set) if not name.startswith("_")] == []
    assert all(sample.label is None for sample in images.samples)
    hashes = [sample.sha256 for sample in images.samples]
    assert hashes == sorted(hashes), "the order of the folders would tell the classes apart"


def test_an_interrupted_discovery_goes_on_with_the_stage_it_was_at(folder, tmp_path):
    images, where = open_unlabelled(folder), tmp_path / "stages"
    with pytest.raises(KeyboardInterrupt):
        Discoverer(Speaker("up to three names"), Eye(), target="name", stage=StageCache(where, images.content))(images.picture_set)
    again, stages = Speaker(), StageCache(where, images.content)
    found = Discoverer(again, Eye(), target="name", stage=stages)(images.picture_set)
    assert stages.computed == ["guess", "postprocess"] and set(again.asked) == {"up to three names", "score"}
    whole = Discoverer(Speaker(), Eye(), target="name", stage=StageCache(tmp_path / "other", images.content))(images.picture_set)
    assert found == whole
    third = StageCache(where, images.content)
    assert Discoverer(Speaker("kind of thing"), Eye(), target="name", stage=third)(images.picture_set) == whole and third.computed == []
    other = StageCache(where, "other images")
    Discoverer(Speaker(), Eye(), target="name", stage=other)(images.picture_set)
    assert other.computed == ["identify", "howto", "describe", "guess", "postprocess"]


def test_a_model_that_names_nothing_is_an_error_with_a_way_out(folder):
    class Mute(Speaker):
        def _say(self, picture, prompt, system):
            return ""

    picture_set = open_unlabelled(folder).picture_set
    with pytest.raises(UnreadableReply, match=r"discover\.superclass=bird"):
        Discoverer(Mute(), Eye(), target="name")(picture_set)
    with pytest.raises(UnreadableReply, match="24 pictures"):
        Discoverer(Mute(), Eye(), target="name", superclass="bird")(picture_set)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="no readable image"):
        open_unlabelled(tmp_path)
    with pytest.raises(DatasetError, match="no folder"):
        open_unlabelled(tmp_path / "absent")


# --- how replies are read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("Bird", "bird"), ("It's a bird.", "bird"), ("This is a passenger car", "passenger car"), ("A bird with red crown, legs.", "bird"),
     ("I am not sure what this could possibly be", ""), ("", "")],
)  # fmt: skip
def test_a_kind_is_a_noun(reply, kind):
    assert ask.read_kind(reply) == kind


def test_lists_of_attributes_and_names():
    assert ask.read_attributes("- Crown\n- Beak shape\n- crown") == ("crown", "beak shape")
    assert ask.read_attributes("One looks at the crown and the beak above all others.") == ()
    assert ask.read_names("1. Song Sparrow; song sparrow; Fox sparrow\nBird", "bird") == ("Song Sparrow", "Fox sparrow")
    assert ask.read_names("I would say that this is one of the many kinds of sparrow", "bird") == ()


def test_short_names_tell_all_apart():
    texts = ["A bird with red crown, long beak.", "A bird with red crown, short beak.", "A bird with blue crown, short beak."]
    assert ask.short_names("bird", texts) == ["bird with long beak", "bird with red crown, short beak", "bird with blue crown"]


# --- the vote ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [1, 3, 12])
def test_the_vote_finds_how_many_there_are(kinds):
    rng = np.random.default_rng(kinds)
    truth = np.repeat(np.arange(kinds), 10)
    nats = rng.normal(-12, 1, (len(truth), kinds + 25))  # 25 guesses that nobody needs
    nats[np.arange(len(truth)), truth] += 9
    slips = rng.choice(len(truth), 6 * kinds // 3, replace=False)
    nats[slips, kinds + np.arange(len(slips)) % 25] = -2.0  # each a little better than the truth for its own picture
    kept = select_mixture(nats, np.ones(kinds + 25), complexity_penalty(kinds + 25, len(truth)))
    assert sorted(kept.indices.tolist()) == list(range(kinds))
    assert np.mean(kept.indices[kept.owners] == truth) == 1 and kept.certainty.min() > 0.5


def test_a_price_of_nothing_keeps_what_is_used_and_a_great_one_leaves_one():
    nats = np.where(np.eye(6, dtype=bool), 0.0, -8.0)
    assert len(select_mixture(nats, np.ones(6), 0.0).indices) == 6
    assert len(select_mixture(nats, np.ones(6), 1e6).indices) == 1


def test_what_was_not_judged_stands_below_what_was():
    filled = fill(np.array([[-1.0, np.nan, -3.0], [np.nan, np.nan, np.nan]]))
    assert filled[0, 1] < -3 and not np.isnan(filled).any() and len(set(filled[1])) == 1
