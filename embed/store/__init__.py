"""Keep every computed vector in a directory that any number of processes may share.

    STORE/store.json                         the format; written once
    STORE/COLLECTION/SPACE/space.json        model, precision, pooling, ...; written once
    STORE/COLLECTION/SPACE/00000007.safetensors            a shard, published whole, never replaced
    STORE/COLLECTION/SPACE/00000001-00000006.safetensors   one that replaces shards 1 to 6

`keys` defines which sequences share a vector; `shard_names` names shards, and decides which are in
use; `shards` writes and reads the file of one; `view` is the current set of shards of a space, and
`writer` adds to it. `spaces` finds the spaces of a store, and `reuse` is how a claim uses one.
`search` finds nearest vectors, `scan` reads all of them; `compact`, `info` and `verify` maintain a
store. `store` holds the Python interface:

    from embed.store import Store
    store = Store("/shared/store")
    ids, scores = store.search(vectors, 10)

Promises. A key's vector never changes: of several shards that hold it, the one with the lowest
number is used, and a shard's number is assigned by one link(2), so that no later writer gets a
lower one. Nothing is modified in place. A reader may find that a compaction removed a file; it then
reads the one that replaces it. There are no locks, and no index beside the shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed.store.store import Hit, Store

__all__ = ["Hit", "Store"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("embed.store.store"), name)
