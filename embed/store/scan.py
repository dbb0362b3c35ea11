"""Read a space once, shard by shard: each wanted key with its vector.

The order is that of the shards, in which vectors were stored; a compaction keeps it. What was
yielded is remembered by key, so a compaction may remove any shard meanwhile, and the one that
replaces it gives the rest. Memory: 17 bytes for each wanted key, and the records of one shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embed.store.keys import KEY, Keys, hexadecimal
from embed.store.shard_names import ShardName
from embed.store.shards import Columns, Shard, StoreError, Vanished
from embed.store.store import Hit
from embed.store.view import View, attempts


@dataclass(frozen=True, slots=True)
class Batch:
    """Some vectors, (hits, width), as float32; all strings are valid UTF-8."""

    hits: list[Hit]
    vectors: NDArray[np.float32]


def all_keys(view: View) -> Keys:
    """Return the keys of a space as it is now, sorted and distinct."""
    view.refresh()
    return view.retrying(
        lambda: np.unique(np.concatenate([np.empty(0, KEY), *(each.keys for each in view.shards)]))
    )


def scan(view: View, wanted: Keys, rows_max: int) -> Iterator[Batch]:
    """Yield all wanted keys, which are sorted and stored, in batches of at most `rows_max`."""
    left = np.ones(len(wanted), np.bool_)
    finished: set[ShardName] = set()
    tries = attempts(view.directory)
    next(tries)
    while left.any():
        view.refresh()  # before each shard, because maps of removed files must not be accessed
        shard = next((one for one in view.shards if one.name not in finished), None)
        if shard is None:
            raise StoreError(
                f"{view.directory}: {int(left.sum()):,} vectors no longer exist; something other "
                f"than fsqueue removed shards. See: fsqueue embed store verify"
            )
        try:
            yield from _scan_shard(shard, wanted, left, rows_max)
        except Vanished:
            # RACE: a compaction removed it; what replaces it is listed now, or will be soon.
            next(tries)
            continue
        finished.add(shard.name)


def _scan_shard(
    shard: Shard, wanted: Keys, left: NDArray[np.bool_], rows_max: int
) -> Iterator[Batch]:
    columns = shard.columns()
    at = np.minimum(np.searchsorted(wanted, columns.keys), len(wanted) - 1)
    rows = np.flatnonzero((wanted[at] == columns.keys) & left[at])
    for begin in range(0, len(rows), rows_max):
        some = rows[begin : begin + rows_max]
        vectors = shard.vectors(some).astype(np.float32)
        left[at[some]] = False
        yield Batch(_hits(columns, some), vectors)


def _hits(columns: Columns, rows: NDArray[np.int64]) -> list[Hit]:
    names = [_valid_utf8(name) for name in columns.input_names]
    return [
        Hit(
            id=id,
            input=names[columns.inputs[row]],
            record=_valid_utf8(columns.ids[row]),
            length=int(columns.lengths[row]),
            text=_valid_utf8(columns.texts[row]) if columns.texts else "",
            begin=int(columns.begins[row]) if columns.texts else -1,
        )
        for id, row in zip(hexadecimal(columns.keys[rows]), rows.tolist(), strict=True)
    ]


def _valid_utf8(text: str) -> str:
    """Return a text with its undecodable bytes written as \\xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
