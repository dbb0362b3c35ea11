"""Open a store from Python: search it, get vectors out of it.

    store = Store("/shared/store", collection="manuals")
    ids, scores = store.search(vectors, 10)          # (queries, 10) each, the nearest first
    store.get(ids[0]), store.records(ids[0])

An id is a key in hexadecimal. What is added meanwhile is seen from the next call on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.store import folders
from embed.store.keys import Space, from_hexadecimal, hexadecimal
from embed.store.view import View
from fsqueue import UsageError


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a vector came from: the first record that had its sequence."""

    id: str
    input: str
    record: str
    length: int
    """Letters of the sequence, or characters of the text."""
    text: str = ""
    """What was embedded, if that was text: a chunk of the document `input`."""
    begin: int = -1
    """At which character of the document it begins; -1 if it is no text."""

    @property
    def end(self) -> int:
        """Return the character of the document before which it ends; -1 if it is no text."""
        return self.begin + self.length if self.begin >= 0 else -1


class Store:
    """One collection of a store, and in it the vectors of one model."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        collection: str = folders.DEFAULT,
        model: str | None = None,
    ) -> None:
        """Open it for reading. Raises UsageError if there is none, or if several can be meant."""
        self._view = folders.only(os.fspath(root), collection, model)

    @property
    def space(self) -> Space:
        """Return what decided its vectors."""
        return self._view.space

    @property
    def view(self) -> View:
        """Return its shards."""
        return self._view

    def search(
        self, vectors: NDArray[Any], k: int = 10
    ) -> tuple[NDArray[np.str_], NDArray[np.float32]]:
        """Return ids and cosines, (queries, k) each; k is less where the store holds less.

        `vectors` is (queries, width). Every stored vector is compared: the answer is exact.
        """
        from embed.store.search import keys_of, nearest

        queries = np.ascontiguousarray(np.atleast_2d(vectors), np.float32)
        if queries.shape[1] != self.space.width or k < 1:
            raise UsageError(
                f"queries of {queries.shape[1]} numbers cannot be compared with vectors of "
                f"{self.space.width}, or k is below 1. Embed them with {self.space.model}."
            )
        self._view.refresh()
        places, scores = nearest(self._view, queries, k)
        ids = [hexadecimal(keys_of(self._view.shards, row)) for row in places]
        return np.array(ids, "U32"), np.array(scores, np.float32)

    def get(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of ids, (ids, width). Raises KeyError for one that is not stored."""
        self._view.refresh()
        found, vectors = self._view.lookup(from_hexadecimal(ids))
        if not found.all():
            raise KeyError(ids[int(np.flatnonzero(~found)[0])])
        return vectors.astype(np.float32)

    def records(self, ids: Sequence[str]) -> list[Hit]:
        """Return where the vectors of ids came from. Raises KeyError for one that is not stored."""
        self._view.refresh()
        return self._view.steadily(lambda: self._records(ids))

    def _records(self, ids: Sequence[str]) -> list[Hit]:
        keys = from_hexadecimal(ids)
        hits: dict[int, Hit] = {}
        for shard in self._view.shards:
            rows = shard.find(keys)
            new = [n for n in np.flatnonzero(rows >= 0).tolist() if n not in hits]
            for number, facts in zip(new, shard.facts(rows[new].tolist()), strict=True):
                hits[number] = Hit(ids[number], *facts)
        for number, id in enumerate(ids):
            if number not in hits:
                raise KeyError(id)
        return [hits[number] for number in range(len(ids))]
