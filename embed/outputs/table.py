"""Read many outputs as one table, in bounded memory.

A `Part` is a run of rows in one output; a `JoinedTable` is parts in order. A `RaggedTable` has a
row for each token: its sequence i has rows offsets[i] to offsets[i + 1]. Rows stay in their files,
memory-mapped, until they are read, a block at a time.

What this module does not know: pools, FASTA files, and what a table is written to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embed.outputs.safetensors_header import Tensor, read_header
from fsqueue import FsqueueError
from fsqueue.storage import atomic

BLOCK_BYTES: Final = 8 << 20

Rows = NDArray[np.float32]
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first` to `first + count` of the output at `path`, which has `total` rows.

    In a ragged table these numbers count sequences.
    """

    path: str
    first: int
    count: int
    total: int


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a table; `columns` hold a number, or a string, for each id."""

    ids: list[str]
    rows: NDArray[Any]
    columns: Columns
    lengths: Sequence[int] | None = None
    """How many rows each id has, where every token has one."""


class Table(Protocol):
    """Rows that can be read block by block, repeatedly, with the same result each time."""

    @property
    def name(self) -> str:
        """Return the name of its rows in the formats that name them."""

    @property
    def ragged(self) -> bool:
        """Return whether an id has a row for each token."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of its rows."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Return where each id's rows begin, and where the last one's end, if it is ragged."""

    @property
    def count(self) -> int:
        """Return the number of ids."""

    @property
    def rows(self) -> int:
        """Return the number of rows."""

    @property
    def width(self) -> int:
        """Return how many numbers a row has."""

    @property
    def columns(self) -> Mapping[str, np.dtype[Any]]:
        """Return the dtype of each column; strings have dtype `U` without a width."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return how the rows were computed."""

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""


class JoinedTable:
    """Parts of outputs, one after the other, as one table."""

    name = "embeddings"
    ragged = False
    dtype = np.dtype("<f4")
    offsets: NDArray[np.int64] = np.empty(0, np.int64)

    def __init__(self, parts: Sequence[Part], width: int = 0) -> None:
        """Read the header of every output; `width` is that of a table without outputs."""
        self.parts = [part for part in parts if part.count]
        self._outputs = {part.path: OutputFile(part.path) for part in parts}
        self._starts = np.cumsum([0, *(part.count for part in self.parts)])
        for part in parts:
            found = self._outputs[part.path].count
            if found != part.total:
                raise _damaged(part.path, f"{found} rows where {part.total} were planned")
            if self._outputs[part.path].ragged is not self.ragged:
                raise _damaged(part.path, "it has a row for each token, or should have")
        self.count = self.rows = int(self._starts[-1])
        self.width = self._common_width() or width
        self.columns: dict[str, np.dtype[Any]] = self._shared_columns()
        self.metadata = combine_metadata([output.metadata for output in self._outputs.values()])

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""
        ids: list[str] = []
        ids_of = ""
        for part in self.parts:
            output = self._outputs[part.path]
            if ids_of != part.path:
                ids, ids_of = output.ids(), part.path
            for rows in _steps(part.first, part.first + part.count, self.width):
                columns = {name: output.array(name)[rows] for name in self.columns}
                yield Block(ids[rows], output.array("embeddings")[rows], columns)

    def take(self, numbers: NDArray[np.int64]) -> Rows:
        """Return the rows with these numbers, in the order given."""
        taken = np.empty((len(numbers), self.width), np.float32)
        owners = np.searchsorted(self._starts, numbers, "right") - 1
        for owner in np.unique(owners):
            part, in_part = self.parts[owner], owners == owner
            rows = numbers[in_part] - self._starts[owner] + part.first
            taken[in_part] = self._outputs[part.path].array("embeddings")[rows]
        return taken

    def _common_width(self) -> int:
        widths = {output.width: path for path, output in self._outputs.items()}
        if len(widths) > 1:
            path = widths.popitem()[1]
            raise _damaged(path, f"its rows are not as wide as those of others: {[*widths]}")
        return next(iter(widths), 0)

    def _shared_columns(self) -> dict[str, np.dtype[Any]]:
        every = [output.columns for output in self._outputs.values()]
        shared = set.intersection(*(set(columns) for columns in every)) if every else set()
        return {name: every[0][name] for name in sorted(shared)}


class RaggedTable(JoinedTable):
    """A joined table with a row for each token; its parts count sequences."""

    ragged = True

    def __init__(self, parts: Sequence[Part], width: int = 0) -> None:
        super().__init__(parts, width)
        lengths = [np.diff(self._offsets_of(part)) for part in self.parts]
        total = np.concatenate([np.zeros(1, np.int64), *lengths])
        self.offsets = np.cumsum(total)
        self.rows = int(self.offsets[-1])

    def blocks(self) -> Iterator[Block]:
        """Yield whole sequences in order, at most BLOCK_BYTES of rows at a time where possible."""
        for part in self.parts:
            output, offsets = self._outputs[part.path], self._offsets_of(part)
            ids = output.ids()[part.first : part.first + part.count]
            begin = 0
            while begin < part.count:
                end = self._end_of_block(offsets, begin)
                rows = output.array("embeddings")[offsets[begin] : offsets[end]]
                sequences = slice(part.first + begin, part.first + end)
                columns = {name: output.array(name)[sequences] for name in self.columns}
                lengths = np.diff(offsets[begin : end + 1]).tolist()
                yield Block(ids[begin:end], rows, columns, lengths)
                begin = end

    def _offsets_of(self, part: Part) -> NDArray[np.int64]:
        offsets = self._outputs[part.path].array("offsets")
        return np.asarray(offsets[part.first : part.first + part.count + 1])

    def _end_of_block(self, offsets: NDArray[np.int64], begin: int) -> int:
        room = BLOCK_BYTES // (4 * max(1, self.width))
        end = int(np.searchsorted(offsets, offsets[begin] + room, "right")) - 1
        return max(begin + 1, min(end, len(offsets) - 1))


class OutputFile:
    """One output. Arrays are mapped when they are read and unmapped with their last view, so a pass
    over a large pool needs no more memory than a block of it. Raises FsqueueError if damaged."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._tensors, self.metadata = _header(path)
        self.metadata.pop("ids", None)
        try:
            if self._tensors["embeddings"].dtype != np.float32:
                raise ValueError("its rows are not float32")
            _counts(self.metadata)
            shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
            self.count, self.width = shapes.pop("embeddings")
            self.ragged = "offsets" in shapes
            if self.ragged:
                self.count = self._count_sequences()
        except (KeyError, ValueError) as error:
            raise _damaged(path, error) from error
        columns = [n for n, shape in shapes.items() if shape == (self.count,) and n != "offsets"]
        self.columns = {name: self.array(name).dtype for name in columns}

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor, mapped anew."""
        tensor = self._tensors[name]
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, tensor.dtype)  # an empty range cannot be mapped
        with _open(self.path) as file:
            return np.memmap(file, tensor.dtype, "r", tensor.begin, tensor.shape)

    def ids(self) -> list[str]:
        """Read its ids from the file; kept for every output, they would fill the memory."""
        _, metadata = _header(self.path)
        try:
            ids = json.loads(metadata["ids"])
        except (KeyError, ValueError, RecursionError) as error:
            raise _damaged(self.path, error) from error
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            raise _damaged(self.path, "its ids are not a list of strings")
        if len(ids) != self.count:
            raise _damaged(self.path, f"{len(ids)} ids and {self.count} rows")
        return ids

    def _count_sequences(self) -> int:
        """Return how many sequences `offsets` divides the rows into. Raises ValueError."""
        offsets = self.array("offsets")
        rows = self._tensors["embeddings"].shape[0]
        if offsets.ndim != 1 or offsets.dtype != np.int64 or not len(offsets):
            raise ValueError("its offsets are not a list of integers")
        if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
            raise ValueError("its offsets do not match its rows")
        return len(offsets) - 1


def combine_metadata(every: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Combine the metadata of many outputs: counts added up, distinct other values listed once."""
    values: dict[str, list[str]] = {}
    for metadata in every:
        for name, text in metadata.items():
            known = values.setdefault(name, [])
            if text not in known or name == "counts":
                known.append(text)
    counts: dict[str, int] = {}
    for text in values.pop("counts", []):
        for name, count in _counts({"counts": text}).items():
            counts[name] = counts.get(name, 0) + count
    combined = {name: " | ".join(sorted(texts)) for name, texts in values.items()}
    return combined | {"counts": json.dumps(counts, sort_keys=True)}


def _counts(metadata: Mapping[str, str]) -> dict[str, int]:
    """Return the counts in an output's metadata. Raises ValueError."""
    try:
        counts = json.loads(metadata.get("counts", "{}"))
    except RecursionError as error:
        raise ValueError("its counts are nested too deeply") from error
    if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
        raise ValueError("its counts are not numbers")
    return counts


def _steps(first: int, last: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (4 * max(1, width)))
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def _open(path: str) -> BinaryIO:
    return os.fdopen(atomic.open_for_reading(path)[0], "rb")


def _header(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return an output's tensors and metadata."""
    try:
        with _open(path) as file:
            return read_header(file.fileno())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str, why: object) -> FsqueueError:
    return FsqueueError(
        f"{path}: is missing or damaged ({why}); it was removed, truncated or replaced outside "
        f"fsqueue. See what else is: fsqueue check POOL. Then plan its inputs into a new pool."
    )
