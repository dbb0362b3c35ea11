"""Attention kernels: which there are, which one a device should use, and the calls themselves.

A block-diagonal mask over the pack, flex attention and nested tensors give the same numbers, and
were 5 to 13 times slower on a CPU.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import torch
from torch.nn import functional as F

from fsqueue import NotSupportedError

HEAD_MULTIPLE: Final = 8
"""The attention kernels of GPUs load so many numbers of a head at once."""
AMPERE: Final = (8, 0)


class Kernel(StrEnum):
    """How attention is computed."""

    RUNS = "runs"
    """A call for every run of sequences of equal length: on CPUs, where calls cost nothing, and on
    devices without CUDA."""
    PADDED = "padded"
    """A call for every bucket of similar lengths, padded: in any type, and with a bias."""
    VARLEN = "varlen"
    """One call of FlashAttention for the whole pack."""


def kernel_for(
    capability: tuple[int, int] | None, dtype: torch.dtype, head: int, *, bias: bool
) -> Kernel:
    """Return the fastest kernel that a device has.

    `capability` is the CUDA compute capability, None for another device. FlashAttention wants half
    precision, Ampere or newer, and no bias. Raises NotSupportedError if there is none.
    """
    if capability is None:
        return Kernel.RUNS
    if head % HEAD_MULTIPLE:
        raise NotSupportedError(
            f"this model has heads of {head} numbers, and the attention kernels of GPUs need a "
            f"multiple of {HEAD_MULTIPLE}. Run it on a CPU: CUDA_VISIBLE_DEVICES="
        )
    has_flash = capability >= AMPERE and dtype != torch.float32 and not bias
    return Kernel.VARLEN if has_flash else Kernel.PADDED


def scores_dtype(values: torch.Tensor) -> torch.dtype:
    """Return the dtype to attend in.

    On a CPU that is float32: it is more exact, and faster than half precision without matrix
    instructions for that.
    """
    return torch.float32 if values.device.type == "cpu" else values.dtype


def biased_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend with a bias that is added to the scores, (sequences, heads, tokens, d) each.

    The bias is broadcast. With CUDA this is one kernel, called by its own name: if it cannot run,
    it raises, where `scaled_dot_product_attention` would take a slower one without a word.
    """
    if q.device.type in ("cpu", "mps"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    shape = (*q.shape[:3], k.shape[2])
    found = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias.expand(shape), False, scale=scale
    )
    return found[0]  # type: ignore[no-any-return]


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float | None = None,
    band: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Attend by FlashAttention inside each sequence of a pack, (tokens, heads, d) each.

    `band` is how many tokens before and after it a token attends to, -1 for all. Several heads of
    queries may share one of keys and values.

    The operator is called, and not `torch.nn.attention.varlen`, which is new in PyTorch 2.10 and
    costs another kernel and 40 us a call. Not split over keys where it can be told so: then a
    sequence gives the same numbers in every batch.
    """
    left, right = band
    options = _UNSPLIT if scale is None else _UNSPLIT | {"scale": scale}
    if left >= 0 or right > 0:
        options = options | {"window_size_left": left, "window_size_right": right}
    return torch.ops.aten._flash_attention_forward(  # type: ignore[no-any-return]
        q, k, v, bounds, bounds, longest, longest, 0.0, right == 0, False, **options
    )[0]


_UNSPLIT: Final[dict[str, Any]] = (
    {"num_splits": 1}
    if any(
        each.name == "num_splits"
        for each in torch.ops.aten._flash_attention_forward.default._schema.arguments
    )
    else {}
)
