"""Every accepted way to write a budget, and every refusal."""

from __future__ import annotations

import pytest

from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_budget

GIB = 1 << 30


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("auto", 16 * GIB),
        ("18GiB", 18 * GIB),
        ("1.5 gib", 3 * GIB // 2),
        ("512MiB", 512 << 20),
        ("64KiB", 64 << 10),
        ("18GB", 18 * 10**9),
        ("700MB", 700 * 10**6),
        (0.8, 16 * GIB),
        (1.0, 20 * GIB),
        (17179869184, 16 * GIB),
        ("17179869184", 16 * GIB),  # as environment variables bring it
        ("0.5", 10 * GIB),
    ],
)
def test_a_budget_may_be_written_as(value: str | float | int, size: int) -> None:
    assert parse_budget(value, 20 * GIB) == size


@pytest.mark.parametrize(
    "value", ["banana", "", -1, 0, 1.5, "1.5", True, False, None, float("nan"), float("inf"), "-3GiB", "0GiB", "18 G", [1]]
)
def test_what_is_no_budget_is_refused_with_the_forms_that_are(value) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_budget(value, 20 * GIB)
    assert all(form in str(caught.value) for form in ("auto", "GiB", "0.8", "bytes", str(value)))


def test_auto_leaves_what_others_hold() -> None:
    assert parse_budget("auto", 20 * GIB, held=10 * GIB) == 6 * GIB
    assert parse_budget("auto", 20 * GIB, held=19 * GIB) == 0
