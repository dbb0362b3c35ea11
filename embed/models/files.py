"""Look at a model's folder, as its publisher ships it, without loading anything.

Answers whether it is an ESM-2, a DNABERT or another model, whether its files are whole, and which
bytes it is made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, Final

from embed.models.dnabert import shape as dnabert_shape
from embed.models.esm2.tokens import VOCABULARY
from embed.models.generic import shape as generic_shape
from fsqueue import UsageError

PICKLED: Final = "pytorch_model.bin"
SAFE: Final = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a folder's files say of the model."""

    family: str
    width: int
    """Numbers per embedding."""
    longest: int = 0
    """Its longest input in tokens; 0 where the family knows."""


def inspect(folder: str) -> Facts:
    """Return what the model in `folder` is.

    Raises UsageError if it is nothing that can be loaded, or if a file is missing or cut short.
    """
    config = _json(f"{folder}/config.json")
    if _is_dnabert(config):
        facts = Facts("dnabert", _inspect_dnabert(folder))
    elif _is_esm2(folder, config):
        facts = Facts("esm2", int(config["hidden_size"]))
    else:
        shape = generic_shape.Shape.read(folder)
        facts = Facts("auto", shape.width, shape.tokens_max)
    for path in weight_files(folder):
        _check_whole(path)
    return facts


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
    return dnabert_shape.Shape.read(folder).width


def _is_esm2(folder: str, config: dict[str, Any]) -> bool:
    """Say whether it is an ESM-2, whose residues are read by table; others have a tokenizer."""
    if config.get("model_type") != "esm":
        return False
    if config.get("is_folding_model"):
        raise UsageError(
            f"{folder}: is an ESMFold, which folds and does not embed. Give one of the esm2_t* "
            f"models, which it is made from."
        )
    is_rotary = config.get("position_embedding_type") == "rotary"
    return is_rotary and config.get("vocab_size") == len(VOCABULARY) and _vocabulary_agrees(folder)


def weight_files(folder: str) -> list[str]:
    """Return the files that hold the weights: safetensors, or what a publisher ships instead.

    An ESM-2 has safetensors in every published size, and is taken in no other form.
    """
    config = _json(f"{folder}/config.json")
    for name in SAFE if _is_esm2(folder, config) else (*SAFE, PICKLED, f"{PICKLED}.index.json"):
        path = f"{folder}/{name}"
        if os.path.isfile(path):
            if not name.endswith(".json"):
                return [path]
            return [f"{folder}/{part}" for part in sorted(set(_json(path)["weight_map"].values()))]
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
        is_whole = zipfile.is_zipfile if path.endswith(".bin") else _is_whole_safetensors
        whole = is_whole(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
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
    """Return a hash over the configuration, the weights, and the tokenizer if one is used."""
    total = hashlib.sha256()
    config = _json(f"{folder}/config.json")
    names = ["config.json"]
    if _is_dnabert(config):
        names.append("tokenizer.json")
    elif not _is_esm2(folder, config):
        known = (*generic_shape.TOKENIZERS, *generic_shape.BESIDE)
        names += [name for name in known if os.path.isfile(f"{folder}/{name}")]
    for path in [*(f"{folder}/{name}" for name in names), *weight_files(folder)]:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
