"""Write and read the header of a safetensors file.

A file is the header's length (8 bytes, little-endian), the header as JSON, padded so that the data
begin at a multiple of 8, then the tensors' bytes one after the other.

What is read is not trusted: a returned tensor lies inside the file and has as many bytes as its
shape needs, so nothing is allocated or mapped that the file does not hold.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

DTYPES: Final = {
    "F32": "<f4",
    "F16": "<f2",
    "F64": "<f8",
    "U8": "u1",
    "I8": "i1",
    "BOOL": "?",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}
"""The numpy name of each type that both numpy and safetensors have."""
NAMES: Final = {np.dtype(numpy_name): name for name, numpy_name in DTYPES.items()}
HEADER_MAX: Final = 100_000_000
"""The longest header that the safetensors library reads."""
DIMENSIONS_MAX: Final = 8
LENGTH_MAX: Final = 1 << 48


class Layout(NamedTuple):
    """A header, ready to be written, and where the data go."""

    header: bytes
    begins: dict[str, int]
    """For each tensor, the offset of its first byte in the file."""
    size: int
    """The size of the whole file."""


def lay_out(
    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    metadata: Mapping[str, str],
    dumps: Callable[[Any], str] = json.dumps,
) -> Layout:
    """Lay out tensors, given as (dtype, shape), in their order.

    `dumps` spells the JSON. Each file format has its own spelling, which must not change: the same
    content gives the same bytes.
    """
    facts: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        facts[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = dumps({"__metadata__": dict(metadata), **facts}).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    begins = {name: start + fact["data_offsets"][0] for name, fact in facts.items()}
    return Layout(struct.pack("<Q", len(text)) + text, begins, start + end)


class Tensor(NamedTuple):
    """One tensor: its dtype, its shape, and the bytes of the file that hold it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(fd: int, *, limit: int = HEADER_MAX) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of an open file. Raises ValueError, OSError."""
    header, start, size = _read_json(fd, limit)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not strings")
    tensors = {name: _tensor(name, facts, start, size) for name, facts in header.items()}
    return tensors, metadata


def is_complete(fd: int) -> bool:
    """Return whether an open file is as long as its header says; tensors may be of any dtype.

    Raises ValueError, LookupError, TypeError, AttributeError or OSError if there is no header.
    """
    header, start, size = _read_json(fd, HEADER_MAX)
    header.pop("__metadata__", None)
    return bool(size == start + max(facts["data_offsets"][1] for facts in header.values()))


def read_shapes(fd: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an open file; they may be of any dtype.

    Raises as `is_complete` does.
    """
    header, _, _ = _read_json(fd, HEADER_MAX)
    header.pop("__metadata__", None)
    return {name: _lengths(name, facts["shape"]) for name, facts in header.items()}


def _read_json(fd: int, limit: int) -> tuple[dict[str, Any], int, int]:
    """Return the header, where the data begin, and the file's size."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, 8, 0)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
    if length > size - 8:
        raise ValueError("it is truncated")
    if length > limit:
        raise ValueError(f"its header has {length:,} bytes")
    try:
        header = json.loads(os.pread(fd, length, 8))
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length, size


def _tensor(name: str, facts: Any, start: int, size: int) -> Tensor:
    if not isinstance(facts, Mapping) or facts.get("dtype") not in [*DTYPES]:
        raise ValueError(f"{name!r} is not a tensor of a known dtype")
    dtype = np.dtype(DTYPES[facts["dtype"]])
    shape = _lengths(name, facts.get("shape"))
    offsets = _lengths(name, facts.get("data_offsets"))
    if len(offsets) != 2 or start + offsets[1] > size:
        raise ValueError(f"{name!r} extends beyond the end of the file")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the size of {name!r} does not match its shape")
    return Tensor(dtype, shape, start + offsets[0], start + offsets[1])


def _lengths(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > DIMENSIONS_MAX:
        raise ValueError(f"{name!r} has no valid shape")
    if not all(type(number) is int and 0 <= number < LENGTH_MAX for number in value):
        raise ValueError(f"{name!r} has invalid lengths")
    return tuple(value)
