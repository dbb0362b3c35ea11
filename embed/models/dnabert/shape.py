"""The size of a DNABERT-2 or DNABERT-S, and the name and shape of every tensor of it.

Planning uses this without importing torch. What this module does not know: how the model computes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fsqueue import UsageError


@dataclass(frozen=True, slots=True)
class DnabertShape:
    """What config.json says about a model's size."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    types: int
    epsilon: float

    @classmethod
    def read(cls, folder: str) -> DnabertShape:
        """Return the shape of the model in `folder`. Raises UsageError if it is another model."""
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            config = json.load(file)
        if config.get("model_type") != "bert" or "alibi_starting_size" not in config:
            raise UsageError(
                f"{folder}: is not a DNABERT-2 or DNABERT-S (a 'bert' with alibi_starting_size). "
                f"Give zhihan1996/DNABERT-S, or a folder that holds it."
            )
        if config.get("hidden_act", "gelu") != "gelu" or _heads_do_not_divide(config):
            raise UsageError(
                f"{folder}: its config.json describes another architecture than the published one "
                f"(gelu; heads that divide the width). Fetch the model again."
            )
        return cls(
            config["vocab_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["intermediate_size"],
            config.get("type_vocab_size", 2),
            config.get("layer_norm_eps", 1e-12),
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of the encoder, as published."""
        d, inner = self.width, self.inner
        tensors: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, d),
            "embeddings.token_type_embeddings.weight": (self.types, d),
            "embeddings.LayerNorm.weight": (d,),
            "embeddings.LayerNorm.bias": (d,),
        }
        for layer in range(self.layers):
            at = f"encoder.layer.{layer}"
            tensors |= {
                f"{at}.attention.self.Wqkv.weight": (3 * d, d),
                f"{at}.attention.self.Wqkv.bias": (3 * d,),
                f"{at}.attention.output.dense.weight": (d, d),
                f"{at}.attention.output.dense.bias": (d,),
                f"{at}.attention.output.LayerNorm.weight": (d,),
                f"{at}.attention.output.LayerNorm.bias": (d,),
                f"{at}.mlp.gated_layers.weight": (2 * inner, d),
                f"{at}.mlp.wo.weight": (d, inner),
                f"{at}.mlp.wo.bias": (d,),
                f"{at}.mlp.layernorm.weight": (d,),
                f"{at}.mlp.layernorm.bias": (d,),
            }
        return tensors


def _heads_do_not_divide(config: dict[str, Any]) -> bool:
    return bool(config["hidden_size"] % config["num_attention_heads"])
