"""Make one vector of a sequence's hidden states."""

from __future__ import annotations

import torch


def mean(hidden: torch.Tensor) -> torch.Tensor:
    """Return the mean over residues in float32; the begin and end tokens are left out.

    `hidden` is (residues + 2, width). Half precision would lose digits in the sum.
    """
    return hidden[1:-1].float().mean(0)
