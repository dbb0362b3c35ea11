"""Recognise a file that an earlier command of `fsqueue embed` wrote, and say from which model.

R39 A file counts as ours by what it holds, never by its name: by the tensors, columns or attributes
    that `formats` and `virnucpro` write, and the first lines of texts. An empty file holds nothing
    that could be lost.

Whether a file that is recognised may be replaced is decided in `fsqueue.refuse_overwriting`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from embed.outputs.safetensors_header import read_header
from fsqueue import Earlier

SOURCE: Final = ("weights", "pooling")
"""The metadata that say what a table was computed with."""
PREPARED: Final = re.compile(rb">.*_chunk_[0-9]+[FR][123]\n")
FEATURES: Final = (b"proteins", b"nucleotide", b"ids")


def table(path: str, source: Iterable[Mapping[str, Any]]) -> Earlier:
    """Return what a file is to a table of these sources: the options or metadata of one or two."""
    if os.path.getsize(path) == 0:
        return Earlier.SAME
    try:
        metadata = _metadata(path)
    except (OSError, ValueError, KeyError, ImportError, zipfile.BadZipFile):
        metadata = None
    if metadata is None:
        return Earlier.SAME if is_features(path) else Earlier.FOREIGN
    wanted = {tuple(str(each.get(name)) for name in SOURCE) for each in source}
    return Earlier.SAME if _sources(metadata) in (wanted, None) else Earlier.OTHER


def features(path: str) -> Earlier:
    """Return what a file is to one of VirNucPro's features."""
    mine = os.path.getsize(path) == 0 or is_features(path)
    return Earlier.SAME if mine else Earlier.FOREIGN


def marker(path: str) -> Earlier:
    """Return what a file is to the empty marker beside VirNucPro's features."""
    return Earlier.FOREIGN if os.path.getsize(path) else Earlier.SAME


def is_features(path: str) -> bool:
    """Return whether a file is one that torch saved, with the keys of VirNucPro's features."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [each for each in archive.namelist() if each.endswith("/data.pkl")]
            with archive.open(name) as file:
                head = file.read(256)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return any(key in head for key in FEATURES)


def listing(path: str) -> Earlier:
    """Return what a file is to a list of sequences without a partner: `id TAB model` in a line."""
    with open(path, "rb") as file:
        first = file.readline(1 << 16)
    return Earlier.SAME if not first or first.count(b"\t") == 1 else Earlier.FOREIGN


def prepared(path: str) -> Earlier:
    """Return what a file is to the sequences that `fsqueue embed prepare` writes."""
    with open(path, "rb") as file:
        first = file.readline(1 << 16)
    return Earlier.SAME if not first or PREPARED.fullmatch(first) else Earlier.FOREIGN


def records(path: str) -> Earlier:
    """Return what a file is to the records beside a faiss index: a line of JSON with an id each."""
    with open(path, "rb") as file:
        first = file.readline(1 << 20)
    try:
        mine = not first or "id" in json.loads(first)
    except (ValueError, TypeError, RecursionError):
        mine = False
    return Earlier.SAME if mine else Earlier.FOREIGN


# ---- parts ----


def _metadata(path: str) -> dict[str, str] | None:
    """Return the metadata of a table that was written here; None if it is something else."""
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] == b"PK\3\4":
            return _of_npz(path)
        if head[:4] == b"PAR1":
            parquet = importlib.import_module("pyarrow.parquet")
            schema = parquet.read_schema(path)
            if not {"id", "embedding"} <= set(schema.names):
                return None
            return {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
        if head == b"\x89HDF\r\n\x1a\n":
            with importlib.import_module("h5py").File(path, "r") as found:
                attributes = {name: str(value) for name, value in found.attrs.items()}
            return attributes if {"weights", "models", "space"} & attributes.keys() else None
        tensors, metadata = read_header(file.fileno())
    if not {"embeddings", "data"} & tensors.keys() or not {"ids"} & {*tensors, *metadata}:
        return None
    return metadata


def _of_npz(path: str) -> dict[str, str] | None:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    if "ids.npy" not in names or not {"embeddings.npy", "data.npy"} & names:
        return None
    with np.load(path) as found:
        facts = json.loads(str(found["metadata"])) if "metadata" in found else {}
    return facts if isinstance(facts, dict) else None


def _sources(metadata: Mapping[str, str]) -> set[tuple[str, ...]] | None:
    """Return what a table was computed with; None if it does not say."""
    pair = json.loads(metadata["models"]) if "models" in metadata else [metadata]
    found = {tuple(str(each.get(name)) for name in SOURCE) for each in pair}
    return found if any("weights" in each for each in pair) else None
