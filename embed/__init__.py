"""Embed sequences with ESM-2, DNABERT and other encoders: the first real workload of fsqueue.

Reading order: `fasta`, `counting` and `scan` read files, `segments` pins parts of them, `planning`
cuts claims; `hub` finds a model, `modelfiles` inspects it, `families` knows the three kinds:
`models` and `residues` are ESM-2, `dnabert` and `dna_tokens` are DNABERT, and `auto` with
`auto_shape` and `auto_tokens` whatever else transformers has; `packed` is what the first two are
made of. `sequences` and `batching` prepare what `engine` runs and `pooling` condenses, `mending`
does again what overflowed, `assembly` puts all in its place; `claim` does one claim with all of
these, `outputs` writes and reads its file; `handler` is what fsqueue calls, `options` what is asked
of it. Of texts, `documents` reads files, `chunks` cuts them, `passages` pins the parts and `texts`
plans them. `cost` estimates claims, `resident` keeps models loaded, `selftest` shows that a device
computes rightly, `calibrate` how fast.

Afterwards `gathering` finds a pool's outputs, `tables`, `ragged` and `pairing` go through them,
`formats` and `virnucpro` write them, `merge` does all that. `prepare` makes inputs of contigs.
`onefile` and `encoder` do without a pool; `store` keeps what was ever computed, `tending` compacts
it by claims, `asking` embeds a question for it, `roads` takes it to other databases; `ingestion`
fills it with what a broadcast names, which `jobdata` checks; `cli` and `storecli` are the command
line.

    from embed import Encoder, read
    table = read("pool/outputs/proteins-5c1f09ab33d2.safetensors")
    table.ids[0], table.rows[0]
    Encoder.load("facebook/esm2_t6_8M_UR50D").encode(["MKVLAAGIVGLC"])  # float32, (1, 320)

Importing this package imports nothing heavy, not even numpy: a name is looked up when it is asked
for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed.encoder import Encoder
    from embed.outputs.claim_file import Embeddings, read

__all__ = ["Embeddings", "Encoder", "read"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


_HOMES = {
    "Embeddings": "embed.outputs.claim_file",
    "Encoder": "embed.encoder",
    "read": "embed.outputs.claim_file",
}
