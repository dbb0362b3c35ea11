"""Write a table in the forms that people read: safetensors, npz, HDF5, parquet.

Each is written block by block, so that memory does not grow with the table, and through the library
of its own field. Those that fsqueue does not need otherwise are imported when they are asked for.

    safetensors  `embeddings` (rows, width); `ids` as one text's bytes, cut by `id_offsets`
    npz          `embeddings`, `ids`, `metadata` (JSON); numpy.load reads it without pickle
    h5           a dataset per id, as UniProt ships its embeddings
    parquet      columns `id` and `embedding`

A pair of models has `data` where one has `embeddings`. Columns (`lengths`, `flags`; of an exported
store also texts, which safetensors has no place for) go along. Where a sequence has a row for each
token, safetensors has `offsets`, too: its rows are offsets[i] to offsets[i + 1]. The other forms
have no place for such rows.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from embed.outputs.safetensors_header import KINDS
from embed.outputs.table import Ragged, Table
from fsqueue import NotSupportedError, UsageError

EXTRAS: Final = {"h5": "h5py", "parquet": "pyarrow"}
"""The extras of setup.cfg, and the library that each brings."""


def write_safetensors(path: Path, table: Table) -> None:
    """Write one safetensors file, into a place of the right size from the start."""
    offsets = np.zeros(table.count + 1, "<i8")
    row = 0
    for block in table.blocks():
        for id in block.ids:
            row += 1
            offsets[row] = offsets[row - 1] + len(id.encode())
    kinds = {table.name: ("F32", [table.rows, table.width])}
    names = {kind: name for name, kind in KINDS.items()}
    kinds |= {n: (names[k.str.lstrip("|")], [table.count]) for n, k in table.columns.items()}
    kinds |= {"id_offsets": ("I64", [len(offsets)]), "ids": ("U8", [int(offsets[-1])])}
    if isinstance(table, Ragged):
        kinds["offsets"] = ("I64", [len(offsets)])
    header, places, size = _layout(kinds, table.metadata)
    with open(path, "wb") as file:
        file.truncate(size)
        file.write(header)
        file.flush()
        fd = file.fileno()
        _pwrite(fd, offsets.tobytes(), places["id_offsets"])
        if isinstance(table, Ragged):
            _pwrite(fd, table.offsets.astype("<i8").tobytes(), places["offsets"])
        for block in table.blocks():
            text = "".join(block.ids).encode()
            for name, data in ((table.name, block.rows), ("ids", text), *block.columns.items()):
                data = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
                _pwrite(fd, data, places[name])
                places[name] += len(data)


def _layout(
    kinds: dict[str, tuple[str, list[int]]], metadata: Any
) -> tuple[bytes, dict[str, int], int]:
    """Return the header, where each tensor's data go, and the size of the file."""
    tensors: dict[str, Any] = {}
    end = 0
    for name, (kind, shape) in kinds.items():
        begin, end = end, end + int(np.prod(shape)) * np.dtype(KINDS[kind]).itemsize
        tensors[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": dict(metadata), **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {name: start + tensor["data_offsets"][0] for name, tensor in tensors.items()}
    return struct.pack("<Q", len(text)) + text, places, start + end


def _pwrite(fd: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, place)
        view, place = view[written:], place + written


def check(format: str, table: Table) -> None:
    """Raise UsageError if this form has no place for the table's rows."""
    if table.ragged and format != "safetensors":
        raise UsageError(
            f"--format {format}: has no place for a row for each token (--pooling per-token). "
            f"Take safetensors: rows offsets[i] to offsets[i + 1] are those of sequence i."
        )


def write_npz(path: Path, table: Table) -> None:
    """Write one npz file, not compressed: embeddings do not compress."""
    kinds = _npz_kinds(table)
    text = kinds.pop("ids")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        shape = (table.count, table.width)
        rows = (block.rows.tobytes() for block in table.blocks())
        _member(archive, table.name, np.dtype("<f4"), shape, rows)
        ids = (np.array(block.ids, text).tobytes() for block in table.blocks())
        _member(archive, "ids", text, (table.count,), ids)
        for name, kind in kinds.items():
            values = (block.columns[name].astype(kind).tobytes() for block in table.blocks())
            _member(archive, name, kind, (table.count,), values)
        facts = np.array(json.dumps(dict(table.metadata)))
        _member(archive, "metadata", facts.dtype, (), iter([facts.tobytes()]))


def _npz_kinds(table: Table) -> dict[str, np.dtype[Any]]:
    """Return the type of `ids` and of each column: texts are as wide as the longest of them."""
    texts = [name for name, kind in table.columns.items() if kind.kind == "U"]
    widths = dict.fromkeys(["ids", *texts], 1)
    for block in table.blocks():
        for name in widths:
            values = block.ids if name == "ids" else block.columns[name].tolist()
            widths[name] = max(widths[name], *map(len, values))
    return {**table.columns} | {name: np.dtype(f"<U{width}") for name, width in widths.items()}


def _member(
    archive: zipfile.ZipFile,
    name: str,
    kind: np.dtype[Any],
    shape: tuple[int, ...],
    data: Iterator[bytes],
) -> None:
    facts = {"descr": kind.str, "fortran_order": False, "shape": shape}
    info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: the same table gives the same bytes
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, facts)
        for piece in data:
            file.write(piece)


def write_h5(path: Path, table: Table) -> None:
    """Write one HDF5 file with a dataset per id.

    A `/` in an id would make a group, so `_` stands for it; an id that comes again gets `~2`, `~3`
    at its end. Such a dataset has the id itself as its attribute `original_id`.
    """
    with library("h5").File(path, "w") as file:
        file.attrs.update(table.metadata)
        for block in table.blocks():
            for index, (id, row) in enumerate(zip(block.ids, block.rows, strict=True)):
                name = plain = "_" if id in ("", ".") else id.replace("/", "_")
                number = 1
                while name in file:
                    number += 1
                    name = f"{plain}~{number}"
                dataset = file.create_dataset(name, data=row)
                if name != id:
                    dataset.attrs["original_id"] = id
                for column, values in block.columns.items():
                    value = values[index]
                    dataset.attrs[column] = str(value) if isinstance(value, str) else value


def write_parquet(path: Path, table: Table) -> None:
    """Write one parquet file, a row group for each block."""
    arrow = library("parquet")
    parquet = importlib.import_module("pyarrow.parquet")
    fields = [
        arrow.field("id", arrow.string()),
        arrow.field("embedding", arrow.list_(arrow.float32(), table.width)),
        *(arrow.field(name, arrow.from_numpy_dtype(k)) for name, k in table.columns.items()),
    ]
    schema = arrow.schema(fields, metadata=dict(table.metadata))
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in table.blocks():
            flat = arrow.array(np.ascontiguousarray(block.rows).reshape(-1))
            arrays = [
                arrow.array(block.ids, arrow.string()),
                arrow.FixedSizeListArray.from_arrays(flat, table.width),
                *(arrow.array(np.ascontiguousarray(block.columns[n])) for n in table.columns),
            ]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def library(extra: str) -> Any:
    """Return the library of a form. Raises NotSupportedError if it is not installed."""
    try:
        return importlib.import_module(EXTRAS[extra])
    except ImportError as error:
        raise NotSupportedError(
            f"{extra}: {EXTRAS[extra]} is not installed ({error}). Type: "
            f"pip install 'fsqueue[{extra}]', or take another format."
        ) from error


FORMATS: Final[dict[str, Callable[[Path, Table], None]]] = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "h5": write_h5,
    "parquet": write_parquet,
}
