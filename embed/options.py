"""The options of `fsqueue plan embed`, most of which `fsqueue embed file` has, too.

Imported by the command line for every `--help`, so it imports nothing heavy.
"""

from __future__ import annotations

from typing import Final

from fsqueue import Option

POOLINGS: Final = ("mean", "mean-all", "cls", "max", "last", "per-token")
LONG: Final = ("truncate", "window", "fail")
SCORES: Final = ("one-pass", "masked")
FORMATS: Final = ("safetensors", "npz", "h5", "parquet", "esm", "virnucpro")
VIRNUCPRO_ROWS_MAX: Final = 100_000
"""A file for VirNucPro is written and read in memory: up to 25 kB for each row."""
CHUNK_SIZE: Final = 512
AUTO: Final = "auto"
DTYPE_TAGS: Final = {"float32": "", "tf32": "-tf32", "bfloat16": "-bf16", "float16": "-f16"}

OPTIONS: Final = (
    Option(
        "model",
        None,
        "ESM-2, DNABERT or another encoder: a folder, or a hub id[@revision].",
        required=True,
    ),
    Option("adapter", None, "A LoRA adapter, as peft saves it: a folder. Merged into the model."),
    Option(
        "dtype",
        "float32",
        "Precision; auto: the fastest of all GPUs of the plan. tf32: float32 whose products "
        "are faster and less exact on GPUs from Ampere on. float16 is slow on most CPUs.",
        (*DTYPE_TAGS, AUTO),
    ),
    Option(
        "pooling",
        None,
        "How a sequence's tokens become its vector; mean and max leave special tokens out. "
        "Default: as the model's modules.json says, or its users do; the plan prints it.",
        tuple(POOLINGS),
    ),
    Option(
        "layers",
        None,
        "Layers to pool: 0,6,33 (concatenated) or mean:-4..-1 (averaged); 0 is the embeddings. "
        "Default: the last.",
    ),
    Option(
        "normalize", None, "Divide every vector by its length. Default: as the model.", switch=True
    ),
    Option("prefix", None, "Text to put before every input, such as 'query: '."),
    Option("prompt", None, "The same by its name, for models that have named prompts: query."),
    Option(
        "long",
        None,
        "What to do with sequences that are too long. Default: window for DNABERT, else truncate.",
        LONG,
    ),
    Option(
        "max_residues",
        0,
        "Longest sequence. 0: 1022 for ESM-2 as in extract.py, 10000 for DNABERT, else the "
        "model's own limit.",
    ),
    Option(
        "overlap",
        0,
        "How many residues, or tokens, windows of --long window have in common, at most half of "
        "one. 0: windows of equal length.",
    ),
    Option(
        "scores",
        None,
        "Also write each sequence's pseudo-log-likelihood: one-pass, or masked (as many passes as "
        "it has tokens). For models with a masked-LM head.",
        SCORES,
    ),
    Option("text", False, "Inputs are documents in UTF-8; each chunk gives a row."),
    Option("chunk_size", CHUNK_SIZE, "Tokens in a chunk, at most as many as the model takes."),
    Option("chunk_overlap", 32, "Tokens repeated from the chunk before, at most half a chunk."),
    Option("tokens_per_batch", 4096, "Tokens computed and saved together; GPUs join several."),
    Option(
        "deterministic",
        False,
        "Never join batches on a GPU, so that equal GPUs give equal bytes.",
    ),
    Option("threads", 1, "CPU threads of a worker without a GPU; last digits depend on it."),
    Option("checkpoint_seconds", 60, "Interval between checkpoints of a long claim."),
    Option("store", None, "Directory of vectors to reuse and add to; nothing is computed twice."),
    Option("collection", "default", "Collection of the store."),
    Option(
        "store_dtype",
        "float32",
        "Precision of stored vectors; float16 halves the size, and rounds.",
        ("float32", "float16"),
    ),
    Option("format", "safetensors", "Format of the merged file.", FORMATS),
    Option(
        "output_dtype",
        "float32",
        "Precision of the merged file; float16 halves it, and rounds.",
        ("float32", "float16"),
    ),
)
