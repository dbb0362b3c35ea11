"""Group surveyed inputs into claims: large files are divided by blocks, small ones packed together.

Also reads the inputs of a claim from its payload, which this module writes.
A claim is segments of files, and its cost their sum. A document is a file whose blocks are chunks
(`chunks.py`).

What this module does not know: models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.inputs.chunks import ChunkedDocument, ChunkRange
from embed.inputs.fasta import Record
from embed.inputs.fasta_scan import Scan
from embed.inputs.segments import KEPT_MAX, LoadedSegment, Segment

SEQUENCES_MAX: Final = 100_000
"""A claim's rows are in memory together, and its ids in one header of at most 100 MB."""


@dataclass(slots=True)
class ClaimDraft:
    """A claim that is being composed."""

    name: str
    segments: list[Segment | ChunkRange] = field(default_factory=list)
    cost: int = 0
    sequences: int = 0
    residues: int = 0
    longest: int = 0

    @property
    def stem(self) -> str:
        """The name of its first file, and how many others it includes."""
        more = len(self.segments) - 1
        return f"{self.name}-and-{more}-more" if more > 0 else self.name

    def add(self, source: Scan | ChunkedDocument, blocks: NDArray[np.void]) -> None:
        """Add consecutive blocks of one file; a file without sequences has none."""
        self.segments.append(source.segment(blocks))
        self.cost += int(blocks["cost"].sum())
        self.sequences += int(blocks["sequences"].sum())
        self.residues += int(blocks["residues"].sum())
        self.longest = max(self.longest, int(blocks["longest"].max(initial=0)))

    def has_room(self, source: Scan | ChunkedDocument, cost_max: int) -> bool:
        """Return whether a whole file can be added without making the claim too large."""
        return (
            self.cost + source.total("cost") <= cost_max
            and self.sequences + source.total("sequences") <= SEQUENCES_MAX
        )

    def payload(self) -> dict[str, Any]:
        """Return what the claim's file holds."""
        return {
            "segments": [segment.encode() for segment in self.segments],
            "sequences": self.sequences,
            "residues": self.residues,
            "longest": self.longest,
        }


def segments_of(payload: Mapping[str, Any]) -> list[Segment | ChunkRange]:
    """Return the inputs of a claim, in order."""
    return [
        ChunkRange.decode(part) if "places" in part else Segment.decode(part)
        for part in payload["segments"]
    ]


def verified_segments(
    payload: Mapping[str, Any],
) -> list[Segment | LoadedSegment | ChunkRange]:
    """Return the inputs of a claim, checked: a changed one fails here, not after an hour.

    Most claims are read only once, for this.

    Raises ClaimImpossible if an input changed, ClaimFailed if it cannot be read here.
    """
    found: list[Segment | LoadedSegment | ChunkRange] = []
    room = KEPT_MAX
    for segment in segments_of(payload):
        if isinstance(segment, ChunkRange):
            segment.verify()
            found.append(segment)
            continue
        checked = segment.verified(room)
        found.append(checked)
        if isinstance(checked, LoadedSegment):
            room -= sum(segment.lengths)
    return found


def read_records(segments: Sequence[Segment | LoadedSegment | ChunkRange]) -> Iterator[Record]:
    """Yield the sequences of a claim's inputs.

    Raises ClaimImpossible if an input changed, ClaimFailed if it cannot be read here.
    """
    for segment in segments:
        yield from segment.records()


def draft_claims(sources: Sequence[Scan | ChunkedDocument], cost_max: int) -> Iterator[ClaimDraft]:
    """Yield drafts that cost at most `cost_max`, unless a single block costs more.

    Inside a draft, and among the parts of a file, the order is that of the input. Small files are
    packed with the next small ones, skipping large ones between them.
    """
    packed: ClaimDraft | None = None
    for source in sources:
        stem = _stem(source.path)
        parts = list(_parts(source.blocks, cost_max))
        if len(parts) > 1:
            digits = len(str(len(parts)))
            for number, part in enumerate(parts, 1):
                draft = ClaimDraft(f"{stem}-{number:0{digits}}")
                draft.add(source, part)
                yield draft
            continue
        if packed is not None and not packed.has_room(source, cost_max):
            yield packed
            packed = None
        packed = packed or ClaimDraft(stem)
        packed.add(source, source.blocks)
    if packed is not None:
        yield packed


def _parts(blocks: NDArray[np.void], cost_max: int) -> Iterator[NDArray[np.void]]:
    """Divide a file's blocks into runs of about equal cost, within the limits."""
    while len(blocks):
        count = _part_size(blocks["cost"], blocks["sequences"], cost_max)
        yield blocks[:count]
        blocks = blocks[count:]


def _part_size(cost: NDArray[np.int64], sequences: NDArray[np.int64], cost_max: int) -> int:
    """Return how many blocks go into the next part.

    The remaining cost is divided into equal parts, so that the last one is not tiny.
    """
    total, cumulative = int(cost.sum()), np.cumsum(cost)
    share = total / max(1, -(-total // cost_max))
    nearest = int(np.searchsorted(cumulative - cost / 2, share, "right"))
    most = int(np.searchsorted(cumulative, cost_max, "right"))
    most = min(most, int(np.searchsorted(np.cumsum(sequences), SEQUENCES_MAX, "right")))
    return max(1, min(nearest, most))


def _stem(path: str) -> str:
    name = Path(path).name.removesuffix(".gz")
    return Path(name).stem[:40]
