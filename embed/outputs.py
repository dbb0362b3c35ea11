"""Write and read what a claim gives: one safetensors file, the same bytes for the same work.

Tensor `embeddings`, (sequences, width) float32, in input order. The header's metadata are strings:
`ids` is a JSON list, in the same order; `counts` and `versions` are JSON objects; the rest says how
the numbers came about (`model`, `revision`, `weights`, `dtype`, `pooling`, `residues_max`).

The file is written here and not by the safetensors library, whose header lists metadata in the
order of a hash table that changes from process to process. No time, host or path is in it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fsqueue import ClaimImpossible

HEADER_MAX: Final = 100_000_000
"""What the safetensors library reads at most."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One output read back: row i of `rows` belongs to `ids[i]`; ids may repeat."""

    ids: list[str]
    rows: NDArray[np.float32]
    metadata: Mapping[str, Any]


def write(
    path: Path, ids: Sequence[str], rows: NDArray[np.float32], metadata: Mapping[str, Any]
) -> None:
    """Write one output file. Values of `metadata` are strings, or go in as JSON."""
    texts = {name: _text(value) for name, value in {**metadata, "ids": list(ids)}.items()}
    rows = np.ascontiguousarray(rows, "<f4")
    tensor = {"dtype": "F32", "shape": list(rows.shape), "data_offsets": [0, rows.nbytes]}
    header = _json({"__metadata__": texts, "embeddings": tensor}).encode()
    header += b" " * (-len(header) % 8)  # the data begin at a multiple of 8
    if len(header) > HEADER_MAX:
        raise ClaimImpossible(
            f"the ids of {len(ids):,} sequences make a header of {len(header):,} bytes, and "
            f"safetensors reads {HEADER_MAX:,} at most. Shorten the ids, or plan smaller files."
        )
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.write(rows.data.cast("B") if rows.size else b"")


def read(path: str | os.PathLike[str]) -> Embeddings:
    """Read one output file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
        rows = file.get_tensor("embeddings")
    ids = json.loads(metadata.pop("ids"))
    for name in ("counts", "versions"):
        metadata[name] = json.loads(metadata[name])
    return Embeddings(ids, rows, metadata)


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
