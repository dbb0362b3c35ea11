"""Merge a LoRA adapter into a loaded model of transformers. The one door to peft."""

from __future__ import annotations

import json
from typing import Any

import torch

from embed.models.published.adapter import CONFIG, PREFIX, WEIGHTS, is_outside
from fsqueue import ClaimImpossible


def merge_adapter(model: Any, folder: str) -> Any:
    """Return the model with the adapter in `folder` added to its weights.

    An adapter names its modules as the model did that it was trained on, which may have been this
    one inside another. Raises ClaimImpossible if it does not fit.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    with open(f"{folder}/{CONFIG}", encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    modules = {name for name, _ in model.named_modules() if name}
    parameters, left_out = dict[str, torch.Tensor](), list[str]()
    targets = set[str]()
    for name, tensor in load_file(f"{folder}/{WEIGHTS}").items():
        module, part, rest = name.removeprefix(PREFIX).partition(".lora_")
        here = next((each for each in _inner(module) if each in modules), None)
        if not part or here is None:
            left_out += [module] if part else []
            continue
        targets.add(here)
        parameters[f"{PREFIX}{here}{part}{rest}"] = tensor
    strangers = [each for each in left_out if not is_outside(each)]
    if strangers or not targets:
        first = (strangers or left_out or ["no layer"])[0]
        raise ClaimImpossible(
            f"{folder}: this adapter changes {first}, which the model does not have; it was "
            f"trained on another one. Give the model that it was trained on."
        )
    known = {name: value for name, value in config.items() if name in LoraConfig.__annotations__}
    known |= {"target_modules": sorted(targets), "modules_to_save": None, "task_type": None}
    known |= {"inference_mode": True, "exclude_modules": None, "layers_to_transform": None}
    known |= {"layers_pattern": None, "target_parameters": None}
    adapted = get_peft_model(model, LoraConfig(**known))
    found = set_peft_model_state_dict(adapted, parameters)
    missing = [name for name in found.missing_keys if ".lora_" in name]
    if missing or found.unexpected_keys:
        name = [*missing, *found.unexpected_keys][0]
        raise ClaimImpossible(
            f"{folder}: this adapter does not fit the model ({name}). Merge it yourself: "
            f"merge_and_unload().save_pretrained(NEW), then --model NEW"
        )
    return adapted.merge_and_unload()


def _inner(module: str) -> list[str]:
    """Return a module's possible names, inside none, one and two other modules."""
    parts = module.split(".")
    return [".".join(parts[n:]) for n in range(min(3, len(parts)))]
