"""Keep every vector that was ever computed, in a directory that any number of processes may share.

    STORE/store.json                         the format; written once
    STORE/COLLECTION/SPACE/space.json        what decides a vector beside its sequence; written once
    STORE/COLLECTION/SPACE/00000007.safetensors            a shard, published whole, never replaced
    STORE/COLLECTION/SPACE/00000001-00000006.safetensors   one that stands for shards 1 to 6

`keys` says which sequences share a vector; `places` names shards, and knows which of them count;
`encoding` writes and `shards` reads the file of one, `view` is the shards of a space as they are
now, `writer` adds to them. `folders` finds spaces, `reuse` is what a claim does with all that.
`search` asks a store, `walk` goes through it, `compact` and `verify` tend it, `contents` is the
Python door.

Promises. A key's vector never changes: of several shards that hold it, the one with the lowest
number counts, and a shard's number is given by one link(2), so that no later writer comes before
it. Nothing is modified in place. Whoever reads may lose a file that a compaction took the place of,
and reads that instead. There is no lock, and no index beside the shards.

    from embed.store import Store
    store = Store("/shared/store")
    ids, scores = store.search(vectors, 10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed.store.contents import Hit, Store

__all__ = ["Hit", "Store"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embed.store import contents

    return getattr(contents, name)
