"""Where everything of a batch is: sequences end to end, and for one kernel, padded by length.

A batch goes to the device as one buffer of bytes, which `Layout` writes and `pack.Pack` reads:
bounds of the sequences, then their ids. What this module does not know: devices, models and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embed.models.packed.kernels import Kernel
from fsqueue import ClaimImpossible

Ids = bytes | NDArray[Any]
WASTE_MAX: Final = 0.12
"""How much padding the padded kernel may add to a batch, as a share of its tokens."""
RATIOS: Final = (0.0, 0.3, 0.45, 0.55, 0.65, 0.7, 0.75, 0.8, 0.85, 1 / (1 + WASTE_MAX))
"""How short a sequence may be beside the longest of its bucket, tried in this order. By the last,
no bucket has more than WASTE_MAX."""
SLACK: Final = 16
"""Tokens that a sequence may always be shorter; very short ones would need a bucket each."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds every input of a model, and what its tables can hold."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    vocabulary: int
    """One more than the largest id."""
    positions: int | None = None
    """The longest input in tokens, begin and end included; None if there is no such limit."""

    @property
    def count(self) -> int:
        return len(self.begin) + len(self.end)

    @property
    def ids(self) -> type[np.unsignedinteger[Any]] | type[np.signedinteger[Any]]:
        """The smallest type that holds every id."""
        if self.vocabulary <= 1 << 8:
            return np.uint8
        return np.int16 if self.vocabulary <= 1 << 15 else np.int32


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences of similar length side by side in the padded layout."""

    first: int
    """The number of the first, in the order of the padded layout."""
    count: int
    length: int
    slot: int
    """Where the first begins in the padded layout."""

    @property
    def stop(self) -> int:
        """Where the last one ends, padding included."""
        return self.slot + self.count * self.length


class Layout:
    """Where everything of a batch is, in its buffer and on the device. Knows no device."""

    def __init__(self, sizes: Sequence[int], frame: Frame, kernel: Kernel) -> None:
        """`sizes` are the lengths of the sequences without begin and end tokens."""
        self.frame, self.kernel = frame, kernel
        self.lengths = [size + frame.count for size in sizes]
        self.tokens = sum(self.lengths)
        self.longest = max(self.lengths)
        self.buckets: list[Bucket] = []
        columns = [_starts(self.lengths)]
        if kernel is Kernel.PADDED:
            columns += self._pad()
        self._bounds = np.concatenate(columns)
        self.bytes = 4 * len(self._bounds) + np.dtype(frame.ids).itemsize * self.tokens

    def _pad(self) -> list[NDArray[np.int32]]:
        """Choose the buckets; return where each sequence begins in the padded layout, and in the
        layout's order where each begins there and here, and its length."""
        order = np.argsort(-np.array(self.lengths), kind="stable")
        lengths = np.array(self.lengths, np.int32)[order]
        padded = np.empty_like(lengths)
        slot = 0
        for first, last in bucket_edges(lengths):
            length = int(lengths[first])
            self.buckets.append(Bucket(first, last - first, length, slot))
            padded[first:last] = length
            slot = self.buckets[-1].stop
        starts = _starts(padded)
        places = np.empty_like(lengths)
        places[order] = starts[:-1]
        begins = _starts(self.lengths)[order]
        return [places, starts, begins, lengths]

    @property
    def slots(self) -> int:
        """Return how many tokens the padded layout has, padding included."""
        return self.buckets[-1].stop if self.buckets else self.tokens

    def write(self, sequences: Sequence[Ids], target: NDArray[np.uint8]) -> None:
        """Write a batch into its buffer, of `bytes` bytes.

        Raises ClaimImpossible if the model has no embedding for an id, or no position for a token:
        on a GPU that would end the process, and look like a fault of the card.
        """
        frame = self.frame
        head = 4 * len(self._bounds)
        target[:head] = self._bounds.view(np.uint8)
        ids = _joined(sequences, frame)
        largest, smallest = int(ids.max()), int(ids.min())
        if largest >= frame.vocabulary or smallest < 0:
            wrong = largest if largest >= frame.vocabulary else smallest
            raise ClaimImpossible(
                f"a sequence has the token {wrong}, and the model has embeddings for "
                f"{frame.vocabulary:,}: its tokenizer belongs to another model. Fetch the model "
                f"again, with all of its files."
            )
        if frame.positions is not None and self.longest > frame.positions:
            raise ClaimImpossible(
                f"a sequence has {self.longest:,} tokens, and the model has positions for "
                f"{frame.positions:,}. Plan with a smaller --max-residues."
            )
        target[head : self.bytes].view(frame.ids)[:] = ids

    def columns(self, data: torch.Tensor) -> list[torch.Tensor]:
        """Return the columns of the bounds in a buffer on a device, int32, and the ids."""
        count = len(self.lengths)
        sizes = [count + 1]
        if self.kernel is Kernel.PADDED:
            sizes += [count, count + 1, count, count]
        head = 4 * sum(sizes)
        dtype = {np.uint8: torch.uint8, np.int16: torch.int16, np.int32: torch.int32}
        ids = data[head : self.bytes].view(dtype[self.frame.ids])  # type: ignore[index]
        return [*data[:head].view(torch.int32).split(sizes), ids]


def _starts(lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.int32]:
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _joined(sequences: Sequence[Ids], frame: Frame) -> NDArray[Any]:
    """Return the ids of all sequences, each with its begin and end tokens."""
    if isinstance(sequences[0], bytes):
        begin, end = bytes(frame.begin), bytes(frame.end)
        text = b"".join([begin, (end + begin).join(sequences), end])  # type: ignore[arg-type]
        return np.frombuffer(text, np.uint8)
    begin_ids, end_ids = np.array(frame.begin, np.int64), np.array(frame.end, np.int64)
    between = np.concatenate([end_ids, begin_ids])
    parts: list[Any] = [begin_ids]
    for ids in sequences:
        parts += [ids, between]
    parts[-1] = end_ids
    return np.concatenate(parts)


def bucket_edges(lengths: NDArray[Any]) -> list[tuple[int, int]]:
    """Divide lengths, the longest first, into few runs whose padding is at most WASTE_MAX.

    No more of them than one for each SLACK tokens, and then in a geometric series, however many
    lengths there are; unless nearly all sequences are shorter than SLACK.
    """
    total = int(lengths.sum())
    edges: list[tuple[int, int]] = []
    for ratio in RATIOS:
        edges = _edges(lengths, ratio, SLACK)
        if _padded(lengths, edges) <= (1 + WASTE_MAX) * total:
            return edges
    return _edges(lengths, RATIOS[-1], 0)


def _edges(lengths: NDArray[Any], ratio: float, slack: int) -> list[tuple[int, int]]:
    edges, first = [], 0
    while first < len(lengths):
        longest = int(lengths[first])
        least = min(ratio * longest, longest - slack)
        last = int(np.searchsorted(-lengths, -least, "right"))
        edges.append((first, last))
        first = last
    return edges


def _padded(lengths: NDArray[Any], edges: Sequence[tuple[int, int]]) -> int:
    return sum((last - first) * int(lengths[first]) for first, last in edges)
