"""Estimate what sequences cost. Everything that plans by cost asks here, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SPECIALS = 2
"""Tokens that a model adds to a sequence: one before, one after."""


def costs(lengths: NDArray[np.int64], residues_max: int) -> NDArray[Any]:
    """Return the cost of sequences of these many residues: the tokens that are computed."""
    return np.minimum(lengths, residues_max) + SPECIALS
