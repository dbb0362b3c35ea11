"""Go through outputs as one table, however many files it is in, in bounded memory.

A `Part` is a run of rows in one output; a `Joined` table is parts in order. Rows stay in their
files, mapped, until they are asked for, a block at a time.

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
    """Rows `first` to `first + count` of the output at `path`, which has `total` rows."""

    path: str
    first: int
    count: int
    total: int


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a table: `columns` hold a number, or a text, for each row."""

    ids: list[str]
    rows: Rows
    columns: Columns


class Table(Protocol):
    """Whatever can be gone through block by block, again and again, and always gives the same."""

    @property
    def name(self) -> str:
        """Return what its rows are called."""

    @property
    def ragged(self) -> bool:
        """Return whether an id has many rows."""

    @property
    def count(self) -> int:
        """Return how many ids it has."""

    @property
    def rows(self) -> int:
        """Return how many rows it has."""

    @property
    def width(self) -> int:
        """Return how many numbers a row has."""

    @property
    def columns(self) -> Mapping[str, np.dtype[Any]]:
        """Return what stands beside each id; a text has the type `U` of no width."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return what it says of itself."""

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""


class Output:
    """One output; what is asked for is mapped, and let go of with the last view of it, so that a
    pass over a large pool is no larger than a block of it. Raises FsqueueError if it is not whole.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._tensors, self.metadata = _header(path)
        self.metadata.pop("ids", None)
        try:
            if self._tensors["embeddings"].kind != np.float32:
                raise ValueError("its rows are no float32")
            _counts(self.metadata)
            shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
            self.count, self.width = shapes.pop("embeddings")
            self.ragged = "offsets" in shapes
            if self.ragged:
                self.count = self._sequences()
        except (KeyError, ValueError) as error:
            raise _damaged(path, error) from error
        same = [n for n, shape in shapes.items() if shape == (self.count,) and n != "offsets"]
        self.columns = {name: self.array(name).dtype for name in same}

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor, mapped afresh."""
        tensor = self._tensors[name]
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, tensor.kind)  # no file can be mapped for nothing
        with _opened(self.path) as file:
            return np.memmap(file, tensor.kind, "r", tensor.begin, tensor.shape)

    def _sequences(self) -> int:
        """Return how many sequences have their rows cut by `offsets`. Raises ValueError."""
        cuts = self.array("offsets")
        rows = self._tensors["embeddings"].shape[0]
        if cuts.ndim != 1 or cuts.dtype != np.int64 or not len(cuts):
            raise ValueError("its offsets cut nothing")
        if cuts[0] != 0 or cuts[-1] != rows or (np.diff(cuts) < 0).any():
            raise ValueError("its offsets are not those of its rows")
        return len(cuts) - 1

    def ids(self) -> list[str]:
        """Return its ids, read anew: kept for every output, they would fill the memory."""
        _, metadata = _header(self.path)
        try:
            ids = json.loads(metadata["ids"])
        except (KeyError, ValueError, RecursionError) as error:
            raise _damaged(self.path, error) from error
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            raise _damaged(self.path, "its ids are no list of texts")
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
        for name, count in _counts({"counts": text}).items():
            counts[name] = counts.get(name, 0) + count
    found = {name: " | ".join(sorted(texts)) for name, texts in values.items()}
    return found | {"counts": json.dumps(counts, sort_keys=True)}


def _steps(first: int, last: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (4 * max(1, width)))
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def _counts(metadata: Mapping[str, str]) -> dict[str, int]:
    """Return what an output counted. Raises ValueError."""
    try:
        counts = json.loads(metadata.get("counts", "{}"))
    except RecursionError as error:
        raise ValueError("its counts are nested too deeply") from error
    if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
        raise ValueError("its counts are no numbers")
    return counts


def _opened(path: str) -> BinaryIO:
    return os.fdopen(atomic.open_for_reading(path)[0], "rb")


def _header(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return an output's tensors and metadata."""
    try:
        with _opened(path) as file:
            return read_header(file.fileno())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str, why: Any) -> FsqueueError:
    return FsqueueError(
        f"{path}: is not a whole output ({why}); it was removed, cut or replaced outside fsqueue. "
        f"fsqueue check POOL says what else is; plan its inputs into a new pool."
    )


# ---- tables with a row for each token ----
#
# Sequence i of the table has rows offsets[i] to offsets[i + 1]. Rows stay in their files, as
# those of any other table do.
#
# What this module does not know: what a token is, and what the table is written to.


class Ragged(Joined):
    """Parts of outputs, one after the other; a part counts sequences, each with its own rows."""

    ragged = True

    def __init__(self, parts: Sequence[Part], width: int = 0) -> None:
        super().__init__(parts, width)
        cuts = [self._cuts(part) for part in self.parts]
        lengths = [np.diff(each) for each in cuts] or [np.zeros(0, np.int64)]
        self.offsets: NDArray[np.int64] = np.cumsum(np.concatenate([[0], *lengths]))
        self.rows = int(self.offsets[-1])

    def blocks(self) -> Iterator[Block]:
        """Yield whole sequences in order, about as many rows at a time as memory should hold."""
        for part in self.parts:
            output, cuts = self._outputs[part.path], self._cuts(part)
            ids = output.ids()[part.first : part.first + part.count]
            begin = 0
            while begin < part.count:
                end = self._end_of_block(cuts, begin)
                rows = output.array("embeddings")[cuts[begin] : cuts[end]]
                here = slice(part.first + begin, part.first + end)
                columns = {name: output.array(name)[here] for name in self.columns}
                yield Block(ids[begin:end], rows, columns)
                begin = end

    def _cuts(self, part: Part) -> NDArray[np.int64]:
        output: Output = self._outputs[part.path]
        return np.asarray(output.array("offsets")[part.first : part.first + part.count + 1])

    def _end_of_block(self, cuts: NDArray[np.int64], begin: int) -> int:
        room = BLOCK_BYTES // (4 * max(1, self.width))
        end = int(np.searchsorted(cuts, cuts[begin] + room, "right")) - 1
        return max(begin + 1, min(end, len(cuts) - 1))
