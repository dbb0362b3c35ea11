"""Name a run of a document's chunks so that a worker embeds exactly what was planned.

A passage is the document's path, the digest of its bytes, the number of its first chunk, and from
where to where each chunk goes, in characters. Where chunks begin is found out once, by whoever
plans; so neither another machine's tokenizer nor how a document was divided among claims can move
them. A chunk is called after the document's file and its number, from 1: `guide.md#3`.

What this module does not know: tokens and models.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.inputs import documents
from embed.inputs.fasta import Record
from embed.inputs.segments import changed, unreadable


@dataclass(frozen=True, slots=True)
class Chunk(Record):
    """A chunk of a document: as a record, its letters are its bytes."""

    text: str
    begin: int
    """The character of the document at which it begins."""


def chunks_of(
    name: str, text: str, places: Iterable[tuple[int, int]], first: int = 0
) -> Iterator[Chunk]:
    """Yield chunks of a document, from and to these characters; `first` is the number before."""
    for number, (begin, end) in enumerate(places, first + 1):
        part = text[begin:end]
        yield Chunk(f"{name}#{number}", part.encode(), part, begin)


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Consecutive chunks of one document; what a claim's payload holds."""

    path: str
    digest: str
    start: int
    """How many chunks come before."""
    places: tuple[tuple[int, int], ...]

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> ChunkRange:
        places = tuple((begin, end) for begin, end in data["places"])
        return cls(data["path"], data["digest"], data["start"], places)

    def encode(self) -> dict[str, Any]:
        """Return it as JSON; `start` and `lengths` tell its part, as of a file's blocks."""
        counts = {"lengths": [self.sequences], "sequences": self.sequences}
        return {**self.identity(), **counts, "places": list(self.places)}

    def identity(self) -> dict[str, Any]:
        """Return what tells this passage from every other that is cut in the same way."""
        span = {"start": self.start, "chunks": self.sequences}
        return {"path": self.path, "digest": self.digest, **span}

    @property
    def sequences(self) -> int:
        return len(self.places)

    def verify(self) -> None:
        """Read the document once, for its digest alone. Raises as `records` does."""
        self._read()

    def records(self) -> Iterator[Chunk]:
        """Yield the chunks. Raises ClaimImpossible if the document changed, ClaimFailed if it
        cannot be read here."""
        yield from chunks_of(
            os.path.basename(self.path), self._read().decode(), self.places, self.start
        )

    def _read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                data = file.read(documents.BYTES_MAX + 1)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if digest_of(data) != self.digest:
            raise changed(self.path)
        return data


def digest_of(data: bytes) -> str:
    """Return what tells a document's content."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Cut:
    """A document cut into chunks: as `Scan`, one block for each."""

    path: str
    blocks: NDArray[np.void]
    digest: str

    def total(self, name: str) -> int:
        """Return the sum of one of BLOCK's counts over the document."""
        return int(self.blocks[name].sum())

    def segment(self, blocks: NDArray[np.void]) -> ChunkRange:
        """Return the passage that these consecutive rows of `blocks` make."""
        start = int(blocks["number"][0]) if len(blocks) else 0
        places = zip(blocks["begin"].tolist(), blocks["end"].tolist(), strict=True)
        return ChunkRange(self.path, self.digest, start, tuple(places))


BLOCK = np.dtype(
    [(name, np.int64) for name in ("number", "begin", "end", "tokens")]
    + [(name, np.int64) for name in ("sequences", "residues", "longest", "cost")]
)
"""A chunk: what it is, and what planning adds up of it. Its residues are characters."""
