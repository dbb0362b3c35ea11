"""Embed one claim: run its batches, keep what is done, write the table.

Batches are numbered, and follow from the claim alone; a checkpoint holds the rows of a run of them.
So whoever resumes takes the finished ones as they are, computes the others in the same company as
before, and the file comes out the same to the byte. With a store there are no checkpoints: what is
done is in the store (`store/reuse.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embed.engine.assembly import Assembly
from embed.engine.batching import Tokenized, batches
from embed.engine.tokenizing import Reading, parts_of, read_all
from embed.inputs.fasta import Record
from embed.models.families import Tokens
from embed.outputs import claim_file
from embed.store.reuse import Reuse, inputs_by_row
from fsqueue import ClaimFailed, Interrupted, Work

if TYPE_CHECKING:
    from embed.engine.non_finite import Float32Fallback
    from embed.store.view import View

Rows = NDArray[np.float32]


@dataclass(slots=True)
class Model:
    """What reads sequences, and how to get what embeds them, which may take long."""

    tokens: Tokens
    load: Callable[[], Float32Fallback]


def embed(
    work: Work, model: Model, provenance: Mapping[str, Any], store: View | None = None
) -> None:
    """Do the claim and write `work.output`. Raises Interrupted once its checkpoint is saved.

    With a store, only what it does not hold is computed, and then stored.
    """
    parts, planned = parts_of(work.payload), work.payload["sequences"]
    reading = reading_of(read_all(parts), model, work.options)
    files = [(part.path, part.sequences) for part in parts]
    reuse = Reuse(store, work, reading, inputs_by_row(files)) if store else None
    table, cuts = compute(work, model, reading, planned, reuse)
    counts = reading.counted()
    columns = {**reading.columns(), **cuts}
    if work.options.get("text"):
        columns.setdefault("begins", np.empty(0, "<i8"))  # of documents without any text
    facts = {**provenance, "counts": asdict(counts)}
    claim_file.write(work.output, reading.ids, table, facts, columns)
    for line in counts.warnings():
        work.warn(line)


def reading_of(records: Iterable[Record], model: Model, options: Mapping[str, Any]) -> Reading:
    """Return what reads these records for the model."""
    return Reading(records, model.tokens, options["max_residues"], long=options["long"])


def compute(
    work: Work, model: Model, reading: Reading, planned: int, reuse: Reuse | None
) -> tuple[Rows, dict[str, NDArray[Any]]]:
    """Return the rows of what is read, and the `offsets` of a ragged table.

    The model is loaded for the first batch; where the store has everything there is none.
    """
    options, width = work.options, work.options["width"]
    assembly = Assembly(planned, width, options["pooling"])
    keeper = reuse or _Keeper(work, width)
    needed = reuse.missing() if reuse else reading
    done = 0
    for number, batch in enumerate(batches(needed, options["tokens_per_batch"])):
        sizes = [len(one.ids) if assembly.ragged else 1 for one in batch]
        rows, computed = keeper.saved(number, sum(sizes)), 0
        if rows is None:
            keeper.stop_if_asked()
            rows = model.load().embed(batch, work.warn)
            computed = sum(one.tokens for one in batch)
            _check(rows, sizes, width, [reading.ids[one.row] for one in batch])
            keeper.keep(number, rows, batch)
        parts = np.split(rows, np.cumsum(sizes)[:-1])
        for one, part in zip(batch, parts, strict=True):
            assembly.add(one.row, part, window=one.window, share=one.share)
            done += one.window == 0
        work.progress(done + (reuse.tally.known if reuse else 0), planned, tokens=computed)
    if (found := reading.counted().sequences) != planned:
        raise ClaimFailed(
            f"{found} sequences were read where {planned} were planned, though the bytes are those "
            f"planned. This is a defect of fsqueue: report it."
        )
    work.progress(planned, planned)
    table, cuts = assembly.finish()
    if reuse:
        reuse.finish(table)
    return table, cuts


class _Keeper:
    """Hold the rows of finished batches, ours and those of the claim's earlier owners."""

    def __init__(self, work: Work, width: int) -> None:
        self._work, self._width = work, width
        self._fresh: dict[int, Rows] = {}
        self._saved: dict[int, Rows] = {}
        self._due = time.monotonic() + work.options["checkpoint_seconds"]
        for name, data in work.checkpoints().items():
            try:
                self._saved.update(claim_file.unpack(data))
            except ValueError as error:
                work.warn(f"checkpoint {name} is left out: {error}")

    def saved(self, number: int, count: int) -> Rows | None:
        """Return a batch's rows if an earlier owner finished it."""
        rows = self._saved.pop(number, None)
        if rows is None or rows.shape != (count, self._width):
            return None
        self._save()  # so that every checkpoint holds an unbroken run, which its name tells
        return rows

    def keep(self, number: int, rows: Rows, _batch: Sequence[Tokenized]) -> None:
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
            self._work.checkpoint(f"rows-{first:07}-{last:07}", claim_file.pack(self._fresh))
        self._fresh = {}
        self._due = time.monotonic() + self._work.options["checkpoint_seconds"]


def _check(rows: Rows, sizes: Sequence[int], width: int, ids: Sequence[str]) -> None:
    """Refuse what can be no result before it is kept anywhere."""
    if rows.shape != (sum(sizes), width):
        raise ClaimFailed(f"{len(ids)} sequences gave a table of {rows.shape}; report this defect.")
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        first = np.repeat(np.array(ids, object), sizes)[bad.argmax()]
        raise ClaimFailed(
            f"{bad.sum()} vectors are not finite, even in float32, that of {first!r} first; the "
            f"model's weights or the device are faulty. Fetch the model again, or try another GPU."
        )
