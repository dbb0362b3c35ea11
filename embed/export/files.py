"""Take vectors to one h5, parquet or npz file: the store's space as it is, in its order.

A file holds nothing but that, and is written anew if there is anything that it lacks: none of the
three can be added to so that a crash leaves it readable. The form is that of `fsqueue embed merge`,
with `collection`, `input`, `record`, `length` and `model` beside the ids; parquet has the embedded
text, too, and where in its document it begins.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from embed.export.target import Origin, Target
from embed.outputs import formats
from embed.outputs.table import Block
from embed.outputs.whole_files import whole
from embed.store.keys import Keys, from_hexadecimal
from embed.store.walk import Batch, without
from fsqueue import UsageError

TEXT: Final = np.dtype("U")


class Rows:
    """What is written, as a table."""

    name = "embeddings"
    ragged = False

    def __init__(self, count: int, origin: Origin, walks: Callable[[], Iterator[Batch]]) -> None:
        self.count = self.rows = count
        self.width = origin.space.width
        self.columns = {"input": TEXT, "record": TEXT, "length": np.dtype(np.int64)}
        facts = {name: str(value) for name, value in asdict(origin.space).items()}
        self.metadata = facts | {"collection": origin.collection, "space": origin.space.name}
        self._walks = walks

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""
        for batch in self._walks():
            columns = {
                name: np.array([getattr(hit, name) for hit in batch.hits], kind)
                for name, kind in self.columns.items()
            }
            yield Block([hit.id for hit in batch.hits], batch.vectors, columns)


class WithTexts(Rows):
    """The same, with what was embedded."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.columns |= {"text": TEXT, "begin": np.dtype(np.int64)}


class _File(Target):
    """One file; what it is written and read by is chosen by its format."""

    format: ClassVar[str]
    rewrites = True
    table: ClassVar[type[Rows]] = Rows

    def __init__(self, target: str, origin: Origin) -> None:
        self._path, self._origin = Path(target), origin
        if self.format in formats.EXTRAS:
            formats.library(self.format)

    def lacking(self, keys: Keys) -> Keys:
        """Read the ids of the file, if it is there."""
        if not os.path.lexists(self._path):
            return keys
        try:
            known = np.unique(from_hexadecimal(self._ids()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._path}: is there, and is no {self.format} file of an export ({error}). "
                f"Name another TARGET."
            ) from error
        if strangers := len(without(known, keys)):
            raise UsageError(
                f"{self._path}: holds {strangers:,} vectors that are not in this space of the "
                f"store ({self._origin.space.name}), and would lose them. Name another TARGET."
            )
        return without(keys, known)

    def _ids(self) -> Iterable[str]:
        raise NotImplementedError

    def put(self, walks: Callable[[], Iterator[Batch]], count: int) -> None:
        """Write all of them, and move the file into place."""
        with whole(self._path) as private:
            formats.FORMATS[self.format](private, self.table(count, self._origin, walks))


class Npz(_File):
    """An npz file."""

    format = "npz"

    def _ids(self) -> Iterable[str]:
        with np.load(self._path) as file:
            return [str(id) for id in file["ids"]]


class Hdf5(_File):
    """An HDF5 file."""

    format = "h5"

    def _ids(self) -> Iterable[str]:
        with formats.library("h5").File(self._path, "r") as file:
            return list(file)


class Parquet(_File):
    """A parquet file."""

    format = "parquet"
    table = WithTexts

    def _ids(self) -> Iterable[str]:
        formats.library("parquet")
        with importlib.import_module("pyarrow.parquet").ParquetFile(self._path) as file:
            for batch in file.iter_batches(columns=["id"]):
                yield from batch["id"].to_pylist()
