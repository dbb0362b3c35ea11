"""Read the header of a safetensors file, and believe nothing of it.

What is returned makes sense in itself and fits into the file: every tensor has as many bytes as its
shape needs, where the data are. Nothing is allocated, or mapped, that the file does not hold.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

KINDS: Final = {
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
"""What numpy calls the types that it shares with safetensors."""
HEADER_MAX: Final = 100_000_000
"""What the safetensors library reads at most."""
DIMENSIONS_MAX: Final = 8
LENGTH_MAX: Final = 1 << 48


class Tensor(NamedTuple):
    """One tensor: its numbers' type, its shape, and the bytes of the file that hold it."""

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(fd: int, *, limit: int = HEADER_MAX) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of an open file. Raises ValueError, OSError."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, 8, 0)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
    if length > size - 8:
        raise ValueError("it is cut short")
    if length > limit:
        raise ValueError(f"its header has {length:,} bytes")
    try:
        header = json.loads(os.pread(fd, length, 8))
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are no texts")
    tensors = {name: _tensor(name, facts, 8 + length, size) for name, facts in header.items()}
    return tensors, metadata


def _tensor(name: str, facts: Any, start: int, size: int) -> Tensor:
    if not isinstance(facts, Mapping) or facts.get("dtype") not in [*KINDS]:
        raise ValueError(f"{name!r} is no tensor of a type known here")
    kind = np.dtype(KINDS[facts["dtype"]])
    shape, cuts = _lengths(name, facts.get("shape")), _lengths(name, facts.get("data_offsets"))
    if len(cuts) != 2 or start + cuts[1] > size:
        raise ValueError(f"{name!r} goes beyond the file's end")
    if cuts[1] - cuts[0] != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{name!r} has not as many bytes as its shape needs")
    return Tensor(kind, shape, start + cuts[0], start + cuts[1])


def _lengths(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > DIMENSIONS_MAX:
        raise ValueError(f"{name!r} has no shape")
    if not all(type(number) is int and 0 <= number < LENGTH_MAX for number in value):
        raise ValueError(f"{name!r} has lengths that are none")
    return tuple(value)
