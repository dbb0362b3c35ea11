"""Ask a store for the neighbours of a text, of the sequences in a file, or of vectors.

What a question is, its store decides: in a store of texts whatever is no file is a text itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embed.encoder import Encoder
from embed.handlers.ingest_request import ENDINGS
from embed.inputs import documents, fasta
from embed.models import hub
from embed.models.families import FAMILIES
from embed.options import OPTIONS
from embed.outputs import claim_file
from embed.single_file import Said, embed_file
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
    """Return an answer for each query. Raises UsageError, BadInput.

    `query` is a FASTA file, a .npy file, a file of one text, "-" for one on standard input, or a
    text.
    """
    store = Store(root, collection, model)
    if query.endswith(".npy"):
        ids, vectors = _vectors(query)
    elif (text := _text(store, query)) is not None:
        ids, vectors = [query], _of_text(store, text, weights)
    else:
        ids, vectors = _embedded(store, query, weights)
    found, scores = store.search(vectors, k)
    return [
        Answer(id, store.records(near.tolist()), row.tolist())
        for id, near, row in zip(ids, found, scores, strict=True)
    ]


def _text(store: Store, query: str) -> str | None:
    """Return the text that is asked for, None if it is a FASTA file's sequences."""
    reads_text = FAMILIES[store.space.family].in_tokens
    is_file = query != "-" and os.path.isfile(query)
    if is_file and not (reads_text and _is_text(query)):
        return None
    if not reads_text or (not is_file and query.endswith(ENDINGS)):
        raise UsageError(
            f"{query}: there is no such file. A store of {store.space.model} is asked with "
            + ("a text, or a file of one." if reads_text else "a FASTA file, or a .npy file.")
        )
    if query == "-":
        data = sys.stdin.buffer.read()
    else:
        data = documents.read(query) if is_file else query.encode("utf-8", "surrogateescape")
    documents.check("the question", data)
    if not data.strip():
        raise UsageError("the question is empty. Type a text, or name a file that holds one.")
    return data.decode()


def _is_text(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(1) not in (b">", fasta.GZIP[:1])


def _of_text(store: Store, text: str, weights: str | None) -> Any:
    """Embed a text as the store's vectors were."""
    space = store.space
    how = {name: getattr(space, name) for name in ("dtype", "pooling", "long", "max_residues")}
    return Encoder.load(_model(store, weights), **how).encode([text])


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
    space, name = store.space, _model(store, weights)
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
        table = claim_file.read(out)
    return table.ids, table.rows


def _model(store: Store, weights: str | None) -> str:
    """Return the store's model as `hub.find` takes it. Raises UsageError if it is another."""
    space = store.space
    name = weights or space.folder or f"{space.model}@{space.weights.removeprefix('commit:')}"
    found = hub.find(name)
    if found.weights != space.weights:
        raise UsageError(
            f"{name}: its weights are {found.weights}, and the vectors of this store were made by "
            f"{space.weights}; they cannot be compared. Name the same model: --weights MODEL"
        )
    return name
