"""The most similar rows of a large table: exact, and in blocks, so that no second array of the table's size is made.

A memory-mapped table is read once and stays on the disk. Up to some ten thousand rows a plain product is as good.
"""

from __future__ import annotations

import numpy as np

BLOCK = 65_536  # rows at once


def nearest(table: np.ndarray, queries: np.ndarray, k: int, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B, k) int64 of `table` (N, d) with the greatest dot products with each of `queries` (B, d), best first, and the products
    (B, k) float32. Ties go to the lower row; k is at most N. 16-bit tables are widened block by block."""
    k = min(k, len(table))
    queries = np.ascontiguousarray(queries, np.float32)
    best, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for start in range(0, len(table) if k else 0, block):
        products = queries @ np.asarray(table[start : start + block], np.float32).T
        had = min(start, k)
        for query, values in enumerate(products):
            # Past the first k only what beats the worst of them enters; ranking whole blocks would cost as much as the products.
            enters = np.flatnonzero(values > best[query, -1]) if had == k else np.arange(len(values))
            ranked = _ranked(np.concatenate([best[query, :had], values[enters]]), np.concatenate([rows[query, :had], enters + start]), k)
            best[query, : len(ranked[0])], rows[query, : len(ranked[1])] = ranked
    return rows, best


def _ranked(values: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k greatest values, in descending order, and their rows; among equals the lower rows."""
    if len(values) > k:
        kept = np.flatnonzero(values >= np.partition(values, -k)[-k])
        values, rows = values[kept], rows[kept]
    order = np.lexsort((rows, -values))[:k]
    return values[order], rows[order]
