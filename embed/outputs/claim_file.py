"""Write and read what a claim gives: one safetensors file, the same bytes for the same work.

Tensor `embeddings`, (sequences, width) float32, in input order; `lengths`, each sequence's residues
as they stand in its file; `flags`, sums of FLAGS. Where every token has a row, `offsets` cuts
`embeddings` into sequences: those of sequence i are rows offsets[i] to offsets[i + 1].

The header's metadata are strings: `ids` is a JSON list, in the same order; `counts` and `versions`
are JSON objects; the rest says how the numbers came about (`model`, `revision`, `weights`, `dtype`,
`pooling`, `long`, `residues_max`). A merged file has its ids in two tensors instead.

The file is written here and not by the safetensors library, whose header lists metadata in the
order of a hash table that changes from process to process. No time, host or path is in it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fsqueue import ClaimImpossible

TYPES: Final = {"<f4": "F32", "<i8": "I64", "|u1": "U8"}
FLAGS: Final = {"truncated": 1, "windowed": 2, "unknown_residues": 4, "empty": 8}
"""What a sequence's entry in `flags` adds up."""
HEADER_MAX: Final = 100_000_000
"""What the safetensors library reads at most."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One output read back: row i of `rows` belongs to `ids[i]`; ids may repeat."""

    ids: list[str]
    rows: NDArray[np.float32]
    metadata: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """`lengths`, `flags`, and `offsets` where every token has a row."""


def write(
    path: Path,
    ids: Sequence[str],
    rows: NDArray[np.float32],
    metadata: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write one output file. Values of `metadata` are strings, or go in as JSON.

    `columns` are int64 or uint8, and not called `embeddings`.
    """
    texts = {name: _text(value) for name, value in {**metadata, "ids": list(ids)}.items()}
    arrays = {"embeddings": np.ascontiguousarray(rows, "<f4"), **(columns or {})}
    # The largest items first, so that every tensor begins at a multiple of its own.
    ordered = sorted(arrays.items(), key=lambda named: (-named[1].itemsize, named[0]))
    tensors, end = {}, 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        kind, shape = TYPES[array.dtype.str], list(array.shape)
        tensors[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    header = _json({"__metadata__": texts, **tensors}).encode()
    header += b" " * (-len(header) % 8)  # the data begin at a multiple of 8
    if len(header) > HEADER_MAX:
        raise ClaimImpossible(
            f"the ids of {len(ids):,} sequences make a header of {len(header):,} bytes, and "
            f"safetensors reads {HEADER_MAX:,} at most. Shorten the ids, or plan smaller files."
        )
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _name, array in ordered:
            file.write(array.data.cast("B") if array.size else b"")


def read(path: str | os.PathLike[str]) -> Embeddings:
    """Read one output file, or one that `fsqueue embed merge` wrote as safetensors."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    rows = columns.pop("embeddings" if "embeddings" in columns else "data")
    if "ids" in metadata:
        ids = json.loads(metadata.pop("ids"))
    else:
        text, cuts = columns.pop("ids").tobytes(), columns.pop("id_offsets").tolist()
        ids = [text[a:b].decode() for a, b in zip(cuts, cuts[1:], strict=False)]
    for name in ("counts", "versions", "models"):
        if metadata.get(name, "").startswith(("{", "[")):
            metadata[name] = json.loads(metadata[name])
    return Embeddings(ids, rows, metadata, columns)


# ---- finished batches, as a checkpoint keeps them ----


def pack(batches: Mapping[int, NDArray[np.float32]]) -> bytes:
    """Return the rows of finished batches, by the batch's number, as bytes."""
    from safetensors.numpy import save

    return save({str(number): np.ascontiguousarray(rows) for number, rows in batches.items()})


def unpack(data: bytes) -> dict[int, NDArray[np.float32]]:
    """Return what `pack` packed. Raises ValueError if the bytes are nothing of the kind."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return {int(number): rows for number, rows in load(data).items()}
    except SafetensorError as error:
        raise ValueError(f"not a checkpoint: {error}") from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
