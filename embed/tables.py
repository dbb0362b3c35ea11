"""Go through outputs as one table, however many files it is in, in bounded memory.

A `Part` is a run of rows in one output; a `Joined` table is parts in order. Rows stay in their
files, mapped, until they are asked for, a block at a time.

What this module does not know: pools, FASTA files, and what a table is written to.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fsqueue import FsqueueError

BLOCK_BYTES: Final = 8 << 20
KINDS: Final = {"F32": "<f4", "I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "u1"}
"""Names that safetensors has for what outputs hold."""

Rows = NDArray[np.float32]
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first` to `first + count` of the output at `path`, which has `total` rows."""

    path: str
    first: int
    count: int
    total: int


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a table: `columns` hold a number for each row."""

    ids: list[str]
    rows: Rows
    columns: Columns


class Output:
    """One output; what is asked for is mapped, and let go of with the last view of it, so that a
    pass over a large pool is no larger than a block of it. Raises FsqueueError if it is not whole.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._tensors, self._start = _header(path)
        self.metadata: dict[str, str] = self._tensors.pop("__metadata__", {})
        self.metadata.pop("ids", None)
        try:
            shapes = {name: self.array(name).shape for name in self._tensors}
            self.count, self.width = shapes.pop("embeddings")
            self.ragged = "offsets" in shapes
            if self.ragged:
                self.count = shapes["offsets"][0] - 1
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise _damaged(path, error) from error
        same = [n for n, shape in shapes.items() if shape == (self.count,) and n != "offsets"]
        self.columns = {name: self.array(name).dtype for name in same}

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor, mapped afresh."""
        tensor = self._tensors[name]
        shape, kind = tuple(tensor["shape"]), np.dtype(KINDS[tensor["dtype"]])
        if 0 in shape:
            return np.zeros(shape, kind)  # no file can be mapped for nothing
        start = self._start + tensor["data_offsets"][0]
        return np.memmap(self.path, kind, "r", start, shape)

    def ids(self) -> list[str]:
        """Return its ids, read anew: kept for every output, they would fill the memory."""
        header, _ = _header(self.path)
        ids: list[str] = json.loads(header["__metadata__"]["ids"])
        if len(ids) != self.count:
            raise _damaged(self.path, f"{len(ids)} ids and {self.count} rows")
        return ids


class Joined:
    """Parts of outputs, one after the other, as one table."""

    name = "embeddings"
    ragged = False

    def __init__(self, parts: Sequence[Part], width: int = 0) -> None:
        """Look at the header of every output; `width` is that of a table without any."""
        self.parts = [part for part in parts if part.count]
        self._outputs = {part.path: Output(part.path) for part in parts}
        self._starts = np.cumsum([0, *(part.count for part in self.parts)])
        for part in parts:
            found = self._outputs[part.path].count
            if found != part.total:
                raise _damaged(part.path, f"{found} rows where {part.total} were planned")
            if self._outputs[part.path].ragged is not self.ragged:
                raise _damaged(part.path, "it has a row for each token, or should have")
        self.count = self.rows = int(self._starts[-1])
        self.width = self._one_width() or width
        self.columns: dict[str, np.dtype[Any]] = self._shared_columns()
        self.metadata = combined([output.metadata for output in self._outputs.values()])

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""
        ids: list[str] = []
        read = ""
        for part in self.parts:
            output = self._outputs[part.path]
            if read != part.path:
                ids, read = output.ids(), part.path
            for rows in _steps(part.first, part.first + part.count, self.width):
                columns = {name: output.array(name)[rows] for name in self.columns}
                yield Block(ids[rows], output.array("embeddings")[rows], columns)

    def take(self, numbers: NDArray[np.int64]) -> Rows:
        """Return the rows of these numbers, in the order given."""
        taken = np.empty((len(numbers), self.width), np.float32)
        owners = np.searchsorted(self._starts, numbers, "right") - 1
        for owner in np.unique(owners):
            part, mine = self.parts[owner], owners == owner
            within = numbers[mine] - self._starts[owner] + part.first
            taken[mine] = self._outputs[part.path].array("embeddings")[within]
        return taken

    def _one_width(self) -> int:
        widths = {output.width: path for path, output in self._outputs.items()}
        if len(widths) > 1:
            raise _damaged(widths.popitem()[1], f"its rows are not as wide as others: {[*widths]}")
        return next(iter(widths), 0)

    def _shared_columns(self) -> dict[str, np.dtype[Any]]:
        every = [output.columns for output in self._outputs.values()]
        shared = set.intersection(*(set(columns) for columns in every)) if every else set()
        return {name: every[0][name] for name in sorted(shared)}


def combined(every: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return what many outputs say of themselves as one: counts added up, the rest once each."""
    values: dict[str, list[str]] = {}
    for metadata in every:
        for name, text in metadata.items():
            known = values.setdefault(name, [])
            if text not in known or name == "counts":
                known.append(text)
    counts: dict[str, int] = {}
    for text in values.pop("counts", []):
        for name, count in json.loads(text).items():
            counts[name] = counts.get(name, 0) + count
    found = {name: " | ".join(sorted(texts)) for name, texts in values.items()}
    return found | {"counts": json.dumps(counts, sort_keys=True)}


def _steps(first: int, last: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (4 * max(1, width)))
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def _header(path: str) -> tuple[dict[str, Any], int]:
    """Return a safetensors header, and where its data begin."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > os.fstat(file.fileno()).st_size:
                raise ValueError("it is cut short")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("no object")
        return header, 8 + length
    except (OSError, ValueError, struct.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: str, why: Any) -> FsqueueError:
    return FsqueueError(
        f"{path}: is not a whole output ({why}); it was removed, cut or replaced outside fsqueue. "
        f"fsqueue check POOL says what else is; plan its inputs into a new pool."
    )
