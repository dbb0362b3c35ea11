"""Read sequences as token ids, cut or in windows, and note what is met on the way.

What this module does not know: batches, models, and what becomes of the ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.engine.batching import Tokenized
from embed.inputs.chunk_ranges import Chunk, ChunkRange
from embed.inputs.fasta import Record, records
from embed.inputs.segments import Segment, read_segment, verify
from embed.models.families import Tokens
from embed.outputs.claim_file import FLAGS
from fsqueue import ClaimImpossible


@dataclass(slots=True)
class Counts:
    """What was met in a claim's sequences."""

    sequences: int = 0
    residues: int = 0
    """As computed: after longer sequences were cut."""
    truncated: int = 0
    windowed: int = 0
    unknown_residues: int = 0
    """Letters outside the vocabulary, read as unknown."""
    empty: int = 0
    duplicate_ids: int = 0

    def warnings(self) -> Iterator[str]:
        """Yield a line for everything that a user should know."""
        if self.truncated:
            yield f"{self.truncated} sequences were longer than --max-residues, and cut"
        if self.windowed:
            yield f"{self.windowed} sequences were longer than --max-residues, and read in windows"
        if self.unknown_residues:
            yield f"{self.unknown_residues} residues are in no vocabulary, and were read as unknown"
        if self.empty:
            yield f"{self.empty} sequences have no residues; their rows are zeros"
        if self.duplicate_ids:
            yield f"{self.duplicate_ids} sequences have an id that came before; rows go by position"


def parts_of(payload: Mapping[str, Any]) -> list[Segment | ChunkRange]:
    """Return what a claim reads, in order."""
    return [
        ChunkRange.decode(part) if "places" in part else Segment.decode(part)
        for part in payload["segments"]
    ]


def verify_all(parts: Sequence[Segment | ChunkRange]) -> None:
    """Read a claim's inputs once, for their digests alone. Raises as `read_all` does."""
    for part in parts:
        if isinstance(part, ChunkRange):
            part.verify()
        else:
            verify(part)


def read_all(parts: Sequence[Segment | ChunkRange]) -> Iterator[Record]:
    """Yield the sequences of what a claim reads. Raises as `read_segment` does."""
    for part in parts:
        if isinstance(part, ChunkRange):
            yield from part.records()
            continue
        for block in read_segment(part):
            yield from records(block)


class Reading:
    """Iterate over sequences as ids, once."""

    def __init__(
        self, records: Iterable[Record], tokens: Tokens, residues_max: int, *, long: str
    ) -> None:
        """`long` says what becomes of sequences longer than `residues_max`."""
        self._records, self._tokens = records, tokens
        self._residues_max, self._long = residues_max, long
        self._counts = Counts()
        self._lengths: list[int] = []
        self._flags: list[int] = []
        self._begins: list[int] = []
        self.ids: list[str] = []

    def __iter__(self) -> Iterator[Tokenized]:
        """Yield every sequence that has residues; an empty one has a row of zeros, no tokens."""
        for record in self._records:
            yield from self._read(record)

    def counted(self) -> Counts:
        """Return the counts of all that was read."""
        self._counts.sequences = len(self.ids)
        self._counts.duplicate_ids = len(self.ids) - len(Counter(self.ids))
        return self._counts

    def columns(self) -> dict[str, NDArray[np.int64] | NDArray[np.uint8]]:
        """Return what an output says of each sequence beside its row."""
        found = {"lengths": np.array(self._lengths, "<i8"), "flags": np.array(self._flags, "u1")}
        return found | ({"begins": np.array(self._begins, "<i8")} if self._begins else {})

    def _read(self, record: Record) -> Iterator[Tokenized]:
        row = len(self.ids)
        self.ids.append(record.id)
        windows = self._tokens.windows(record.residues, self._residues_max)
        kept = list(windows if self._long == "window" else islice(windows, 1))
        is_cut = next(windows, None) is not None
        if is_cut and self._long == "fail":
            raise ClaimImpossible(
                f"{record.id!r}: is longer than the {self._residues_max:,} of --max-residues, "
                f"and --long fail refuses it. Take --long truncate or window."
            )
        read = sum(letters for _, _, letters in kept)
        text = record.text if isinstance(record, Chunk) else ""
        for window, (ids, _, letters) in enumerate(kept):
            yield Tokenized(row, ids, window, letters / read, text)
        met = {"truncated": is_cut, "windowed": len(kept) > 1, "empty": not kept}
        self._note(record, round(read), sum(unknown for _, unknown, _ in kept), met)

    def _note(self, record: Record, read: int, unknown: int, met: dict[str, bool]) -> None:
        counts = self._counts
        counts.residues += read
        counts.unknown_residues += unknown
        for name, is_so in met.items():
            setattr(counts, name, getattr(counts, name) + is_so)
        flags = {**met, "unknown_residues": unknown > 0}
        if isinstance(record, Chunk):
            self._begins.append(record.begin)
        self._lengths.append(len(record.text if isinstance(record, Chunk) else record.residues))
        self._flags.append(sum(FLAGS[name] for name, is_so in flags.items() if is_so))
