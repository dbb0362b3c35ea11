"""Make few large shards of many small ones, and remove what they stand for.

A compaction only adds: the new shard holds the vectors that count of a run of shards, in their
order, and its name says which run. Only when it is published, durable, read back and found whole
are superseded files removed, and not before it has been there for `grace_s`, so that whoever listed
the directory before may go on reading them. So it may die at any point, run beside any number of
writers, readers and other compactions, and be repeated.

What this module does not know: when it is run. `tending.py` makes claims of it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.store import places
from embed.store.places import Place
from embed.store.shards import Columns, Shard, StoreError, Vanished, encode
from embed.store.view import View
from fsqueue.storage import atomic

BYTES: Final = 1 << 30
"""No shard is made larger than this, so that making one costs bounded memory and time."""
GRACE_S: Final = 600.0
LITTER_S: Final = 86_400.0
"""What a writer left half-written is removed after so long."""
BLOCK: Final = 8192


@dataclass(slots=True)
class Compacted:
    """What a compaction did."""

    merged: int = 0
    """Shards that were made into larger ones."""
    made: int = 0
    duplicates: int = 0
    """Vectors that were left out because an earlier one counts."""
    removed: int = 0
    """Superseded and half-written files."""
    waiting: int = 0
    """Superseded files that are still too young to be removed."""


def compact(
    view: View,
    *,
    bytes_max: int = BYTES,
    grace_s: float = GRACE_S,
    stop: Callable[[], bool] = lambda: False,
) -> Compacted:
    """Compact one space. Raises StoreError if a shard is not as it was written."""
    done = Compacted()
    view.refresh()
    for run in _runs(view.shards, bytes_max):
        if stop():
            break
        try:
            _merge(view, run, done)
        except Vanished:
            # RACE: another compaction took this run's files away; what it made is in its place.
            view.refresh()
    _sweep(view, grace_s, done)
    view.refresh()
    return done


def _runs(shards: list[Shard], bytes_max: int) -> Iterator[list[Shard]]:
    """Yield runs of two or more neighbours that fit into one shard together.

    A run never spans a number that no shard stands for: what was lost must stay to be seen.
    """
    run: list[Shard] = []
    for shard in shards:
        follows = run and shard.place.first <= run[-1].place.last + 1
        if run and (not follows or sum(one.size for one in run) + shard.size > bytes_max):
            if len(run) > 1:
                yield run
            run = []
        run.append(shard)
    if len(run) > 1:
        yield run


def _merge(view: View, run: list[Shard], done: Compacted) -> None:
    """Publish one shard for a run of them. Raises Vanished, StoreError."""
    for shard in run:
        if not shard.is_whole():
            raise StoreError(
                f"{shard.path}: is damaged: its bytes are not those that were written. Remove it, "
                f"and its vectors are computed again when they are needed."
            )
    columns, kept = _joined(run)
    place = Place(run[0].place.first, max(shard.place.last for shard in run))
    private = f"{view.directory}/.{os.getpid()}-{secrets.token_hex(6)}"
    norms = np.concatenate([s.norms()[rows] for s, rows in zip(run, kept, strict=True)])
    shape = (len(columns.keys), view.space.width, view.space.number)
    try:
        atomic.stage(private, encode(columns, norms, _vectors(run, kept), shape))
        # False: another compaction has made the same shard, which is as good.
        made = atomic.commit(private, f"{view.directory}/{place.name}", synced=True)
    except BaseException:
        atomic.discard(private)
        raise
    done.made += made
    done.merged += len(run)
    done.duplicates += sum(shard.count for shard in run) - len(columns.keys)


def _joined(run: list[Shard]) -> tuple[Columns, list[NDArray[np.int64]]]:
    """Return the columns of what counts in a run, and which rows of each shard that is."""
    parts = [shard.columns() for shard in run]
    every = np.concatenate([part.keys for part in parts])
    _, first = np.unique(every, return_index=True)
    counts = np.zeros(len(every), np.bool_)
    counts[first] = True  # np.unique gives the first of equal ones, which is the one that counts
    cuts = np.cumsum([len(part.keys) for part in parts])[:-1]
    kept = [np.flatnonzero(part) for part in np.split(counts, cuts)]
    names: dict[str, int] = {}
    inputs, ids, texts, begins = [], [], [], [np.empty(0, np.int64)]
    with_texts = any(part.texts for part in parts)
    for part, rows in zip(parts, kept, strict=True):
        numbers = [names.setdefault(name, len(names)) for name in part.input_names]
        inputs.append(np.array(numbers, np.int64)[part.inputs[rows]])
        ids += [part.ids[row] for row in rows.tolist()]
        if with_texts:
            texts += [part.texts[row] if part.texts else "" for row in rows.tolist()]
            begins.append(part.begins[rows] if part.texts else np.full(len(rows), -1))
    lengths = [part.lengths[rows] for part, rows in zip(parts, kept, strict=True)]
    joined = Columns(
        keys=every[counts],
        lengths=np.concatenate(lengths),
        inputs=np.concatenate(inputs),
        input_names=list(names),
        ids=ids,
        texts=texts,
        begins=np.concatenate(begins),
    )
    return joined, kept


def _vectors(run: list[Shard], kept: list[NDArray[np.int64]]) -> Iterator[NDArray[Any]]:
    for shard, rows in zip(run, kept, strict=True):
        wanted = np.zeros(shard.count, np.bool_)
        wanted[rows] = True
        at = 0
        for (block,) in shard.blocks(BLOCK, ("vectors",)):
            yield block[wanted[at : at + len(block)]]
            at += len(block)


# ---- removing what is stood for ----


def _sweep(view: View, grace_s: float, done: Compacted) -> None:
    """Remove superseded files, and what dead writers left, if they are old enough.

    Ages are by the file system's own clock; they are politeness, and nothing rests on them.
    """
    now = _now(view.directory)
    found = places.listed(view.directory)
    checked: dict[Place, bool] = {}
    for place in places.superseded(found):
        over = next(one for one in places.counting(found) if place.within(one))
        if over not in checked:
            checked[over] = _is_old_and_whole(view, over, now - grace_s)
        if checked[over]:
            atomic.discard(f"{view.directory}/{place.name}")
            done.removed += 1
        else:
            done.waiting += 1
    for name in os.listdir(view.directory):
        path = f"{view.directory}/{name}"
        if name.startswith(".") and not name.startswith(".nfs") and _age(path, now) > LITTER_S:
            atomic.discard(path)
            done.removed += 1


def _is_old_and_whole(view: View, place: Place, find_broadcast: float) -> bool:
    path = f"{view.directory}/{place.name}"
    try:
        return os.stat(path).st_mtime <= find_broadcast and Shard(view.directory, place).is_whole()
    except (Vanished, OSError):
        return False  # RACE: a larger one has taken its place; the next sweep sees to it


def _age(path: str, now: float) -> float:
    try:
        return now - os.stat(path).st_mtime
    except OSError:
        return 0.0  # RACE: its writer has finished it


def _now(directory: str) -> float:
    """Return the time by the clock that dates the directory's files."""
    path = f"{directory}/.{os.getpid()}-{secrets.token_hex(6)}"
    atomic.stage(path, ())
    try:
        return os.stat(path).st_mtime
    finally:
        atomic.discard(path)
