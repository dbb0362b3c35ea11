"""Estimate what sequences cost. Everything that plans by cost asks here, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SPECIALS = 2
"""Tokens that a model adds to a sequence: one before, one after."""


def costs(
    lengths: NDArray[np.int64],
    residues_max: int,
    *,
    in_windows: bool = False,
    tokens_per_residue: float = 1.0,
) -> NDArray[Any]:
    """Return the cost of sequences of these many residues: the tokens that are computed.

    Longer ones are cut to `residues_max`, or read whole in windows of as many.
    """
    windows = np.maximum(1, -(-lengths // residues_max)) if in_windows else 1
    residues = lengths if in_windows else np.minimum(lengths, residues_max)
    return np.ceil(residues * tokens_per_residue).astype(np.int64) + SPECIALS * windows
