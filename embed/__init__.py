"""Embed protein sequences with ESM-2: the first real workload of fsqueue.

Reading order: `fasta`, `counting` and `scan` read files, `segments` pins parts of them, `planning`
cuts claims; `hub` finds a model, `modelfiles` inspects it, `models` loads it; `residues` and
`batching` prepare what `engine` runs and `pooling` condenses; `claim` does one claim with all of
these, `outputs` writes and reads its file; `handler` is what fsqueue calls.

    from embed import read
    table = read("pool/outputs/proteins-5c1f09ab33d2.safetensors")
    table.ids[0], table.rows[0]

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from embed.outputs import Embeddings, read

__all__ = ["Embeddings", "read"]
