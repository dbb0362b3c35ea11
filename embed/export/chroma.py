"""Export to a Chroma collection, in a directory or on a server. The only door to chromadb.

A collection compares by cosine, as a store does. Chroma then keeps unit vectors, and multiplies
them by their lengths when they are read: they are exact to the last digit but one of a float32.
Metadata are collection, input, record, length and model; what was embedded, if that was text, is
the document, and its metadata have `begin`. Which ids exist is queried from the database.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from embed.export.target import Origin, Target, library_errors, missing_library
from embed.store.keys import KEY, Keys, difference, from_hexadecimal, hexadecimal
from embed.store.scan import Batch
from fsqueue import UsageError

SPACE_METADATA: Final = "fsqueue_space"
PORT: Final = 8000
"""A Chroma server's default."""


class Chroma(Target):
    """One collection of a Chroma database."""

    def __init__(self, target: str, origin: Origin) -> None:
        try:
            import chromadb
        except ImportError as error:
            raise missing_library("chroma", error) from error
        self._chromadb, self._target, self._origin = chromadb, target, origin
        self._client: Any = None

    def missing(self, keys: Keys) -> Keys:
        """Query the ids, many at a time, if the collection exists."""
        if not self._is_url() and not os.path.exists(self._target):
            return keys
        with library_errors("Chroma", self._target):
            self._client = self._connect()
            try:
                found = self._client.get_collection(self._origin.name, embedding_function=None)
            except self._chromadb.errors.NotFoundError:
                return keys
            self._check(found)
            if not found.count():
                return keys
            return difference(keys, self._existing(found, keys))

    def _existing(self, collection: Any, keys: Keys) -> Keys:
        step = self._client.get_max_batch_size()
        parts = [np.empty(0, KEY)]
        for begin in range(0, len(keys), step):
            ids = hexadecimal(keys[begin : begin + step])
            parts.append(from_hexadecimal(collection.get(ids=ids, include=[])["ids"]))
        return np.unique(np.concatenate(parts))

    def add(self, batches: Callable[[], Iterator[Batch]], count: int) -> None:
        """Add records; after a crash the next export adds the rest."""
        with library_errors("Chroma", self._target):
            self._client = self._client or self._connect()
            collection = self._client.get_or_create_collection(
                self._origin.name,
                embedding_function=None,
                configuration={"hnsw": {"space": "cosine"}},
                metadata={
                    SPACE_METADATA: self._origin.space.name,
                    "model": self._origin.space.model,
                },
            )
            self._check(collection)
            step = self._client.get_max_batch_size()
            for batch in batches():
                for begin in range(0, len(batch.hits), step):
                    hits = batch.hits[begin : begin + step]
                    collection.add(
                        ids=[hit.id for hit in hits],
                        embeddings=batch.vectors[begin : begin + step],
                        metadatas=[self._origin.metadata(hit) for hit in hits],
                        documents=[hit.text for hit in hits] if any(h.text for h in hits) else None,
                    )

    def _check(self, collection: Any) -> None:
        found = (collection.metadata or {}).get(SPACE_METADATA)
        if found != self._origin.space.name:
            raise UsageError(
                f"{self._target}: its collection {self._origin.name} belongs to "
                f"{found or 'another program'}, not to {self._origin.space.name}. Choose another "
                f"name: --name NAME"
            )

    def _is_url(self) -> bool:
        return self._target.startswith(("http://", "https://"))

    def _connect(self) -> Any:
        settings = self._chromadb.config.Settings(anonymized_telemetry=False)
        if not self._is_url():
            return self._chromadb.PersistentClient(self._target, settings=settings)
        url = urlsplit(self._target)
        secure = url.scheme == "https"
        return self._chromadb.HttpClient(
            host=url.hostname or "",
            port=url.port or (443 if secure else PORT),
            ssl=secure,
            settings=settings,
        )
