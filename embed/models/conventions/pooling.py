"""Pool the hidden states of a packed batch: a vector for each sequence, or a row for each token.

The operations are over segments of the batch, so their number does not depend on how many sequences
it has; except on a CPU, where a loop over the segments is faster, and gives the same numbers as for
a sequence alone. Nothing here waits for the device. Everything is computed and returned in float32,
because half precision would lose digits in a sum.

Which mode a model has is not decided here, but by `practice.py` and `modules_json.py`.
One of the doors to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from embed.models.conventions.convention import Convention, Mode
from embed.models.packed.states import States

TensorMap = Callable[[torch.Tensor], torch.Tensor]


class Pooler:
    """Pools as a convention says."""

    def __init__(
        self,
        convention: Convention,
        edges: tuple[int, int] = (1, 1),
        *,
        prefix_tokens: int = 0,
        head: Sequence[TensorMap] = (),
    ) -> None:
        """`edges` are how many tokens before and after a sequence are not its own.

        `prefix_tokens` are those of a text's prefix, which follow the begin tokens. `head` are the
        loaded modules that `convention.head` names.
        """
        begin, end = edges
        left_out = 0 if convention.pools_prefix else begin + prefix_tokens
        self.convention = convention
        self._own = max(begin, left_out), end
        self._all = left_out, 0
        self._head = head

    def width(self, model_width: int) -> int:
        """Return how many numbers a row has."""
        return self.convention.width(model_width)

    def __call__(self, states: States) -> torch.Tensor:
        """Return (sequences, width), or (own tokens, width) if every token has a row.

        No sequence may be empty.
        """
        parts = [self._pool(mode, states) for mode in self.convention.modes]
        rows = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        for module in self._head:
            rows = module(rows)
        if self.convention.normalize:
            rows = functional.normalize(rows, dim=-1)
        return rows[:, : self.convention.dimensions] if self.convention.dimensions else rows

    def _pool(self, mode: Mode, states: States) -> torch.Tensor:
        rows, bounds = states.rows, states.bounds.long()
        if mode is Mode.CLS:
            return rows[bounds[:-1] + self._all[0]].float()
        if mode is Mode.LAST:
            return rows[bounds[1:] - 1].float()
        if mode is Mode.PER_TOKEN:
            return rows[_indices(bounds, self._own, len(rows))].float()
        span = self._own if mode in (Mode.MEAN, Mode.MAX) else self._all
        starts, stops = bounds[:-1] + span[0], bounds[1:] - span[1]
        if mode in (Mode.MAX, Mode.MAX_ALL):
            return reduce(rows, starts, stops, "max")
        if mode is Mode.WEIGHTED_MEAN:
            return _weighted_mean(rows, bounds, starts, stops)
        means = reduce(rows, starts, stops, "mean")
        return means * (stops - starts)[:, None].sqrt() if mode is Mode.MEAN_SQRT_LENGTH else means


def reduce(rows: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor, how: str) -> torch.Tensor:
    """Return the "mean" or "max" of rows[starts[i]:stops[i]] for every i, in float32.

    The segments are in order and do not overlap.
    """
    if rows.device.type in ("cpu", "mps"):  # MPS has no segment_reduce
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        segments = [rows[start:stop].float() for start, stop in pairs]
        each = [part.mean(0) if how == "mean" else part.amax(0) for part in segments]
        return torch.stack(each)
    return reduce_segments(rows, starts, stops, how)


def reduce_segments(
    rows: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor, how: str
) -> torch.Tensor:
    """Do what `reduce` does in one operation."""
    # What lies between two segments is reduced as well, and skipped.
    edges = torch.stack([starts, stops], 1).flatten()
    return torch.segment_reduce(rows.float(), how, offsets=edges, axis=0, unsafe=True)[::2]


def _weighted_mean(
    rows: torch.Tensor, bounds: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor
) -> torch.Tensor:
    weights = 1 + torch.arange(len(rows), device=rows.device) - _repeated(bounds, len(rows))
    means = reduce(rows.float() * weights[:, None], starts, stops, "mean")
    first, last = 1 + starts - bounds[:-1], stops - bounds[:-1]
    return means / ((first + last) / 2)[:, None]


def _repeated(bounds: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return for each token where its sequence begins."""
    return torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=tokens)


def _indices(bounds: torch.Tensor, edges: tuple[int, int], tokens: int) -> torch.Tensor:
    """Return the numbers of the sequences' own tokens; how many those are needs no waiting."""
    each = sum(edges)
    shifts = edges[0] + each * torch.arange(len(bounds) - 1, device=bounds.device)
    own, total = bounds.diff() - each, tokens - each * (len(bounds) - 1)
    numbers = torch.arange(total, device=bounds.device)
    return numbers + torch.repeat_interleave(shifts, own, output_size=total)
