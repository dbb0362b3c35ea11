"""Export to one h5, parquet or npz file: a space of the store as it is, in its order.

A file holds only that, and is written anew if anything is missing in it: none of these formats can
be appended to so that a crash leaves a readable file. The layout is that of `fsqueue embed merge`,
with columns `input`, `record` and `length` beside the ids, and the space and its collection as
metadata; parquet also has the embedded text, and its begin in its document.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from embed.export.target import Origin, Target
from embed.outputs import formats
from embed.outputs.atomic_write import atomic_write
from embed.outputs.table import Block
from embed.store.keys import Keys, difference, from_hexadecimal
from embed.store.scan import Batch
from fsqueue import UsageError

STRING: Final = np.dtype("U")
COLUMNS: Final = {"input": STRING, "record": STRING, "length": np.dtype(np.int64)}
TEXT_COLUMNS: Final = {"text": STRING, "begin": np.dtype(np.int64)}


class SpaceTable:
    """A space of a store as a table."""

    name = "embeddings"
    ragged = False
    dtype = np.dtype("<f4")
    offsets: NDArray[np.int64] = np.empty(0, np.int64)

    def __init__(
        self,
        count: int,
        origin: Origin,
        batches: Callable[[], Iterator[Batch]],
        columns: dict[str, np.dtype[Any]],
    ) -> None:
        """`columns` are attributes of `Hit`."""
        self.count = self.rows = count
        self.width = origin.space.width
        self.columns = columns
        space = {name: str(value) for name, value in asdict(origin.space).items()}
        self.metadata = space | {"collection": origin.collection, "space": origin.space.name}
        self._batches = batches

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""
        for batch in self._batches():
            columns = {
                name: np.array([getattr(hit, name) for hit in batch.hits], dtype)
                for name, dtype in self.columns.items()
            }
            yield Block([hit.id for hit in batch.hits], batch.vectors, columns)


class _FileTarget(Target):
    """One file of any of the formats."""

    format: ClassVar[str]
    columns: ClassVar[dict[str, np.dtype[Any]]] = COLUMNS
    rewrites = True

    def __init__(self, target: str, origin: Origin) -> None:
        self._path, self._origin = Path(target), origin
        if self.format in formats.EXTRAS:
            formats.library(self.format)

    def missing(self, keys: Keys) -> Keys:
        """Read the ids of the file, if it exists."""
        if not os.path.lexists(self._path):
            return keys
        try:
            existing = np.unique(from_hexadecimal(self._ids()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._path}: exists, and is not an exported {self.format} file ({error}). Name "
                f"another TARGET."
            ) from error
        if others := len(difference(existing, keys)):
            raise UsageError(
                f"{self._path}: holds {others:,} vectors that are not in this space of the store "
                f"({self._origin.space.name}), and would lose them. Name another TARGET."
            )
        return difference(keys, existing)

    def _ids(self) -> Iterable[str]:
        raise NotImplementedError

    def add(self, batches: Callable[[], Iterator[Batch]], count: int) -> None:
        """Write all of them, and move the file into place."""
        table = SpaceTable(count, self._origin, batches, self.columns)
        with atomic_write(self._path) as private:
            formats.FORMATS[self.format](private, table)


class NpzFile(_FileTarget):
    """An npz file."""

    format = "npz"

    def _ids(self) -> Iterable[str]:
        with np.load(self._path) as file:
            return [str(id) for id in file["ids"]]


class Hdf5File(_FileTarget):
    """An HDF5 file."""

    format = "h5"

    def _ids(self) -> Iterable[str]:
        with formats.library("h5").File(self._path, "r") as file:
            return list(file)


class ParquetFile(_FileTarget):
    """A parquet file, which also holds the embedded texts."""

    format = "parquet"
    columns = COLUMNS | TEXT_COLUMNS

    def _ids(self) -> Iterable[str]:
        formats.library("parquet")
        with importlib.import_module("pyarrow.parquet").ParquetFile(self._path) as file:
            for batch in file.iter_batches(columns=["id"]):
                yield from batch["id"].to_pylist()
