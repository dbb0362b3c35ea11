"""Read a FASTA file once and divide it into blocks of whole records, counted and hashed.

Memory does not grow with the file, nor with a line or a record of it.

Blocks are the grains from which `cut` makes claims. The digest of a block is that of its raw
(for gzip: uncompressed) bytes, so that a claim can prove it reads what was planned.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.counting import Counter, Ints
from embed.fasta import explained, opened, refuse_other_kinds
from embed.segments import Segment

CHUNK: Final = 1 << 20
GRAIN_MIN: Final = 1 << 9
GRAIN_MAX: Final = 1 << 18
BLOCKS: Final = 512
"""A file has about so many blocks: fine enough for 8 claims on each of many GPUs. Larger files have
more, so that no block is ever much work; smaller ones fewer, as no block is below GRAIN_MIN."""

Cost = Callable[[Ints], NDArray[Any]]

BLOCK: Final = np.dtype(
    [(name, np.int64) for name in ("start", "length", "sequences", "residues", "longest", "cost")]
    + [("digest", "V32")]
)


@dataclass(frozen=True, slots=True)
class Scan:
    """A file's blocks, in order and without gaps, as one array of BLOCK; and their sums."""

    path: str
    blocks: NDArray[np.void]
    digest: str
    empty: int

    def total(self, name: str) -> int:
        """Return the sum of one of BLOCK's counts over the file."""
        return int(self.blocks[name].sum())

    def segment(self, blocks: NDArray[np.void]) -> Segment:
        """Return the segment that these consecutive rows of `blocks` make."""
        return Segment.of(self.path, blocks)


def scan(path: str, cost: Cost, *, chunk: int = CHUNK, grain: int = GRAIN_MIN) -> Scan:
    """Read `path` once and return its blocks. Raises BadInput if it is not sound FASTA."""
    refuse_other_kinds(path)
    buffer = np.empty(chunk, np.uint8)
    with explained(path), opened(path) as (file, size):
        counter, cutter = Counter(path, chunk), _Cutter(cost, max(grain, _grain(size)))
        while count := file.readinto(buffer.data):
            data = buffer[:count]
            cutter.feed(data, *counter.feed(data))
    blocks = cutter.finish(*counter.finish())
    digest = hashlib.sha256(b"".join(blocks["digest"].tolist())).hexdigest()
    return Scan(path, blocks, digest, cutter.empty)


def _grain(size: int) -> int:
    return min(size // BLOCKS, GRAIN_MAX)


class _Cutter:
    """Gather records into blocks of at least a grain, and hash them."""

    def __init__(self, cost: Cost, grain: int) -> None:
        self.cost, self.grain = cost, grain
        self.position = self.start = self.empty = 0
        self.open = np.zeros(4, np.int64)  # sequences, residues, longest, cost of the open block
        self.hash = hashlib.sha256()
        self.parts = [np.empty(0, BLOCK)]

    def feed(self, data: NDArray[np.uint8], starts: Ints, ended: Ints) -> None:
        """Take a chunk, and what `Counter.feed` found in it."""
        cuts = self._cuts((starts + self.position).tolist())
        totals = self._totals(ended, cuts)
        digests, view, at = [], data.data, 0
        for stop in starts[cuts].tolist():
            self.hash.update(view[at:stop])
            digests.append(self.hash.digest())
            self.hash, at = hashlib.sha256(), stop
        self.hash.update(view[at:])
        self._close(starts[cuts] + self.position, totals, digests)
        self.position += len(data)

    def finish(self, starts: Ints, ended: Ints) -> NDArray[np.void]:
        """Close the last block, and return all."""
        if self.position > self.start:
            totals = self._totals(ended, [0])
            self._close(np.array([self.position]), totals, [self.hash.digest()])
        return np.concatenate(self.parts)

    def _cuts(self, starts: list[int]) -> list[int]:
        """Return which of the starts end a block. In gzip data of unknown size the grain grows."""
        cuts: list[int] = []
        start, cut = self.start, 0
        while True:
            cut = bisect_left(starts, start + max(self.grain, _grain(start)), cut)
            if cut == len(starts):
                return cuts
            cuts.append(cut)
            start = starts[cut]

    def _totals(self, ended: Ints, cuts: list[int]) -> Ints:
        """Return the open counts of every block that ends in this chunk, then of the open one."""
        real = ended >= 0
        lengths = np.where(real, ended, 0)
        self.empty += int(np.count_nonzero(ended == 0))
        counts = np.stack([real, lengths, lengths, np.where(real, self.cost(lengths), 0)], axis=1)
        # The last block may have no record yet: reduceat needs one element for it.
        counts = np.concatenate([counts, np.zeros((1, 4), np.int64)]).astype(np.int64)
        edges = [0, *(cut + 1 for cut in cuts)]
        totals = np.add.reduceat(counts, edges)
        totals[:, 2] = np.maximum.reduceat(counts[:, 2], edges)
        longest = max(int(totals[0, 2]), int(self.open[2]))
        totals[0] += self.open
        totals[0, 2] = longest
        return totals

    def _close(self, ends: Ints, totals: Ints, digests: list[bytes]) -> None:
        """Keep the blocks that end at `ends`; the last row of `totals` is the open block's."""
        blocks = np.zeros(len(ends), BLOCK)
        blocks["start"] = np.append(self.start, ends[:-1])[: len(ends)]
        blocks["length"] = ends - blocks["start"]
        blocks["digest"] = np.array(digests, "V32")
        for column, name in enumerate(("sequences", "residues", "longest", "cost")):
            blocks[name] = totals[:-1, column]
        self.parts.append(blocks)
        self.open = totals[-1]
        if len(ends):
            self.start = int(ends[-1])
