"""The options of `fsqueue plan embed`, and of `fsqueue embed file`, which has them all.

Imported by the command line for every `--help`: it imports nothing heavy.
"""

from __future__ import annotations

from typing import Final

from fsqueue import Option

POOLINGS: Final = ("mean", "cls", "max", "per-token")
LONG: Final = ("truncate", "window", "fail")
FORMATS: Final = ("safetensors", "npz", "h5", "parquet", "virnucpro")
CHUNK_SIZE: Final = 512
DTYPE_TAGS: Final = {"float32": "", "bfloat16": "-bf16", "float16": "-f16"}

OPTIONS: Final = (
    Option(
        "model",
        None,
        "ESM-2, DNABERT or another encoder: a folder, or a hub id[@revision]",
        required=True,
    ),
    Option("dtype", "float32", "precision; float16 is slow on most CPUs", tuple(DTYPE_TAGS)),
    Option("pooling", "mean", "what is kept of a sequence's tokens", tuple(POOLINGS)),
    Option("long", None, "longer sequences; default: DNABERT window, others truncate", LONG),
    Option(
        "max_residues",
        0,
        "what is longer; 0: 1022 for ESM-2 as extract.py, 10000 for DNABERT, others' own",
    ),
    Option("text", False, "inputs are documents in UTF-8; a row for each chunk"),
    Option("chunk_size", CHUNK_SIZE, "tokens of a chunk; fewer where the model takes fewer"),
    Option("chunk_overlap", 32, "tokens that a chunk repeats, about; half of it at most"),
    Option("tokens_per_batch", 4096, "tokens computed together; halved where memory runs out"),
    Option("threads", 1, "threads of a worker without a GPU; the last digits depend on it"),
    Option("checkpoint_seconds", 60, "how often a long claim saves what it has"),
    Option("store", None, "a directory of vectors to take from and add to; nothing is done twice"),
    Option("collection", "default", "which of the store's collections"),
    Option(
        "store_dtype",
        "float32",
        "how the store keeps them; float16 halves it, and rounds",
        ("float32", "float16"),
    ),
    Option("format", "safetensors", "what `fsqueue embed merge` writes of it", FORMATS),
)
