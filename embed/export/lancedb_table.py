"""Export to a LanceDB table, with a commit every 64 MiB. The only door to lancedb.

Columns `id`, `vector` (a list of fixed size, float32), `collection`, `input`, `record`, `length`,
`model`, `text` and `begin` (null where no text was embedded). The table's metadata name the space.
Without --index LanceDB searches exactly. An index is built over all vectors when it is first asked
for, and extended by every later export.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from embed.export.target import BLOCK_BYTES, Origin, Target, library_errors, missing_library
from embed.store.keys import KEY, Keys, difference, from_hexadecimal
from embed.store.scan import Batch
from fsqueue import UsageError

SPACE_METADATA: Final = b"fsqueue_space"
COMMIT_BATCHES: Final = (64 << 20) // BLOCK_BYTES
"""Batches in one commit, which is a version with its own files, and the most that a crash loses."""


INDEXES: Final = {
    "IVF_FLAT": "IvfFlat", "IVF_PQ": "IvfPq", "IVF_SQ": "IvfSq",
    "IVF_HNSW_PQ": "HnswPq", "IVF_HNSW_SQ": "HnswSq",
}  # fmt: skip
"""The kinds of index, and the classes that lancedb has for them."""
ROWS_MIN: Final = 256
"""With fewer rows LanceDB trains no index, and none is needed."""


class LanceTable(Target):
    """One table of a LanceDB database."""

    def __init__(self, target: str, origin: Origin) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise missing_library("lancedb", error) from error
        self._lancedb, self._target, self._origin = lancedb, target, origin
        self._table: Any = None
        self._index: str | None = None

    def choose_index(self, index: str) -> None:
        """Take the name of a kind of index. Raises UsageError if it is none."""
        if index.upper() not in INDEXES:
            raise UsageError(
                f"--index {index}: LanceDB's indexes are {', '.join(INDEXES)}. Choose one of them."
            )
        self._index = index.upper()

    def finish(self, added: int) -> None:
        """Build the index that was asked for, or extend the one that there is."""
        if self._table is None:
            return
        with library_errors("LanceDB", self._target):
            found = self._indexed_as()
            if found and self._index in (None, found):
                if added:
                    self._table.optimize()
            elif self._index is not None:
                self._build(self._index)

    def _indexed_as(self) -> str | None:
        for each in self._table.list_indices():
            if each.columns == ["vector"]:
                stats = self._table.index_stats(each.name)
                return str(stats.index_type) if stats else None
        return None

    def _build(self, kind: str) -> None:
        rows = self._table.count_rows()
        if rows < ROWS_MIN:
            raise UsageError(
                f"--index {kind}: LanceDB builds one of {ROWS_MIN} vectors and more, and the table "
                f"has {rows:,} now. So few are searched faster without: leave out --index."
            )
        from lancedb import index as kinds

        config = getattr(kinds, INDEXES[kind])(distance_type="cosine")
        self._table.create_index("vector", config=config, replace=True)

    def missing(self, keys: Keys) -> Keys:
        """Read the ids of the table, if it exists."""
        if "://" not in self._target and not os.path.exists(self._target):
            return keys
        with library_errors("LanceDB", self._target):
            try:
                self._table = self._lancedb.connect(self._target).open_table(self._origin.name)
            except ValueError as error:
                if "was not found" in str(error):
                    return keys
                raise
            self._check()
            return difference(keys, self._existing())

    def _check(self) -> None:
        found = (self._table.schema.metadata or {}).get(SPACE_METADATA, b"").decode()
        if found != self._origin.space.name:
            raise UsageError(
                f"{self._target}: its table {self._origin.name} belongs to "
                f"{found or 'another program'}, not to {self._origin.space.name}. Choose another "
                f"name: --name NAME"
            )

    def _existing(self) -> Keys:
        batches = self._table.search().select(["id"]).to_batches()
        parts = [from_hexadecimal(batch["id"].to_pylist()) for batch in batches]
        return np.unique(np.concatenate([np.empty(0, KEY), *parts]))

    def add(self, batches: Callable[[], Iterator[Batch]], count: int) -> None:
        """Append rows, in commits of many batches."""
        import pyarrow

        schema = self._schema(pyarrow)
        with library_errors("LanceDB", self._target):
            if self._table is None:
                database = self._lancedb.connect(self._target)
                self._table = database.create_table(self._origin.name, schema=schema, exist_ok=True)
                self._check()
            remaining = batches()
            while (first := next(remaining, None)) is not None:
                commit = chain([first], islice(remaining, COMMIT_BATCHES - 1))
                rows = (self._rows(pyarrow, schema, batch) for batch in commit)
                self._table.add(pyarrow.RecordBatchReader.from_batches(schema, rows))

    def _schema(self, pyarrow: Any) -> Any:
        text, width = pyarrow.string(), self._origin.space.width
        fields = [("id", text), ("vector", pyarrow.list_(pyarrow.float32(), width))]
        fields += [("collection", text), ("input", text), ("record", text)]
        fields += [("length", pyarrow.int64()), ("model", text)]
        fields += [("text", text), ("begin", pyarrow.int64())]
        return pyarrow.schema(fields, metadata={SPACE_METADATA: self._origin.space.name.encode()})

    def _rows(self, pyarrow: Any, schema: Any, batch: Batch) -> Any:
        flat = pyarrow.array(batch.vectors.reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, batch.vectors.shape[1])
        rows = [
            self._origin.metadata(hit) | {"id": hit.id, "text": hit.text or None}
            for hit in batch.hits
        ]
        columns = [
            vectors
            if field.name == "vector"
            else pyarrow.array([row.get(field.name) for row in rows], field.type)
            for field in schema
        ]
        return pyarrow.record_batch(columns, schema=schema)
