"""Count the residues of FASTA records in chunks of raw bytes, by the rules of `fasta.py`.

Nothing is taken apart: numpy finds the blanks of a chunk, and all counts come from their positions.
What an open record has in earlier chunks is carried as two numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embed.fasta import BLANKS
from fsqueue import BadInput

NEWLINE, BLANK_MAX, STAR, GREATER = 10, 32, 42, 62

Ints = NDArray[np.int64]


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
