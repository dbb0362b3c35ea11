"""Find the nearest vectors of a space, exactly: every vector is compared with every query.

Shards are read block by block into one buffer and multiplied with the queries, on the GPU if there
is one; of each block only candidates for the nearest are kept. Memory is bounded by the block,
whatever the size of the store, and half precision is converted to float32 before the product.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embed.store.keys import Keys
from embed.store.shards import Shard
from embed.store.view import View

BLOCK_BYTES: Final = 1 << 24
"""The size of a block in float32, which then stays in the cache until it is multiplied."""
QUERIES: Final = 1024
"""How many queries are compared in one pass over the store."""
SPARE: Final = 16

Scores = NDArray[np.float32]
RowAddress = tuple[int, int]
"""The index of a shard in the view, and a row of it."""


def nearest(
    view: View, queries: Scores, k: int
) -> tuple[list[list[RowAddress]], list[list[float]]]:
    """Return the addresses and cosines of each query's k nearest vectors, the nearest first.

    There are fewer if the space holds fewer. A vector of zeros has cosine 0 to every other.
    """
    rows: list[list[RowAddress]] = []
    scores: list[list[float]] = []
    for begin in range(0, len(queries), QUERIES):
        part = queries[begin : begin + QUERIES]
        found = view.retrying(lambda part=part: _nearest(view, part, k))  # type: ignore[misc]
        rows += found[0]
        scores += found[1]
    return rows, scores


def _nearest(
    view: View, queries: Scores, k: int
) -> tuple[list[list[RowAddress]], list[list[float]]]:
    """Search every shard; if too many of the best rows have the same keys, search for more rows."""
    total = sum(shard.count for shard in view.shards)
    wanted = min(k + SPARE, total)
    while True:
        values, numbers = _best_rows(view.shards, queries, wanted)
        found = [_distinct(view.shards, v, n, k) for v, n in zip(values, numbers, strict=True)]
        if wanted == total or all(len(rows) >= k for rows, _ in found):
            return [rows for rows, _ in found], [scores for _, scores in found]
        wanted = min(2 * wanted, total)


def _best_rows(shards: list[Shard], queries: Scores, wanted: int) -> tuple[Any, Any]:
    """Return the scores and the numbers (counted through all shards) of the best rows, sorted."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    unit = torch.from_numpy(queries / np.where(lengths > 0, lengths, 1)).to(device)
    best = torch.empty((len(queries), 0), device=device)
    numbers = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    start = 0
    for shard in shards:
        rows = max(1, BLOCK_BYTES // (4 * shard.width))
        for block, norms in shard.blocks(rows, ("vectors", "norms")):
            wide = torch.from_numpy(block).to(device).float()
            inverse = torch.from_numpy(1.0 / np.where(norms > 0, norms, np.inf)).to(device)
            scores = unit @ wide.T
            scores *= inverse.T
            best, numbers = _merge(best, numbers, scores, start, wanted)
            start += len(block)
    order = best.argsort(dim=1, descending=True, stable=True)
    return best.gather(1, order).cpu().numpy(), numbers.gather(1, order).cpu().numpy()


def _merge(best: Any, numbers: Any, scores: Any, start: int, wanted: int) -> tuple[Any, Any]:
    """Merge the best so far with those of a block, whose first row has the number `start`."""
    if best.shape[1] == wanted:
        # Most blocks have few better rows: compare with each query's worst before sorting.
        better = (scores > best.amin(1, keepdim=True)).nonzero()
        most = int(better[:, 0].bincount().max()) if len(better) else 0
        if not most:
            return best, numbers
        values, at = scores.topk(min(most, wanted), dim=1)
    else:
        values, at = scores.topk(min(wanted, scores.shape[1]), dim=1)
    best, numbers = torch.cat([best, values], 1), torch.cat([numbers, at + start], 1)
    best, at = best.topk(min(wanted, best.shape[1]), dim=1)
    return best, numbers.gather(1, at)


def _distinct(shards: list[Shard], scores: Any, numbers: Any, k: int) -> tuple[Any, Any]:
    """Return the first k rows and scores, each key once, with the vector that is used for it."""
    starts = np.cumsum([0, *(shard.count for shard in shards)])
    which = np.searchsorted(starts, numbers, "right") - 1
    seen: dict[bytes, int] = {}
    rows: list[RowAddress] = []
    kept: list[float] = []
    for shard, row, score in zip(which, numbers - starts[which], scores, strict=True):
        key = keys_of(shards, [(int(shard), int(row))])[0]
        if key not in seen:
            if len(rows) == k:
                break
            seen[key] = len(rows)
            rows.append((int(shard), int(row)))
            kept.append(float(score))
        elif rows[seen[key]][0] > shard:
            rows[seen[key]], kept[seen[key]] = (int(shard), int(row)), float(score)
    return rows, kept


def keys_of(shards: list[Shard], rows: list[RowAddress]) -> Keys:
    """Return the keys of rows."""
    return np.array([shards[shard].key_of(row) for shard, row in rows], "S16")
