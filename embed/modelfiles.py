"""Look at a model's folder, as its publisher ships it, without loading anything.

Answers whether it is an ESM-2 or a DNABERT, whether its files are whole, and which bytes it is made
of.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from typing import Any, Final

from embed.dnabert_shape import Shape
from embed.residues import VOCABULARY
from fsqueue import UsageError

PICKLED: Final = "pytorch_model.bin"


def inspect(folder: str) -> tuple[str, int]:
    """Return the family and the width of the model in `folder`.

    Raises UsageError if it is of neither family, or if a file is missing or cut short.
    """
    config = _json(f"{folder}/config.json")
    if _is_dnabert(config):
        width = _inspect_dnabert(folder)
        family = "dnabert"
    else:
        width = _inspect_esm(folder, config)
        family = "esm2"
    for path in weight_files(folder):
        _check_whole(path)
    return family, width


def config(folder: str) -> dict[str, Any]:
    """Return what config.json says of a model. Raises UsageError if it cannot be read."""
    return _json(f"{folder}/config.json")


def _is_dnabert(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "bert" and "alibi_starting_size" in config


def _inspect_dnabert(folder: str) -> int:
    if not os.path.isfile(f"{folder}/tokenizer.json"):
        raise UsageError(
            f"{folder}/tokenizer.json: is missing, and DNABERT reads DNA by it. Fetch the model "
            f"again; it is among its files."
        )
    return Shape.read(folder).width


def _inspect_esm(folder: str, config: dict[str, Any]) -> int:
    kind = config.get("model_type")
    if kind != "esm":
        raise UsageError(
            f"{folder}: is a model of type {kind!r}; embed takes ESM-2 (type 'esm'), for example "
            f"facebook/esm2_t6_8M_UR50D, and DNABERT, for example zhihan1996/DNABERT-S."
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
    return int(config["hidden_size"])


def weight_files(folder: str) -> list[str]:
    """Return the files that hold the weights: safetensors, or what DNABERT ships instead."""
    single, index = f"{folder}/model.safetensors", f"{folder}/model.safetensors.index.json"
    if os.path.isfile(single):
        return [single]
    if os.path.isfile(index):
        return [f"{folder}/{name}" for name in sorted(set(_json(index)["weight_map"].values()))]
    if os.path.isfile(f"{folder}/{PICKLED}") and _is_dnabert(_json(f"{folder}/config.json")):
        return [f"{folder}/{PICKLED}"]
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
    """Compare a safetensors file's size with what its header promises; a zip file ends in its
    directory."""
    try:
        is_whole = zipfile.is_zipfile if path.endswith(PICKLED) else _is_whole_safetensors
        whole = is_whole(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        whole = False
    if not whole:
        raise UsageError(
            f"{path}: is missing, cut short or no file of weights; an interrupted copy or "
            f"download does that. Fetch the model again."
        )


def _is_whole_safetensors(path: str) -> bool:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, 100_000_000)))
        size = os.fstat(file.fileno()).st_size
    ends = [tensor["data_offsets"][1] for tensor in _tensors(header)]
    return bool(size == 8 + length + max(ends))


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
    """Return a hash over the configuration, the weights, and DNABERT's vocabulary."""
    total = hashlib.sha256()
    names = ["config.json"]
    if _is_dnabert(_json(f"{folder}/config.json")):
        names.append("tokenizer.json")
    for path in [*(f"{folder}/{name}" for name in names), *weight_files(folder)]:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
