"""Take vectors to a LanceDB table, which is committed every 64 MiB. The only door to lancedb.

Columns `id`, `vector` (a list of fixed size, float32), `collection`, `input`, `record`, `length`,
`model`, `text` and `begin` (null where no text was embedded). No index is made: LanceDB searches
without one, exactly, and whoever wants one chooses it. The table's metadata say which space it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from embed.export.target import BLOCK_BYTES, Origin, Target, not_installed, told_by
from embed.store.keys import KEY, Keys, from_hexadecimal
from embed.store.walk import Batch, without
from fsqueue import UsageError

MARK: Final = b"fsqueue_space"
BATCHES: Final = (64 << 20) // BLOCK_BYTES
"""So many are one commit: it is a version with files of its own, and what a crash may cost."""


class LanceTable(Target):
    """One table of a LanceDB database."""

    def __init__(self, target: str, origin: Origin) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise not_installed("lancedb", error) from error
        self._lancedb, self._target, self._origin = lancedb, target, origin
        self._table: Any = None

    def lacking(self, keys: Keys) -> Keys:
        """Read the ids of the table, if there is one."""
        if "://" not in self._target and not os.path.exists(self._target):
            return keys
        with told_by("LanceDB", self._target):
            try:
                self._table = self._lancedb.connect(self._target).open_table(self._origin.name)
            except ValueError as error:
                if "was not found" in str(error):
                    return keys
                raise
            self._check()
            return without(keys, self._ids())

    def _check(self) -> None:
        found = (self._table.schema.metadata or {}).get(MARK, b"").decode()
        if found != self._origin.space.name:
            raise UsageError(
                f"{self._target}: its table {self._origin.name} is of {found or 'something else'}, "
                f"and not of {self._origin.space.name}. Name another: --name NAME"
            )

    def _ids(self) -> Keys:
        batches = self._table.search().select(["id"]).to_batches()
        parts = [from_hexadecimal(batch["id"].to_pylist()) for batch in batches]
        return np.unique(np.concatenate([np.empty(0, KEY), *parts]))

    def put(self, walks: Callable[[], Iterator[Batch]], count: int) -> None:
        """Append rows, in commits of many batches."""
        import pyarrow

        schema = self._schema(pyarrow)
        with told_by("LanceDB", self._target):
            if self._table is None:
                database = self._lancedb.connect(self._target)
                self._table = database.create_table(self._origin.name, schema=schema, exist_ok=True)
                self._check()
            batches = walks()
            while (first := next(batches, None)) is not None:
                some = chain([first], islice(batches, BATCHES - 1))
                rows = (self._rows(pyarrow, schema, batch) for batch in some)
                self._table.add(pyarrow.RecordBatchReader.from_batches(schema, rows))

    def _schema(self, pyarrow: Any) -> Any:
        text, width = pyarrow.string(), self._origin.space.width
        fields = [("id", text), ("vector", pyarrow.list_(pyarrow.float32(), width))]
        fields += [("collection", text), ("input", text), ("record", text)]
        fields += [("length", pyarrow.int64()), ("model", text)]
        fields += [("text", text), ("begin", pyarrow.int64())]
        return pyarrow.schema(fields, metadata={MARK: self._origin.space.name.encode()})

    def _rows(self, pyarrow: Any, schema: Any, batch: Batch) -> Any:
        flat = pyarrow.array(batch.vectors.reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, batch.vectors.shape[1])
        rows = [self._origin.facts(hit) | {"id": hit.id, "text": hit.text or None}
                for hit in batch.hits]  # fmt: skip
        columns = [vectors if field.name == "vector"
                   else pyarrow.array([row.get(field.name) for row in rows], field.type)
                   for field in schema]  # fmt: skip
        return pyarrow.record_batch(columns, schema=schema)
