"""Run a product and the kernels of attention on a device once, and compare them with the CPU's."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from embed.models.packed.kernels import Kernel, biased_attention, kernel_for, varlen
from embed.models.packed.products import DTYPES
from fsqueue import NodeTrouble

PROBE_LENGTHS: Final = (7, 20, 5)
PROBE_TOLERANCE: Final = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}


def check_kernels(place: torch.device, capability: tuple[int, int] | None, dtype: str) -> None:
    """Run a product and the attention kernels of a precision, and compare them with the CPU's.

    Raises NodeTrouble if the numbers are wrong, and whatever the kernels raise.
    """
    generator = torch.Generator().manual_seed(1)
    count, heads, d = sum(PROBE_LENGTHS), 2, 16
    exact = torch.randn(3, count, heads, d, generator=generator).to(DTYPES[dtype]).float()
    weight = torch.randn(48, heads * d, generator=generator).to(DTYPES[dtype]).float()
    q, k, v = exact.to(place, DTYPES[dtype]).unbind()
    bounds = torch.tensor([0, *np.cumsum(PROBE_LENGTHS)], dtype=torch.int32)
    product = q.flatten(1) @ weight.to(place, DTYPES[dtype]).T
    _compare("a product", dtype, product, exact[0].flatten(1) @ weight.T)
    expected = _attention(exact, bounds)
    for bias in (False, True):
        kernel = kernel_for(capability, DTYPES[dtype], d, bias=bias)
        if kernel is Kernel.VARLEN:
            found = varlen(q, k, v, bounds.to(place), max(PROBE_LENGTHS))
            _compare(f"attention ({kernel})", dtype, found, expected)
        else:
            first, second, third = (x[: PROBE_LENGTHS[0]].transpose(0, 1)[None] for x in (q, k, v))
            zero = torch.zeros(1, 1, 1, 8, dtype=q.dtype, device=place)[..., : PROBE_LENGTHS[0]]
            found = biased_attention(first, second, third, zero)[0].transpose(0, 1)
            _compare(f"attention ({kernel})", dtype, found, expected[: PROBE_LENGTHS[0]])


def _attention(qkv: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    found = []
    for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        q, k, v = qkv[:, start:stop].transpose(1, 2)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        found.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(found)


def _compare(what: str, dtype: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    apart = float((found.float().cpu() - expected).abs().max() / expected.abs().max())
    if not apart <= PROBE_TOLERANCE[dtype]:  # also if it is NaN
        raise NodeTrouble(
            f"this GPU computes wrong results: {what} in {dtype} differs from the CPU's by "
            f"{apart:.1e} of the largest number; the card, its driver or its PyTorch is faulty. "
            f"This worker stops. See dmesg, and for NVIDIA's cards: nvidia-smi -q"
        )
