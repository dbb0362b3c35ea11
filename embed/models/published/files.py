"""Inspect a model's folder, as its publisher ships it, without loading the model.

Finds out whether it is an ESM-2, a DNABERT or another model, whether its files are complete, and a
hash of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from dataclasses import dataclass
from typing import Any, Final

from embed.models.dnabert.shape import DnabertShape
from embed.models.esm2.tokenizer import VOCABULARY
from embed.models.generic.shape import TOKENIZER_FILES, TOKENIZER_SETTINGS, GenericShape
from embed.outputs.safetensors_header import is_complete
from fsqueue import UsageError

HEADS: Final = (
    *("lm_head.", "cls.predictions.", "predictions.", "head.", "vocab_transform."),
    *("generator_predictions.", "pred_layer."),
)
"""How the names of the weights of a masked-LM begin, by architecture."""
PICKLED: Final = "pytorch_model.bin"
SAFETENSORS: Final = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a folder's files say about the model."""

    family: str
    width: int
    """Numbers per embedding."""
    longest: int = 0
    """Its longest input in tokens; 0 where the family decides."""


def inspect(folder: str) -> ModelFacts:
    """Return what the model in `folder` is.

    Raises UsageError if it cannot be loaded, or if a file is missing or truncated.
    """
    config = read_config(folder)
    if _is_dnabert(config):
        facts = ModelFacts("dnabert", _inspect_dnabert(folder))
    elif _is_esm2(folder, config):
        facts = ModelFacts("esm2", int(config["hidden_size"]))
    else:
        shape = GenericShape.read(folder)
        facts = ModelFacts("auto", shape.width, shape.tokens_max)
    for path in weight_files(folder):
        _check_complete(path)
    return facts


def read_config(folder: str) -> dict[str, Any]:
    """Return a model's config.json. Raises UsageError if it cannot be read."""
    return _json(f"{folder}/config.json")


def _is_dnabert(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "bert" and "alibi_starting_size" in config


def _inspect_dnabert(folder: str) -> int:
    if not os.path.isfile(f"{folder}/tokenizer.json"):
        raise UsageError(
            f"{folder}/tokenizer.json: is missing, and DNABERT needs it to read DNA. Fetch the "
            f"model again; it is among its files."
        )
    return DnabertShape.read(folder).width


def _is_esm2(folder: str, config: dict[str, Any]) -> bool:
    """Return whether it is an ESM-2, whose residues are read by table; others have a tokenizer."""
    if config.get("model_type") != "esm":
        return False
    if config.get("is_folding_model"):
        raise UsageError(
            f"{folder}: is an ESMFold, which folds proteins and does not embed them. Give one of "
            f"the esm2_t* models, which it is built on."
        )
    is_rotary = config.get("position_embedding_type") == "rotary"
    return is_rotary and config.get("vocab_size") == len(VOCABULARY) and _vocabulary_agrees(folder)


def weight_files(folder: str) -> list[str]:
    """Return the files that hold the weights: safetensors, or what a publisher ships instead.

    ESM-2 is published as safetensors in every size, and no other form of it is accepted.
    """
    names = list(SAFETENSORS)
    if not _is_esm2(folder, read_config(folder)):
        names += [PICKLED, f"{PICKLED}.index.json"]
    for name in names:
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


def _check_complete(path: str) -> None:
    """Raise UsageError if a file of weights is missing or truncated.

    A safetensors file must have the size that its header says; a zip file ends in its directory.
    """
    try:
        if path.endswith(".bin"):
            complete = zipfile.is_zipfile(path)
        else:
            with open(path, "rb") as file:
                complete = is_complete(file.fileno())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UsageError(
            f"{path}: is missing, truncated or not a file of weights, as an interrupted copy or "
            f"download leaves it. Fetch the model again."
        )


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as JSON ({error}); the folder does not hold a complete model. "
            f"Give a folder as save_pretrained writes it."
        ) from error
    return data if isinstance(data, dict) else {}


def hash_files(folder: str, *, cached: bool = False) -> str:
    """Return a hash of the configuration, the weights, and the tokenizer if one is used.

    In the hub's cache (`cached`), large files are called by their own hash, so need not be read.
    """
    total = hashlib.sha256()
    config = read_config(folder)
    names = ["config.json"]
    if _is_dnabert(config):
        names.append("tokenizer.json")
    elif not _is_esm2(folder, config):
        known = (*TOKENIZER_FILES, *TOKENIZER_SETTINGS)
        names += [name for name in known if os.path.isfile(f"{folder}/{name}")]
    for path in [*(f"{folder}/{name}" for name in names), *weight_files(folder)]:
        total.update((_name_as_hash(path) if cached else None) or _hash(path))
    return total.hexdigest()


def _name_as_hash(path: str) -> bytes | None:
    name = os.path.basename(os.path.realpath(path))
    is_hash = os.path.islink(path) and re.fullmatch("[0-9a-f]{64}", name)
    return bytes.fromhex(name) if is_hash else None


def _hash(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
