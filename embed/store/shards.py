"""Read the file of one shard. Any reader of safetensors can open it, too.

    keys       (n, 16) U8, sorted: what a lookup searches, in a memory map
    rows       (n,) I64: the row of each key; rows are in the order in which they were written
    lengths    (n,) I64, by row, as everything that follows: letters of the sequence
    inputs     (n,) I64: which of `input_names` (a JSON list, as bytes) it came from
    id_cuts    (n + 1,) I64, cutting `ids`, bytes: the record's id in that input
    text_cuts  (n + 1,) I64, cutting `texts`, bytes: what was embedded, where some of it was text
    begins     (n,) I64, beside them: at which character of the input it begins; -1 if it is no text
    norms      (n,) F32: the length of each vector
    vectors    (n, width) F32 or F16
    digest     (32,) U8: sha256 of all that comes before it in the file

Keys are mapped into memory; everything else is read by pread(2). A read from a file that another
host removed fails with ESTALE, which is answered by reading the shard that took its place. A page
of a map fails with SIGBUS, which nothing survives; so only what is searched at once after the
directory was listed is mapped, and compactions leave superseded files for a while.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.outputs.safetensors_header import read_header
from embed.store.keys import KEY, Keys
from embed.store.places import Place
from fsqueue import FsqueueError

GONE: Final = {errno.ENOENT, errno.ESTALE, errno.EBADF}
"""How a file that was removed answers; JuiceFS says EBADF between open(2) and read(2)."""
HEADER_MAX: Final = 1 << 20
BYTES, INTS = np.dtype("u1"), np.dtype("<i8")
KINDS: Final = {"keys": BYTES, "digest": BYTES, "norms": np.dtype("<f4")}
"""The types of what is not counted in INTS."""
PIECE: Final = 1 << 23


class Vanished(FsqueueError):
    """A shard is not there any more: another stands for it. List the directory again."""


class StoreError(FsqueueError):
    """The store on disk is not as it was written: stop and look at the path named."""


class Shard:
    """One shard, opened: its keys are mapped, its file is opened again for each read."""

    def __init__(self, directory: str, place: Place) -> None:
        """Open it. Raises Vanished, StoreError."""
        self.place = place
        self.path = f"{directory}/{place.name}"
        fd = self._open()
        try:
            self._tensors, _ = read_header(fd, limit=HEADER_MAX)
            self._check(os.fstat(fd).st_size)
            self.count, self.width = self._tensors["vectors"].shape
            self.number = self._tensors["vectors"].kind
            self._map = mmap.mmap(fd, self._tensors["rows"].end, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._gone(error) from error
        except ValueError as error:
            raise self._damaged(f"is no shard or cut short ({error})") from error
        finally:
            os.close(fd)
        self.keys: Keys = np.frombuffer(self._map, KEY, self.count, self._at("keys"))
        self._by_row: Rows | None = None
        self.rows: Rows = np.frombuffer(self._map, "<i8", self.count, self._at("rows"))

    def _check(self, size: int) -> None:
        """Raise ValueError unless the tensors are those of a shard."""
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        vectors = self._tensors.get("vectors")
        if vectors is None or len(vectors.shape) != 2 or vectors.kind not in NAMES:
            raise ValueError("no vectors")
        count = vectors.shape[0]
        wanted = {"keys": (count, KEY.itemsize), "id_cuts": (count + 1,), "digest": (DIGEST,)}
        wanted |= dict.fromkeys(("rows", "lengths", "inputs", "norms"), (count,))
        if "texts" in shapes:
            wanted |= {"text_cuts": (count + 1,), "begins": (count,)}
        for name, shape in wanted.items():
            if shapes.get(name) != shape or self._tensors[name].kind != KINDS.get(name, INTS):
                raise ValueError(f"no {name}, or not as many as vectors")
        for name in ("ids", "input_names", *(["texts"] if "texts" in shapes else ())):
            if len(shapes.get(name, ())) != 1 or self._tensors[name].kind != BYTES:
                raise ValueError(f"no {name}")
        if size != self._tensors["digest"].end:
            raise ValueError(f"has {size:,} bytes")

    @property
    def size(self) -> int:
        """Return how many bytes the file has."""
        return self._tensors["digest"].end

    @property
    def has_texts(self) -> bool:
        return "texts" in self._tensors

    def find(self, wanted: Keys) -> Rows:
        """Return the row of each key, -1 where it is not here."""
        if not self.count:
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.keys, wanted), self.count - 1)
        found = np.where(self.keys[at] == wanted, self.rows[at], -1)
        if found.size and not -1 <= found.min() <= found.max() < self.count:
            raise self._damaged("has keys of rows that are not there")
        return found

    def vectors(self, rows: Rows) -> NDArray[Any]:
        """Return the vectors of these rows, as stored. Raises Vanished."""
        found = np.empty((len(rows), self.width), self.number)
        order = np.argsort(rows, kind="stable")
        fd = self._open()
        try:
            # Rows that lie one after the other are read at once: often that is all of them.
            for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
                if len(run):
                    block = np.empty((len(run), self.width), self.number)
                    self._fill(fd, self._at("vectors") + int(rows[run[0]]) * block[0].nbytes, block)
                    found[run] = block
        except OSError as error:
            raise self._gone(error) from error
        finally:
            os.close(fd)
        return found

    def blocks(self, rows_max: int, names: tuple[str, ...]) -> Iterator[list[NDArray[Any]]]:
        """Yield the columns named, block by block; arrays are reused. Raises Vanished."""
        widths = [self.width if name == "vectors" else 1 for name in names]
        buffers = [np.empty((min(rows_max, self.count), width), self._tensors[name].kind)
                   for name, width in zip(names, widths, strict=True)]  # fmt: skip
        fd = self._open()
        try:
            for begin in range(0, self.count, rows_max):
                parts = [buffer[: min(rows_max, self.count - begin)] for buffer in buffers]
                for name, part in zip(names, parts, strict=True):
                    self._fill(fd, self._at(name) + begin * part[0].nbytes, part)
                yield parts
        except OSError as error:
            raise self._gone(error) from error
        finally:
            os.close(fd)

    def columns(self) -> Columns:
        """Return everything but the vectors, rows in their order. Raises Vanished."""
        keys = np.empty(self.count, KEY)
        with self._making_sense():
            keys[self.rows] = self.keys
        names = self._names()
        lengths, inputs = (np.frombuffer(self._bytes(n), "<i8") for n in ("lengths", "inputs"))
        texts = self._texts("texts", "text_cuts") if self.has_texts else []
        begins = self._begins() if self.has_texts else np.empty(0, np.int64)
        return Columns(keys, lengths, inputs, names, self._texts("ids", "id_cuts"), texts, begins)

    def key_of(self, row: int) -> bytes:
        """Return the key of a row."""
        if self._by_row is None:
            with self._making_sense():
                by_row = np.zeros(self.count, "<i8")
                by_row[self.rows] = np.arange(self.count)
            self._by_row = by_row
        return bytes(self.keys[self._by_row[row]])

    def facts(self, rows: list[int]) -> list[tuple[str, str, int, str, int]]:
        """Return the input, the record's id, length, text and begin of rows. Raises Vanished."""
        if not rows:
            return []
        names = self._names()
        lengths, inputs = (np.frombuffer(self._bytes(n), "<i8") for n in ("lengths", "inputs"))
        ids = self._texts("ids", "id_cuts", rows)
        texts = self._texts("texts", "text_cuts", rows) if self.has_texts else [""] * len(rows)
        begins = self._begins()[rows].tolist() if self.has_texts else [-1] * len(rows)
        with self._making_sense():
            return [
                (names[inputs[row]], id, int(lengths[row]), text, begin)
                for row, id, text, begin in zip(rows, ids, texts, begins, strict=True)
            ]

    def norms(self) -> NDArray[np.float32]:
        """Return the length of each vector. Raises Vanished."""
        return np.frombuffer(self._bytes("norms"), "<f4")

    def _names(self) -> list[str]:
        with self._making_sense():
            names = json.loads(self._bytes("input_names"))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("input_names is no list of texts")
            return names

    @contextmanager
    def _making_sense(self) -> Iterator[None]:
        """Turn what reading nonsense raises into StoreError."""
        try:
            yield
        except (ValueError, IndexError, RecursionError) as error:
            raise self._damaged(f"holds what makes no sense ({error})") from error

    def _begins(self) -> Rows:
        return np.frombuffer(self._bytes("begins"), "<i8")

    def _texts(self, name: str, cuts: str, rows: list[int] | None = None) -> list[str]:
        data, at = self._bytes(name), np.frombuffer(self._bytes(cuts), "<i8").tolist()
        wanted = range(self.count) if rows is None else rows
        return [data[at[n] : at[n + 1]].decode("utf-8", "surrogateescape") for n in wanted]

    def is_whole(self) -> bool:
        """Read all of the file, and say whether it is as it was written. Raises Vanished."""
        hashed, fd = hashlib.sha256(), self._open()
        try:
            left, at = self.size - DIGEST, 0
            while left and (part := os.pread(fd, min(PIECE, left), at)):
                hashed.update(part)
                left, at = left - len(part), at + len(part)
            return not left and hashed.digest() == os.pread(fd, DIGEST + 1, at)
        except OSError as error:
            raise self._gone(error) from error
        finally:
            os.close(fd)

    def _bytes(self, name: str) -> bytes:
        begin, end = self._at(name), self._tensors[name].end
        data = np.empty(end - begin, "u1")
        fd = self._open()
        try:
            self._fill(fd, begin, data)
        except OSError as error:
            raise self._gone(error) from error
        finally:
            os.close(fd)
        return data.tobytes()

    def _fill(self, fd: int, at: int, target: NDArray[Any]) -> None:
        view = memoryview(target.reshape(-1).view("u1").data)
        while view:
            count = os.preadv(fd, [view], at)
            if not count:
                raise self._damaged("is cut short")
            view, at = view[count:], at + count

    def _at(self, name: str) -> int:
        return self._tensors[name].begin

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise self._gone(error) from error

    def _damaged(self, how: str) -> StoreError:
        return StoreError(
            f"{self.path}: {how}; fsqueue publishes shards whole, so something else changed it. "
            f"Remove it, and its vectors are computed again when they are needed."
        )

    def _gone(self, error: OSError) -> OSError | Vanished:
        if error.errno in GONE:
            return Vanished(f"{self.path} is not there any more")
        return error


# ---- write a shard ----
#
# The vectors pass through block by block: only what stands beside them is held in memory.

Rows = NDArray[np.int64]
TYPES: Final = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}
NAMES: Final = {np.dtype(kind): name for name, kind in TYPES.items()}
DIGEST: Final = 32


@dataclass(frozen=True, slots=True)
class Columns:
    """All of a shard's rows but their vectors; `texts` and `begins` are empty in one without texts.

    A row that is no text, in a shard with others that are, has "" and -1.
    """

    keys: Keys
    lengths: Rows
    inputs: Rows
    input_names: list[str]
    ids: list[str]
    texts: list[str]
    begins: Rows = field(default_factory=lambda: np.empty(0, np.int64))


def encode(
    columns: Columns, norms: NDArray[np.float32], vectors: Iterable[NDArray[Any]], shape: Any
) -> Iterator[bytes]:
    """Yield a shard's bytes. `vectors` come in blocks, `shape` is (rows, width, type)."""
    count, width, kind = shape
    order = np.argsort(columns.keys, kind="stable").astype("<i8")
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.ascontiguousarray(columns.keys[order]).view("u1").reshape(count, KEY.itemsize),
        "rows": order,
        "lengths": columns.lengths.astype("<i8"),
        "inputs": columns.inputs.astype("<i8"),
    }
    ids, texts = _blob(columns.ids), _blob(columns.texts)
    arrays["id_cuts"] = ids[0]
    if columns.texts:
        arrays["text_cuts"] = texts[0]
        arrays["begins"] = columns.begins.astype("<i8")
    arrays["norms"] = norms.astype("<f4")
    late = {"ids": ids[1]} | ({"texts": texts[1]} if columns.texts else {})
    late["input_names"] = _bytes(json.dumps(columns.input_names).encode())
    facts = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    facts["vectors"] = np.dtype(kind), (count, width)
    facts |= {name: (array.dtype, array.shape) for name, array in late.items()}
    facts["digest"] = np.dtype("u1"), (DIGEST,)
    hashed = hashlib.sha256()
    for part in _parts(_header(facts), arrays, vectors, late):
        hashed.update(part)
        yield part
    yield hashed.digest()


def _parts(
    header: bytes, first: Mapping[str, Any], vectors: Iterable[Any], late: Mapping[str, Any]
) -> Iterator[bytes]:
    yield header
    for array in first.values():
        yield array.tobytes()
    for block in vectors:
        yield np.ascontiguousarray(block).tobytes()
    for array in late.values():
        yield array.tobytes()


def _header(facts: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> bytes:
    tensors, end = {}, 0
    for name, (kind, shape) in facts.items():
        begin, end = end, end + int(np.prod(shape)) * kind.itemsize
        tensors[name] = {"dtype": NAMES[kind], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"fsqueue": "shard 1"}, **tensors}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _blob(texts: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    raw = [text.encode("utf-8", "surrogateescape") for text in texts]
    cuts = np.zeros(len(raw) + 1, "<i8")
    np.cumsum([len(each) for each in raw], out=cuts[1:])
    return cuts, _bytes(b"".join(raw))


def _bytes(data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, "u1")
