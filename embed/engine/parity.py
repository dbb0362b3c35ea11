"""Compare the vectors that a loaded model gives in two ways, on a few known inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.engine.batching import Tokenized
from embed.models.families import Tokenizer
from fsqueue import NotSupportedError

if TYPE_CHECKING:
    from embed.engine.engine import Engine

TOLERANCE: Final = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2, "float16": 1e-2}
PROBES: Final = {
    "esm2": (
        b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ",
        b"MAGW",
        b"GSHMLEDPV" * 9,
    ),
    "dnabert": (b"ACGTACGGTTCATTGACC" * 8, b"ACGT", b"GATTACAGGCATCGA" * 20),
}


def check_parity(
    name: str,
    engine: Engine,
    reference: Engine,
    tokenizer: Tokenizer,
    family: str,
    dtype: str,
    *,
    scored: bool,
) -> None:
    """Compare a model's vectors on a device of this name with those of the CPU in float32.

    Raises NotSupportedError if they differ by more than the precision explains.
    """
    batch = probes(tokenizer, family)
    found, exact = (each.embed(batch, lambda _line: None) for each in (engine, reference))
    apart = apart_by(found, exact, scored=scored)
    if not apart <= TOLERANCE[dtype]:  # also if it is NaN
        raise NotSupportedError(
            f"the {name} gives other vectors for this model than the CPU (they differ by "
            f"{apart:.1e} of the largest number), so this worker leaves it to others. To use the "
            f"CPU, start it without FSQUEUE_DEVICE; a newer PyTorch may be right."
        )


def probes(tokenizer: Tokenizer, family: str) -> list[Tokenized]:
    """Return sequences that a model of this family reads, of different lengths."""
    letters = PROBES.get(family, PROBES["esm2"])
    return [Tokenized(row, tokenizer.read(each)[0]) for row, each in enumerate(letters)]


def apart_by(found: NDArray[Any], expected: NDArray[Any], *, scored: bool) -> float:
    """Return the largest difference, as a share of the largest number; NaN if any is.

    `scored`: the last column is of scores, which are a hundred times as large as the rest: it is
    compared by itself.
    """
    columns = [slice(None, -1), slice(-1, None)] if scored else [slice(None)]
    parts = [(found[:, each], expected[:, each]) for each in columns]
    shares = [np.abs(one - two).max() / (np.abs(two).max() or 1.0) for one, two in parts]
    return float(np.max(shares))
