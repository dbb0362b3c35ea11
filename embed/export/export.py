"""Export one space of a store: ask what the target lacks, and pass that on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from embed.export.chroma import Chroma
from embed.export.faiss_index import FaissIndex
from embed.export.files import Hdf5, Npz, Parquet
from embed.export.lancedb_table import LanceTable
from embed.export.target import Origin, Target
from embed.store import folders
from embed.store.keys import Keys
from embed.store.view import View
from embed.store.walk import Batch, every_key, walk
from fsqueue import UsageError, host_lock

ROADS: Final[dict[str, type[Target]]] = {
    "lancedb": LanceTable,
    "chroma": Chroma,
    "faiss": FaissIndex,
    "h5": Hdf5,
    "parquet": Parquet,
    "npz": Npz,
}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did, or would do."""

    to: str
    target: str
    name: str
    collection: str
    space: str
    model: str
    vectors: int
    """In the store."""
    added: int
    dry_run: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is to be exported, and what it is called at the target."""

    root: str
    collection: str = folders.DEFAULT
    model: str | None = None
    name: str | None = None
    dry_run: bool = False


def export(to: str, target: str, asked: ExportRequest, progress: Progress) -> Exported:
    """Add to the target what it lacks of a space. Raises FsqueueError.

    Two exports to one target take turns on one host; between hosts nothing keeps them apart.
    """
    begun = time.monotonic()
    if "://" not in target:
        target = os.path.abspath(target)
    view = folders.only(asked.root, asked.collection, asked.model)
    origin = Origin(asked.collection, view.space, asked.name or asked.collection)
    road = ROADS[to](target, origin)
    with host_lock(f"export-{hashlib.sha256(target.encode()).hexdigest()[:16]}"):
        _refuse_nowhere(target)
        keys = every_key(view)
        new = road.lacking(keys)
        if len(new) and not asked.dry_run:
            wanted = keys if road.rewrites else new
            road.put(lambda: _told(view, wanted, origin.rows_max, progress), len(wanted))
    return Exported(
        to=to,
        target=target,
        name=origin.name,
        collection=asked.collection,
        space=view.space.name,
        model=view.space.model,
        vectors=len(keys),
        added=len(new),
        dry_run=asked.dry_run,
        seconds=round(time.monotonic() - begun, 3),
    )


def _refuse_nowhere(target: str) -> None:
    above = os.path.dirname(target)
    if "://" not in target and not os.path.isdir(above):
        raise UsageError(f"{target}: the directory {above} is not there. Make it first.")


def _told(view: View, wanted: Keys, rows_max: int, progress: Progress) -> Iterator[Batch]:
    done = 0
    for batch in walk(view, wanted, rows_max):
        yield batch
        done += len(batch.hits)
        progress(done, len(wanted))
