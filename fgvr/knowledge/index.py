"""The most similar rows of a large table: exact, in blocks, so that nothing of the table's size is ever made beside it.

A table that is memory-mapped is read once and stays on the disk. Up to some ten thousand rows a plain product is as good.
"""

from __future__ import annotations

import numpy as np

BLOCK = 65_536  # rows at once


def nearest(table: np.ndarray, queries: np.ndarray, k: int, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B, k) int64 of `table` (N, d) with the greatest dot products with each of `queries` (B, d), best first, and the products
    (B, k) float32. Ties go to the lower row; k is at most N. 16-bit tables are widened block by block."""
    k = min(k, len(table))
    queries = np.ascontiguousarray(queries, np.float32)
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(table), block):
        products = queries @ np.asarray(table[start : start + block], np.float32).T
        found = _top(products, k)
        best = np.concatenate([best, np.take_along_axis(products, found, 1)], axis=1)
        rows = np.concatenate([rows, found + start], axis=1)
        if best.shape[1] > k:
            kept = _top(best, k)
            best, rows = np.take_along_axis(best, kept, 1), np.take_along_axis(rows, kept, 1)
    order = np.lexsort((rows, -best), axis=1)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(best, order, 1)


def _top(products: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k greatest of each row, in ascending order; among equals the lower columns."""
    if k >= products.shape[1]:
        return np.tile(np.arange(products.shape[1]), (len(products), 1))
    least = -np.partition(-products, k - 1, axis=1)[:, k - 1 : k]
    chosen = np.empty((len(products), k), np.int64)
    for row, (values, border) in enumerate(zip(products, least[:, 0], strict=True)):
        above = np.flatnonzero(values > border)
        chosen[row] = np.sort(np.concatenate([above, np.flatnonzero(values == border)[: k - len(above)]]))
    return chosen
