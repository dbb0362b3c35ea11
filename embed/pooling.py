"""Make one vector of a sequence's hidden states, or leave it one for each token.

`hidden` is (tokens + 2, width): the first and last row belong to the begin and end tokens. All is
computed and returned in float32, for half precision would lose digits in a sum.

ESM-2's mean leaves begin and end out, as fair-esm's extract.py does. DNABERT's takes them in, as
its authors' training and evaluation do; their published example is that for one sequence.
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
    """Return the mean over all tokens, begin and end among them."""
    return hidden.float().mean(0)


def cls(hidden: torch.Tensor) -> torch.Tensor:
    """Return the begin token's state."""
    return hidden[0].float()


def greatest(hidden: torch.Tensor) -> torch.Tensor:
    """Return the maximum over the sequence's own tokens, number by number."""
    return hidden[1:-1].float().amax(0)


def per_token(hidden: torch.Tensor) -> torch.Tensor:
    """Return the states of the sequence's own tokens, (tokens, width)."""
    return hidden[1:-1].float()


POOLINGS: Final[dict[str, Pooling]] = {
    "mean": mean,
    "cls": cls,
    "max": greatest,
    "per-token": per_token,
}


def pooling(name: str, family: str) -> Pooling:
    """Return what --pooling names for a family of models."""
    if (name, family) == ("mean", "dnabert"):
        return mean_of_all
    return POOLINGS[name]
