"""Ask a store for the neighbours of sequences or of vectors in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embed import hub, outputs
from embed.onefile import Said, embed_file
from embed.options import OPTIONS
from embed.store.contents import Hit, Store
from fsqueue import UsageError


@dataclass(frozen=True, slots=True)
class Answer:
    """A query's nearest, the nearest first."""

    query: str
    hits: Sequence[Hit]
    scores: Sequence[float]


def ask(
    root: str, query: str, k: int, *, collection: str, model: str | None, weights: str | None
) -> list[Answer]:
    """Return an answer for each query in the file. Raises UsageError, BadInput."""
    store = Store(root, collection, model)
    ids, vectors = _vectors(query) if query.endswith(".npy") else _embedded(store, query, weights)
    found, scores = store.search(vectors, k)
    return [
        Answer(id, store.records(near.tolist()), row.tolist())
        for id, near, row in zip(ids, found, scores, strict=True)
    ]


def _vectors(path: str) -> tuple[list[str], Any]:
    try:
        vectors = np.atleast_2d(np.load(path))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as an array ({error}). Write it by np.save."
        ) from error
    if vectors.ndim != 2:
        raise UsageError(f"{path}: has {vectors.ndim} dimensions, not (queries, width).")
    return [str(number) for number in range(len(vectors))], vectors


def _embedded(store: Store, path: str, weights: str | None) -> tuple[list[str], Any]:
    """Embed a file as the store's vectors were."""
    space = store.space
    name = weights or space.folder or f"{space.model}@{space.weights.removeprefix('commit:')}"
    found = hub.find(name)
    if found.weights != space.weights:
        raise UsageError(
            f"{name}: its weights are {found.weights}, and the vectors of this store were made by "
            f"{space.weights}; they cannot be compared. Name the same model: --weights MODEL"
        )
    how = {option.name: option.default for option in OPTIONS}
    how |= {name: getattr(space, name) for name in ("dtype", "pooling", "long", "max_residues")}
    how |= {"model": name, "format": "safetensors"}
    with tempfile.TemporaryDirectory(prefix="fsqueue-query-") as folder:
        out = f"{folder}/query.safetensors"
        without = {k: v for k, v in os.environ.items() if k == "FSQUEUE_STORE"}
        os.environ.pop("FSQUEUE_STORE", None)  # questions are not kept
        try:
            embed_file(path, out, how, Said(lambda _done, _total: None, lambda _line: None))
        finally:
            os.environ.update(without)
        table = outputs.read(out)
    return table.ids, table.rows
