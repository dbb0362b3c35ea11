"""Pair two tables by id: what a classifier reads that was trained on two models at once.

The third sequence of an id pairs with the third of that id, so a repeated id loses nothing. In
memory are 20 bytes for each row, and a block of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.outputs.table import Block, Joined


class Paired:
    """The rows of two tables that have the same id, side by side, in the first one's order."""

    name = "data"
    columns: Mapping[str, np.dtype[Any]] = {}
    ragged = False

    def __init__(self, first: Joined, second: Joined) -> None:
        self._tables = first, second
        _, one, two = np.intersect1d(
            _keys(first), _keys(second), assume_unique=True, return_indices=True
        )
        order = np.argsort(one)
        self._numbers = one[order], two[order]
        self.count = self.rows = len(order)
        self.width = first.width + second.width
        self.metadata = {"models": json.dumps([first.metadata, second.metadata], sort_keys=True)}

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""
        one, two = self._numbers
        first, second = self._tables
        start = 0
        for block in first.blocks():
            stop = start + len(block.ids)
            begin, end = np.searchsorted(one, (start, stop))
            mine = one[begin:end] - start
            start = stop
            if len(mine):
                rows = np.concatenate([block.rows[mine], second.take(two[begin:end])], axis=1)
                yield Block([block.ids[n] for n in mine], rows, {})

    def unmatched(self, which: int) -> Iterator[str]:
        """Yield the ids of the first (0) or second (1) table that the other one lacks."""
        matched = np.zeros(self._tables[which].count, np.bool_)
        matched[self._numbers[which]] = True
        start = 0
        for block in self._tables[which].blocks():
            stop = start + len(block.ids)
            yield from (block.ids[n] for n in np.flatnonzero(~matched[start:stop]))
            start = stop


def _keys(table: Joined) -> NDArray[np.bytes_]:
    """Return 20 bytes for each row: a digest of its id, and how often that came before.

    Ids themselves would take many times the memory.
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
