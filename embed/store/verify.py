"""Say what a store holds, and whether all of it is as it was written. Reads everything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from embed.store import places
from embed.store.shards import Shard, StoreError, Vanished
from embed.store.view import View
from embed.store.writer import norms
from fsqueue import FsqueueError


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
    """Vectors that do not count, because the same key was stored before."""
    shards: int
    bytes: int
    superseded: int
    """Files that a compaction stands for, and that the next one removes."""
    superseded_bytes: int


def info(collection: str, view: View) -> Info:
    """Count what a space holds, by its keys alone."""
    view.refresh()

    def count() -> tuple[int, int]:
        keys = [shard.keys for shard in view.shards] or [np.empty(0, "S16")]
        total = sum(map(len, keys))
        return total, len(np.unique(np.concatenate(keys)))

    total, distinct = view.steadily(count)
    found = places.listed(view.directory)
    sizes = {place: _size(f"{view.directory}/{place.name}") for place in found}
    over = places.superseded(found)
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
        superseded=len(over),
        superseded_bytes=sum(sizes[place] for place in over),
    )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # RACE: a compaction removed it


def verify(view: View) -> Iterator[str]:
    """Yield what is wrong with a space, a line each; nothing if all is well."""
    view.refresh()
    for first, last in places.gaps([shard.place for shard in view.shards]):
        which = f"shard {first} is" if first == last else f"shards {first} to {last} are"
        yield (
            f"{view.directory}: {which} missing; fsqueue removes a shard only when another stands "
            f"for it, so something else did. What it held is computed again when it is needed."
        )
    for place in [shard.place for shard in view.shards]:
        try:
            yield from _wrong(Shard(view.directory, place), view)
        except Vanished:
            continue  # RACE: compacted since; what stands for it was read back by who made it
        except (FsqueueError, OSError) as error:
            yield str(error)


def _wrong(shard: Shard, view: View) -> Iterator[str]:
    if not shard.is_whole():
        yield (
            f"{shard.path}: is damaged: its bytes are not those that were written. Remove it, and "
            f"its vectors are computed again when they are needed."
        )
        return
    bad: list[Any] = []
    if (shard.keys[1:] <= shard.keys[:-1]).any():
        bad.append("its keys are not in order")
    if sorted(shard.rows.tolist()) != list(range(shard.count)):
        bad.append("its rows are not one for each key")
    if (shard.width, shard.number) != (view.space.width, view.space.number):
        bad.append("its vectors are of another space")
    columns = shard.columns()
    if not len(columns.ids) == len(columns.lengths) == len(columns.inputs) == shard.count:
        bad.append("its records are not one for each key")
    at = 0
    for block, length in shard.blocks(8192, ("vectors", "norms")):
        if not np.isfinite(block).all():
            bad.append(f"a vector from row {at} on is not finite")
        if (norms(block) != length[:, 0]).any():
            bad.append(f"a norm from row {at} on is wrong")
        at += len(block)
    if bad:
        raise StoreError(f"{shard.path}: {'; '.join(map(str, bad))}. Report this as a defect.")
