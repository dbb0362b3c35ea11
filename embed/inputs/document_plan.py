"""Plan documents: check what was asked, cut a document into chunks, say what they cost.

Chunks are counted with the model's own tokenizer, which is loaded for that; the model is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from embed.inputs import documents
from embed.inputs.chunk_ranges import BLOCK, Cut, digest_of
from embed.inputs.chunks import TOKENS_MIN, spans
from embed.models.cost import Estimate
from embed.models.families import Tokens
from embed.models.generic.tokens import GenericTokens
from embed.options import CHUNK_SIZE
from fsqueue import Source, UsageError

NAMES: Final = ("text", "chunk_size", "chunk_overlap")


def without(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a plan of sequences, which say nothing of texts."""
    if options.get("chunk_size", CHUNK_SIZE) != CHUNK_SIZE:
        raise UsageError("--chunk-size says how documents are cut; add --text.")
    return {name: value for name, value in options.items() if name not in NAMES}


def prepared(options: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    """Return what a plan of documents says of their chunks, as it will be. Raises UsageError."""
    reader = _reader(options, tokens)
    asked, overlap = options["chunk_size"], options["chunk_overlap"]
    size = min(asked, options["max_residues"] - sum(reader.edges))
    if size < TOKENS_MIN or overlap < 0:
        raise UsageError(
            f"--chunk-size {asked}, --chunk-overlap {overlap}: a chunk has {TOKENS_MIN} tokens or "
            f"more, and an overlap is not below 0. {options['model']} reads "
            f"{options['max_residues']} at once."
        )
    return {"text": True, "chunk_size": size, "chunk_overlap": min(overlap, size // 2)}


def reads_text(tokens: Tokens) -> bool:
    """Say whether these are tokens of texts, not of residues or bases."""
    return isinstance(tokens, GenericTokens) and tokens.reads_text


def _reader(options: Mapping[str, Any], tokens: Tokens) -> GenericTokens:
    if reads_text(tokens):
        assert isinstance(tokens, GenericTokens)
        return tokens
    raise UsageError(
        f"--text: {options['model']} reads residues or bases, not text. Give a model of sentences, "
        f"or plan its FASTA files without --text."
    )


def survey(path: str, options: Mapping[str, Any], tokens: Tokens, estimate: Estimate) -> Source:
    """Cut a document. Raises BadInput."""
    found = cut(path, documents.read(path), options, tokens, estimate)
    key = hashlib.sha256(f"{path}\n{found.digest}".encode("utf-8", "surrogateescape")).hexdigest()
    measures = {"sequences": len(found.blocks), "characters": found.total("residues")}
    notes = []
    if not len(found.blocks):
        notes.append(f"{path}: holds no text; its claim will give an empty table.")
    return Source(path, key, found.total("cost"), measures, notes, found)


def cut(
    path: str, data: bytes, options: Mapping[str, Any], tokens: Tokens, estimate: Estimate
) -> Cut:
    """Return a document's chunks."""
    reader, size = _reader(options, tokens), options["chunk_size"]
    found = list(spans(data.decode(), reader.places, size, options["chunk_overlap"]))
    blocks = np.zeros(len(found), BLOCK)
    if found:
        table = np.array(found, np.int64)
        begins, ends, counts = table.T
        blocks["number"] = np.arange(len(found))
        blocks["begin"], blocks["end"], blocks["tokens"] = begins, ends, counts
        blocks["sequences"] = 1
        blocks["residues"] = blocks["longest"] = ends - begins
        blocks["cost"] = replace(estimate, tokens_per_residue=1.0).costs(counts)
    return Cut(path, blocks, digest_of(data))
