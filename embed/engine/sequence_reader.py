"""Read sequences as token ids, truncated or in windows, and count what is unusual about them.

What this module does not know: batches, models, and how the ids are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.engine.batching import Tokenized
from embed.inputs.chunks import Chunk
from embed.inputs.fasta import Record
from embed.models.encode_many import blocks
from embed.models.families import Tokenizer
from embed.models.windows import Window, Windows
from embed.outputs.claim_file import FLAGS
from fsqueue import ClaimImpossible


@dataclass(slots=True)
class Counts:
    """Counts of a claim's sequences, as an output's header has them."""

    sequences: int = 0
    residues: int = 0
    """As computed, after longer sequences were truncated."""
    truncated: int = 0
    windowed: int = 0
    unknown_residues: int = 0
    """Letters outside the vocabulary, read as unknown."""
    empty: int = 0
    uninformative: int = 0
    """Sequences of nothing but N, for DNA, or X, for proteins."""
    duplicate_ids: int = 0

    def warnings(self) -> Iterator[str]:
        """Yield a line for everything that a user should know."""
        if self.truncated:
            were = _plural(self.truncated, "sequence was", "sequences were")
            yield f"{were} longer than --max-residues and truncated"
        if self.windowed:
            were = _plural(self.windowed, "sequence was", "sequences were")
            yield f"{were} longer than --max-residues and read in windows"
        if self.unknown_residues:
            were = _plural(self.unknown_residues, "letter is", "letters are")
            yield f"{were} outside the model's vocabulary and read as unknown"
        if self.empty:
            have = _plural(self.empty, "sequence has", "sequences have")
            yield f"{have} no letters; the vector is zeros"
        if self.uninformative:
            have = _plural(self.uninformative, "sequence has", "sequences have")
            yield f"{have} only letters that stand for any other (N, X); the vector means nothing"
        if self.duplicate_ids:
            have = _plural(self.duplicate_ids, "sequence has", "sequences have")
            yield f"{have} the id of an earlier one; rows are in input order"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


class SequenceReader:
    """Yields sequences as token ids, once, and remembers their ids, lengths and flags."""

    def __init__(
        self, records: Iterable[Record], tokenizer: Tokenizer, options: Mapping[str, Any]
    ) -> None:
        """`options` are those of the plan: what to do with sequences that are too long."""
        self._records, self._tokenizer = records, tokenizer
        self._windows, self._long = Windows.of(options), options["long"]
        uninformative = tokenizer.uninformative
        self._blank = uninformative + b"-.*?" if uninformative else b""
        self._counts = Counts()
        self._lengths: list[int] = []
        self._flags: list[int] = []
        self._begins: list[int] = []
        self.ids: list[str] = []

    def __iter__(self) -> Iterator[Tokenized]:
        """Yield every sequence that has residues; an empty one has no tokens, and gets zeros."""
        how, first_only = self._windows, self._long != "window"
        for records in blocks(self._records, lambda record: len(record.residues)):
            texts = [record.residues for record in records]
            found = self._tokenizer.windows(texts, how, first_only=first_only)
            for record, (windows, has_more) in zip(records, found, strict=True):
                yield from self._read(record, windows, has_more)

    def counts(self) -> Counts:
        """Return the counts of what was read so far."""
        self._counts.sequences = len(self.ids)
        self._counts.duplicate_ids = len(self.ids) - len(Counter(self.ids))
        return self._counts

    def columns(self) -> dict[str, NDArray[np.int64] | NDArray[np.uint8]]:
        """Return the columns of an output: one entry for each sequence read so far."""
        columns = {"lengths": np.array(self._lengths, "<i8"), "flags": np.array(self._flags, "u1")}
        return columns | ({"begins": np.array(self._begins, "<i8")} if self._begins else {})

    def _read(self, record: Record, windows: list[Window], is_truncated: bool) -> list[Tokenized]:
        if is_truncated and self._long == "fail":
            raise ClaimImpossible(
                f"{record.id!r}: is longer than --max-residues {self._windows.most:,}, and --long "
                f"fail refuses it. Use --long truncate or window."
            )
        row = len(self.ids)
        self.ids.append(record.id)
        text = ""
        if isinstance(record, Chunk):
            self._begins.append(record.begin)
            text = record.text
        self._lengths.append(len(text or record.residues))
        self._count(record.residues, windows, is_truncated)
        left_out = self._tokenizer.left_out
        if len(windows) == 1:
            (only,) = windows
            return [Tokenized(row, only.ids, 0, 1.0, text, left_out, (only.first, only.stop))]
        letters = sum(window.letters for window in windows)
        return [
            Tokenized(
                row, each.ids, number, each.letters / letters, text, left_out,
                (each.first, each.stop),
            )
            for number, each in enumerate(windows)
        ]  # fmt: skip

    def _count(self, residues: bytes, windows: list[Window], is_truncated: bool) -> None:
        """Note the flags of a sequence, and count them."""
        counts, flags = self._counts, 0
        if len(windows) == 1:
            (only,) = windows
            counts.residues += round(only.letters)
            unknown = only.unknown
        elif windows:
            counts.residues += len(residues)
            unknown = sum(each.unknown for each in windows)
        else:
            unknown = 0
        if unknown:
            counts.unknown_residues += unknown
            flags |= FLAGS["unknown_residues"]
        if is_truncated:
            counts.truncated += 1
            flags |= FLAGS["truncated"]
        if len(windows) > 1:
            counts.windowed += 1
            flags |= FLAGS["windowed"]
        if not windows:
            counts.empty += 1
            flags |= FLAGS["empty"]
        elif self._is_uninformative(residues):
            counts.uninformative += 1
            flags |= FLAGS["uninformative"]
        self._flags.append(flags)

    def _is_uninformative(self, letters: bytes) -> bool:
        """Return whether there are only letters that stand for any other, or none."""
        blank = self._blank
        return bool(blank) and letters[0] in blank and not letters.translate(None, blank)
