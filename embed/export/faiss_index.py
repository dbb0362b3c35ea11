"""Export to a faiss index, and the records to TARGET.jsonl. The only door to faiss.

The index compares by inner product; its vectors have length 1, so this is the cosine. It is flat,
which is exact, or what a factory string of faiss says, trained on a sample of the vectors. Line i
of TARGET.jsonl is the record of vector i. faiss reads and writes whole indexes, so the index is in
memory meanwhile.

Both files are written anew and moved into place, the records first. Rows are only appended, so a
process that is killed between the two leaves correct records, of which the last have no vectors
yet. The next export continues from the index.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from embed.export.target import Origin, Target, library_errors, missing_library
from embed.outputs import recognise
from embed.outputs.atomic_write import atomic_write
from embed.store.keys import KEY, Keys, difference, from_hexadecimal
from embed.store.scan import Batch
from fsqueue import UsageError, refuse_overwriting

TRAINED_MAX: Final = 262_144
"""How many vectors an index is trained on: faiss uses 256 for each cluster, and no more."""
FLAT: Final = "Flat"


class FaissIndex(Target):
    """One faiss index with its records."""

    def __init__(self, target: str, origin: Origin) -> None:
        try:
            import faiss
        except ImportError as error:
            raise missing_library("faiss", error) from error
        self._faiss, self._target, self._origin = faiss, target, origin
        self._records = Path(f"{target}.jsonl")
        self._index: Any = None
        self._factory = FLAT

    def choose_index(self, index: str) -> None:
        """Take a factory string of faiss. Raises UsageError if it is none."""
        try:
            self._make(index)
        except RuntimeError as error:
            raise UsageError(
                f"--index {index}: faiss makes no index of it for vectors of "
                f"{self._origin.space.width:,} numbers. Examples: IVF4096,Flat and HNSW32; see "
                f"faiss's wiki, The index factory."
            ) from error
        self._factory = index

    def _make(self, factory: str) -> Any:
        if factory == FLAT:
            return self._faiss.IndexFlatIP(self._origin.space.width)
        metric = self._faiss.METRIC_INNER_PRODUCT
        return self._faiss.index_factory(self._origin.space.width, factory, metric)

    def missing(self, keys: Keys) -> Keys:
        """Read the index and its records, if they exist."""
        refuse_overwriting(str(self._records), recognise=recognise.records)
        if not os.path.lexists(self._target):
            return keys
        with library_errors("faiss", self._target):
            self._index = self._faiss.read_index(self._target)
            self._refuse_other_index()
        existing = self._existing()
        if self._index.d != self._origin.space.width or len(difference(existing, keys)):
            raise UsageError(
                f"{self._target}: holds vectors that are not in this space of the store "
                f"({self._origin.space.name}). Name another TARGET."
            )
        return difference(keys, existing)

    def _refuse_other_index(self) -> None:
        """Raise UsageError if --index names another kind than the existing index is of."""
        if self._factory == FLAT:
            return
        found, asked = _kind(self._index), _kind(self._make(self._factory))
        if found != asked:
            raise UsageError(
                f"{self._target}: is an index of another kind ({found}) than {self._factory}. "
                f"Leave out --index to add to it, or name another TARGET."
            )

    def _existing(self) -> Keys:
        try:
            with open(self._records, encoding="utf-8") as file:
                ids = [json.loads(line)["id"] for line in islice(file, self._index.ntotal)]
            keys = from_hexadecimal(ids)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unknown_index(error) from error
        if len(keys) != self._index.ntotal:
            raise self._unknown_index(f"{len(keys):,} records for {self._index.ntotal:,} vectors")
        return np.unique(np.concatenate([np.empty(0, KEY), keys]))

    def _unknown_index(self, why: object) -> UsageError:
        return UsageError(
            f"{self._records}: does not hold the records of the index's vectors ({why}); another "
            f"program wrote the index, or this file was changed. Name another TARGET."
        )

    def add(self, batches: Callable[[], Iterator[Batch]], count: int) -> None:
        """Add rows to the index, and lines to its records."""
        if self._index is None:
            self._index = self._make(self._factory)
        if not self._index.is_trained:
            self._train(batches(), count)
        before = self._index.ntotal
        with atomic_write(self._target) as index, atomic_write(self._records) as records:
            with open(records, "w", encoding="utf-8") as file:
                if before:
                    with open(self._records, encoding="utf-8") as old:
                        file.writelines(islice(old, before))
                for batch in batches():
                    for hit in batch.hits:
                        record = {"id": hit.id, **self._origin.metadata(hit)}
                        record |= {"text": hit.text} if hit.text else {}
                        file.write(json.dumps(record) + "\n")
                    self._index.add(_unit_vectors(batch.vectors))
            with library_errors("faiss", self._target):
                self._faiss.write_index(self._index, str(index))

    def _train(self, batches: Iterator[Batch], count: int) -> None:
        """Train the index on vectors that are spread evenly over all of them."""
        step, at, parts = -(-count // TRAINED_MAX), 0, []
        for batch in batches:
            parts.append(_unit_vectors(batch.vectors)[-at % step :: step])
            at += len(batch.vectors)
        sample = np.concatenate(parts)
        try:
            self._index.train(sample)
        except RuntimeError as error:
            raise UsageError(
                f"--index {self._factory}: needs more vectors to be trained on than the store has, "
                f"{count:,}. Choose fewer clusters, or a flat index: leave out --index."
            ) from error


def _unit_vectors(vectors: Any) -> Any:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def _kind(index: Any) -> str:
    """Return what distinguishes kinds of indexes: the class, the clusters and the bytes of each."""
    sizes = [str(getattr(index, name)) for name in ("nlist", "code_size") if hasattr(index, name)]
    return " ".join([type(index).__name__, *sizes])
