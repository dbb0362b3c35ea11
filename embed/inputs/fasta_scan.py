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

from embed.inputs.fasta import BLANKS, explained, opened, refuse_other_kinds
from embed.inputs.segments import Segment
from fsqueue import BadInput

CHUNK: Final = 1 << 20
GRAIN_MIN: Final = 1 << 9
GRAIN_MAX: Final = 1 << 18
BLOCKS: Final = 512
"""A file has about so many blocks: fine enough for 8 claims on each of many GPUs. Larger files have
more, so that no block is ever much work; smaller ones fewer, as no block is below GRAIN_MIN."""

Ints = NDArray[np.int64]
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


# ---- count residues in chunks of raw bytes ----
#
# Nothing is taken apart: numpy finds the blanks of a chunk, and all counts come from their
# positions. What an open record has in earlier chunks is carried as two numbers.

NEWLINE, BLANK_MAX, STAR, GREATER = 10, 32, 42, 62


class Counter:
    """Find where records start, and how many residues each has, chunk by chunk."""

    def __init__(self, path: str, chunk: int) -> None:
        self.path = path
        self.mask = np.empty(chunk, np.bool_)  # made once: fresh pages cost more than the compare
        self.at_line_start = True
        self.in_header = False
        self.in_record = False
        self.residues = 0  # of the open record, in the chunks before this one
        self.stars = 0  # how many of them are stars that end it so far

    def feed(self, data: NDArray[np.uint8]) -> tuple[Ints, Ints]:
        """Return where records start in `data`, and the lengths of the records these starts end.

        The file's first record ends none: its entry is -1.
        """
        if not data.min():
            raise BadInput(f"{self.path}: holds NUL bytes: it is binary. FASTA is plain text.")
        blank = np.flatnonzero(np.less_equal(data, BLANK_MAX, out=self.mask[: len(data)]))
        newline = np.flatnonzero(data[blank] == NEWLINE)
        # Where each line begins, and how many blanks are before that; the last entry is the end.
        line = np.concatenate(([0], blank[newline] + 1, [len(data)]))
        blanks = np.concatenate(([0], newline + 1, [len(blank)]))
        first, last = self._portions(data, line)
        body, end = line[first], line[last]
        letters = (end - body) - (blanks[last] - blanks[first])
        return end[:-1], self._carry(letters, _trailing_stars(data, body, end))

    def finish(self) -> tuple[Ints, Ints]:
        """End the file's last record, as `feed` does at a start."""
        ended = self.residues - self.stars if self.in_record else -1
        return np.empty(0, np.int64), np.array([ended])

    def _portions(self, data: NDArray[np.uint8], line: Ints) -> tuple[Ints, Ints]:
        """Return the first line of residues, and the line after the last, of the open record and of
        every record that starts here."""
        begins = line[:-1] if line[-2] < line[-1] else line[:-2]
        is_head = data[begins] == GREATER
        is_head[0] &= self.at_line_start
        head = np.flatnonzero(is_head)
        first = np.concatenate(([int(self.in_header)], head + 1))
        last = np.append(head, len(line) - 1)
        self.at_line_start = len(begins) < len(line) - 1
        self.in_header = bool(first[-1] == len(line) - 1)
        return first, last

    def _carry(self, letters: Ints, stars: Ints) -> Ints:
        """Join the open record's portion to its earlier ones; return what is ended by now."""
        if stars[0] == letters[0]:
            stars[0] += self.stars
        letters[0] += self.residues
        self.residues, self.stars = int(letters[-1]), int(stars[-1])
        ended = letters[:-1] - stars[:-1]
        if not self.in_record:
            if letters[0]:
                raise BadInput(
                    f"{self.path}: is not FASTA: there is text before the first '>'. Check that it "
                    f"is the right file."
                )
            if ended.size:
                self.in_record, ended[0] = True, -1
        return ended


def _trailing_stars(data: NDArray[np.uint8], body: Ints, end: Ints) -> Ints:
    """Return how many stars end each portion, blanks aside."""
    last = np.maximum(end - 1, 0)
    for _ in range(4):  # nearly every record ends in one line break or two, of one byte or two
        last = np.maximum(last - (data[last] <= BLANK_MAX), 0)
    star = data[last] == STAR
    one = star & (last > body) & (data[last - 1] > STAR)
    stars = one.astype(np.int64)
    for row in np.flatnonzero(~one & (data[last] <= STAR)).tolist():
        letters = data[body[row] : end[row]].tobytes().translate(None, BLANKS)
        stars[row] = len(letters) - len(letters.rstrip(b"*"))
    return stars
