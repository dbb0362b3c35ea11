"""The options of `fsqueue plan embed`, most of which `fsqueue embed file` has, too.

Imported by the command line for every `--help`, so it imports nothing heavy.
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
    Option("pooling", "mean", "how a sequence's tokens become its vector", tuple(POOLINGS)),
    Option(
        "long",
        None,
        "what to do with longer sequences; default: window for DNABERT, else truncate",
        LONG,
    ),  # fmt: skip
    Option(
        "max_residues",
        0,
        "longest sequence; 0: 1022 for ESM-2 as in extract.py, 10000 for DNABERT, else the model's",
    ),
    Option("text", False, "inputs are documents in UTF-8; one row for each chunk"),
    Option("chunk_size", CHUNK_SIZE, "tokens in a chunk, at most as many as the model takes"),
    Option("chunk_overlap", 32, "tokens repeated from the chunk before, at most half of a chunk"),
    Option("tokens_per_batch", 4096, "tokens computed together; halved when memory runs out"),
    Option("threads", 1, "CPU threads of a worker without a GPU; the last digits depend on it"),
    Option("checkpoint_seconds", 60, "interval between checkpoints of a long claim"),
    Option("store", None, "directory of vectors to reuse and add to; nothing is computed twice"),
    Option("collection", "default", "collection of the store"),
    Option(
        "store_dtype",
        "float32",
        "precision of stored vectors; float16 halves the size, and rounds",
        ("float32", "float16"),
    ),
    Option("format", "safetensors", "format of the merged file", FORMATS),
)
