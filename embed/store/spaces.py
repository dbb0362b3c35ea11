"""Find and create the spaces of a store: a directory for each, in a directory for each collection.

A store is created by the first process that writes to it; several may do so at once.
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

FORMAT: Final = 2
READ: Final = (1, 2)
"""The formats that are read. A space of format 1 stays in use for plans like those that filled it;
every other plan gets one of format 2."""
STORE_JSON: Final = "store.json"
DEFAULT_COLLECTION: Final = "default"
_COLLECTION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def store_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan's options about the store, checked; FSQUEUE_STORE is the default of --store."""
    root = options.get("store") or os.environ.get("FSQUEUE_STORE") or ""
    collection = options.get("collection", DEFAULT_COLLECTION)
    stored = options.get("store_dtype", "float32")
    if root:
        root = os.path.abspath(root)
        if options["pooling"] == "per-token":
            raise UsageError(
                "--pooling per-token gives a row for each token, and a store keeps one vector for "
                "each sequence. Omit --store (or unset FSQUEUE_STORE), or use another --pooling."
            )
        _check(root, collection)
    elif stored != "float32":
        raise UsageError(f"--store-dtype {stored} applies to stored vectors only; add --store DIR.")
    return {"store": root, "collection": collection, "store_dtype": stored}


def _check(root: str, collection: str) -> None:
    """Raise UsageError if `root` is something else than a store, or the collection is invalid."""
    if not _COLLECTION.fullmatch(collection):
        raise UsageError(
            f"--collection {collection!r}: use letters, digits, '_', '-' and '.', at most 64."
        )
    if os.path.isfile(f"{root}/{STORE_JSON}"):
        _check_format(root)
    elif os.path.lexists(root) and not (os.path.isdir(root) and _may_become_a_store(root)):
        raise UsageError(
            f"{root}: exists and is not a store, because it has no {STORE_JSON}. Name a new or an "
            f"empty directory."
        )
    elif not os.path.isdir(os.path.dirname(os.path.abspath(root))):
        raise UsageError(f"{root}: its parent directory does not exist. Create that first.")


def _may_become_a_store(root: str) -> bool:
    """Return whether a directory is empty.

    RACE: another worker may be making it a store now, or may have been killed while doing so.
    """
    return all(
        name == STORE_JSON or name.startswith(f".{STORE_JSON}.") for name in os.listdir(root)
    )


def space_directory(options: Mapping[str, Any]) -> str:
    """Return the directory of the space that a plan with these options embeds into."""
    return _directory(options, _space_of(options))


def _directory(options: Mapping[str, Any], space: Space) -> str:
    return f"{options['store']}/{options['collection']}/{space.name}"


def _space_of(options: Mapping[str, Any]) -> Space:
    space = Space.of(options)
    if os.path.isfile(f"{_directory(options, space.format_1)}/space.json"):
        return space.format_1
    return space


def open_space(options: Mapping[str, Any]) -> View:
    """Return the view of that space, which is created if it does not exist."""
    root: str = options["store"]
    directories.make(root)
    facts = json.dumps({"fsqueue store": FORMAT}).encode() + b"\n"
    if not os.path.isfile(f"{root}/{STORE_JSON}"):
        atomic.publish(f"{root}/{STORE_JSON}", facts)
    space = _space_of(options)
    if _check_format(root) < FORMAT and space.content:  # an earlier fsqueue could not read it
        atomic.replace(f"{root}/{STORE_JSON}", facts)
    view = View(_directory(options, space), space)
    view.make()
    return view


def list_spaces(root: str, collection: str | None = None) -> Iterator[tuple[str, View]]:
    """Yield (collection, view) for every space of a store, or of one collection.

    Raises UsageError if it is not a store.
    """
    if not os.path.isfile(f"{root}/{STORE_JSON}"):
        raise UsageError(f"{root}: is not a store: it has no {STORE_JSON}. Check the path.")
    _check_format(root)
    for name in sorted(atomic.names(root)):
        folder = f"{root}/{name}"
        if not _COLLECTION.fullmatch(name) or not os.path.isdir(folder):
            continue
        if collection not in (None, name):
            continue
        for each in sorted(atomic.names(folder)):
            if os.path.isfile(f"{folder}/{each}/space.json"):
                yield name, View(f"{folder}/{each}", _read_space(f"{folder}/{each}"))


def find_space(root: str, collection: str, model: str | None) -> View:
    """Return the space that is named. Raises UsageError if there is none, or more than one."""
    found = [view for _, view in list_spaces(root, collection)]
    if not found:
        existing = sorted({name for name, _ in list_spaces(root)})
        raise UsageError(
            f"{root}: has no collection {collection!r}; it has: "
            f"{', '.join(existing) or 'none yet'}."
        )
    matching = [view for view in found if model is None or _matches(view, model)]
    if len(matching) != 1:
        listed = "".join(f"\n  {_describe(view)}" for view in found)
        raise UsageError(
            f"{root}: {len(matching)} of the {len(found)} spaces of collection {collection!r} "
            f"match. Name one with --model NAME, where NAME is a model or a space's directory:"
            f"{listed}"
        )
    return matching[0]


def _matches(view: View, model: str) -> bool:
    folder = os.path.basename(view.directory)
    space = view.space
    return model in (space.model, space.weights, space.content, space.model.rsplit("/")[-1], folder)


def _describe(view: View) -> str:
    space = view.space
    return f"{os.path.basename(view.directory)}  {space.model}, {space.dtype}, {space.pooling}"


def _read_space(folder: str) -> Space:
    try:
        return Space.decode(json.loads(atomic.read(f"{folder}/space.json")))
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{folder}/space.json: cannot be read ({error}); it was edited, or written by a newer "
            f"fsqueue."
        ) from error


def _check_format(root: str) -> int:
    """Return a store's format. Raises UsageError if it is not read here."""
    try:
        found = json.loads(atomic.read(f"{root}/{STORE_JSON}"))["fsqueue store"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{root}/{STORE_JSON}: is not that of a store ({error!r}).") from error
    if found not in READ:
        raise UsageError(
            f"{root}: is a store of format {found}, and this fsqueue reads up to {FORMAT}; update "
            f"it."
        )
    return int(found)
