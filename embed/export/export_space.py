"""Export one space of a store: find out what the target is missing, and add that."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from embed.export.chroma import Chroma
from embed.export.faiss_index import FaissIndex
from embed.export.files import Hdf5File, NpzFile, ParquetFile
from embed.export.lancedb_table import LanceTable
from embed.export.target import Origin, Target
from embed.store import spaces
from embed.store.keys import Keys
from embed.store.scan import Batch, all_keys, scan
from embed.store.view import View
from fsqueue import UsageError, host_lock

TARGETS: Final[dict[str, type[Target]]] = {
    "lancedb": LanceTable,
    "chroma": Chroma,
    "faiss": FaissIndex,
    "h5": Hdf5File,
    "parquet": ParquetFile,
    "npz": NpzFile,
}
Progress = Callable[[int, int], None]
"""Is called with the number of vectors done, and of all."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export, and what to call it at the target."""

    root: str
    collection: str = spaces.DEFAULT_COLLECTION
    model: str | None = None
    name: str | None = None
    dry_run: bool = False
    index: str | None = None
    """The kind of index that the target searches by."""


@dataclass(frozen=True, slots=True)
class ExportResult:
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


def export_space(to: str, target: str, request: ExportRequest, progress: Progress) -> ExportResult:
    """Add to the target what it is missing of a space. Raises FsqueueError.

    Exports to one target wait for each other on one host; between hosts nothing synchronises them.
    """
    begun = time.monotonic()
    if "://" not in target:
        target = os.path.abspath(target)
    view = spaces.find_space(request.root, request.collection, request.model)
    origin = Origin(request.collection, view.space, request.name or request.collection)
    destination = TARGETS[to](target, origin)
    if request.index is not None:
        destination.choose_index(request.index)
    with host_lock(f"export-{hashlib.sha256(target.encode()).hexdigest()[:16]}"):
        _check_parent(target)
        keys = all_keys(view)
        new = destination.missing(keys)
        if len(new) and not request.dry_run:
            wanted = keys if destination.rewrites else new
            destination.add(lambda: _batches(view, wanted, origin.rows_max, progress), len(wanted))
        if not request.dry_run:
            destination.finish(len(new))
    return ExportResult(
        to=to,
        target=target,
        name=origin.name,
        collection=request.collection,
        space=view.space.name,
        model=view.space.model,
        vectors=len(keys),
        added=len(new),
        dry_run=request.dry_run,
        seconds=round(time.monotonic() - begun, 3),
    )


def _check_parent(target: str) -> None:
    parent = os.path.dirname(target)
    if "://" not in target and not os.path.isdir(parent):
        raise UsageError(f"{target}: the directory {parent} does not exist. Create it first.")


def _batches(view: View, wanted: Keys, rows_max: int, progress: Progress) -> Iterator[Batch]:
    done = 0
    for batch in scan(view, wanted, rows_max):
        yield batch
        done += len(batch.hits)
        progress(done, len(wanted))
