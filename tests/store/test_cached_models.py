"""A question already answered is not asked again, and only work done is counted."""

import numpy as np
import pytest
from PIL import Image

from fgvr.protocols import MLLM, Encoder, JointEncoder
from fgvr.store.cache import MemoryCache
from fgvr.store.cached_models import CachedEncoder, CachedJointEncoder, CachedMLLM
from fgvr.store.cost_tracking import ELSEWHERE, add_cost, track_costs
from fgvr.types import Choice, Cost, Picture, Reply, Scores


def picture(n: int) -> Picture:
    return Picture(Image.new("RGB", (2, 2), (n, 0, 0)), f"sha{n}")


class CountingModel:
    """Encoder, MLLM and joint encoder in one; remembers the size of every call. `dead` refuses all work."""

    def __init__(self, fingerprint="f1", dead=False):
        self.fingerprint, self.dead, self.calls = fingerprint, dead, []

    def work(self, items):
        assert not self.dead, "the model was touched"
        self.calls.append(len(items))

    @property
    def logit_scale(self):
        self.work([None])
        return 100.0

    def encode(self, images):
        self.work(images)
        return np.array([[image.image.getpixel((0, 0))[0] / 3, 1.0] for image in images])

    def encode_text(self, texts):
        self.work(texts)
        return np.array([[len(text) / 3, 0.5] for text in texts], np.float32)

    def generate(self, images, prompts, *, system="", max_new_tokens=128):
        self.work(prompts)
        return [Reply(f"{system}{prompt}!", 7, 2) for prompt in prompts]

    def score(self, images, prompts, continuations, *, system=""):
        self.work(prompts)
        return [Scores(tuple(-len(c) / 3 for c in texts), tuple(len(c) for c in texts), 5) for texts in continuations]

    def choose(self, images, prompts, options, *, marker, system="", max_new_tokens=128, votes=1):
        self.work(prompts)
        return [(Choice(Reply(f"{marker} {named[0]}", 7, 3), {named[0]: -0.25}),) * votes for named in options]

    def match(self, images, texts):
        self.work(texts)
        return np.array([len(text) / 10 for text in texts])


@pytest.fixture
def model():
    return CountingModel()


@pytest.fixture
def cache():
    return MemoryCache()


STORED = {
    "logit_scale": ("1bd357378719e6c2", b"100.0"),
    "image": ("9d07f3d846a2c3ac", b"\xab\xaa\xaa>\x00\x00\x80?"),
    "text": ("1b8141cf2749409b", b"\x00\x00\x00@\x00\x00\x00?"),
    "generate": ("4161fd3dd6081f49", b'{"text": "sp!", "prompt_tokens": 7, "new_tokens": 2}'),
    "score": ("df515128648f7231", b"[[-0.3333333333333333, -0.3333333333333333], [1, 1], 5]"),
    "choose": ("deb9bc8e876045c5", b'[["Answer: A", 7, 3, {"A": -0.25}], ["Answer: A", 7, 3, {"A": -0.25}]]'),
    "match": ("888f19b43322274f", b"\x9a\x99\x19?"),
}
"""Entries as fgvr 0.1 wrote them: the first digits of each key, and the value."""


class RecordedCache(MemoryCache):
    def __init__(self):
        super().__init__()
        self.stored = {}

    def put(self, entries):
        self.stored |= entries
        super().put(entries)


def test_answers_that_earlier_versions_have_stored_are_found_again(model):
    """Another key would forget everything that users have computed; another form could not be read."""
    cache = RecordedCache()
    encoder, mllm = CachedEncoder(model, cache), CachedMLLM(model, cache)
    asked = {
        "logit_scale": lambda: encoder.logit_scale,
        "image": lambda: encoder.encode([picture(1)]),
        "text": lambda: encoder.encode_text(["a bird"]),
        "generate": lambda: mllm.generate([picture(1)], ["p"], system="s", max_new_tokens=9),
        "score": lambda: mllm.score([[picture(1), picture(2)]], ["p"], [("a", "b")]),
        "choose": lambda: mllm.choose([picture(1)], ["p"], [["A", "B"]], marker="Answer:", votes=2),
        "match": lambda: CachedJointEncoder(model, cache).match([picture(1)], ["a bird"]),
    }
    found = {}
    for name, ask in asked.items():
        before = set(cache.stored)
        ask()
        (key,) = set(cache.stored) - before
        found[name] = key[:16], cache.stored[key]
    assert found == STORED


def test_the_wrappers_are_what_they_wrap(model, cache):
    assert isinstance(CachedMLLM(model, cache), MLLM)
    assert isinstance(CachedJointEncoder(model, cache), JointEncoder)
    assert isinstance(CachedEncoder(model, cache), Encoder)
    assert CachedEncoder(model, cache).fingerprint == "f1"


def test_vectors_keep_the_order_of_the_input_and_repeats_are_computed_once(model, cache):
    vectors = CachedEncoder(model, cache).encode([picture(3), picture(6), picture(3)])
    assert vectors.dtype == np.float32 and vectors[:, 0].tolist() == [1, 2, 1]
    assert model.calls == [2]


def test_only_what_is_missing_is_computed_and_in_one_call(model, cache):
    encoder = CachedEncoder(model, cache)
    encoder.encode([picture(1), picture(3)])
    first = encoder.encode([picture(n) for n in range(5)])
    assert model.calls == [2, 3]
    assert np.array_equal(first, CachedEncoder(CountingModel(dead=True), cache).encode([picture(n) for n in range(5)]))


def test_no_model_is_touched_when_all_is_remembered(model, cache):
    def everything(m):
        mllm, encoder = CachedMLLM(m, cache), CachedEncoder(m, cache)
        return (
            encoder.logit_scale,
            encoder.encode_text(["a", "bb"]).tolist(),
            mllm.generate([picture(1)], ["what?"], system="s", max_new_tokens=9),
            mllm.score([picture(1), [picture(2), picture(3)]], ["p", "q"], [["a", "bb"], ["c"]]),
            CachedJointEncoder(m, cache).match([picture(1)], ["abc"]).tolist(),
        )

    fresh = everything(model)
    assert everything(CountingModel(dead=True)) == fresh
    assert fresh[2][0].prompt_tokens == 7


@pytest.mark.parametrize("change", ["picture", "more pictures", "prompt", "system", "max_new_tokens", "model"])
def test_every_part_of_a_question_counts(model, cache, change):
    ask = {"images": [[picture(1)]], "prompts": ["p"], "system": "s", "max_new_tokens": 4}
    CachedMLLM(model, cache).generate(**ask)
    other = CountingModel("f2" if change == "model" else "f1")
    changes = {
        "picture": {"images": [[picture(2)]]},
        "more pictures": {"images": [[picture(1), picture(2)]]},
        "prompt": {"prompts": ["q"]},
        "system": {"system": ""},
        "max_new_tokens": {"max_new_tokens": 5},
    }
    CachedMLLM(other, cache).generate(**{**ask, **changes.get(change, {})})
    assert other.calls == [1]


def test_an_empty_reply_is_returned_but_asked_again(cache):
    class Mute(CountingModel):
        def generate(self, images, prompts, **_):
            self.work(prompts)
            return [Reply("  " if prompt == "hard" else "fine", 7, 1) for prompt in prompts]

    model = Mute()
    mllm = CachedMLLM(model, cache)
    for _ in range(2):
        assert mllm.generate([picture(1), picture(1)], ["hard", "easy"]) == ["  ", "fine"]
    assert model.calls == [2, 1]


def test_pil_images_are_known_by_their_pixels(model, cache):
    mllm = CachedMLLM(model, cache)
    mllm.generate([Image.new("RGB", (2, 2), "red")], ["p"])
    mllm.generate([Image.new("RGB", (2, 2), "red")], ["p"])
    mllm.generate([Image.new("RGB", (2, 2), "blue")], ["p"])
    assert model.calls == [1, 1]


def test_an_image_and_a_list_of_that_image_are_one_question(model, cache):
    mllm = CachedMLLM(model, cache)
    mllm.generate([picture(1), [picture(1)]], ["p", "p"])
    assert model.calls == [1]


def test_work_done_is_tallied_per_picture_and_remembered_work_is_not(model, cache):
    mllm, encoder = CachedMLLM(model, cache), CachedEncoder(model, cache)
    encoder.encode([picture(2)])
    with track_costs() as work:
        encoder.encode([picture(1), picture(2)])
        encoder.encode_text(["a"])
        mllm.generate([picture(1)], ["p"])
        mllm.generate([picture(1)], ["p"])
        mllm.score([[picture(3), picture(1)]], ["p"], [["a", "bb"]])
    assert (work["sha1"].encoder_forwards, work["sha1"].mllm_calls, work["sha1"].prompt_tokens, work["sha1"].new_tokens) == (1, 1, 7, 2)
    assert work["sha2"].encoder_forwards == 0
    assert (work["sha3"].mllm_calls, work["sha3"].new_tokens) == (1, 0), "scoring generates nothing, here as in the pool's counters"
    assert work[ELSEWHERE].encoder_forwards == 1
    assert work.total.encoder_forwards == 2


def test_scopes_nest_and_end(model, cache):
    with track_costs() as outer:
        with track_costs() as inner:
            add_cost("x", Cost(mllm_calls=1))
        add_cost("x", Cost(mllm_calls=1))
    add_cost("x", Cost(mllm_calls=1))
    assert (outer["x"].mllm_calls, inner["x"].mllm_calls) == (2, 1)


def test_a_model_that_fails_leaves_nothing_half_remembered(cache):
    with pytest.raises(AssertionError):
        CachedEncoder(CountingModel(dead=True), cache).encode([picture(1)])
    assert cache.stats().entries == 0


def test_nothing_asked_is_nothing_done(cache):
    dead = CountingModel(dead=True)
    assert CachedMLLM(dead, cache).generate([], []) == []
    assert CachedEncoder(dead, cache).encode([]).shape[0] == 0
    assert len(CachedJointEncoder(dead, cache).match([], [])) == 0


def test_a_crash_costs_at_most_so_many_answers(cache):
    class Dies(CountingModel):
        def score(self, images, prompts, continuations, *, system=""):
            if self.calls:
                raise OSError("killed")
            return super().score(images, prompts, continuations, system=system)

    pictures, prompts, texts = [picture(n) for n in range(8)], ["p"] * 8, [("a", "bb")] * 8
    dies, lives = Dies(), CountingModel()
    with pytest.raises(OSError, match="killed"):
        CachedMLLM(dies, cache, at_once=3).score(pictures, prompts, texts)
    assert len(CachedMLLM(lives, cache, at_once=3).score(pictures, prompts, texts)) == 8
    assert dies.calls == [3] and lives.calls == [3, 2], "what was answered before the crash is not asked again"


def test_vectors_found_while_looking_ahead_are_not_looked_up_again(model):
    class Counted(MemoryCache):
        asked = 0

        def get(self, keys):
            keys = list(keys)
            self.asked += len(keys)
            return super().get(keys)

    cache = Counted()
    encoder = CachedEncoder(model, cache)
    first = encoder.encode([picture(1), picture(2)])
    cache.asked = 0
    assert encoder.known_images(["sha1", "sha2", "sha3"]) == {"sha1", "sha2"} and cache.asked == 3
    assert (encoder.encode([picture(1), picture(2)]) == first).all() and cache.asked == 3
    assert model.calls == [2]
