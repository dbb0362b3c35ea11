"""Count what a space of a store holds, by its keys alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from embed.store import shard_names
from embed.store.view import View


@dataclass(frozen=True, slots=True)
class Info:
    """One space, in numbers."""

    collection: str
    space: str
    model: str
    dtype: str
    pooling: str
    stored: str
    width: int
    vectors: int
    duplicates: int
    """Vectors that are not used, because the same key was stored before."""
    shards: int
    bytes: int
    superseded: int
    """Files that a compaction has replaced, and that the next one removes."""
    superseded_bytes: int


def info(collection: str, view: View) -> Info:
    """Count the vectors, shards and bytes of a space."""
    view.refresh()

    def count_keys() -> tuple[int, int]:
        keys = [shard.keys for shard in view.shards] or [np.empty(0, "S16")]
        total = sum(map(len, keys))
        return total, len(np.unique(np.concatenate(keys)))

    total, distinct = view.retrying(count_keys)
    superseded = shard_names.superseded(shard_names.list_shards(view.directory))
    space = view.space
    return Info(
        collection=collection,
        space=os.path.basename(view.directory),
        model=space.model,
        dtype=space.dtype,
        pooling=space.pooling,
        stored=space.stored,
        width=space.width,
        vectors=distinct,
        duplicates=total - distinct,
        shards=len(view.shards),
        bytes=sum(shard.size for shard in view.shards),
        superseded=len(superseded),
        superseded_bytes=sum(_size(f"{view.directory}/{name.filename}") for name in superseded),
    )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # RACE: a compaction removed it
