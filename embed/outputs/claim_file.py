"""Write and read a claim's output: one safetensors file, the same bytes for the same work.

Tensor `embeddings`, (sequences, width) float32, in input order; `lengths`, each sequence's residues
as they stand in its file; `flags`, sums of FLAGS; with --scores `score`, float32. Where every token
has a row, `offsets` divides `embeddings` into sequences: those of sequence i are rows offsets[i] to
offsets[i + 1].

The header's metadata are strings: `ids` is a JSON list, in the same order; `counts` and `versions`
are JSON objects; the rest describes how the numbers were computed (`model`, `revision`, `weights`,
`dtype`, `pooling` by its name and `pooled` in words, `long`, `residues_max`). A merged file has its
ids in two tensors instead.

The file is not written by the safetensors library, because that lists metadata in the order of a
hash table that changes from process to process. No time, host or path is in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.outputs.safetensors_header import HEADER_MAX, lay_out
from fsqueue import ClaimImpossible

FLAGS: Final = {
    "truncated": 1,
    "windowed": 2,
    "unknown_residues": 4,
    "empty": 8,
    "uninformative": 16,
}
"""The terms of a sequence's entry in `flags`."""


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
    """Write one output file. Metadata that are not strings are written as JSON.

    `columns` are int64, float32 or uint8, and none is called `embeddings`.
    """
    texts = {name: _text(value) for name, value in {**metadata, "ids": list(ids)}.items()}
    arrays = {"embeddings": np.ascontiguousarray(rows, "<f4"), **(columns or {})}
    # The largest items first, so that every tensor is aligned to its item size.
    ordered = dict(sorted(arrays.items(), key=lambda named: (-named[1].itemsize, named[0])))
    shapes = {name: (array.dtype, array.shape) for name, array in ordered.items()}
    header = lay_out(shapes, texts, _json).header
    if len(header) - 8 > HEADER_MAX:
        raise ClaimImpossible(
            f"the ids of {len(ids):,} sequences make a header of {len(header) - 8:,} bytes, and "
            f"safetensors reads at most {HEADER_MAX:,}. Shorten the ids, or plan smaller files."
        )
    with open(path, "wb") as file:
        file.write(header)
        for array in ordered.values():
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
        text, offsets = columns.pop("ids").tobytes(), columns.pop("id_offsets").tolist()
        ids = [text[a:b].decode() for a, b in zip(offsets, offsets[1:], strict=False)]
    for name in ("counts", "versions", "models"):
        if metadata.get(name, "").startswith(("{", "[")):
            metadata[name] = json.loads(metadata[name])
    return Embeddings(ids, rows, metadata, columns)


def encode_checkpoint(batches: Mapping[int, NDArray[np.float32]]) -> bytes:
    """Return the rows of finished batches, by batch number, as bytes."""
    from safetensors.numpy import save

    return save({str(number): np.ascontiguousarray(rows) for number, rows in batches.items()})


def decode_checkpoint(data: bytes) -> dict[int, NDArray[np.float32]]:
    """Return the batches of a checkpoint. Raises ValueError if the bytes are not one."""
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
