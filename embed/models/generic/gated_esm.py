"""The Nucleotide Transformer v2: transformers' ESM with a gated feed-forward block.

Its publisher ships code for that, which is never run; transformers has all of it but the gate:
silu(first half) * second half of a product twice as wide (InstaDeep, 2023). Its configuration has
a key of its own, `add_bias_fnn`.

One of the doors to torch and transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import EsmModel


def is_gated(config: Any) -> bool:
    """Return whether this is the configuration of such a model."""
    return config.model_type == "esm" and hasattr(config, "add_bias_fnn")


class _Gate(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        inner, bias = 2 * config.intermediate_size, config.add_bias_fnn
        self.dense = nn.Linear(config.hidden_size, inner, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.dense(hidden_states).chunk(2, -1)
        return functional.silu(gate) * up


class GatedEsmModel(EsmModel):
    """`EsmModel` with the gate in every layer."""

    def __init__(self, config: Any, add_pooling_layer: bool = False) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        for layer in self.encoder.layer:
            layer.intermediate = _Gate(config)
            layer.output.dense = nn.Linear(
                config.intermediate_size, config.hidden_size, bias=config.add_bias_fnn
            )
        self.post_init()
