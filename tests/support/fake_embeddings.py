"""Pools of embeddings with made-up numbers, for tests of what follows without loading a model.

Planning, claims and outputs are the real ones. A row depends only on its id and sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embed.handlers.embed import Embed
from embed.inputs.claims import read_records, segments_of
from embed.models.esm2.tokenizer import EsmTokenizer
from embed.models.families import Tokenizer
from embed.outputs import claim_file
from fsqueue import Work
from fsqueue.pool.settings import PoolDirectory
from tests.support.planning import plan
from tests.support.pools import work_until_done

MODELS: dict[str, dict[str, Any]] = {
    "esm2": {"model": "tiny_esm2", "family": "esm2", "width": 5, "weights": "sha256:e"},
    "dnabert": {"model": "tiny_dna", "family": "dnabert", "width": 3, "weights": "sha256:d"},
}
SHAPE = {"layers": 1, "width": 8, "inner": 16, "heads": 1, "gated": False}
COMMON = {
    "shape": SHAPE,
    "dtype": "float32",
    "pooling": "mean",
    "long": "truncate",
    "max_residues": 1022,
}


def row(id: str, residues: bytes, width: int) -> np.ndarray:
    """Return the vector of a sequence."""
    digest = hashlib.sha256(id.encode() + b"\n" + residues).digest()
    return np.frombuffer(digest[: 4 * width], "<u4").astype(np.float32) / 2**32


def token_rows(id: str, residues: bytes, width: int) -> np.ndarray:
    """Return a row for each letter of a sequence."""
    rows = [row(f"{id} {n}", residues, width) for n in range(len(residues))]
    return np.array(rows, np.float32).reshape(-1, width)


def rows_of(sequences: Mapping[str, str], width: int) -> np.ndarray:
    """Return the vectors of sequences, in order."""
    rows = [row(id, residues.encode(), width) for id, residues in sequences.items()]
    return np.array(rows, np.float32).reshape(len(rows), width)


class FakeEmbed(Embed):
    """The embed handler with made-up numbers."""

    name = "embed"

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**COMMON, **options}

    def tokenizer(self, options: Mapping[str, Any]) -> Tokenizer:
        return EsmTokenizer()

    def run(self, work: Work) -> None:
        ids, rows, lengths = [], [], []
        is_ragged = work.options["pooling"] == "per-token"
        make = token_rows if is_ragged else row
        for record in read_records(segments_of(work.payload)):
            ids.append(record.id)
            lengths.append(len(record.residues))
            rows.append(make(record.id, record.residues, work.options["width"]))
        flat = [np.empty(0, np.float32), *(each.ravel() for each in rows)]
        table = np.concatenate(flat).reshape(-1, work.options["width"])
        metadata: Mapping[str, Any] = {
            "model": work.options["model"],
            "weights": work.options["weights"],
            "pooling": work.options["pooling"],
            "counts": {"sequences": len(ids)},
            "versions": {},
        }
        offsets = {"offsets": np.cumsum([0, *lengths], dtype=np.int64)} if is_ragged else {}
        claim_file.write(work.output, ids, table, metadata, offsets)


def fasta(path: Path, sequences: Mapping[str, str] | list[tuple[str, str]]) -> Path:
    """Write a FASTA file."""
    pairs = sequences.items() if isinstance(sequences, Mapping) else sequences
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{id}\n{residues}\n" for id, residues in pairs))
    return path


def proteins(count: int, seed: int = 0, length: int = 400) -> dict[str, str]:
    """Return sequences long enough that a file of a few dozen is divided into several claims."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    return {f"p{seed}_{n}": "".join(rng.choice(letters, length)) for n in range(count)}


def plan_embeddings(
    root: Path, inputs: list[Path], family: str = "esm2", **options: Any
) -> PoolDirectory:
    """Plan inputs for a model, over two spools so that large files are divided."""
    chosen = {**MODELS[family], **options}
    pool, outcome = plan(root, FakeEmbed(), inputs, chosen, spools=("cpu0", "cpu1"))
    assert not outcome.bad, outcome.bad
    return pool


def embed_all(
    root: Path, inputs: list[Path], family: str = "esm2", **options: Any
) -> PoolDirectory:
    """Plan inputs, and do every claim."""
    pool = plan_embeddings(root, inputs, family, **options)
    work_until_done(pool, handler=FakeEmbed())
    return pool
