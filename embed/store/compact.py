"""Merge many small shards into few large ones, and remove the small ones.

The new shard holds the vectors in use of a run of shards, in their order, and its name says which
run. Superseded files are removed only when it is published, durable, read back and found intact,
and `grace_s` old, so that readers of an earlier listing can finish. A compaction may be killed at
any point, repeated, and run beside any number of writers, readers and other compactions.

What this module does not know: when it is run. `handlers/compact.py` makes claims of it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.store import shard_names
from embed.store.shard_names import ShardName
from embed.store.shards import Columns, Shard, StoreError, Vanished, encode_shard
from embed.store.view import View
from fsqueue.storage import atomic

SHARD_BYTES_MAX: Final = 1 << 30
"""No larger shard is made, so that the memory and time for one are bounded."""
GRACE_S: Final = 600.0
LEFTOVER_AGE_S: Final = 86_400.0
"""A writer's unfinished files are removed at this age."""
BLOCK_ROWS: Final = 8192


@dataclass(slots=True)
class CompactionResult:
    """What a compaction did."""

    merged: int = 0
    """Shards that were merged into larger ones."""
    made: int = 0
    duplicates: int = 0
    """Vectors that were dropped because an earlier one is used."""
    removed: int = 0
    """Superseded and unfinished files."""
    waiting: int = 0
    """Superseded files that are still too new to be removed."""


def compact(
    view: View,
    *,
    bytes_max: int = SHARD_BYTES_MAX,
    grace_s: float = GRACE_S,
    stop: Callable[[], bool] = lambda: False,
) -> CompactionResult:
    """Compact one space. Raises StoreError if a shard is damaged.

    `stop` is called before each merge; once it returns True, no other is begun.
    """
    done = CompactionResult()
    view.refresh()
    for run in _runs(view.shards, bytes_max):
        if stop():
            break
        try:
            _merge(view, run, done)
        except Vanished:
            # RACE: another compaction removed this run's files; its own shard replaces them.
            view.refresh()
    _sweep(view, grace_s, done)
    view.refresh()
    return done


def _runs(shards: list[Shard], bytes_max: int) -> Iterator[list[Shard]]:
    """Yield runs of two or more neighbours that fit into one shard together.

    A run never spans a number that no shard covers, so that a lost shard stays visible.
    """
    run: list[Shard] = []
    for shard in shards:
        follows = run and shard.name.first <= run[-1].name.last + 1
        if run and (not follows or sum(one.size for one in run) + shard.size > bytes_max):
            if len(run) > 1:
                yield run
            run = []
        run.append(shard)
    if len(run) > 1:
        yield run


def _merge(view: View, run: list[Shard], done: CompactionResult) -> None:
    """Publish one shard for a run of them. Raises Vanished, StoreError."""
    for shard in run:
        if not shard.is_intact():
            raise StoreError(
                f"{shard.path}: is damaged: its bytes are not those that were written. Remove it; "
                f"its vectors are computed again when they are needed."
            )
    columns, kept = _joined(run)
    name = ShardName(run[0].name.first, max(shard.name.last for shard in run))
    private = f"{view.directory}/.{os.getpid()}-{secrets.token_hex(6)}"
    norms = np.concatenate([s.norms()[rows] for s, rows in zip(run, kept, strict=True)])
    width, dtype = view.space.width, view.space.stored_dtype
    shard_bytes = encode_shard(columns, norms, _vectors(run, kept), width=width, dtype=dtype)
    try:
        atomic.stage(private, shard_bytes)
        # False: another compaction has made the same shard, which is as good.
        made = atomic.commit(private, f"{view.directory}/{name.filename}", synced=True)
    except BaseException:
        atomic.discard(private)
        raise
    done.made += made
    done.merged += len(run)
    done.duplicates += sum(shard.count for shard in run) - len(columns.keys)


def _joined(run: list[Shard]) -> tuple[Columns, list[NDArray[np.int64]]]:
    """Return the columns of what is used of a run, and which rows of each shard that is."""
    parts = [shard.columns() for shard in run]
    every = np.concatenate([part.keys for part in parts])
    _, first = np.unique(every, return_index=True)
    used = np.zeros(len(every), np.bool_)
    used[first] = True  # np.unique gives the first of equal ones, which is the one that is used
    edges = np.cumsum([len(part.keys) for part in parts])[:-1]
    kept = [np.flatnonzero(part) for part in np.split(used, edges)]
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
        keys=every[used],
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
        for (block,) in shard.blocks(BLOCK_ROWS, ("vectors",)):
            yield block[wanted[at : at + len(block)]]
            at += len(block)


# ---- removing superseded files ----


def _sweep(view: View, grace_s: float, done: CompactionResult) -> None:
    """Remove superseded files, and unfinished files of dead writers, if they are old enough.

    Ages are by the file system's own clock, and by the newer of its two times: on NFS 3 a file that
    is just being made shows a number in place of when it was written, and any time of 1970 would
    have its writer lose it. They only spare other processes a retry; correctness does not depend on
    them.
    """
    now = _now(view.directory)
    found = shard_names.list_shards(view.directory)
    removable: dict[ShardName, bool] = {}
    for name in shard_names.superseded(found):
        by = next(one for one in shard_names.in_use(found) if name.is_superseded_by(one))
        if by not in removable:
            removable[by] = _is_old_and_intact(view, by, now - grace_s)
        if removable[by]:
            atomic.discard(f"{view.directory}/{name.filename}")
            done.removed += 1
        else:
            done.waiting += 1
    for file in os.listdir(view.directory):
        path = f"{view.directory}/{file}"
        is_private = file.startswith(".") and not file.startswith(".nfs")
        if is_private and _age(path, now) > LEFTOVER_AGE_S:
            atomic.discard(path)
            done.removed += 1


def _is_old_and_intact(view: View, name: ShardName, until: float) -> bool:
    path = f"{view.directory}/{name.filename}"
    try:
        return _since(path) <= until and Shard(view.directory, name).is_intact()
    except (Vanished, OSError):
        return False  # RACE: a larger one has replaced it; the next sweep removes what is left


def _since(path: str) -> float:
    """Return when a file was last written or named."""
    facts = os.stat(path)
    return max(facts.st_mtime, facts.st_ctime)


def _age(path: str, now: float) -> float:
    try:
        return now - _since(path)
    except OSError:
        return 0.0  # RACE: its writer has finished and renamed it


def _now(directory: str) -> float:
    """Return the time by the clock of the directory's file system."""
    path = f"{directory}/.{os.getpid()}-{secrets.token_hex(6)}"
    atomic.stage(path, ())
    try:
        return os.stat(path).st_mtime
    finally:
        atomic.discard(path)
