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
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **_options: Any,
) -> tuple[torch.Tensor, ...]:
    assert bounds.dtype == torch.int32 and torch.equal(bounds, bounds_of_keys)
    assert longest == longest_key == int(bounds.diff().max())
    assert not (dropout or return_mask)
    assert query.dtype == key.dtype == value.dtype != torch.float32, "it is for half precision"
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert query.shape[-1] % 8 == 0
    left = -1 if window_size_left is None else window_size_left
    right = 0 if is_causal else -1 if window_size_right is None else window_size_right
    shared = query.shape[1] // key.shape[1]
    output = torch.empty_like(query)
    for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        q, k, v = (each[start:stop].float().transpose(0, 1) for each in (query, key, value))
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        places = torch.arange(stop - start)
        ahead = places[None, :] - places[:, None]
        scores[:, ((right >= 0) & (ahead > right)) | ((left >= 0) & (ahead < -left))] = -torch.inf
        output[start:stop] = (scores.softmax(-1) @ v).transpose(0, 1)
    empty = query.new_empty(0)
    return output, empty, empty, empty, empty
