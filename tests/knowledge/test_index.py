"""Exact nearest rows, whatever the block."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.nearest_rows import nearest


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_blocks_find_what_a_full_sort_finds(block, k):
    rng = np.random.default_rng(0)
    table, queries = rng.standard_normal((150, 8)).astype(np.float32), rng.standard_normal((4, 8)).astype(np.float32)
    rows, products = nearest(table, queries, k, block=block)
    full = queries @ table.T
    expected = np.argsort(-full, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(products, np.take_along_axis(full, expected, 1), rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_lower_row():
    table = np.ones((10, 2), np.float32)
    rows, _ = nearest(table, np.ones((1, 2), np.float32), 3, block=4)
    assert rows.tolist() == [[0, 1, 2]]


def test_a_table_on_disk_in_16_bit_will_do(tmp_path):
    table = np.random.default_rng(1).standard_normal((100, 8)).astype(np.float16)
    np.save(tmp_path / "table.npy", table)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r")
    rows, _ = nearest(mapped, table[[3, 50]].astype(np.float32) * 2, 10, block=32)
    exact, _ = nearest(table.astype(np.float32), table[[3, 50]].astype(np.float32) * 2, 10)
    np.testing.assert_array_equal(rows, exact)
