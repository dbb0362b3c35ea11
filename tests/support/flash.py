"""FlashAttention's operator on a CPU, in plain arithmetic: a stand-in for the kernel of a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


@cache
def emulate() -> torch.library.Library:
    """Give PyTorch a CPU implementation of the operator, for this process."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    return library


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    bounds_of_keys: torch.Tensor,
    longest: int,
    longest_key: int,
    dropout: float,
    is_causal: bool,
    return_mask: bool,
    **_options: Any,
) -> tuple[torch.Tensor, ...]:
    assert bounds.dtype == torch.int32 and torch.equal(bounds, bounds_of_keys)
    assert longest == longest_key == int(bounds.diff().max())
    assert not (dropout or is_causal or return_mask)
    assert query.dtype == key.dtype == value.dtype != torch.float32, "it is for half precision"
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    output = torch.empty_like(query)
    for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        q, k, v = (each[start:stop].float().transpose(0, 1) for each in (query, key, value))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        output[start:stop] = (scores.softmax(-1) @ v).transpose(0, 1)
    empty = query.new_empty(0)
    return output, empty, empty, empty, empty
