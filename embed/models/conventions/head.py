"""Load the modules that follow pooling in a sentence-transformers folder: Dense and LayerNorm.

They compute in float32, whatever the encoder's precision: they are small, and near the result.
One of the doors to torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pickle import UnpicklingError
from typing import Any, Final

import torch
from torch.nn import functional

from embed.models.conventions.convention import HeadModule
from embed.models.conventions.modules_json import hash_module
from fsqueue import ClaimImpossible

TensorMap = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: Final[dict[str, TensorMap]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": functional.gelu,
    "SiLU": functional.silu,
    "Sigmoid": torch.sigmoid,
}


def load_head(folder: str, modules: Sequence[HeadModule], device: torch.device) -> list[TensorMap]:
    """Load the modules, in order.

    Raises ClaimImpossible if one cannot be read, or changed since it was planned.
    """
    return [_load(folder, module, device) for module in modules]


def _load(folder: str, module: HeadModule, device: torch.device) -> TensorMap:
    at = f"{folder}/{module.path}"
    try:
        if hash_module(at) != module.digest:
            raise ClaimImpossible(
                f"{at}: changed since it was planned. Put the planned model back, or plan the "
                f"inputs again."
            )
        with open(f"{at}/config.json", encoding="utf-8") as file:
            config: dict[str, Any] = json.load(file)
        weights = {name: tensor.to(device) for name, tensor in _weights(at).items()}
        if module.kind == "LayerNorm":
            return _layer_norm(weights)
        return _dense(config, weights)
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise ClaimImpossible(
            f"{at}: its weights cannot be read ({error}); the folder is incomplete. Fetch the "
            f"model again."
        ) from error


def _weights(at: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    path = f"{at}/model.safetensors"
    if os.path.exists(path):
        found = load_file(path)
    else:
        found = torch.load(f"{at}/pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in found.items()}


def _dense(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> TensorMap:
    weight, bias = weights["linear.weight"], weights.get("linear.bias")
    residual = weights.get("residual.weight")
    adds = config.get("use_residual", False)
    activation = ACTIVATIONS[activation_name(config)]

    def dense(x: torch.Tensor) -> torch.Tensor:
        y = activation(functional.linear(x, weight, bias))
        if not adds:
            return y
        return y + (x if residual is None else functional.linear(x, residual))

    return dense


def activation_name(config: dict[str, Any]) -> str:
    """Return the class of a Dense module's activation; without one it is Tanh."""
    return str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]


def _layer_norm(weights: dict[str, torch.Tensor]) -> TensorMap:
    weight, bias = weights["norm.weight"], weights["norm.bias"]
    return lambda x: functional.layer_norm(x, weight.shape, weight, bias)
