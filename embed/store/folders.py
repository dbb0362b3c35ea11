"""Find the spaces of a store: its collections, and in each a directory for every space.

A store is made by whoever writes to it first; two may do so at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from embed.store.keys import Space
from embed.store.shards import StoreError
from embed.store.view import View
from fsqueue import UsageError
from fsqueue.storage import atomic, directories

FORMAT: Final = 1
MARK: Final = "store.json"
DEFAULT: Final = "default"
_COLLECTION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a plan's options say of a store, completed by FSQUEUE_STORE and checked."""
    root = options.get("store") or os.environ.get("FSQUEUE_STORE") or ""
    collection, stored = options.get("collection", DEFAULT), options.get("store_dtype", "float32")
    if root:
        root = os.path.abspath(root)
        if options["pooling"] == "per-token":
            raise UsageError(
                "--pooling per-token gives a row for each token, and a store keeps one vector for "
                "each sequence. Leave --store out (or unset FSQUEUE_STORE), or pool otherwise."
            )
        _check(root, collection)
    elif stored != "float32":
        raise UsageError(f"--store-dtype {stored} says how a store keeps vectors; add --store DIR.")
    return {"store": root, "collection": collection, "store_dtype": stored}


def _check(root: str, collection: str) -> None:
    """Raise UsageError if `root` is there and no store, or the collection cannot be called that."""
    if not _COLLECTION.fullmatch(collection):
        raise UsageError(
            f"--collection {collection!r}: use letters, digits, '_', '-' and '.', at most 64."
        )
    if os.path.isfile(f"{root}/{MARK}"):
        _read_format(root)
    elif os.path.lexists(root) and not (os.path.isdir(root) and _may_become_one(root)):
        raise UsageError(
            f"{root}: is there, and is no store: it holds no {MARK}. Name a directory that is "
            f"not there yet, or an empty one."
        )
    elif not os.path.isdir(os.path.dirname(os.path.abspath(root))):
        raise UsageError(f"{root}: the directory above it is not there. Make it first.")


def _may_become_one(root: str) -> bool:
    """Say whether a directory is empty.

    RACE: another worker may be making it a store just now, or was killed as it did.
    """
    return all(name == MARK or name.startswith(f".{MARK}.") for name in os.listdir(root))


def place(options: Mapping[str, Any]) -> str:
    """Return the directory of the space in which a plan of these options embeds."""
    return f"{options['store']}/{options['collection']}/{Space.of(options).name}"


def opened(options: Mapping[str, Any]) -> View:
    """Return the view of that space, made now if it is not there."""
    root: str = options["store"]
    directories.make(root)
    facts = json.dumps({"fsqueue store": FORMAT}).encode() + b"\n"
    if not os.path.isfile(f"{root}/{MARK}"):
        atomic.publish(f"{root}/{MARK}", facts)
    _read_format(root)
    view = View(place(options), Space.of(options))
    view.make()
    return view


def spaces(root: str, collection: str | None = None) -> Iterator[tuple[str, View]]:
    """Yield (collection, view) for every space of a store, or of one collection.

    Raises UsageError if it is no store.
    """
    if not os.path.isfile(f"{root}/{MARK}"):
        raise UsageError(f"{root}: is no store: it holds no {MARK}. Check the path.")
    _read_format(root)
    for name in sorted(atomic.names(root)):
        folder = f"{root}/{name}"
        if not _COLLECTION.fullmatch(name) or not os.path.isdir(folder):
            continue
        if collection not in (None, name):
            continue
        for each in sorted(atomic.names(folder)):
            if os.path.isfile(f"{folder}/{each}/space.json"):
                yield name, View(f"{folder}/{each}", _read_space(f"{folder}/{each}"))


def only(root: str, collection: str, model: str | None) -> View:
    """Return the one space that is meant. Raises UsageError if it is none, or several."""
    found = [view for _, view in spaces(root, collection)]
    if not found:
        there = sorted({name for name, _ in spaces(root)})
        raise UsageError(
            f"{root}: has no collection {collection!r}; it has: {', '.join(there) or 'none yet'}."
        )
    meant = [view for view in found if model is None or _is_meant(view, model)]
    if len(meant) != 1:
        listed = "".join(f"\n  {_described(view)}" for view in found)
        raise UsageError(
            f"{root}: collection {collection!r} has {len(found)} spaces, and "
            f"{len(meant)} of them can be meant. Name one: --model NAME, by its directory's name "
            f"if its model's does not tell it apart:{listed}"
        )
    return meant[0]


def _is_meant(view: View, model: str) -> bool:
    folder = os.path.basename(view.directory)
    return model in (view.space.model, view.space.weights, view.space.model.rsplit("/")[-1], folder)


def _described(view: View) -> str:
    space = view.space
    return f"{os.path.basename(view.directory)}  {space.model}, {space.dtype}, {space.pooling}"


def _read_space(folder: str) -> Space:
    try:
        return Space.checked(json.loads(atomic.read(f"{folder}/space.json")))
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{folder}/space.json: cannot be read ({error}); it was edited, or a newer fsqueue "
            f"wrote it."
        ) from error


def _read_format(root: str) -> None:
    try:
        found = json.loads(atomic.read(f"{root}/{MARK}"))["fsqueue store"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{root}/{MARK}: is not a store's ({error!r}).") from error
    if found != FORMAT:
        raise UsageError(
            f"{root}: is a store of format {found}, and this fsqueue reads {FORMAT}; update it."
        )
