"""Add vectors to a space: one shard, published whole, under the next free number.

The number decides whose vector is used if two writers computed the same key. link(2) assigns each
number once, so a writer with number n can see all shards with lower numbers, and none is added to
them later. `add` returns the vectors that are used, this writer's or an earlier one's; every later
reader gets the same bytes.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.store.shard_names import ShardName
from embed.store.shards import Columns, encode_shard
from embed.store.view import View
from fsqueue.storage import atomic


def add(view: View, columns: Columns, vectors: NDArray[Any]) -> NDArray[Any]:
    """Store vectors, (n, width), of distinct keys; return those that are used, as stored.

    Once this returns they survive a power loss. A crash before that leaves all of them or none.
    """
    own = np.ascontiguousarray(vectors, view.space.stored_dtype)
    used = own.copy()
    while True:
        view.refresh()
        known, stored = view.lookup(columns.keys)
        used[known] = stored
        new = np.flatnonzero(~known)
        if not len(new):
            return used
        number = _publish(view, _select(columns, new), own[new])
        if number is None:
            continue
        # RACE: others may have published the same keys since the lookup; lower numbers win.
        known, stored = view.lookup(columns.keys[new], before=number)
        used[new[known]] = stored
        return used


def _publish(view: View, columns: Columns, vectors: NDArray[Any]) -> int | None:
    """Publish one shard, and return its number; None if that was compacted away before."""
    private = f"{view.directory}/.{os.getpid()}-{secrets.token_hex(6)}"
    width, dtype = vectors.shape[1], vectors.dtype
    shard = encode_shard(columns, norms(vectors), [vectors], width=width, dtype=dtype)
    atomic.stage(private, shard)
    try:
        number = view.top + 1
        while True:
            path = f"{view.directory}/{ShardName(number, number).filename}"
            if atomic.commit(private, path, synced=True, keep=True):
                break
            number += 1
    except BaseException:
        atomic.discard(private)
        raise
    view.refresh(published=number)
    if any(ShardName(number, number).is_superseded_by(shard.name) for shard in view.shards):
        # RACE: this process was paused while the number was assigned, compacted and removed; its
        # shard is superseded already.
        atomic.discard(path)
        return None
    return number


def norms(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return the length of each vector."""
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares).astype(np.float32)


def _select(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    """Return only these rows."""
    if len(rows) == len(columns.keys):
        return columns
    numbers = rows.tolist()
    return replace(
        columns,
        keys=columns.keys[rows],
        lengths=columns.lengths[rows],
        inputs=columns.inputs[rows],
        ids=[columns.ids[row] for row in numbers],
        texts=[columns.texts[row] for row in numbers] if columns.texts else [],
        begins=columns.begins[rows] if columns.texts else columns.begins,
    )
