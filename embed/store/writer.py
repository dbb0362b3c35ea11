"""Add vectors to a space: one shard, published whole, under the next free number.

The number decides whose vector counts where two writers computed the same key: link(2) gives each
number once, so that whoever has number n can see all that came before, and nobody comes before him
any more. What is returned is what counts, ours or an earlier writer's; whoever asks later gets the
same bytes.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.store.places import Place
from embed.store.shards import Columns, encode
from embed.store.view import View
from fsqueue.storage import atomic


def add(view: View, columns: Columns, vectors: NDArray[Any]) -> NDArray[Any]:
    """Store the vectors, (n, width), of distinct keys; return the ones that count, as stored.

    Once this returns they survive a power loss. A crash before that leaves all of them or none.
    """
    ours = np.ascontiguousarray(vectors, view.space.number)
    counting = ours.copy()
    while True:
        view.refresh()
        known, theirs = view.lookup(columns.keys)
        counting[known] = theirs
        fresh = np.flatnonzero(~known)
        if not len(fresh):
            return counting
        number = _publish(view, _chosen(columns, fresh), ours[fresh])
        if number is None:
            continue
        # RACE: others may have published the same keys since we looked; lower numbers count.
        known, theirs = view.lookup(columns.keys[fresh], before=number)
        counting[fresh[known]] = theirs
        return counting


def _publish(view: View, columns: Columns, vectors: NDArray[Any]) -> int | None:
    """Publish one shard, and return its number; None if somebody has compacted that away before."""
    private = f"{view.directory}/.{os.getpid()}-{secrets.token_hex(6)}"
    atomic.stage(
        private, encode(columns, norms(vectors), [vectors], (*vectors.shape, vectors.dtype))
    )
    try:
        number = view.top + 1
        while True:
            path = f"{view.directory}/{Place(number, number).name}"
            if atomic.commit(private, path, synced=True, keep=True):
                break
            number += 1
    except BaseException:
        atomic.discard(private)
        raise
    view.refresh(number)
    if any(Place(number, number).within(shard.place) for shard in view.shards):
        # RACE: while we slept, the number was given, compacted and removed; ours counts for nobody.
        atomic.discard(path)
        return None
    return number


def norms(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return the length of each vector."""
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares).astype(np.float32)


def _chosen(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    """Return only these rows."""
    if len(rows) == len(columns.keys):
        return columns
    at = rows.tolist()
    return replace(
        columns,
        keys=columns.keys[rows],
        lengths=columns.lengths[rows],
        inputs=columns.inputs[rows],
        ids=[columns.ids[row] for row in at],
        texts=[columns.texts[row] for row in at] if columns.texts else [],
        begins=columns.begins[rows] if columns.texts else columns.begins,
    )
