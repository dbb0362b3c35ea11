"""Take vectors to a faiss index, and their records to TARGET.jsonl. The only door to faiss.

The index is flat and compares by inner product; its vectors are of length 1, so that this is the
cosine. Line i of TARGET.jsonl says whose its vector i is. faiss reads and writes an index as a
whole, so the whole is in memory meanwhile.

Both files are written anew and moved into place, the records first: rows are only ever added, so
that whoever dies between the two leaves records that no vector belongs to yet, and all that has one
is right. The next export takes up from the index.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embed.export.target import Origin, Target, not_installed, told_by
from embed.outputs.whole_files import whole
from embed.store.keys import KEY, Keys, from_hexadecimal
from embed.store.walk import Batch, without
from fsqueue import UsageError


class FaissIndex(Target):
    """One faiss index with its records."""

    def __init__(self, target: str, origin: Origin) -> None:
        try:
            import faiss
        except ImportError as error:
            raise not_installed("faiss", error) from error
        self._faiss, self._target, self._origin = faiss, target, origin
        self._records = Path(f"{target}.jsonl")
        self._index: Any = None

    def lacking(self, keys: Keys) -> Keys:
        """Read the index and its records, if they are there."""
        if not os.path.lexists(self._target):
            return keys
        with told_by("faiss", self._target):
            self._index = self._faiss.read_index(self._target)
        known = self._known()
        strangers = without(known, keys)
        if self._index.d != self._origin.space.width or len(strangers):
            raise UsageError(
                f"{self._target}: holds vectors that are not in this space of the store "
                f"({self._origin.space.name}). Name another TARGET."
            )
        return without(keys, known)

    def _known(self) -> Keys:
        try:
            with open(self._records, encoding="utf-8") as file:
                ids = [json.loads(line)["id"] for line in islice(file, self._index.ntotal)]
            keys = from_hexadecimal(ids)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._not_ours(error) from error
        if len(keys) != self._index.ntotal:
            raise self._not_ours(f"{len(keys):,} records for {self._index.ntotal:,} vectors")
        return np.unique(np.concatenate([np.empty(0, KEY), keys]))

    def _not_ours(self, why: object) -> UsageError:
        return UsageError(
            f"{self._records}: does not say whose the vectors of the index are ({why}); another "
            f"program wrote the index, or this file was changed. Name another TARGET."
        )

    def put(self, walks: Callable[[], Iterator[Batch]], count: int) -> None:
        """Add rows to the index, and lines to its records."""
        if self._index is None:
            self._index = self._faiss.IndexFlatIP(self._origin.space.width)
        before = self._index.ntotal
        with whole(self._target) as index, whole(self._records) as records:
            with open(records, "w", encoding="utf-8") as file:
                if before:
                    with open(self._records, encoding="utf-8") as old:
                        file.writelines(islice(old, before))
                for batch in walks():
                    for hit in batch.hits:
                        facts = {"id": hit.id, **self._origin.facts(hit)}
                        facts |= {"text": hit.text} if hit.text else {}
                        file.write(json.dumps(facts) + "\n")
                    self._index.add(_unit(batch.vectors))
            with told_by("faiss", self._target):
                self._faiss.write_index(self._index, str(index))


def _unit(vectors: Any) -> Any:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
