"""Go through a space once, shard by shard: each wanted key with the vector that counts for it.

The order is that of the shards, which is that in which vectors were stored; a compaction keeps it.
What has been passed on is remembered by key, so that a compaction may take any shard away meanwhile
and what stands for it gives the rest. In memory are 17 bytes for each wanted key, and the records
of one shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.store.contents import Hit
from embed.store.keys import KEY, Keys, hexadecimal
from embed.store.places import Place
from embed.store.shards import Shard, StoreError, Vanished
from embed.store.view import View, patiently


@dataclass(frozen=True, slots=True)
class Batch:
    """Some vectors, (hits, width), as float32; texts are such that any library takes them."""

    hits: list[Hit]
    vectors: NDArray[np.float32]


def every_key(view: View) -> Keys:
    """Return the keys of a space as it is now, sorted, each once."""
    view.refresh()

    def look() -> Keys:
        return np.unique(np.concatenate([np.empty(0, KEY), *(each.keys for each in view.shards)]))

    return view.steadily(look)


def without(keys: Keys, known: Keys) -> Keys:
    """Return those of `keys` that are not among `known`; both are sorted."""
    if not len(known):
        return keys
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return keys[known[at] != keys]


def walk(view: View, wanted: Keys, rows_max: int) -> Iterator[Batch]:
    """Yield every wanted key, which are sorted and stored, in batches of at most `rows_max`."""
    left = np.ones(len(wanted), np.bool_)
    passed: set[Place] = set()
    tries = patiently(view.directory)
    next(tries)
    while left.any():
        view.refresh()  # for each shard: maps of files that were removed are not to be touched
        shard = next((one for one in view.shards if one.place not in passed), None)
        if shard is None:
            raise StoreError(
                f"{view.directory}: {int(left.sum()):,} vectors are not there any more; something "
                f"else than fsqueue removed shards. See: fsqueue embed store verify"
            )
        try:
            yield from _of(shard, wanted, left, rows_max)
        except Vanished:
            # RACE: a compaction removed it; what stands for it is listed now, or will be soon.
            next(tries)
            continue
        passed.add(shard.place)


def _of(shard: Shard, wanted: Keys, left: NDArray[np.bool_], rows_max: int) -> Iterator[Batch]:
    columns = shard.columns()
    at = np.minimum(np.searchsorted(wanted, columns.keys), len(wanted) - 1)
    rows = np.flatnonzero((wanted[at] == columns.keys) & left[at])
    for begin in range(0, len(rows), rows_max):
        some = rows[begin : begin + rows_max]
        vectors = shard.vectors(some).astype(np.float32)
        left[at[some]] = False
        yield Batch(_hits(columns, some), vectors)


def _hits(columns: Any, rows: NDArray[np.int64]) -> list[Hit]:
    names = [_legible(name) for name in columns.input_names]
    return [
        Hit(
            id,
            names[columns.inputs[row]],
            _legible(columns.ids[row]),
            int(columns.lengths[row]),
            _legible(columns.texts[row]) if columns.texts else "",
            int(columns.begins[row]) if columns.texts else -1,
        )
        for id, row in zip(hexadecimal(columns.keys[rows]), rows.tolist(), strict=True)
    ]


def _legible(text: str) -> str:
    """Return a text that is UTF-8: bytes that are none stand in it as \\xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
