"""Estimate the cost of embedding sequences. All planning by cost uses this module.

The unit is a megaflop in float32. A layer of a transformer computes, for a sequence of T tokens,

    2 T (4 d^2 + m d f)     products with its weights: width d, inner width f, m inner matrices
    4 T^2 d                 attention of each token to each other
    ELEMENT T (d + f)       elementwise operations: norms, activations, sums
    SOFTMAX T^2 heads       softmax, fused with the products around it
    BIAS T^2 heads          DNABERT's bias, a number for each pair and head

so costs of DNABERT and of ESM-2 of any size compare. The last three terms are few operations but
much memory traffic; the constants convert them into flops of the others. How good the estimate is
was measured by scripts/bench/cost.py: docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.models.families import FAMILIES

LAYERS: Final = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""The names that architectures give to the number of their layers."""
SPECIALS = 2
"""Tokens that a model adds to a sequence: one before it, one after it."""
ELEMENT: Final = 400.0
SOFTMAX: Final = 10.0
BIAS: Final = 200.0
PER_SECOND: Final = 22e6
"""Megaflops in float32 that an RTX 3090 does in a second: about 60 % of its published peak."""
WORKING_GIB: Final = 0.5
"""What a small batch needs beside the weights, the libraries' own buffers included."""
HALF: Final = 2.5
"""How many times faster half precision is there, by published peaks and by what is reached."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's size, by its config.json. Stored in plans as the option `shape`."""

    layers: int
    width: int
    inner: int
    heads: int
    gated: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the sizes under the names that the various architectures give them.

        DNABERT's inner layer has a gate. Missing sizes are assumed to be the usual ones, since this
        is an estimate.
        """
        width = _first(config, ("hidden_size", "d_model", "n_embd", "dim"), 768)
        return cls(
            _first(config, LAYERS, 12),
            width,
            _first(config, ("intermediate_size", "d_ff", "n_inner", "hidden_dim"), 4 * width),
            _first(config, ("num_attention_heads", "num_heads", "n_head", "n_heads"), width // 64),
            "alibi_starting_size" in config,
        )

    @property
    def parameters(self) -> int:
        """Return about how many numbers its layers have; the table of embeddings not counted."""
        inner = (3 if self.gated else 2) * self.width * self.inner
        return self.layers * (4 * self.width**2 + inner)

    @property
    def per_token(self) -> float:
        """Return the flops that each token costs by itself."""
        return self.products_per_token + self.layers * ELEMENT * (self.width + self.inner)

    @property
    def per_pair(self) -> float:
        """Return the flops that each pair of tokens costs."""
        each = SOFTMAX + (BIAS if self.gated else 0.0)
        return self.products_per_pair + self.layers * each * self.heads

    @property
    def products_per_token(self) -> float:
        """Return the flops of the products with weights, for each token."""
        return 2.0 * self.parameters

    @property
    def products_per_pair(self) -> float:
        """Return the flops of the products of attention, for each pair of tokens."""
        return 4.0 * self.layers * self.width


def _first(config: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    return next((int(config[name]) for name in names if config.get(name)), max(1, default))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Everything but its length that decides the cost of a sequence."""

    shape: ModelShape
    residues_max: int
    in_windows: bool = False
    tokens_per_residue: float = 1.0
    half: bool = False
    overlap: int = 0
    masked: bool = False
    """Whether a sequence is run once more for each of its tokens."""

    def costs(self, lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Return the cost of sequences with these numbers of residues, in whole megaflops.

        Those longer than `residues_max` are truncated to it, or read in windows of that size.
        """
        if self.overlap:
            more = np.maximum(lengths - self.residues_max, 0)
            lengths = lengths + self.overlap * -(-more // (self.residues_max - self.overlap))
        if self.masked:
            return self._masked_costs(lengths)
        return self._plain_costs(lengths)

    def _masked_costs(self, lengths: NDArray[np.int64]) -> NDArray[Any]:
        read = np.minimum(lengths, self.residues_max)
        runs = 1 + np.ceil(read * self.tokens_per_residue)
        return np.ceil(self._plain_costs(lengths) * runs).astype(np.int64)

    def _plain_costs(self, lengths: NDArray[np.int64]) -> NDArray[Any]:
        whole, rest = np.divmod(lengths, self.residues_max)
        if not self.in_windows:
            return self._whole(self._flops(np.minimum(lengths, self.residues_max)))
        last = np.where((rest > 0) | (whole == 0), self._flops(rest), 0.0)
        return self._whole(whole * self._flops(np.array(self.residues_max)) + last)

    @property
    def per_token(self) -> float:
        """Return the least number of megaflops that a token costs."""
        return self.shape.per_token / self._divisor

    def _flops(self, residues: NDArray[np.int64]) -> NDArray[Any]:
        tokens = np.ceil(residues * self.tokens_per_residue) + SPECIALS
        return tokens * self.shape.per_token + tokens**2 * self.shape.per_pair

    def _whole(self, flops: NDArray[Any]) -> NDArray[Any]:
        return np.ceil(flops / self._divisor).astype(np.int64)

    @property
    def _divisor(self) -> float:
        return 1e6 * (HALF if self.half else 1.0)


def memory_gib(options: Mapping[str, Any]) -> float:
    """Return how much memory a GPU needs at least: the weights, and one batch of WORKING_GIB."""
    bytes_each = 4 if options["dtype"] in ("float32", "tf32") else 2
    return ModelShape(**options["shape"]).parameters * bytes_each / (1 << 30) + WORKING_GIB


def estimate(options: Mapping[str, Any]) -> Estimate:
    """Return the estimate for the sequences of a plan with these options."""
    family, longest = FAMILIES[options["family"]], options["max_residues"]
    return Estimate(
        ModelShape(**options["shape"]),
        int(longest / family.tokens_per_residue) if family.in_tokens else longest,
        in_windows=options["long"] == "window",
        tokens_per_residue=family.tokens_per_residue,
        half=options["dtype"] != "float32",
        overlap=int(options.get("overlap", 0)),
        masked=options.get("scores") == "masked",
    )
