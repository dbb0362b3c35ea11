"""Attention inside each sequence of a pack, by the kernel of its layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from embed.models.packed.kernels import Kernel, biased_attention, varlen
from embed.models.packed.layout import Bucket
from embed.models.packed.pack import Pack, Padding


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Attend inside each sequence: (rows, heads, d) each, to (tokens, heads * d) of v's dtype.

    The rows are in the layout of `Pack.spread`.
    """
    if pack.layout.kernel is Kernel.VARLEN:
        return varlen(q, k, v, pack.bounds, pack.layout.longest).flatten(1)
    if pack.padding is not None:
        return _attend_padded(q, k, v, pack, pack.padding)
    dtype = pack.scores_dtype(v)
    q, k, values = q.to(dtype), k.to(dtype), v.to(dtype)
    output = torch.empty_like(v, memory_format=torch.contiguous_format)
    for start, count, length in pack.runs:
        stop = start + count * length
        parts = (x[start:stop].unflatten(0, (count, length)) for x in (q, k, values))
        attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        output[start:stop] = attended.transpose(1, 2).flatten(0, 1)
    return output.flatten(1)


def _attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack, padding: Padding
) -> torch.Tensor:
    found = []
    for bucket in pack.layout.buckets:
        queries, keys, values = (bucketed(x, bucket) for x in (q, k, v))
        attended = biased_attention(queries, keys, values, padding.mask(bucket, q.dtype))
        found.append(attended.transpose(1, 2).flatten(0, 1).flatten(1))
    return gathered(found, pack, padding)


def bucketed(rows: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """Return a bucket's rows of a padded layout: (count, heads, length, d)."""
    part = rows[bucket.slot : bucket.stop]
    return part.unflatten(0, (bucket.count, bucket.length)).transpose(1, 2)


def gathered(parts: Sequence[torch.Tensor], pack: Pack, padding: Padding) -> torch.Tensor:
    """Return the rows of all buckets without their padding, in the pack's order."""
    rows = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return rows.index_select(0, padding.slots_of(pack))
