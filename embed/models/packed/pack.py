"""A batch on a device: its ids and bounds, and what follows from them.

Everything is computed on the device, in a number of operations that does not depend on how many
sequences there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch

from embed.models.packed.kernels import Kernel, scores_dtype
from embed.models.packed.layout import Bucket, Frame, Ids, Layout


@dataclass
class Pack:
    """A batch on a device."""

    layout: Layout
    bounds: torch.Tensor
    """The offsets of the sequences, (sequences + 1,) int32."""
    tokens: torch.Tensor
    """(tokens,) int32."""
    padding: Padding | None = None
    """For the padded kernel."""
    one_masked: bool = False
    """Whether all sequences are of equal length, and one token of each is the mask."""

    @classmethod
    def read(cls, data: torch.Tensor, layout: Layout) -> Pack:
        """Return the batch of a buffer that `Layout.write` wrote, and that is on a device."""
        bounds, *columns, ids = layout.columns(data)
        padding = Padding(layout, *columns) if layout.kernel is Kernel.PADDED else None
        return cls(layout, bounds, ids.int(), padding)

    @classmethod
    def of(
        cls,
        sequences: Sequence[Ids],
        frame: Frame,
        device: torch.device,
        kernel: Kernel = Kernel.RUNS,
    ) -> Pack:
        """Pack sequences of ids, at once and waiting for the device."""
        layout = Layout([len(ids) for ids in sequences], frame, kernel)
        data = np.empty(layout.bytes, np.uint8)
        layout.write(sequences, data)
        return cls.read(torch.from_numpy(data).to(device), layout)

    @property
    def lengths(self) -> list[int]:
        return self.layout.lengths

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first token, sequences, length of each) for every run of sequences of equal length."""
        runs, start = [], 0
        for length, equal in groupby(self.lengths):
            count = len(list(equal))
            runs.append((start, count, length))
            start += count * length
        return runs

    @cached_property
    def sequence(self) -> torch.Tensor:
        """The number of each token's sequence, (tokens,) int64."""
        return _repeated(self.bounds.diff(), self.layout.tokens)

    @cached_property
    def positions(self) -> torch.Tensor:
        """Each token's place in its sequence, (tokens,) int32, from 0."""
        tokens = torch.arange(self.layout.tokens, dtype=torch.int32, device=self.bounds.device)
        return tokens - self.bounds[self.sequence]

    @cached_property
    def attention_positions(self) -> torch.Tensor:
        """As `positions`, in the layout that attention works in: see `spread`."""
        return self.positions if self.padding is None else self.padding.positions

    def scores_dtype(self, values: torch.Tensor) -> torch.dtype:
        """Return the dtype to attend in: that of the values, if the kernel is a GPU's."""
        return scores_dtype(values) if self.layout.kernel is Kernel.RUNS else values.dtype

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of tokens in the layout that attention works in."""
        return rows if self.padding is None else rows.index_select(0, self.padding.source)


@dataclass
class Padding:
    """The padded layout of a batch: sequences by length, those of a bucket padded to the longest.

    A padded slot repeats the last token of its sequence, so that its numbers are finite.
    """

    layout: Layout
    places: torch.Tensor
    """Where each sequence begins in the padded layout, (sequences,)."""
    starts: torch.Tensor
    """The same in the padded layout's order, and the end, (sequences + 1,)."""
    begins: torch.Tensor
    """Where each begins in the pack, in that order."""
    sizes: torch.Tensor
    """Each one's tokens, in that order."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What a model computed once for all of its layers."""

    @cached_property
    def _row(self) -> torch.Tensor:
        return _repeated(self.starts.diff(), self.layout.slots)

    @cached_property
    def _place(self) -> torch.Tensor:
        slots = torch.arange(self.layout.slots, dtype=torch.int32, device=self.starts.device)
        return slots - self.starts[self._row]

    @cached_property
    def positions(self) -> torch.Tensor:
        """Each slot's position in its sequence; those of padding repeat the last."""
        return torch.minimum(self._place, self.sizes[self._row] - 1)

    @cached_property
    def source(self) -> torch.Tensor:
        """The token of each slot, (slots,) int32."""
        return self.begins[self._row] + self.positions

    @cached_property
    def is_padding(self) -> torch.Tensor:
        """Whether each slot is padding, (slots,)."""
        return self._place >= self.sizes[self._row]

    def slots_of(self, pack: Pack) -> torch.Tensor:
        """Return the slot of each token, (tokens,) int32."""
        found = self.kept.get("slots")
        if found is None:
            found = self.places[pack.sequence] + pack.positions
            self.kept["slots"] = found
        return found  # type: ignore[no-any-return]

    def mask(self, bucket: Bucket, dtype: torch.dtype) -> torch.Tensor:
        """Return what is added to a bucket's scores, (sequences, 1, 1, length): 0, or -inf."""
        key = bucket.slot, dtype
        if key not in self.kept:
            sizes = self.sizes[bucket.first : bucket.first + bucket.count, None]
            # Kernels need rows that begin at a multiple of 16 bytes.
            places = torch.arange(-(-bucket.length // 8) * 8, device=sizes.device)
            bias = torch.zeros(bucket.count, len(places), dtype=dtype, device=sizes.device)
            bias.masked_fill_(places >= sizes, float("-inf"))
            self.kept[key] = bias[:, None, None, : bucket.length]
        return self.kept[key]  # type: ignore[no-any-return]


def _repeated(counts: torch.Tensor, total: int) -> torch.Tensor:
    """Return number i as often as counts[i] says; with the total known, nothing waits for it."""
    numbers = torch.arange(len(counts), device=counts.device)
    return torch.repeat_interleave(numbers, counts, output_size=total)
