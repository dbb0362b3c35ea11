"""Read what a sentence-transformers folder says about its embeddings: modules.json and its modules.

modules.json lists the modules that a text passes: the transformer, then pooling, then perhaps
Dense, LayerNorm and Normalize. A folder without it says nothing. A module that is not known here is
refused by its name, because without it the vectors would look right and be wrong.

Planning uses this without importing torch. What this module does not know: how a module computes
(`head.py`), and what else may decide a convention (`practice.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from embed.models.conventions.convention import Convention, HeadModule, Mode
from fsqueue import UsageError

MODULES_JSON: Final = "modules.json"
PROMPTS_JSON: Final = "config_sentence_transformers.json"
MODULE_FILES: Final = ("config.json", "model.safetensors", "pytorch_model.bin")
"""The files of a module's folder that are needed."""
OWN: Final = "sentence_transformers."
"""How the names of the library's own classes begin, in each of its versions."""
ACTIVATIONS: Final = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
"""Activations of a Dense module, by the last word of their class."""
MODES: Final = {
    "cls": Mode.CLS,
    "max": Mode.MAX_ALL,
    "mean": Mode.MEAN_ALL,
    "mean_sqrt_len_tokens": Mode.MEAN_SQRT_LENGTH,
    "weightedmean": Mode.WEIGHTED_MEAN,
    "lasttoken": Mode.LAST,
}
"""sentence-transformers' poolings. They know no special tokens: only padding is left out."""
FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How older versions wrote them, in the order in which they are concatenated."""


@dataclass(frozen=True, slots=True)
class SentenceModel:
    """What a sentence-transformers folder says."""

    convention: Convention
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts to put before an input, by what the input is: query, document, ..."""
    default_prompt: str | None = None
    """The name of the prompt that is used if none is chosen."""
    lower_case: bool = False


def read(folder: str) -> SentenceModel | None:
    """Return what the folder says; None if it has no modules.json.

    Raises UsageError if a module is not known, or its files are missing.
    """
    if not os.path.isfile(f"{folder}/{MODULES_JSON}"):
        return None
    modules = _json(f"{folder}/{MODULES_JSON}")
    try:
        steps = [(each["type"], each.get("path", "")) for each in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{folder}/{MODULES_JSON}: is not a list of modules, each with a type and a path. "
            f"Fetch the model again."
        ) from error
    settings = _settings(folder, PROMPTS_JSON)
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    default = settings.get("default_prompt_name")
    convention = _convention(folder, steps)
    if settings.get("truncate_dim"):
        convention = replace(convention, dimensions=int(settings["truncate_dim"]))
    return SentenceModel(
        convention,
        prompts,
        default if default in prompts else None,
        bool(_settings(folder, "sentence_bert_config.json").get("do_lower_case")),
    )


def module_paths(folder: str) -> list[str]:
    """Return the folders of the modules that modules.json names, besides the model's own."""
    if not os.path.isfile(f"{folder}/{MODULES_JSON}"):
        return []
    found = [each.get("path", "") for each in _json(f"{folder}/{MODULES_JSON}")]
    return [path for path in found if path and "/" not in path and path not in (".", "..")]


def hash_module(at: str) -> str:
    """Return a hash of a module's files."""
    total = hashlib.sha256()
    for name in MODULE_FILES:
        if os.path.isfile(f"{at}/{name}"):
            with open(f"{at}/{name}", "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _convention(folder: str, steps: list[tuple[str, str]]) -> Convention:
    kinds = [_kind(folder, name) for name, _ in steps]
    if kinds[:2] != ["Transformer", "Pooling"] or "Pooling" in kinds[2:]:
        raise UsageError(
            f"{folder}/{MODULES_JSON}: names {', '.join(kinds) or 'no module'}, and must begin "
            f"with Transformer and Pooling. Such a model cannot be run here; a handler of your own "
            f"can (README, Your own handler)."
        )
    if steps[0][1]:
        raise UsageError(
            f"{folder}: its transformer is in {steps[0][1]}, as sentence-transformers before 2.0 "
            f"saved it. Save it again: SentenceTransformer('{folder}').save('NEW'), then --model "
            f"NEW"
        )
    pooling = _settings(folder, f"{steps[1][1]}/config.json", needed=True)
    rest = [(kind, path) for kind, (_, path) in zip(kinds, steps, strict=True)][2:]
    rest = [(kind, path) for kind, path in rest if kind != "Dropout"]  # only in training
    normalize = bool(rest) and rest[-1][0] == "Normalize"
    rest = rest[:-1] if normalize else rest
    if "Normalize" in [kind for kind, _ in rest]:
        raise UsageError(
            f"{folder}/{MODULES_JSON}: normalises before {rest[-1][0]}; only models that normalise "
            f"last are known here."
        )
    modes = _modes(folder, pooling)
    return Convention(
        modes,
        head=tuple(_head_module(folder, kind, path) for kind, path in rest),
        normalize=normalize,
        pools_prefix=bool(pooling.get("include_prompt", True)),
    )


def _kind(folder: str, name: str) -> str:
    kind = str(name).rsplit(".", 1)[-1]
    known = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
    if not str(name).startswith(OWN) or kind not in known:
        raise UsageError(
            f"{folder}/{MODULES_JSON}: names a module {name}, which is not known here (known are "
            f"{', '.join(known)}); without it the vectors would be wrong. Code that comes with a "
            f"model is never run; a handler of your own can run it (README, Your own handler)."
        )
    return kind


def _modes(folder: str, pooling: Mapping[str, Any]) -> tuple[Mode, ...]:
    named = pooling.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in FLAGS.items() if pooling.get(flag)] or ["mean"]
        unknown = [
            name
            for name, value in pooling.items()
            if name.startswith("pooling_mode_") and name not in FLAGS and value
        ]
    else:
        named = [named] if isinstance(named, str) else list(named)
        unknown = [mode for mode in named if mode not in MODES]
    if unknown:
        raise UsageError(
            f"{folder}/{MODULES_JSON}: its Pooling is {unknown[0]!r}, which is not known here "
            f"(known are {', '.join(MODES)}). Choose another one: --pooling mean-all"
        )
    return tuple(MODES[mode] for mode in named)


def _head_module(folder: str, kind: str, path: str) -> HeadModule:
    config = _settings(folder, f"{path}/config.json", needed=True)
    if not any(os.path.isfile(f"{folder}/{path}/{name}") for name in MODULE_FILES[1:]):
        raise UsageError(
            f"{folder}/{path}: holds no model.safetensors, and {MODULES_JSON} names it as a {kind} "
            f"module. Fetch the model again."
        )
    if kind == "Dense":
        inputs = config.get("module_input_name", "sentence_embedding")
        outputs = config.get("module_output_name") or inputs
        activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
        if (inputs, outputs) != ("sentence_embedding",) * 2 or activation not in ACTIVATIONS:
            raise UsageError(
                f"{folder}/{path}: is a Dense module of {inputs} with {activation}; known here are "
                f"those of sentence_embedding, with {', '.join(ACTIVATIONS)}."
            )
        width = config["out_features"]
    else:
        width = config["dimension"]
    return HeadModule(kind, path, hash_module(f"{folder}/{path}"), int(width))


def _settings(folder: str, name: str, *, needed: bool = False) -> dict[str, Any]:
    if not os.path.isfile(f"{folder}/{name}"):
        if not needed:
            return {}
        raise UsageError(
            f"{folder}/{name}: is missing, and {MODULES_JSON} names its module. Fetch the model "
            f"again; all folders that {MODULES_JSON} names belong to it."
        )
    data = _json(f"{folder}/{name}")
    return data if isinstance(data, dict) else {}


def _json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}). Fetch it again.") from error
