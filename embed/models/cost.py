"""Estimate what sequences cost. Everything that plans by cost asks here, and nowhere else.

The unit is a megaflop in float32. A layer of a transformer computes, for a sequence of T tokens,

    2 T (4 d^2 + m d f)     the products with its weights: width d, inner width f, m of those
    4 T^2 d                 each token with each other
    ELEMENT T (d + f)       what goes number by number: norms, activations, sums
    SOFTMAX T^2 heads       softmax, fused with the products around it
    BIAS T^2 heads          DNABERT's bias, a number for each pair and head

so claims of DNABERT and of ESM-2 of any size compare. The last three are few operations and much
memory traffic; the constants say how many flops of the others they are worth. What the estimate is
worth, measured: docs/benchmarks.md, by scripts/bench/cost.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.models.families import FAMILIES

SPECIALS = 2
"""Tokens that a model adds to a sequence: one before, one after."""
ELEMENT: Final = 400.0
SOFTMAX: Final = 10.0
BIAS: Final = 200.0
PER_SECOND: Final = 22e6
"""Megaflops in float32 that an RTX 3090 does in a second: some 60 % of its published peak."""
HALF: Final = 2.5
"""How many times faster half precision is there, by its published peaks and what is reached."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's config.json says of its size."""

    layers: int
    width: int
    inner: int
    heads: int
    gated: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Return the shape of a model by the names that architectures have for its parts.

        DNABERT's inner layer has a gate. What a model does not say is taken as most have it: this
        is an estimate.
        """
        width = _first(config, ("hidden_size", "d_model", "n_embd", "dim"), 768)
        return cls(
            _first(config, ("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 12),
            width,
            _first(config, ("intermediate_size", "d_ff", "n_inner", "hidden_dim"), 4 * width),
            _first(config, ("num_attention_heads", "num_heads", "n_head", "n_heads"), width // 64),
            "alibi_starting_size" in config,
        )

    @property
    def per_token(self) -> float:
        """Return the flops of each token by itself."""
        products = 4 * self.width**2 + (3 if self.gated else 2) * self.width * self.inner
        return self.layers * (2 * products + ELEMENT * (self.width + self.inner))

    @property
    def per_pair(self) -> float:
        """Return the flops of each token with each."""
        each = SOFTMAX + (BIAS if self.gated else 0.0)
        return self.layers * (4 * self.width + each * self.heads)


def _first(config: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    return next((int(config[name]) for name in names if config.get(name)), max(1, default))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What decides the cost of a sequence beside its length."""

    shape: Shape
    residues_max: int
    in_windows: bool = False
    tokens_per_residue: float = 1.0
    half: bool = False

    def costs(self, lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Return the cost of sequences of these many residues, in whole megaflops.

        Longer ones are cut to `residues_max`, or read whole in windows of as many.
        """
        whole, rest = np.divmod(lengths, self.residues_max)
        if not self.in_windows:
            return self._whole(self._flops(np.minimum(lengths, self.residues_max)))
        last = np.where((rest > 0) | (whole == 0), self._flops(rest), 0.0)
        return self._whole(whole * self._flops(np.array(self.residues_max)) + last)

    @property
    def per_token(self) -> float:
        """Return the megaflops of a token, at least."""
        return self.shape.per_token / self._divisor

    def _flops(self, residues: NDArray[np.int64]) -> NDArray[Any]:
        tokens = np.ceil(residues * self.tokens_per_residue) + SPECIALS
        return tokens * self.shape.per_token + tokens**2 * self.shape.per_pair

    def _whole(self, flops: NDArray[Any]) -> NDArray[Any]:
        return np.ceil(flops / self._divisor).astype(np.int64)

    @property
    def _divisor(self) -> float:
        return 1e6 * (HALF if self.half else 1.0)


def estimate(options: Mapping[str, Any]) -> Estimate:
    """Return what decides the costs of a plan's sequences."""
    family, longest = FAMILIES[options["family"]], options["max_residues"]
    return Estimate(
        Shape(**options["shape"]),
        int(longest / family.tokens_per_residue) if family.in_tokens else longest,
        in_windows=options["long"] == "window",
        tokens_per_residue=family.tokens_per_residue,
        half=options["dtype"] != "float32",
    )
