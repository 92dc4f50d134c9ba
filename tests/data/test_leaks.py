"""An image that helped to build the base is not tested unawares."""

from pathlib import Path

import pytest

from fgvr.data.leaks import exact_overlaps, guard
from fgvr.errors import LeakError
from fgvr.types import Sample

TEST = [Sample(Path(f"/t/{i}"), f"test/{i}.jpg", "a", f"sha{i}") for i in range(30)]
FORBIDDEN = {f"sha{i}": f"support: {i}.png" for i in range(5, 17)} | {"elsewhere": "support: z.png"}


def test_a_clean_test_passes():
    assert guard(TEST[:5], FORBIDDEN) == []


def test_offenders_are_counted_and_ten_are_named_with_the_way_out():
    with pytest.raises(LeakError) as error:
        guard(TEST, FORBIDDEN)
    message = str(error.value)
    assert message.startswith("12 test images") and "test/5.jpg (is support: 5.png)" in message
    assert "test/14.jpg" in message and "test/15.jpg" not in message and "and 2 more" in message
    assert "evaluation.allow_overlap=true" in message


def test_when_allowed_they_are_returned():
    assert [overlap.key for overlap in guard(TEST, FORBIDDEN, allow=True)] == [f"test/{i}.jpg" for i in range(5, 17)]


def test_images_without_a_hash_match_nothing():
    assert exact_overlaps([Sample(Path("/t"), "t")], {"": "nothing"}) == []
