"""Find the neighbours in a store of a text, of the sequences in a file, or of vectors.

How a query is read depends on the store: for a store of texts, anything that is not a file is
itself the text.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.encoder import Encoder
from embed.handlers.ingest_request import ENDINGS
from embed.inputs import documents, fasta
from embed.models.conventions import modules_json
from embed.models.families import FAMILIES
from embed.models.published import hub
from embed.options import OPTIONS
from embed.outputs import claim_file
from embed.single_file import embed_file
from embed.store.store import Hit, Store
from fsqueue import UsageError

DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
"""What models call their prompt for what is searched."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A query's neighbours, the nearest first."""

    query: str
    hits: Sequence[Hit]
    scores: Sequence[float]


def search_store(
    root: str, query: str, k: int, *, collection: str, model: str | None, weights: str | None
) -> list[Answer]:
    """Return the k nearest vectors of each query. Raises UsageError, BadInput.

    `query` is a FASTA file, a .npy file, a file with one text, "-" for a text on standard input, or
    a text. `weights` is where the store's model is now, if it was a folder that was moved.
    """
    store = Store(root, collection, model)
    if query.endswith(".npy"):
        ids, vectors = _load_vectors(query)
    elif (text := _query_text(store, query)) is not None:
        ids, vectors = [query], _embed_text(store, text, weights)
    else:
        ids, vectors = _embed_fasta(store, query, weights)
    found, scores = store.search(vectors, k)
    return [
        Answer(id, store.records(nearest.tolist()), row.tolist())
        for id, nearest, row in zip(ids, found, scores, strict=True)
    ]


def _query_text(store: Store, query: str) -> str | None:
    """Return the text of a query, None if it is a FASTA file."""
    reads_text = FAMILIES[store.space.family].in_tokens
    is_file = query != "-" and os.path.isfile(query)
    if is_file and not (reads_text and _is_text_file(query)):
        return None
    if not reads_text or (not is_file and query.endswith(ENDINGS)):
        expected = "a text, or a text file" if reads_text else "a FASTA file, or a .npy file"
        raise UsageError(
            f"{query}: there is no such file. A query to a store of {store.space.model} is "
            f"{expected}."
        )
    if query == "-":
        data = sys.stdin.buffer.read()
    else:
        data = documents.read(query) if is_file else query.encode("utf-8", "surrogateescape")
    documents.check("the query", data)
    if not data.strip():
        raise UsageError("the query is empty. Type a text, or name a text file.")
    return data.decode()


def _is_text_file(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(1) not in (b">", fasta.GZIP[:1])


def _load_vectors(path: str) -> tuple[list[str], NDArray[Any]]:
    try:
        vectors = np.atleast_2d(np.load(path))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as an array ({error}). Write it with np.save."
        ) from error
    if vectors.ndim != 2:
        raise UsageError(f"{path}: has {vectors.ndim} dimensions, not (queries, width).")
    return [str(number) for number in range(len(vectors))], vectors


def _embed_text(store: Store, text: str, weights: str | None) -> NDArray[Any]:
    """Embed a text with the model and options of the store."""
    model = _find_model(store, weights)
    return Encoder.from_options(model, _query_options(store, model)).encode([text])


def _query_options(store: Store, model: str) -> dict[str, Any]:
    """Return the options of a query: the store's, but with the model's prompt for queries.

    As in sentence-transformers, a model may have one prompt for queries and another, or none, for
    documents.
    """
    options, convention = store.space.options(), store.space.pooled
    sentences = modules_json.read(hub.find(model).folder)
    prompts = sentences.prompts if sentences else {}
    documents_have = {"", *(prompts[name] for name in DOCUMENT_PROMPTS if name in prompts)}
    if "query" in prompts and convention.prefix in documents_have:
        convention = replace(convention, prefix=prompts["query"])
    return options | {"convention": convention.encode()}


def _embed_fasta(store: Store, path: str, weights: str | None) -> tuple[list[str], NDArray[Any]]:
    """Embed a file with the model and options of the store."""
    options = {option.name: option.default for option in OPTIONS}
    options |= store.space.options() | {"convention": store.space.pooled.encode()}
    options |= {"model": _find_model(store, weights), "format": "safetensors"}
    with tempfile.TemporaryDirectory(prefix="fsqueue-query-") as folder, _no_default_store():
        out = f"{folder}/query.safetensors"
        embed_file(path, out, options, progress=lambda _done, _total: None, warn=lambda _line: None)
        table = claim_file.read(out)
    return table.ids, table.rows


@contextmanager
def _no_default_store() -> Iterator[None]:
    """Hide FSQUEUE_STORE, because queries are not stored."""
    hidden = {k: v for k, v in os.environ.items() if k == "FSQUEUE_STORE"}
    os.environ.pop("FSQUEUE_STORE", None)
    try:
        yield
    finally:
        os.environ.update(hidden)


def _find_model(store: Store, weights: str | None) -> str:
    """Return the store's model as `hub.find` takes it. Raises UsageError if it is another model."""
    space = store.space
    if hub.ADAPTED in space.weights:
        raise UsageError(
            f"{os.path.basename(store.view.directory)}: was filled by a model with an adapter, so "
            f"a query cannot be embedded here. Embed it with --adapter, and search for the vectors "
            f"as a .npy file."
        )
    name = weights or space.folder or f"{space.model}@{space.weights.removeprefix('commit:')}"
    found = hub.find(name)
    same = hub.content(found) == space.content if space.content else found.weights == space.weights
    if not same:
        raise UsageError(
            f"{name}: has the weights {found.weights}, but the vectors of this store were computed "
            f"with {space.weights}, and cannot be compared. Name the same model: --weights MODEL"
        )
    return name
