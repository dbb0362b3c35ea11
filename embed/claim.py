"""Embed one claim: run its batches, keep what is done, write the table.

Batches are numbered, and follow from the claim alone; a checkpoint holds the rows of a run of them.
So whoever resumes takes the finished ones as they are, computes the others in the same company as
before, and the file comes out the same to the byte.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embed import outputs
from embed.batching import Tokenized, batches
from embed.fasta import records
from embed.residues import token_ids, unknown
from embed.segments import Segment, read_segment
from fsqueue import ClaimFailed, Interrupted, Work

if TYPE_CHECKING:
    from embed.engine import Engine

Rows = NDArray[np.float32]


@dataclass(slots=True)
class Counts:
    """What was met in a claim's sequences."""

    sequences: int = 0
    residues: int = 0
    """As computed: after longer sequences were cut."""
    truncated: int = 0
    unknown_residues: int = 0
    """Residues outside the vocabulary, read as X."""
    empty: int = 0
    duplicate_ids: int = 0

    def warnings(self) -> Iterator[str]:
        """Yield a line for everything that a user should know."""
        if self.truncated:
            yield f"{self.truncated} sequences were longer than --max-residues, and cut"
        if self.unknown_residues:
            yield f"{self.unknown_residues} residues are in no vocabulary, and were read as X"
        if self.empty:
            yield f"{self.empty} sequences have no residues; their rows are zeros"
        if self.duplicate_ids:
            yield f"{self.duplicate_ids} sequences have an id that came before; rows go by position"


def embed(work: Work, engine: Engine, provenance: Mapping[str, Any]) -> None:
    """Do the claim and write `work.output`. Raises Interrupted once its checkpoint is saved."""
    reading = _Reading(work)
    table = np.zeros((work.payload["sequences"], engine.width), np.float32)
    keeper = _Keeper(work, engine.width)
    done = 0
    for number, batch in enumerate(batches(reading, work.options["tokens_per_batch"])):
        rows = keeper.saved(number, len(batch))
        if rows is None:
            keeper.stop_if_asked()
            rows = engine.embed(batch, work.warn)
            _check(rows, [reading.ids[sequence.row] for sequence in batch], engine.width)
            keeper.keep(number, rows)
        table[[sequence.row for sequence in batch]] = rows
        done += len(batch)
        work.progress(done, len(table), tokens=sum(sequence.tokens for sequence in batch))
    counts = reading.counted()
    if counts.sequences != len(table):
        raise ClaimFailed(
            f"{counts.sequences} sequences were read where {len(table)} were planned, though the "
            f"bytes are those planned. This is a defect of fsqueue: report it."
        )
    work.progress(done + counts.empty, len(table))
    outputs.write(work.output, reading.ids, table, {**provenance, "counts": asdict(counts)})
    for line in counts.warnings():
        work.warn(line)


class _Reading:
    """Iterate over a claim's sequences, and note what is met on the way."""

    def __init__(self, work: Work) -> None:
        self.segments = [Segment.decode(segment) for segment in work.payload["segments"]]
        self.residues_max: int = work.options["max_residues"]
        self.ids: list[str] = []
        self.counts = Counts()

    def __iter__(self) -> Iterator[Tokenized]:
        """Yield every sequence that has residues; an empty one has a row of zeros, no tokens."""
        counts = self.counts
        for segment in self.segments:
            for block in read_segment(segment):
                for record in records(block):
                    residues = record.residues[: self.residues_max]
                    counts.truncated += len(record.residues) > len(residues)
                    counts.residues += len(residues)
                    counts.unknown_residues += unknown(residues)
                    counts.empty += not residues
                    self.ids.append(record.id)
                    if residues:
                        yield Tokenized(len(self.ids) - 1, token_ids(residues))

    def counted(self) -> Counts:
        """Return the counts of all that was read."""
        self.counts.sequences = len(self.ids)
        self.counts.duplicate_ids = len(self.ids) - len(Counter(self.ids))
        return self.counts


class _Keeper:
    """Hold the rows of finished batches, ours and those of the claim's earlier owners."""

    def __init__(self, work: Work, width: int) -> None:
        self._work, self._width = work, width
        self._fresh: dict[int, Rows] = {}
        self._saved: dict[int, Rows] = {}
        self._due = time.monotonic() + work.options["checkpoint_seconds"]
        for name, data in work.checkpoints().items():
            try:
                self._saved.update(outputs.unpack(data))
            except ValueError as error:
                work.warn(f"checkpoint {name} is left out: {error}")

    def saved(self, number: int, sequences: int) -> Rows | None:
        """Return a batch's rows if an earlier owner finished it."""
        rows = self._saved.pop(number, None)
        if rows is None or rows.shape != (sequences, self._width):
            return None
        self._save()  # so that every checkpoint holds an unbroken run, which its name tells
        return rows

    def keep(self, number: int, rows: Rows) -> None:
        """Take the rows of a batch; save all that are fresh if it is time."""
        self._fresh[number] = rows
        if time.monotonic() >= self._due:
            self._save()

    def stop_if_asked(self) -> None:
        """Save and raise Interrupted if the worker was asked to stop."""
        if self._work.stopping:
            self._save()
            raise Interrupted("stopped between two batches; finished ones are saved")

    def _save(self) -> None:
        if self._fresh:
            first, last = min(self._fresh), max(self._fresh)
            self._work.checkpoint(f"rows-{first:07}-{last:07}", outputs.pack(self._fresh))
        self._fresh = {}
        self._due = time.monotonic() + self._work.options["checkpoint_seconds"]


def _check(rows: Rows, ids: Sequence[str], width: int) -> None:
    """Refuse what can be no result before it is kept anywhere."""
    if rows.shape != (len(ids), width):
        raise ClaimFailed(f"{len(ids)} sequences gave a table of {rows.shape}; report this defect.")
    bad = [id for id, row in zip(ids, rows, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise ClaimFailed(
            f"{len(bad)} vectors are not finite, that of {bad[0]!r} first; half precision "
            f"overflowed, or the device is faulty. Plan with --dtype float32, or try another GPU."
        )
