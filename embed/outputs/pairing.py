"""Pair two tables by id, for a classifier that was trained on two models at once.

Of a repeated id, the n-th row of one table pairs with the n-th of the other, so none is lost.
Memory: 20 bytes for each row, and a block of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.outputs.table import Block, JoinedTable


class PairedTable:
    """The rows of two tables that have the same id, side by side, in the first one's order."""

    name = "data"
    columns: Mapping[str, np.dtype[Any]] = {}
    ragged = False
    dtype = np.dtype("<f4")
    offsets: NDArray[np.int64] = np.empty(0, np.int64)

    def __init__(self, first: JoinedTable, second: JoinedTable) -> None:
        self._tables = first, second
        _, in_first, in_second = np.intersect1d(
            _keys(first), _keys(second), assume_unique=True, return_indices=True
        )
        order = np.argsort(in_first)
        self._numbers = in_first[order], in_second[order]
        self.count = self.rows = len(order)
        self.width = first.width + second.width
        self.metadata = {"models": json.dumps([first.metadata, second.metadata], sort_keys=True)}

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""
        in_first, in_second = self._numbers
        first, second = self._tables
        start = 0
        for block in first.blocks():
            stop = start + len(block.ids)
            begin, end = np.searchsorted(in_first, (start, stop))
            here = in_first[begin:end] - start
            start = stop
            if len(here):
                partners = second.take(in_second[begin:end])
                rows = np.concatenate([block.rows[here], partners], axis=1)
                yield Block([block.ids[n] for n in here], rows, {})

    def unmatched(self, which: int) -> Iterator[str]:
        """Yield the ids of the first (0) or second (1) table that have no partner."""
        matched = np.zeros(self._tables[which].count, np.bool_)
        matched[self._numbers[which]] = True
        start = 0
        for block in self._tables[which].blocks():
            stop = start + len(block.ids)
            yield from (block.ids[n] for n in np.flatnonzero(~matched[start:stop]))
            start = stop


def _keys(table: JoinedTable) -> NDArray[np.bytes_]:
    """Return 20 bytes for each row: a digest of its id, and how often the id occurred before.

    The ids themselves would take many times the memory.
    """
    digests = np.empty(table.count, "S16")
    start = 0
    for block in table.blocks():
        found = [hashlib.blake2b(id.encode(), digest_size=16).digest() for id in block.ids]
        digests[start : start + len(found)] = found
        start += len(found)
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    number = np.arange(len(ordered))
    earlier = np.empty(len(ordered), ">u4")
    earlier[order] = number - np.maximum.accumulate(np.where(is_first, number, 0))
    keys = np.empty((table.count, 20), np.uint8)
    keys[:, :16] = digests.view(np.uint8).reshape(-1, 16)
    keys[:, 16:] = earlier.view(np.uint8).reshape(-1, 4)
    return keys.view("S20")[:, 0] if table.count else np.empty(0, "S20")
