"""Plan the chunks of documents, and name a run of them so that a worker embeds exactly those.

A document is cut once, by the planner, with the model's own tokenizer (the model is not loaded). A
`ChunkRange` in a claim is the document's path, the digest of its bytes, the number of its first
chunk, and the range of characters of each chunk. So neither another machine's tokenizer nor how a
document was divided among claims can move the cuts. A chunk's id is the document's file name and
its number, from 1: `guide.md#3`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.inputs import documents
from embed.inputs.chunking import TOKENS_MIN, chunk_spans
from embed.inputs.fasta import Record
from embed.inputs.segments import changed, unreadable
from embed.models.cost import Estimate
from embed.models.families import Tokenizer
from embed.models.generic.tokenizer import GenericTokenizer
from embed.options import CHUNK_SIZE
from fsqueue import Source, UsageError

TEXT_OPTIONS: Final = ("text", "chunk_size", "chunk_overlap")

BLOCK: Final = np.dtype(
    [(name, np.int64) for name in ("number", "begin", "end", "tokens")]
    + [(name, np.int64) for name in ("sequences", "residues", "longest", "cost")]
)
"""One chunk: its place, and the counts that planning adds up. Its residues are characters."""


@dataclass(frozen=True, slots=True)
class Chunk(Record):
    """A chunk of a document; as a record, its residues are its bytes."""

    text: str
    begin: int
    """Its first character in the document."""


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Consecutive chunks of one document, as a claim's payload holds them."""

    path: str
    digest: str
    start: int
    """The number of chunks before."""
    spans: tuple[tuple[int, int], ...]
    """The range of characters of each chunk."""

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> ChunkRange:
        """Return the range that `encode` wrote."""
        spans = tuple((begin, end) for begin, end in data["places"])
        return cls(data["path"], data["digest"], data["start"], spans)

    def encode(self) -> dict[str, Any]:
        """Return it as JSON; `start` and `lengths` count chunks, not bytes as in a segment."""
        counts = {"lengths": [self.sequences], "sequences": self.sequences}
        return {**self.identity(), **counts, "places": list(self.spans)}

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this range from every other that is cut in the same way."""
        chunks = {"start": self.start, "chunks": self.sequences}
        return {"path": self.path, "digest": self.digest, **chunks}

    @property
    def sequences(self) -> int:
        return len(self.spans)

    def verify(self) -> None:
        """Read the document once, only to check its digest. Raises as `records` does."""
        self._read()

    def records(self) -> Iterator[Chunk]:
        """Yield the chunks.

        Raises ClaimImpossible if the document changed, ClaimFailed if it cannot be read here.
        """
        text = self._read().decode()
        yield from cut_chunks(os.path.basename(self.path), text, self.spans, self.start)

    def _read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                data = file.read(documents.BYTES_MAX + 1)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if digest_of(data) != self.digest:
            raise changed(self.path)
        return data


def cut_chunks(
    name: str, text: str, spans: Iterable[tuple[int, int]], start: int = 0
) -> Iterator[Chunk]:
    """Yield the chunks of a document in these ranges of characters; `start` chunks come before."""
    for number, (begin, end) in enumerate(spans, start + 1):
        part = text[begin:end]
        yield Chunk(f"{name}#{number}", part.encode(), part, begin)


def digest_of(data: bytes) -> str:
    """Return the digest of a document's content."""
    return hashlib.sha256(data).hexdigest()


# ---- planning ----


@dataclass(frozen=True, slots=True)
class ChunkedDocument:
    """A document cut into chunks; like a `Scan` of a FASTA file, with a block for each chunk."""

    path: str
    blocks: NDArray[np.void]
    digest: str

    def total(self, name: str) -> int:
        """Return the sum of one of BLOCK's counts over the document."""
        return int(self.blocks[name].sum())

    def segment(self, blocks: NDArray[np.void]) -> ChunkRange:
        """Return the range of these consecutive rows of `blocks`."""
        start = int(blocks["number"][0]) if len(blocks) else 0
        spans = zip(blocks["begin"].tolist(), blocks["end"].tolist(), strict=True)
        return ChunkRange(self.path, self.digest, start, tuple(spans))


def drop_text_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a plan of sequences, which has none of documents."""
    if options.get("chunk_size", CHUNK_SIZE) != CHUNK_SIZE:
        raise UsageError("--chunk-size applies to documents only; add --text.")
    return {name: value for name, value in options.items() if name not in TEXT_OPTIONS}


def text_options(options: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the options of a plan of documents, within the model's limits. Raises UsageError."""
    tokenizer = _text_tokenizer(options, tokenizer)
    requested, overlap = options["chunk_size"], options["chunk_overlap"]
    reserved = sum(tokenizer.edges) + tokenizer.prefix_tokens
    size = min(requested, options["max_residues"] - reserved)
    if size < TOKENS_MIN or overlap < 0:
        raise UsageError(
            f"--chunk-size {requested}, --chunk-overlap {overlap}: a chunk must have at least "
            f"{TOKENS_MIN} tokens, and an overlap must not be negative. {options['model']} reads "
            f"{options['max_residues']} tokens at once."
        )
    return {"text": True, "chunk_size": size, "chunk_overlap": min(overlap, size // 2)}


def reads_text(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is one of texts, not of residues or bases."""
    return isinstance(tokenizer, GenericTokenizer) and tokenizer.reads_text


def _text_tokenizer(options: Mapping[str, Any], tokenizer: Tokenizer) -> GenericTokenizer:
    if isinstance(tokenizer, GenericTokenizer) and tokenizer.reads_text:
        return tokenizer
    raise UsageError(
        f"--text: {options['model']} reads residues or bases, not text. Give a text model, or plan "
        f"FASTA files without --text."
    )


def survey_document(
    path: str, options: Mapping[str, Any], tokenizer: Tokenizer, estimate: Estimate
) -> Source:
    """Read a document and cut it into chunks. Raises BadInput."""
    found = chunk_document(path, documents.read(path), options, tokenizer, estimate)
    key = hashlib.sha256(f"{path}\n{found.digest}".encode("utf-8", "surrogateescape")).hexdigest()
    measures = {"sequences": len(found.blocks), "characters": found.total("residues")}
    notes = []
    if not len(found.blocks):
        notes.append(f"{path}: contains no text; its claim will give an empty table.")
    return Source(path, key, found.total("cost"), measures, notes, found)


def chunk_document(
    path: str, data: bytes, options: Mapping[str, Any], tokenizer: Tokenizer, estimate: Estimate
) -> ChunkedDocument:
    """Cut a document into chunks."""
    offsets = _text_tokenizer(options, tokenizer).offsets
    spans = list(
        chunk_spans(data.decode(), offsets, options["chunk_size"], options["chunk_overlap"])
    )
    blocks = np.zeros(len(spans), BLOCK)
    if spans:
        begins, ends, tokens = np.array(spans, np.int64).T
        blocks["number"] = np.arange(len(spans))
        blocks["begin"], blocks["end"], blocks["tokens"] = begins, ends, tokens
        blocks["sequences"] = 1
        blocks["residues"] = blocks["longest"] = ends - begins
        blocks["cost"] = replace(estimate, tokens_per_residue=1.0).costs(tokens)
    return ChunkedDocument(path, blocks, digest_of(data))
