"""Write a table as safetensors, npz, HDF5 or parquet.

Each is written block by block, so memory does not grow with the table. Optional libraries are
imported only when their format is written.

    safetensors  `embeddings` (rows, width); `ids` as the bytes of one text, split by `id_offsets`
    npz          `embeddings`, `ids`, `metadata` (JSON); numpy.load reads it without pickle
    h5           a dataset per id, as UniProt ships its embeddings
    parquet      columns `id` and `embedding`

A pair of models has `data` instead of `embeddings`. Columns are written, too: `lengths` and
`flags`; of an exported store also strings, which safetensors cannot hold. If a sequence has a row
for each token, safetensors also has `offsets`: sequence i has rows offsets[i] to offsets[i + 1].
HDF5 has a dataset (tokens, width) for each id, and `esm` a file (`esm.py`). The other formats
cannot hold such rows. Rows are float32, or float16 by --output-dtype.
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from embed.outputs.safetensors_header import lay_out
from embed.outputs.table import Block, Table
from fsqueue import NotSupportedError, UsageError

EXTRAS: Final = {"h5": "h5py", "parquet": "pyarrow"}
"""The extras of setup.cfg, and the library that each installs."""

RAGGED: Final = ("safetensors", "h5", "esm")
"""The formats that can hold a row for each token."""
BY_ENDING: Final = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".h5": "h5",
    ".hdf5": "h5",
    ".parquet": "parquet",
}
OF_OTHERS: Final = frozenset(
    ".npy .pt .pth .pq .csv .tsv .json .jsonl .txt .pkl .zarr .fa .faa .fna .fasta .fq .gz".split()
)
"""Endings that promise a format which is not written here."""


def choose_format(out: str, given: str | None, planned: str = "safetensors") -> str:
    """Return the format of the file `out`. Raises UsageError if its ending says another one.

    R40 The ending decides; --format may only agree with it. A name without an ending takes
        --format, else the planned one; an ending that is not known needs --format, and one that
        promises a format which is not written here is refused.
    """
    ending = os.path.splitext(out)[1].lower()
    known = ", ".join(BY_ENDING)
    by_ending = BY_ENDING.get(ending)
    if by_ending and given not in (None, by_ending):
        raise UsageError(
            f"--format {given} contradicts the ending of {out}, which says {by_ending}. Leave out "
            f"--format, or use another ending."
        )
    if by_ending:
        return by_ending
    if given == "virnucpro" or (given is None and planned == "virnucpro" and not ending):
        return "virnucpro"
    if ending in OF_OTHERS or ending and given is None:
        raise UsageError(
            f"{out}: {ending} is not the ending of a format that is written here. Known are "
            f"{known}; or a folder, with --format virnucpro."
        )
    return given or planned


def write_safetensors(path: Path, table: Table) -> None:
    """Write one safetensors file, at its full size from the start."""
    offsets = np.zeros(table.count + 1, "<i8")
    row = 0
    for block in table.blocks():
        for id in block.ids:
            row += 1
            offsets[row] = offsets[row - 1] + len(id.encode())
    int64, uint8 = np.dtype("<i8"), np.dtype("u1")
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    tensors = {table.name: (table.dtype, (table.rows, table.width))}
    tensors |= {name: (dtype, (table.count,)) for name, dtype in table.columns.items()}
    tensors |= {"id_offsets": (int64, offsets.shape), "ids": (uint8, (int(offsets[-1]),))}
    if table.ragged:
        tensors["offsets"] = (int64, offsets.shape)
    if table.dtype.itemsize < 4:  # the largest items first, so that every tensor is aligned
        tensors = dict(sorted(tensors.items(), key=lambda named: -named[1][0].itemsize))
    layout = lay_out(tensors, table.metadata, _compact_json)
    with open(path, "wb") as file:
        file.truncate(layout.size)
        file.write(layout.header)
        file.flush()
        fd, at = file.fileno(), dict(layout.begins)
        _pwrite(fd, offsets.tobytes(), at["id_offsets"])
        if table.ragged:
            _pwrite(fd, table.offsets.astype("<i8").tobytes(), at["offsets"])
        for block in table.blocks():
            text = "".join(block.ids).encode()
            for name, data in ((table.name, block.rows), ("ids", text), *block.columns.items()):
                data = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
                _pwrite(fd, data, at[name])
                at[name] += len(data)


def _compact_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def check_format(format: str, *, ragged: bool, dtype: str = "float32") -> None:
    """Raise UsageError if a format cannot hold the table's rows."""
    if ragged and format not in RAGGED:
        raise UsageError(
            f"--format {format}: cannot hold a row for each token (--pooling per-token). Use "
            f"safetensors, where sequence i has rows offsets[i] to offsets[i + 1]; h5, a dataset "
            f"for each sequence; or esm, extract.py's files."
        )
    if format == "virnucpro" and dtype != "float32":
        raise UsageError("--format virnucpro: that pipeline reads float32. Omit --output-dtype.")
    if format in EXTRAS:
        library(format)


def write_npz(path: Path, table: Table) -> None:
    """Write one npz file, uncompressed, because embeddings do not compress."""
    dtypes = _npz_dtypes(table)
    id_dtype = dtypes.pop("ids")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        shape = (table.count, table.width)
        rows = (block.rows.tobytes() for block in table.blocks())
        _write_member(archive, table.name, table.dtype, shape, rows)
        ids = (np.array(block.ids, id_dtype).tobytes() for block in table.blocks())
        _write_member(archive, "ids", id_dtype, (table.count,), ids)
        for name, dtype in dtypes.items():
            values = (block.columns[name].astype(dtype).tobytes() for block in table.blocks())
            _write_member(archive, name, dtype, (table.count,), values)
        metadata = np.array(json.dumps(dict(table.metadata)))
        _write_member(archive, "metadata", metadata.dtype, (), iter([metadata.tobytes()]))


def _npz_dtypes(table: Table) -> dict[str, np.dtype[Any]]:
    """Return the dtype of `ids` and of each column: strings are as wide as the longest of them."""
    texts = [name for name, dtype in table.columns.items() if dtype.kind == "U"]
    widths = dict.fromkeys(["ids", *texts], 1)
    for block in table.blocks():
        for name in widths:
            values = block.ids if name == "ids" else block.columns[name].tolist()
            widths[name] = max(widths[name], *map(len, values))
    return {**table.columns} | {name: np.dtype(f"<U{width}") for name, width in widths.items()}


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    data: Iterator[bytes],
) -> None:
    facts = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: the same table gives the same bytes
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, facts)
        for piece in data:
            file.write(piece)


def write_h5(path: Path, table: Table) -> None:
    """Write one HDF5 file with a dataset for each id: (width,), or (tokens, width).

    A `/` in an id would make a group and is replaced by `_`; repeated ids get suffixes `~2`, `~3`.
    A renamed dataset has the id itself as its attribute `original_id`.
    """
    with library("h5").File(path, "w") as file:
        file.attrs.update(table.metadata)
        for block in table.blocks():
            for index, (id, row) in enumerate(zip(block.ids, _by_id(block), strict=True)):
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


def _by_id(block: Block) -> Iterator[Any]:
    """Yield each id's row, or rows."""
    if block.lengths is None:
        yield from block.rows
        return
    at = 0
    for length in block.lengths:
        yield block.rows[at : at + length]
        at += length


def write_parquet(path: Path, table: Table) -> None:
    """Write one parquet file, a row group for each block."""
    arrow = library("parquet")
    parquet = importlib.import_module("pyarrow.parquet")
    fields = [
        arrow.field("id", arrow.string()),
        arrow.field("embedding", arrow.list_(arrow.from_numpy_dtype(table.dtype), table.width)),
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
    """Return the library of a format. Raises NotSupportedError if it is not installed."""
    try:
        return importlib.import_module(EXTRAS[extra])
    except ImportError as error:
        raise NotSupportedError(
            f"{extra}: {EXTRAS[extra]} is not installed ({error}). Type: "
            f"pip install 'fsqueue[{extra}]', or use another format."
        ) from error


FORMATS: Final[dict[str, Callable[[Path, Table], None]]] = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "h5": write_h5,
    "parquet": write_parquet,
}
