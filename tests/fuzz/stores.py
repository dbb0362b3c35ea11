"""The files of a store of embeddings: a typed error, or a shard that can be read to its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import numpy as np

from embed.store import spaces
from embed.store.keys import KEY
from embed.store.shard_names import ShardName
from embed.store.shards import Columns, Shard, encode_shard
from tests.fuzz.sandbox import directory, pick, put, typed_errors_only

NAME = ShardName(1, 1)
SPACE = (
    b'{"model": "m", "folder": "", "weights": "w", "family": "esm2", "dtype": "float32", "pooling":'
    b' "mean", "long": "truncate", "max_residues": 1022, "stored": "float32", "width": 2}'
)


@cache
def root() -> str:
    """Return a store's directory with one space in it."""
    path = str(directory() / "store")
    os.makedirs(f"{path}/default/m-0123456789ab")
    put(f"{path}/store.json", b'{"fsqueue store": 1}')
    return path


def _format(data: bytes) -> None:
    path = f"{root()}/store.json"
    try:
        put(path, data)
        list(spaces.list_spaces(root()))
    finally:
        put(path, b'{"fsqueue store": 1}')


def _space(data: bytes) -> None:
    put(f"{root()}/default/m-0123456789ab/space.json", data)
    for name, view in spaces.list_spaces(root()):
        assert name == "default" and view.space.stored_dtype.itemsize in (2, 4)
        assert view.space.width > 0 and view.space.name and view.space.digest


def _shard(data: bytes) -> None:
    where = f"{root()}/default/m-0123456789ab"
    put(f"{where}/{NAME.filename}", data)
    shard = Shard(where, NAME)
    assert 0 <= shard.count <= len(data) and 0 <= shard.width <= len(data)
    keys = np.array([b"k" * 16, b"\x01" * 16], KEY)
    rows = shard.find(keys)
    there = rows[rows >= 0]
    assert shard.vectors(there).shape == (len(there), shard.width)
    shard.columns()
    shard.provenance(there.tolist())
    shard.norms()
    for row in there.tolist():
        shard.key_of(row)
    for parts in shard.blocks(7, ("norms", "vectors")):
        assert all(np.isfinite(len(part)) for part in parts)
    shard.is_intact()


def good_shard() -> bytes:
    """Return a shard of two vectors."""
    keys = np.array([b"k" * 16, b"a" * 16], KEY)
    two = np.array([3, 4], np.int64)
    columns = Columns(keys, two, np.zeros(2, np.int64), ["in.fa"], ["one", "two"], [])
    vectors = [np.arange(4, dtype=np.float32).reshape(2, 2)]
    return b"".join(
        encode_shard(columns, np.ones(2, np.float32), vectors, width=2, dtype=np.dtype("<f4"))
    )


READERS: tuple[Callable[[bytes], None], ...] = (_format, _space, _shard)
SEEDS = (b'\x00{"fsqueue store": 1}', b"\x01" + SPACE, b"\x02" + good_shard())


def run(data: bytes) -> None:
    """Let the first byte choose the file, and the rest be its content."""
    chosen, data = pick(data, len(READERS))
    with typed_errors_only():
        READERS[chosen](data)
