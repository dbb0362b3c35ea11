"""Packed batches, which the ESM-2 and DNABERT networks run on: sequences end to end, no padding.

Linear maps and norms see the pack as one long matrix. Attention stays inside each sequence: one
call for every run of equal lengths, or one call for all where PyTorch has a kernel for that. A
block-diagonal mask over the pack, flex attention and nested tensors give the same numbers, and were
5 to 13 times slower on CPU.

One of the doors to torch. What this module does not know: models, names of weights, and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

TensorMap = Callable[[torch.Tensor], torch.Tensor]

DTYPES: Final = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
TYPICAL_TOKENS: Final = 4096
"""Rows that oneDNN should expect when it lays out a weight; other numbers work, too."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Token ids of several sequences, end to end, on a device."""

    lengths: list[int]
    tokens: torch.Tensor
    """(tokens,) int64."""
    positions: NDArray[np.int64]
    """(tokens,): from 0 in every sequence."""
    runs: list[tuple[int, int, int]]
    """(first token, sequences, length of each) for every run of sequences of equal length."""

    @classmethod
    def of(
        cls, sequences: Sequence[NDArray[Any]], begin: int, end: int, device: torch.device
    ) -> Pack:
        """Pack sequences of ids, with a begin and an end token around each."""
        lengths = [len(ids) + 2 for ids in sequences]
        packed = np.empty(sum(lengths), np.int64)
        start = 0
        for ids, length in zip(sequences, lengths, strict=True):
            packed[start], packed[start + length - 1] = begin, end
            packed[start + 1 : start + length - 1] = ids
            start += length
        positions = np.concatenate([np.arange(length) for length in lengths])
        return cls(lengths, to_device(torch.from_numpy(packed), device), positions, _runs(lengths))

    def bounds(self) -> torch.Tensor:
        """Return the offsets of the sequences, (sequences + 1,) int32, on the tokens' device."""
        ends = np.cumsum([0, *self.lengths], dtype=np.int32)
        return to_device(torch.from_numpy(ends), self.tokens.device)


def _runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    runs, start = [], 0
    for length, equal in groupby(lengths):
        count = len(list(equal))
        runs.append((start, count, length))
        start += count * length
    return runs


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to `device`; to a GPU without waiting for what it is computing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def linear(
    weight: torch.Tensor, bias: torch.Tensor | None = None, *, gelu: bool = False
) -> TensorMap:
    """Return x -> x @ weight.T + bias, optionally followed by the exact (not the tanh) gelu.

    On a CPU this uses oneDNN with its own layout of the weight, made once: 10 to 20 % faster than
    `F.linear` on AMD CPUs, where MKL is slow, and the gelu needs no pass of its own.
    """
    if _has_onednn(weight):
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
        after: tuple[str, list[float], str] = ("gelu" if gelu else "none", [], "none")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, bias, *after)  # type: ignore[no-any-return]
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def _has_onednn(weight: torch.Tensor) -> bool:
    """Return whether oneDNN can compute in the weight's dtype on this machine.

    The operators are internal to torch, for its compiler, so their absence is not an error.
    """
    ops = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(ops, "_linear_pointwise") or not hasattr(ops, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.float32:
        return True
    short = "bf16" if weight.dtype == torch.bfloat16 else "fp16"
    is_supported = getattr(ops, f"_is_mkldnn_{short}_supported", None)
    return is_supported is not None and bool(is_supported())


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Attend inside each sequence: (tokens, heads, d) each, to (tokens, heads * d) of v's dtype."""
    dtype = scores_dtype(v)
    q, k, values = q.to(dtype), k.to(dtype), v.to(dtype)
    varlen = _varlen(q)
    if varlen is not None:
        bounds, longest = pack.bounds(), max(pack.lengths)
        return varlen(q, k, values, bounds, bounds, longest, longest).flatten(1)  # type: ignore[no-any-return]
    output = torch.empty_like(v, memory_format=torch.contiguous_format)
    for start, count, length in pack.runs:
        stop = start + count * length
        parts = (x[start:stop].unflatten(0, (count, length)) for x in (q, k, values))
        attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        output[start:stop] = attended.transpose(1, 2).flatten(0, 1)
    return output.flatten(1)


def scores_dtype(values: torch.Tensor) -> torch.dtype:
    """Return the dtype to attend in.

    On a CPU that is float32: it is more exact, and faster than half precision without matrix
    instructions for that.
    """
    return torch.float32 if values.device.type == "cpu" else values.dtype


def _varlen(q: torch.Tensor) -> Any:
    """Return PyTorch's attention over packs, which exists for half precision on CUDA; else None."""
    if q.device.type != "cuda" or q.dtype == torch.float32:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # new in PyTorch 2.10
        return None
    return varlen_attn
