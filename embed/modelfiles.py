"""Look at a model's folder, as `save_pretrained` writes it, without loading anything.

Answers whether it is an ESM-2, whether its files are whole, and which bytes it is made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import Any

from embed.residues import VOCABULARY
from fsqueue import UsageError


def inspect(folder: str) -> int:
    """Return the width of the ESM-2 in `folder`.

    Raises UsageError if it is none, or if a file is missing or cut short.
    """
    config = _json(f"{folder}/config.json")
    kind = config.get("model_type")
    if kind != "esm":
        raise UsageError(
            f"{folder}: is a model of type {kind!r}; embed takes ESM-2 (type 'esm'), for example "
            f"facebook/esm2_t6_8M_UR50D."
        )
    if config.get("position_embedding_type") != "rotary" or config.get("is_folding_model"):
        raise UsageError(
            f"{folder}: is an ESM-1 or ESMFold, not an ESM-2 (rotary positions, no folding head). "
            f"Give one of the esm2_t* models."
        )
    if config.get("vocab_size") != len(VOCABULARY) or not _vocabulary_agrees(folder):
        raise UsageError(
            f"{folder}: its vocabulary is not that of ESM-2 (33 tokens), so residues would be "
            f"misread. Give one of the esm2_t* models, or one fine-tuned from them."
        )
    for path in weight_files(folder):
        _check_whole(path)
    return int(config["hidden_size"])


def weight_files(folder: str) -> list[str]:
    """Return the safetensors files that hold the weights."""
    single, index = f"{folder}/model.safetensors", f"{folder}/model.safetensors.index.json"
    if os.path.isfile(single):
        return [single]
    if os.path.isfile(index):
        return [f"{folder}/{name}" for name in sorted(set(_json(index)["weight_map"].values()))]
    raise UsageError(
        f"{folder}: holds no model.safetensors. If it has pytorch_model.bin, convert that: "
        f"python -c \"from transformers import EsmModel; EsmModel.from_pretrained('{folder}', "
        f"add_pooling_layer=False).save_pretrained('NEW')\", then --model NEW"
    )


def _vocabulary_agrees(folder: str) -> bool:
    path = f"{folder}/vocab.txt"
    if not os.path.exists(path):
        return True  # a folder may hold the model without its tokenizer
    with open(path, encoding="utf-8") as file:
        return file.read().split() == VOCABULARY


def _check_whole(path: str) -> None:
    """Compare a safetensors file's size with what its header promises."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
            size = os.fstat(file.fileno()).st_size
        ends = [tensor["data_offsets"][1] for tensor in _tensors(header)]
        whole = size == 8 + length + max(ends)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        whole = False
    if not whole:
        raise UsageError(
            f"{path}: is missing, cut short or no safetensors file; an interrupted copy or "
            f"download does that. Fetch the model again."
        )


def _tensors(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for name, value in header.items() if name != "__metadata__"]


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as JSON ({error}); the folder holds no model, or only part of "
            f"one. Give a folder as save_pretrained writes it."
        ) from error
    return data if isinstance(data, dict) else {}


def hash_files(folder: str) -> str:
    """Return a hash over the configuration and the weights."""
    total = hashlib.sha256()
    for path in [f"{folder}/config.json", *weight_files(folder)]:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
