"""Embed sequences with ESM-2, DNABERT and other encoders: fsqueue's first real workload.

    inputs/     FASTA files and documents: read, divided among claims, pinned by content
    models/     find, load and run the encoders, pool their states, estimate their cost
    engine/     batches on a device: tokenized, run, checked, assembled; models kept loaded
    outputs/    a claim's output file; tables of many of them, paired, merged, written as files
    store/      vectors kept across pools: written, reused, searched, compacted, verified
    export/     from a store to LanceDB, Chroma, faiss, or one file
    handlers/   what fsqueue calls: embed, ingest (rag_ingestion), compact
    cli/        fsqueue embed: one file for each command

    options              the options of `fsqueue plan embed`
    encoder              embed from Python, without a pool
    single_file, query   what the commands `file` and `search` do

Imports between these go one way (tests/test_architecture.py). The public names:

    from embed import Encoder, read
    table = read("pool/outputs/proteins-5c1f09ab33d2.safetensors")
    table.ids[0], table.rows[0]
    Encoder.load("facebook/esm2_t6_8M_UR50D").encode(["MKVLAAGIVGLC"])  # float32, (1, 320)

    from embed.store import Store

Importing this package imports nothing heavy, not even numpy: names are looked up when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from embed.encoder import Encoder
    from embed.outputs.claim_file import Embeddings, read

__all__ = ["Embeddings", "Encoder", "read"]

_MODULES: Final = {
    "Embeddings": "embed.outputs.claim_file",
    "Encoder": "embed.encoder",
    "read": "embed.outputs.claim_file",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
