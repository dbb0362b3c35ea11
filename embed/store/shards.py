"""Write and read the file of one shard: a safetensors file.

    keys       (n, 16) U8, sorted: what a lookup searches, in a memory map
    rows       (n,) I64: the row of each key; rows are in the order in which they were written
    lengths    (n,) I64, by row, as everything that follows: letters of the sequence
    inputs     (n,) I64: which of `input_names` (a JSON list, as bytes) it came from
    id_cuts    (n + 1,) I64, offsets into `ids`, bytes: the record's id in that input
    text_cuts  (n + 1,) I64, offsets into `texts`, bytes: what was embedded, if any of it was text
    begins     (n,) I64, with these: its first character in the input; -1 if it is not text
    norms      (n,) F32: the length of each vector
    vectors    (n, width) F32 or F16
    digest     (32,) U8: sha256 of everything before it in the file

Keys are mapped into memory; everything else is read by pread(2). A read from a file that another
host removed fails with ESTALE, and the caller then reads the shard that replaced it. Access to a
mapped page fails with SIGBUS, which kills the process; so only what is searched right after the
directory was listed is mapped, and compactions keep superseded files for a while.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embed.outputs.safetensors_header import lay_out, read_header
from embed.store.keys import KEY, STORED, Keys
from embed.store.shard_names import ShardName
from fsqueue import FsqueueError

GONE: Final = {errno.ENOENT, errno.ESTALE, errno.EBADF}
"""What reading a removed file answers; JuiceFS answers EBADF between open(2) and read(2)."""
HEADER_MAX: Final = 1 << 20
UINT8, INT64, FLOAT32 = np.dtype("u1"), np.dtype("<i8"), np.dtype("<f4")
DTYPES: Final = {"keys": UINT8, "digest": UINT8, "norms": FLOAT32}
"""The dtypes of the tensors that are not INT64."""
DIGEST_BYTES: Final = 32
PIECE_BYTES: Final = 1 << 23

Rows = NDArray[np.int64]


class Vanished(FsqueueError):
    """A shard was removed because another replaces it: list the directory again."""


class StoreError(FsqueueError):
    """The store on disk is not as it was written: stop, and inspect the path named."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A shard's rows without their vectors; `texts` and `begins` are empty if it has no texts.

    In a shard with texts, a row that is not text has "" and -1.
    """

    keys: Keys
    lengths: Rows
    inputs: Rows
    input_names: list[str]
    ids: list[str]
    texts: list[str]
    begins: Rows = field(default_factory=lambda: np.empty(0, np.int64))


class Provenance(NamedTuple):
    """Where a row came from; `begin` is -1 and `text` empty if it is not text."""

    input: str
    record: str
    length: int
    text: str
    begin: int


# ---- writing ----


def encode_shard(
    columns: Columns,
    norms: NDArray[np.float32],
    vectors: Iterable[NDArray[Any]],
    *,
    width: int,
    dtype: np.dtype[Any],
) -> Iterator[bytes]:
    """Yield a shard's bytes. `vectors` come in blocks, so that only one block is in memory."""
    count = len(columns.keys)
    order = np.argsort(columns.keys, kind="stable").astype("<i8")
    id_offsets, ids = _concatenated(columns.ids)
    text_offsets, texts = _concatenated(columns.texts)
    before: dict[str, NDArray[Any]] = {
        "keys": np.ascontiguousarray(columns.keys[order]).view("u1").reshape(count, KEY.itemsize),
        "rows": order,
        "lengths": columns.lengths.astype("<i8"),
        "inputs": columns.inputs.astype("<i8"),
        "id_cuts": id_offsets,
    }
    after = {"ids": ids}
    if columns.texts:
        before |= {"text_cuts": text_offsets, "begins": columns.begins.astype("<i8")}
        after["texts"] = texts
    before["norms"] = norms.astype("<f4")
    after["input_names"] = np.frombuffer(json.dumps(columns.input_names).encode(), "u1")
    tensors = {name: (array.dtype, array.shape) for name, array in before.items()}
    tensors["vectors"] = np.dtype(dtype), (count, width)
    tensors |= {name: (array.dtype, array.shape) for name, array in after.items()}
    tensors["digest"] = UINT8, (DIGEST_BYTES,)
    hashed = hashlib.sha256()
    for part in _parts(lay_out(tensors, {"fsqueue": "shard 1"}).header, before, vectors, after):
        hashed.update(part)
        yield part
    yield hashed.digest()


def _parts(
    header: bytes, before: Mapping[str, Any], vectors: Iterable[Any], after: Mapping[str, Any]
) -> Iterator[bytes]:
    yield header
    for array in before.values():
        yield array.tobytes()
    for block in vectors:
        yield np.ascontiguousarray(block).tobytes()
    for array in after.values():
        yield array.tobytes()


def _concatenated(texts: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return texts as one run of bytes, and the offset of each, and of the end, in it."""
    raw = [text.encode("utf-8", "surrogateescape") for text in texts]
    offsets = np.zeros(len(raw) + 1, "<i8")
    np.cumsum([len(each) for each in raw], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(raw), "u1")


# ---- reading ----


class Shard:
    """One shard, opened: its keys are mapped, and its file is opened again for each read."""

    def __init__(self, directory: str, name: ShardName) -> None:
        """Open it. Raises Vanished, StoreError."""
        self.name = name
        self.path = f"{directory}/{name.filename}"
        with self._open() as fd:
            try:
                self._tensors, _ = read_header(fd, limit=HEADER_MAX)
                self._check(os.fstat(fd).st_size)
                self.count, self.width = self._tensors["vectors"].shape
                self.dtype = self._tensors["vectors"].dtype
                self._map = mmap.mmap(fd, self._tensors["rows"].end, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise self._damaged(f"is truncated or not a shard ({error})") from error
        self.keys: Keys = np.frombuffer(self._map, KEY, self.count, self._begin("keys"))
        self.rows: Rows = np.frombuffer(self._map, "<i8", self.count, self._begin("rows"))
        self._key_by_row: Rows | None = None

    def _check(self, size: int) -> None:
        """Raise ValueError unless the tensors are those of a shard."""
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        vectors = self._tensors.get("vectors")
        if vectors is None or len(vectors.shape) != 2 or vectors.dtype not in STORED.values():
            raise ValueError("no vectors")
        count = vectors.shape[0]
        wanted = {"keys": (count, KEY.itemsize), "id_cuts": (count + 1,)}
        wanted |= {"digest": (DIGEST_BYTES,)}
        wanted |= dict.fromkeys(("rows", "lengths", "inputs", "norms"), (count,))
        if "texts" in shapes:
            wanted |= {"text_cuts": (count + 1,), "begins": (count,)}
        for name, shape in wanted.items():
            if shapes.get(name) != shape or self._tensors[name].dtype != DTYPES.get(name, INT64):
                raise ValueError(f"{name} is missing or does not match the vectors")
        for name in ("ids", "input_names", *(["texts"] if "texts" in shapes else ())):
            if len(shapes.get(name, ())) != 1 or self._tensors[name].dtype != UINT8:
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
        """Return the row of each key, -1 if it is not in this shard."""
        if not self.count:
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.keys, wanted), self.count - 1)
        found = np.where(self.keys[at] == wanted, self.rows[at], -1)
        if found.size and not -1 <= found.min() <= found.max() < self.count:
            raise self._damaged("has keys of rows that do not exist")
        return found

    def vectors(self, rows: Rows) -> NDArray[Any]:
        """Return the vectors of these rows, as stored. Raises Vanished."""
        found = np.empty((len(rows), self.width), self.dtype)
        order = np.argsort(rows, kind="stable")
        with self._open() as fd:
            # Consecutive rows are read at once: often these are all rows.
            for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
                if len(run):
                    block = np.empty((len(run), self.width), self.dtype)
                    begin = self._begin("vectors") + int(rows[run[0]]) * block[0].nbytes
                    self._fill(fd, begin, block)
                    found[run] = block
        return found

    def blocks(self, rows_max: int, names: tuple[str, ...]) -> Iterator[list[NDArray[Any]]]:
        """Yield the columns named, block by block; the arrays are reused. Raises Vanished."""
        widths = [self.width if name == "vectors" else 1 for name in names]
        buffers = [
            np.empty((min(rows_max, self.count), width), self._tensors[name].dtype)
            for name, width in zip(names, widths, strict=True)
        ]
        with self._open() as fd:
            for begin in range(0, self.count, rows_max):
                parts = [buffer[: min(rows_max, self.count - begin)] for buffer in buffers]
                for name, part in zip(names, parts, strict=True):
                    self._fill(fd, self._begin(name) + begin * part[0].nbytes, part)
                yield parts

    def columns(self) -> Columns:
        """Return everything but the vectors, by row. Raises Vanished."""
        keys = np.empty(self.count, KEY)
        with self._nonsense_is_damage():
            keys[self.rows] = self.keys
        return Columns(
            keys=keys,
            lengths=self._integers("lengths"),
            inputs=self._integers("inputs"),
            input_names=self._input_names(),
            ids=self._texts("ids", "id_cuts"),
            texts=self._texts("texts", "text_cuts") if self.has_texts else [],
            begins=self._integers("begins") if self.has_texts else np.empty(0, np.int64),
        )

    def key_of(self, row: int) -> bytes:
        """Return the key of a row."""
        if self._key_by_row is None:
            with self._nonsense_is_damage():
                key_by_row = np.zeros(self.count, "<i8")
                key_by_row[self.rows] = np.arange(self.count)
            self._key_by_row = key_by_row
        return bytes(self.keys[self._key_by_row[row]])

    def provenance(self, rows: list[int]) -> list[Provenance]:
        """Return where rows came from. Raises Vanished."""
        if not rows:
            return []
        names = self._input_names()
        lengths, inputs = self._integers("lengths"), self._integers("inputs")
        ids = self._texts("ids", "id_cuts", rows)
        texts, begins = [""] * len(rows), [-1] * len(rows)
        if self.has_texts:
            texts = self._texts("texts", "text_cuts", rows)
            begins = self._integers("begins")[rows].tolist()
        with self._nonsense_is_damage():
            return [
                Provenance(names[inputs[row]], id, int(lengths[row]), text, begin)
                for row, id, text, begin in zip(rows, ids, texts, begins, strict=True)
            ]

    def norms(self) -> NDArray[np.float32]:
        """Return the length of each vector. Raises Vanished."""
        return np.frombuffer(self._bytes("norms"), "<f4")

    def is_intact(self) -> bool:
        """Read the whole file, and return whether it is as it was written. Raises Vanished."""
        hashed = hashlib.sha256()
        with self._open() as fd:
            left, at = self.size - DIGEST_BYTES, 0
            while left and (part := os.pread(fd, min(PIECE_BYTES, left), at)):
                hashed.update(part)
                left, at = left - len(part), at + len(part)
            intact = not left and hashed.digest() == os.pread(fd, DIGEST_BYTES + 1, at)
        if not intact:
            self._expect_in_place()
        return intact

    def _input_names(self) -> list[str]:
        with self._nonsense_is_damage():
            names = json.loads(self._bytes("input_names"))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("input_names is not a list of strings")
            return names

    def _integers(self, name: str) -> Rows:
        return np.frombuffer(self._bytes(name), "<i8")

    def _texts(self, name: str, offsets: str, rows: list[int] | None = None) -> list[str]:
        data, at = self._bytes(name), self._integers(offsets).tolist()
        wanted = range(self.count) if rows is None else rows
        return [data[at[n] : at[n + 1]].decode("utf-8", "surrogateescape") for n in wanted]

    def _bytes(self, name: str) -> bytes:
        begin, end = self._begin(name), self._tensors[name].end
        data = np.empty(end - begin, "u1")
        with self._open() as fd:
            self._fill(fd, begin, data)
        return data.tobytes()

    def _fill(self, fd: int, at: int, target: NDArray[Any]) -> None:
        view = memoryview(target.reshape(-1).view("u1").data)
        while view:
            count = os.preadv(fd, [view], at)
            if not count:
                raise self._damaged("is truncated")
            view, at = view[count:], at + count

    def _expect_in_place(self) -> None:
        """Raise Vanished if the file was removed while it was open here.

        RACE: a compaction on another host removed it, and on some network file systems its content
        goes at once, so that it reads as if it were truncated. Opening it again asks the server; a
        stat may be answered from a cache that still has the name.
        """
        with self._open():
            pass

    def _begin(self, name: str) -> int:
        return self._tensors[name].begin

    @contextmanager
    def _open(self) -> Iterator[int]:
        """Yield a descriptor of the file. Raises Vanished if the file was removed."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in GONE:
                # RACE: a compaction removed it; the shard that replaces it has its rows.
                raise Vanished(f"{self.path} was removed") from error
            raise

    @contextmanager
    def _nonsense_is_damage(self) -> Iterator[None]:
        """Turn the errors of interpreting invalid content into StoreError."""
        try:
            yield
        except (ValueError, IndexError, RecursionError) as error:
            raise self._damaged(f"has invalid content ({error})") from error

    def _damaged(self, how: str) -> FsqueueError:
        """Return the error for content that is wrong: StoreError, or Vanished if it was removed."""
        try:
            self._expect_in_place()
        except Vanished as vanished:
            return vanished
        return StoreError(
            f"{self.path}: {how}; fsqueue publishes shards whole, so something else changed it. "
            f"Remove it; its vectors are computed again when they are needed."
        )
