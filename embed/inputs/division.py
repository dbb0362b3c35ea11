"""Divide surveyed files into claims: large ones by their blocks, small ones packed together.

What this module does not know: models. A claim is segments of files, and its cost a sum. A document
is a file whose blocks are chunks (`passages.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.inputs.chunk_ranges import ChunkRange, Cut
from embed.inputs.fasta_scan import Scan
from embed.inputs.segments import Segment

SEQUENCES_MAX: Final = 100_000
"""A claim's rows are in memory together, and its ids in one header of at most 100 MB."""


@dataclass(slots=True)
class Draft:
    """A claim being put together."""

    name: str
    segments: list[Segment | ChunkRange] = field(default_factory=list)
    cost: int = 0
    sequences: int = 0
    residues: int = 0
    longest: int = 0

    @property
    def stem(self) -> str:
        """The name of its first file, and how many others are with it."""
        more = len(self.segments) - 1
        return f"{self.name}-and-{more}-more" if more > 0 else self.name

    def add(self, scan: Scan | Cut, blocks: NDArray[np.void]) -> None:
        """Take in consecutive blocks of one file; a file without sequences has none."""
        self.segments.append(scan.segment(blocks))
        self.cost += int(blocks["cost"].sum())
        self.sequences += int(blocks["sequences"].sum())
        self.residues += int(blocks["residues"].sum())
        self.longest = max(self.longest, int(blocks["longest"].max(initial=0)))

    def has_room(self, scan: Scan | Cut, cost_max: int) -> bool:
        """Say whether a whole file can join without making the claim too large."""
        return (
            self.cost + scan.total("cost") <= cost_max
            and self.sequences + scan.total("sequences") <= SEQUENCES_MAX
        )

    def payload(self) -> dict[str, Any]:
        return {
            "segments": [segment.encode() for segment in self.segments],
            "sequences": self.sequences,
            "residues": self.residues,
            "longest": self.longest,
        }


def drafts(scans: Sequence[Scan | Cut], cost_max: int) -> Iterator[Draft]:
    """Yield drafts no dearer than `cost_max`, unless a single block is.

    Inside a draft, and among the parts of a file, the order is that of the input. Small files are
    packed with the next small ones, over the heads of large ones between them.
    """
    packed: Draft | None = None
    for scan in scans:
        stem = _stem(scan.path)
        parts = list(_parts(scan.blocks, cost_max))
        if len(parts) > 1:
            digits = len(str(len(parts)))
            for number, part in enumerate(parts, 1):
                yield _draft(f"{stem}-{number:0{digits}}", scan, part)
            continue
        if packed is not None and not packed.has_room(scan, cost_max):
            yield packed
            packed = None
        packed = packed or Draft(stem)
        packed.add(scan, scan.blocks)
    if packed is not None:
        yield packed


def _draft(stem: str, scan: Scan | Cut, blocks: NDArray[np.void]) -> Draft:
    draft = Draft(stem)
    draft.add(scan, blocks)
    return draft


def _parts(blocks: NDArray[np.void], cost_max: int) -> Iterator[NDArray[np.void]]:
    """Divide a file's blocks into runs of about equal cost, none above the limits."""
    while len(blocks):
        count = _count(blocks["cost"], blocks["sequences"], cost_max)
        yield blocks[:count]
        blocks = blocks[count:]


def _count(cost: NDArray[np.int64], sequences: NDArray[np.int64], cost_max: int) -> int:
    """Return how many blocks come into the next part.

    What is left is aimed at equal parts, so that the last one is not a crumb.
    """
    total, spent = int(cost.sum()), np.cumsum(cost)
    share = total / max(1, -(-total // cost_max))
    nearest = int(np.searchsorted(spent - cost / 2, share, "right"))
    most = int(np.searchsorted(spent, cost_max, "right"))
    most = min(most, int(np.searchsorted(np.cumsum(sequences), SEQUENCES_MAX, "right")))
    return max(1, min(nearest, most))


def _stem(path: str) -> str:
    name = Path(path).name.removesuffix(".gz")
    return Path(name).stem[:40]
