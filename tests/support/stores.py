"""Stores whose vectors follow from their keys, so that any reader can check one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.store import spaces, writer
from embed.store.keys import KEY, Keys
from embed.store.shards import Columns
from embed.store.view import View

WIDTH = 8
OPTIONS: dict[str, Any] = {
    "model": "tiny_esm2",
    "folder": "",
    "weights": "sha256:e",
    "family": "esm2",
    "dtype": "float32",
    "pooling": "mean",
    "long": "truncate",
    "max_residues": 1022,
    "width": WIDTH,
    "collection": "default",
    "store_dtype": "float32",
}


def open_view(root: Path, **options: Any) -> View:
    """Return a space of a store, which is created if necessary."""
    view = spaces.open_space({**OPTIONS, "store": str(root), **options})
    view.refresh()
    return view


def keys_of(numbers: Iterable[int]) -> Keys:
    """Return the keys of some numbers."""
    raw = [hashlib.sha256(b"%d" % number).digest()[: KEY.itemsize] for number in numbers]
    return np.array(raw, KEY)


def vectors_of(numbers: Iterable[int], salt: str = "", width: int = WIDTH) -> NDArray[Any]:
    """Return the vectors of some numbers; another salt gives other vectors."""
    rows = []
    for number in numbers:
        seed = int.from_bytes(hashlib.sha256(f"{number}{salt}".encode()).digest()[:8])
        rows.append(np.random.default_rng(seed).standard_normal(width))
    return np.array(rows, np.float32).reshape(-1, width)


def columns_of(numbers: Iterable[int], input: str = "a.faa") -> Columns:
    """Return the columns of some numbers."""
    found = list(numbers)
    return Columns(
        keys=keys_of(found),
        lengths=np.array(found, np.int64),
        inputs=np.zeros(len(found), np.int64),
        input_names=[input],
        ids=[f"record{number}" for number in found],
        texts=[],
    )


def put(view: View, numbers: Iterable[int], salt: str = "") -> NDArray[Any]:
    """Store some numbers; return the vectors that are used."""
    found = list(numbers)
    return writer.add(view, columns_of(found), vectors_of(found, salt, view.space.width))
