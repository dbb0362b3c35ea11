"""Read a FASTA file once and divide it into blocks of whole records, counted and hashed.

Blocks are the units that claims are made of. The digest of a block is that of its raw (for gzip:
uncompressed) bytes, so that a claim can prove that it reads what was planned.

Memory does not grow with the file, nor with a line or a record of it. The file is read in pieces; a
`RecordCounter` finds where records start and how many residues each has, and a `_BlockBuilder` adds
them up to blocks. Records are not parsed: numpy finds the blanks of a piece, and all counts follow
from their positions. Of a record that began in an earlier piece only two numbers are kept.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.inputs.fasta import BLANKS, input_errors, open_fasta, refuse_non_fasta
from embed.inputs.gzip_index import LazyRestarts
from embed.inputs.segments import Segment
from fsqueue import BadInput

PIECE_BYTES: Final = 1 << 20
BLOCK_BYTES_MIN: Final = 1 << 9
BLOCK_BYTES_MAX: Final = 1 << 18
BLOCKS: Final = 512
"""The usual number of blocks of a file: enough for 8 claims on each of many GPUs. Larger files have
more, so that no block is much work; smaller ones fewer, so that none is below BLOCK_BYTES_MIN."""

NEWLINE, BLANK_MAX, STAR, GREATER = 10, 32, 42, 62

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
    """The number of sequences without residues."""
    longer: int = 0
    """The number of those longer than `longer_than`."""
    restarts: LazyRestarts | None = field(default=None, compare=False, repr=False)
    """Where reading can begin, if it is gzip."""

    def total(self, name: str) -> int:
        """Return the sum of one of BLOCK's counts over the file."""
        return int(self.blocks[name].sum())

    def segment(self, blocks: NDArray[np.void]) -> Segment:
        """Return the segment of these consecutive rows of `blocks`."""
        return Segment.of(self.path, blocks, self.restarts)


def scan(
    path: str,
    cost: Cost,
    *,
    longer_than: int = 1 << 62,
    piece_bytes: int = PIECE_BYTES,
    block_bytes: int = BLOCK_BYTES_MIN,
) -> Scan:
    """Read `path` once and return its blocks. Raises BadInput if it is not valid FASTA."""
    refuse_non_fasta(path)
    buffer = np.empty(piece_bytes, np.uint8)
    with input_errors(path), open_fasta(path) as (file, size):
        counter = RecordCounter(path, piece_bytes)
        builder = _BlockBuilder(cost, max(block_bytes, _block_bytes(size)), longer_than)
        while count := file.readinto(buffer.data):
            data = buffer[:count]
            builder.feed(data, *counter.feed(data))
    blocks = builder.finish(*counter.finish())
    digest = hashlib.sha256(b"".join(blocks["digest"].tolist())).hexdigest()
    return Scan(path, blocks, digest, builder.empty, builder.longer, LazyRestarts(path))


def _block_bytes(size: int) -> int:
    return min(size // BLOCKS, BLOCK_BYTES_MAX)


class RecordCounter:
    """Find where records start, and how many residues each has, piece by piece."""

    def __init__(self, path: str, piece_bytes: int) -> None:
        self.path = path
        # Allocated once: new memory pages cost more than the comparison that fills them.
        self.mask = np.empty(piece_bytes, np.bool_)
        self.at_line_start = True
        self.in_header = False
        self.in_record = False
        self.residues = 0  # of the open record, in earlier pieces
        self.stars = 0  # how many stars are at the end of these

    def feed(self, data: NDArray[np.uint8]) -> tuple[Ints, Ints]:
        """Return where records start in `data`, and the lengths of the records before each of them.

        Before the file's first record there is none: its entry is -1.
        """
        if not data.min():
            raise BadInput(f"{self.path}: contains NUL bytes: it is binary. FASTA is plain text.")
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
        """End the file's last record; the result is like that of `feed`."""
        ended = self.residues - self.stars if self.in_record else -1
        return np.empty(0, np.int64), np.array([ended])

    def _portions(self, data: NDArray[np.uint8], line: Ints) -> tuple[Ints, Ints]:
        """Return the first line of residues, and the line after the last, of the open record and of
        every record that starts in this piece."""
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
        """Add the open record's earlier portions; return the lengths of the records that ended."""
        if stars[0] == letters[0]:
            stars[0] += self.stars
        letters[0] += self.residues
        self.residues, self.stars = int(letters[-1]), int(stars[-1])
        ended = letters[:-1] - stars[:-1]
        if not self.in_record:
            if letters[0]:
                raise BadInput(
                    f"{self.path}: is not FASTA: there is text before the first '>'. Check that "
                    f"this is the right file."
                )
            if ended.size:
                self.in_record, ended[0] = True, -1
        return ended


def _trailing_stars(data: NDArray[np.uint8], body: Ints, end: Ints) -> Ints:
    """Return how many stars are at the end of each portion, ignoring blanks."""
    last = np.maximum(end - 1, 0)
    for _ in range(4):  # nearly every record ends in one or two line breaks, of one or two bytes
        last = np.maximum(last - (data[last] <= BLANK_MAX), 0)
    star = data[last] == STAR
    one = star & (last > body) & (data[last - 1] > STAR)
    stars = one.astype(np.int64)
    for row in np.flatnonzero(~one & (data[last] <= STAR)).tolist():
        letters = data[body[row] : end[row]].tobytes().translate(None, BLANKS)
        stars[row] = len(letters) - len(letters.rstrip(b"*"))
    return stars


class _BlockBuilder:
    """Collect records into blocks of at least `block_bytes`, and hash them."""

    def __init__(self, cost: Cost, block_bytes: int, longer_than: int) -> None:
        self.cost, self.block_bytes, self.longer_than = cost, block_bytes, longer_than
        self.position = self.start = self.empty = self.longer = 0
        self.open = np.zeros(4, np.int64)  # sequences, residues, longest, cost of the open block
        self.hash = hashlib.sha256()
        self.parts = [np.empty(0, BLOCK)]

    def feed(self, data: NDArray[np.uint8], starts: Ints, ended: Ints) -> None:
        """Add a piece, and what `RecordCounter.feed` found in it."""
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
        """Close the last block, and return all blocks."""
        if self.position > self.start:
            totals = self._totals(ended, [0])
            self._close(np.array([self.position]), totals, [self.hash.digest()])
        return np.concatenate(self.parts)

    def _cuts(self, starts: list[int]) -> list[int]:
        """Return which of the starts end a block.

        In gzip data, whose size is unknown, blocks become larger with the position.
        """
        cuts: list[int] = []
        start, cut = self.start, 0
        while True:
            cut = bisect_left(starts, start + max(self.block_bytes, _block_bytes(start)), cut)
            if cut == len(starts):
                return cuts
            cuts.append(cut)
            start = starts[cut]

    def _totals(self, ended: Ints, cuts: list[int]) -> Ints:
        """Return the counts of every block that ends in this piece, then of the open one."""
        real = ended >= 0
        lengths = np.where(real, ended, 0)
        self.empty += int(np.count_nonzero(ended == 0))
        self.longer += int(np.count_nonzero(ended > self.longer_than))
        counts = np.stack([real, lengths, lengths, np.where(real, self.cost(lengths), 0)], axis=1)
        # The last block may have no record yet, but reduceat needs one element for it.
        counts = np.concatenate([counts, np.zeros((1, 4), np.int64)]).astype(np.int64)
        edges = [0, *(cut + 1 for cut in cuts)]
        totals = np.add.reduceat(counts, edges)
        totals[:, 2] = np.maximum.reduceat(counts[:, 2], edges)
        longest = max(int(totals[0, 2]), int(self.open[2]))
        totals[0] += self.open
        totals[0, 2] = longest
        return totals

    def _close(self, ends: Ints, totals: Ints, digests: list[bytes]) -> None:
        """Add the blocks that end at `ends`; the last row of `totals` is the open block's."""
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
