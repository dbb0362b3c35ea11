"""Put a shard into bytes; `shards.py` says what is in it, and reads it.

The vectors pass through block by block: only what stands beside them is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.store.keys import KEY, Keys

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
