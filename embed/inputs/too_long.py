"""Count, when a file is planned, the sequences that have more tokens than a model reads.

Where a letter is a token, the scan of the file has counted them. Elsewhere it takes the tokenizer,
and a second for each megabyte. Most sequences do not need it: none has more tokens than letters. Of
the others all are tokenized, or where these are too many, those of blocks that are spread evenly
over the file; their number is then an estimate, and a plan says so.

What this module does not know: what is done with sequences that are too long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.inputs.fasta import Record, input_errors, open_fasta, parse_records
from embed.inputs.fasta_scan import Scan
from embed.models.generic.tokenizer import GenericTokenizer

LETTERS_MAX: Final = 1 << 20
"""How much of a file is tokenized: about a second's work."""
LETTERS_MIN: Final = 1 << 15
"""The same for a file after many others."""
PLAN_LETTERS: Final = 1 << 23
"""The same for all files of a plan, apart from LETTERS_MIN for each."""
BLOCK_READ_MAX: Final = 1 << 20
"""How much of a block is read, which may be one chromosome."""


@dataclass(frozen=True, slots=True)
class TooLong:
    """How many sequences have more tokens than fit."""

    count: int
    sampled: int = 0
    """From how many sequences this is estimated; 0: all were counted."""

    def __str__(self) -> str:
        are = "1 sequence is" if self.count == 1 else f"{self.count:,} sequences are"
        return f"about {are} (estimated from {self.sampled:,})" if self.sampled else are


class TooLongCounter:
    """Counts files of one plan, the first ones more closely than what follows many."""

    def __init__(self, letters: int = PLAN_LETTERS) -> None:
        self._letters = letters

    def count(self, found: Scan, tokenizer: GenericTokenizer, room: int) -> TooLong:
        """Return how many sequences of a scanned file have more than `room` tokens of their own.

        `found` was scanned with `longer_than=letters_sure(room)`. Raises BadInput.
        """
        blocks = found.blocks[found.blocks["longest"] > letters_sure(room)]
        if not len(blocks):
            return TooLong(0)
        letters = max(LETTERS_MIN, min(LETTERS_MAX, self._letters))
        chosen = _spread(blocks, letters)
        candidates = is_long = 0
        for record, is_whole in _records(found.path, chosen):
            if len(record.residues) <= letters_sure(room):
                continue
            answer, read = tokenizer.exceeds(record.residues, room)
            self._letters -= read
            if answer or is_whole:
                candidates += 1
                is_long += answer
        if candidates >= found.longer:
            return TooLong(is_long)
        if not is_long:
            return TooLong(0, candidates)
        return TooLong(max(is_long, round(is_long / candidates * found.longer)), candidates)


def letters_sure(room: int) -> int:
    """Return how many letters always fit into `room` tokens: sentencepiece may add one in front."""
    return max(0, room - 1)


def _spread(blocks: NDArray[np.void], letters: int) -> NDArray[np.void]:
    """Return all blocks, or some with about so many letters: the one with the longest sequence,
    and others spread evenly."""
    total = int(np.minimum(blocks["length"], BLOCK_READ_MAX).sum())
    if total <= letters:
        return blocks
    count = max(1, len(blocks) * letters // total)
    numbers = np.linspace(0, len(blocks) - 1, count + 1).astype(np.int64)[:-1]
    return blocks[np.union1d(numbers, blocks["longest"].argmax())]


def _records(path: str, blocks: NDArray[np.void]) -> Iterator[tuple[Record, bool]]:
    """Yield the sequences of some blocks, and whether each is whole."""
    with input_errors(path), open_fasta(path) as (file, _size):
        for start, length in zip(blocks["start"].tolist(), blocks["length"].tolist(), strict=True):
            file.seek(start)
            size, parts = min(length, BLOCK_READ_MAX), []
            while size and (part := file.read(size)):
                parts.append(part)
                size -= len(part)
            found = list(parse_records(b"".join(parts)))
            for number, record in enumerate(found, 1):
                yield record, number < len(found) or length <= BLOCK_READ_MAX
