"""Choose the precision of a plan by the GPUs that it is for: `--dtype auto`.

One plan has one precision, because a claim may be taken by any of its workers, and its output does
not depend on which. So it is the one that all of the plan's GPUs have matrix instructions for:

    all sm_80 or later (Ampere)     bfloat16
    all sm_70 or later (Volta)      float16; what overflows is computed again in float32
    any other, any CPU, or unknown  float32

float32 is what a plan has unless it asks: half precision moves a pooled vector by a cosine of about
0.00005 (bfloat16) or 0.000001 (float16).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fsqueue import PlannedGpu

AMPERE: Final = (8, 0)
VOLTA: Final = (7, 0)


def choose(gpus: Sequence[PlannedGpu]) -> tuple[str, str]:
    """Return the precision for these GPUs, and why, for a person to read."""
    if any(gpu.is_cpu for gpu in gpus):
        return "float32", "CPUs are among the workers, and most only emulate half precision"
    unknown = sorted({gpu.model for gpu in gpus if gpu.capability is None})
    if unknown or not gpus:
        models = ", ".join(unknown) or "these workers"
        return "float32", f"it is not known what {models} can do; --dtype bfloat16 if it can"
    least = min(gpus, key=lambda gpu: gpu.capability or (0, 0))
    models = ", ".join(sorted({gpu.model for gpu in gpus}))
    if least.capability >= AMPERE:  # type: ignore[operator]
        return "bfloat16", f"fast on {models}; --dtype float32 is exact"
    if least.capability >= VOLTA:  # type: ignore[operator]
        return "float16", f"{least.model} has no bfloat16; --dtype float32 is exact"
    return "float32", f"{least.model} is not faster in half precision"
