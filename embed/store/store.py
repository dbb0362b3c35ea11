"""Use a store from Python: search it, and get vectors and where they came from.

    store = Store("/shared/store", collection="manuals")
    ids, scores = store.search(vectors, 10)          # (queries, 10) each, the nearest first
    store.get(ids[0]), store.records(ids[0])

An id is a key in hexadecimal. Vectors that are added meanwhile are seen by the next call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.store import spaces
from embed.store.keys import Space, from_hexadecimal, hexadecimal
from embed.store.view import View
from fsqueue import UsageError


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a vector came from: the first record with its sequence."""

    id: str
    input: str
    record: str
    length: int
    """Letters of the sequence, or characters of the text."""
    text: str = ""
    """What was embedded, if that was text: a chunk of the document `input`."""
    begin: int = -1
    """Its first character in the document; -1 if it is not text."""

    @property
    def end(self) -> int:
        """Return the character of the document after its last; -1 if it is not text."""
        return self.begin + self.length if self.begin >= 0 else -1


class Store:
    """The vectors of one model in one collection of a store, for reading.

    `collection` is a name given by --collection. `model` is a model's name, needed only if the
    collection has vectors of several; where that is not enough, it may be a space's directory name.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        collection: str = spaces.DEFAULT_COLLECTION,
        model: str | None = None,
    ) -> None:
        """Open it. Raises UsageError if it does not exist, or if `model` must be given."""
        self._view = spaces.find_space(os.fspath(root), collection, model)

    @property
    def space(self) -> Space:
        """Return what all its vectors have in common: model, precision, pooling, ..."""
        return self._view.space

    @property
    def view(self) -> View:
        """Return its shards."""
        return self._view

    def search(
        self, vectors: NDArray[Any], k: int = 10
    ) -> tuple[NDArray[np.str_], NDArray[np.float32]]:
        """Return ids and cosines, (queries, k) each; k is smaller if the store holds fewer vectors.

        `vectors` is (queries, width). Every stored vector is compared: the result is exact.
        """
        from embed.store.search import keys_of, nearest

        queries = np.ascontiguousarray(np.atleast_2d(vectors), np.float32)
        if queries.shape[1] != self.space.width or k < 1:
            raise UsageError(
                f"queries of {queries.shape[1]} numbers cannot be compared with vectors of "
                f"{self.space.width}, or k is below 1. Embed them with {self.space.model}."
            )
        self._view.refresh()
        rows, scores = nearest(self._view, queries, k)
        ids = [hexadecimal(keys_of(self._view.shards, row)) for row in rows]
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
        return self._view.retrying(lambda: self._records(ids))

    def _records(self, ids: Sequence[str]) -> list[Hit]:
        keys = from_hexadecimal(ids)
        hits: dict[int, Hit] = {}
        for shard in self._view.shards:
            rows = shard.find(keys)
            new = [n for n in np.flatnonzero(rows >= 0).tolist() if n not in hits]
            for number, source in zip(new, shard.provenance(rows[new].tolist()), strict=True):
                hits[number] = Hit(
                    id=ids[number],
                    input=source.input,
                    record=source.record,
                    length=source.length,
                    text=source.text,
                    begin=source.begin,
                )
        for number, id in enumerate(ids):
            if number not in hits:
                raise KeyError(id)
        return [hits[number] for number in range(len(ids))]
