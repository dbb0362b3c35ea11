"""Pool a sequence's hidden states into one vector, or keep one for each token.

`hidden` is (tokens, width): the first and last rows belong to the tokens that begin and end every
input, one of each unless `edges` says otherwise. Everything is computed and returned in float32,
because half precision would lose digits in a sum.

ESM-2's mean leaves begin and end out, as fair-esm's extract.py does. DNABERT's includes them, as
its authors' training, evaluation and published example do. So does that of other models, as is
usual for texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

Pooling = Callable[[torch.Tensor], torch.Tensor]


def mean(hidden: torch.Tensor) -> torch.Tensor:
    """Return the mean over the sequence's own tokens."""
    return hidden[1:-1].float().mean(0)


def mean_of_all(hidden: torch.Tensor) -> torch.Tensor:
    """Return the mean over all tokens, including begin and end."""
    return hidden.float().mean(0)


def cls(hidden: torch.Tensor) -> torch.Tensor:
    """Return the begin token's state."""
    return hidden[0].float()


def maximum(hidden: torch.Tensor) -> torch.Tensor:
    """Return the elementwise maximum over the sequence's own tokens."""
    return hidden[1:-1].float().amax(0)


def per_token(hidden: torch.Tensor) -> torch.Tensor:
    """Return the states of the sequence's own tokens, (tokens, width)."""
    return hidden[1:-1].float()


POOLINGS: Final[dict[str, Pooling]] = {
    "mean": mean,
    "cls": cls,
    "max": maximum,
    "per-token": per_token,
}


def pooling(name: str, family: str, edges: tuple[int, int] = (1, 1)) -> Pooling:
    """Return the function that --pooling names, for a family of models."""
    if name == "mean" and family != "esm2":
        return mean_of_all
    if name in ("max", "per-token") and edges != (1, 1):
        return _without_edges(POOLINGS[name], *edges)
    return POOLINGS[name]


def _without_edges(pool: Pooling, begin: int, end: int) -> Pooling:
    """Return `pool` for sequences with another number of edge tokens than one each."""

    def pooled(hidden: torch.Tensor) -> torch.Tensor:
        own = hidden[begin : len(hidden) - end]
        return pool(torch.cat([own[:1], own, own[:1]]))  # `pool` ignores the first and last row

    return pooled
