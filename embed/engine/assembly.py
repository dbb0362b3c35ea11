"""Assemble the rows of batches in the order of the sequences, in a table or a ragged matrix.

A sequence that was read in windows has a vector from each. Means are weighted by the windows'
shares of its letters and added in float64 in the windows' order, so that the result does not depend
on batches or their order; of maxima the largest is taken, and normalised vectors are normalised
again. Rows per token are concatenated.

What this module does not know: tokens, batches and files.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.models.conventions.convention import Convention

Rows = NDArray[np.float32]


class Assembly:
    """The table of one claim while it is filled."""

    def __init__(self, sequences: int, width: int, convention: Convention) -> None:
        self._convention = convention
        self._width = width
        self.ragged = convention.per_token
        """Whether a sequence has a row for each token."""
        self._table: Rows = np.zeros((0 if self.ragged else sequences, width), np.float32)
        self._windows: dict[int, dict[int, tuple[float, Rows]]] = defaultdict(dict)
        self._sequences = sequences

    def add(self, row: int, rows: Rows, *, window: int = 0, share: float = 1.0) -> None:
        """Add the rows of sequence number `row`, or those of one of its windows."""
        if share == 1.0 and not self.ragged:
            self._table[row] = rows[0]
        else:
            self._windows[row][window] = share, rows

    def finish(self) -> tuple[Rows, dict[str, NDArray[Any]]]:
        """Return all rows, and for a ragged matrix the `offsets` that divide it into sequences.

        A sequence that was never added has zeros, or no rows.
        """
        if self.ragged:
            return self._ragged()
        for row, windows in self._windows.items():
            parts = [windows[number] for number in sorted(windows)]
            if self._convention.takes_maximum:
                self._table[row] = np.max([rows[0] for _, rows in parts], axis=0)
                continue
            total = sum(share * rows[0].astype(np.float64) for share, rows in parts)
            whole = self._convention.normalize and not self._convention.dimensions
            length = np.linalg.norm(total) if whole else 1.0
            self._table[row] = total / (length or 1.0)
        return self._table, {}

    def _ragged(self) -> tuple[Rows, dict[str, NDArray[Any]]]:
        offsets = np.zeros(self._sequences + 1, np.int64)
        pieces = [np.empty((0, self._width), np.float32)]
        for row in range(self._sequences):
            windows = self._windows.pop(row, {})
            found = [windows[number][1] for number in sorted(windows)]
            offsets[row + 1] = offsets[row] + sum(map(len, found))
            pieces += found
        return np.concatenate(pieces), {"offsets": offsets}


class WindowScores:
    """The scores of sequences: sums of those of their windows, in the windows' order."""

    def __init__(self, sequences: int) -> None:
        self._found: list[dict[int, float]] = [{} for _ in range(sequences)]

    def add(self, row: int, window: int, score: float) -> None:
        """Add the score of a sequence, or of one of its windows."""
        self._found[row][window] = score

    def finish(self) -> NDArray[np.float32]:
        """Return the score of each sequence; an empty one has 0."""
        sums = [sum(score for _, score in sorted(each.items())) for each in self._found]
        return np.array(sums, "<f4")
