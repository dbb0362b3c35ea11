"""Embed one claim: run its batches, save finished ones, write the table.

Batches are numbered, and depend only on the claim; a checkpoint holds the rows of a run of them. So
the claim's next owner takes the finished batches as they are, computes the others from the same
sequences as before, and the output is the same to the byte. With a store there are no checkpoints:
what is done is in the store (`store/reuse.py`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from embed.engine.assembly import Assembly, WindowScores
from embed.engine.batching import Tokenized, batches
from embed.engine.sequence_reader import SequenceReader
from embed.engine.usage import Usage, line
from embed.inputs.chunks import ChunkRange
from embed.inputs.claims import read_records
from embed.inputs.fasta import Record
from embed.inputs.segments import LoadedSegment, Segment
from embed.models.conventions.convention import Convention
from embed.models.cost import ModelShape
from embed.models.families import Tokenizer
from embed.models.scores.masked_lm import Scores
from embed.outputs import claim_file
from embed.store.reuse import Reuse, inputs_by_row
from fsqueue import ClaimFailed, Interrupted, Work

if TYPE_CHECKING:
    from embed.engine.float32_fallback import Float32Fallback
    from embed.store.view import View

log = logging.getLogger(__name__)

REPORT_S: Final = 5.0
"""How often the worker is told what becomes of the time."""

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClaimModel:
    """A model's tokenizer, and a function that loads its engine, which may take long."""

    tokenizer: Tokenizer
    load: Callable[[], Float32Fallback]
    used: list[Float32Fallback] = field(default_factory=list)
    """The engine, once it has run a batch."""

    def run(
        self, batches: Iterator[Sequence[Tokenized]], work: Work
    ) -> Iterator[tuple[Sequence[Tokenized], Rows]]:
        """Load the model if there is a batch, and yield the batches with their rows."""
        first = next(batches, None)
        if first is None:
            return
        engine = self.load()
        self.used.append(engine)
        shape, dtype = ModelShape(**work.options["shape"]), work.options["dtype"]
        engine.take_usage()  # not of this claim
        whole, reported_at = Usage(), time.monotonic()

        def report() -> None:
            used = engine.take_usage()
            whole.add(used)
            work.note_computing(engine.computing(used, shape, dtype))

        for found in engine.run(chain([first], batches), work.warn):
            yield found
            if time.monotonic() - reported_at > REPORT_S:
                report()
                reported_at = time.monotonic()
        report()
        log.info("%s", line(whole.tokens, engine.computing(whole, shape, dtype)))

    def provenance(self) -> dict[str, str]:
        """Return how the engine computed, where that is not as on every CPU."""
        return self.used[-1].provenance() if self.used else {}


def embed(
    work: Work,
    segments: Sequence[Segment | LoadedSegment | ChunkRange],
    model: ClaimModel,
    provenance: Mapping[str, Any],
    store: View | None = None,
) -> None:
    """Do the claim and write `work.output`. Raises Interrupted after saving a checkpoint.

    With a store, only what it does not hold is computed, and then stored.
    """
    planned = work.payload["sequences"]
    reader = reader_of(read_records(segments), model, work.options)
    files = [(segment.path, segment.sequences) for segment in segments]
    reuse = Reuse(store, work, reader, inputs_by_row(files)) if store else None
    table, more = compute(work, model, reader, planned, reuse)
    counts = reader.counts()
    columns = {**reader.columns(), **more}
    if work.options.get("text"):
        columns.setdefault("begins", np.empty(0, "<i8"))  # of documents without any text
    metadata = {**provenance, **model.provenance(), "counts": asdict(counts)}
    claim_file.write(work.output, reader.ids, table, metadata, columns)
    for text in counts.warnings():
        work.warn(text)


def reader_of(
    records: Iterable[Record], model: ClaimModel, options: Mapping[str, Any]
) -> SequenceReader:
    """Return a reader of these records for the model."""
    return SequenceReader(records, model.tokenizer, options)


def compute(
    work: Work, model: ClaimModel, reader: SequenceReader, planned: int, reuse: Reuse | None
) -> tuple[Rows, dict[str, NDArray[Any]]]:
    """Return the rows of the reader's sequences, and the `offsets` of a ragged table or the `score`
    of each sequence, where the plan has any.

    The model is loaded for the first batch; if the store has everything, there is none.
    """
    options, width = work.options, work.options["width"]
    assembly = Assembly(planned, width, Convention.of(options))
    scores = WindowScores(planned) if Scores.of(options) else None
    computed_width = width + (scores is not None)  # the score is the last number of a row
    saver: _Saver = reuse or _Checkpoints(work, computed_width)
    needed = reuse.missing() if reuse else reader
    done, is_stopped = 0, False
    in_flight: deque[int] = deque()

    def sizes(batch: Sequence[Tokenized]) -> list[int]:
        return [one.rows for one in batch] if assembly.ragged else [1] * len(batch)

    def add(batch: Sequence[Tokenized], rows: Rows, computed: int) -> None:
        nonlocal done
        at = 0
        for one, size in zip(batch, sizes(batch), strict=True):
            part = rows[at : at + size]
            at += size
            if scores is not None:
                scores.add(one.row, one.window, float(part[0, width]))
                part = part[:, :width]
            rows_own = part[slice(*one.own)] if assembly.ragged else part
            assembly.add(one.row, rows_own, window=one.window, share=one.share)
            done += one.window == 0
        work.progress(done + (reuse.counts.known if reuse else 0), planned, tokens=computed)

    def to_compute() -> Iterator[Sequence[Tokenized]]:
        nonlocal is_stopped
        for number, batch in enumerate(read):
            rows = saver.saved(number, sum(sizes(batch)))
            if rows is not None:
                add(batch, rows, 0)
                continue
            if work.stopping:  # what is in flight is finished, and saved
                is_stopped = True
                return
            in_flight.append(number)
            yield batch

    with closing(batches(needed, options["tokens_per_batch"])) as read:
        for batch, rows in model.run(to_compute(), work):
            _check(rows, sizes(batch), computed_width, [reader.ids[one.row] for one in batch])
            saver.save(in_flight.popleft(), rows, batch)
            add(batch, rows, sum(one.tokens for one in batch))
    if is_stopped:
        saver.stop()
    if (found := reader.counts().sequences) != planned:
        raise ClaimFailed(
            f"{found} sequences were read where {planned} were planned, though the bytes are those "
            f"planned. This is a defect of fsqueue: report it."
        )
    work.progress(planned, planned)
    table, more = assembly.finish()
    if reuse:
        reuse.finish(table)
    if scores is not None:
        more["score"] = scores.finish()
    return table, more


class _Saver(Protocol):
    """Saves computed rows for the claim's next owner: as checkpoints, or in the store."""

    def saved(self, number: int, count: int) -> Rows | None:
        """Return the rows of a batch, `count` of them, if an earlier owner saved them."""

    def save(self, number: int, rows: Rows, batch: Sequence[Tokenized]) -> None:
        """Remember the rows of a batch, and save what is unsaved when it is time."""

    def stop(self) -> NoReturn:
        """Save, and raise Interrupted, because the worker was asked to stop."""


class _Checkpoints:
    """The rows of finished batches, of this owner and of the claim's earlier owners."""

    def __init__(self, work: Work, width: int) -> None:
        self._work, self._width = work, width
        self._unsaved: dict[int, Rows] = {}
        self._saved: dict[int, Rows] = {}
        self._due = time.monotonic() + work.options["checkpoint_seconds"]
        for name, data in work.checkpoints().items():
            try:
                self._saved.update(claim_file.decode_checkpoint(data))
            except ValueError as error:
                work.warn(f"checkpoint {name} is ignored: {error}")

    def saved(self, number: int, count: int) -> Rows | None:
        """Return a batch's rows if an earlier owner finished it."""
        rows = self._saved.pop(number, None)
        if rows is None or rows.shape != (count, self._width):
            return None
        return rows

    def save(self, number: int, rows: Rows, _batch: Sequence[Tokenized]) -> None:
        """Remember the rows of a batch; write those that are unsaved when it is time."""
        if number - 1 not in self._unsaved:
            self._write()  # so that every checkpoint holds an unbroken run, as its name says
        self._unsaved[number] = rows
        if time.monotonic() >= self._due:
            self._write()

    def stop(self) -> NoReturn:
        """Save, and raise Interrupted."""
        self._write()
        raise Interrupted("stopped between two batches; finished ones are saved")

    def _write(self) -> None:
        if self._unsaved:
            first, last = min(self._unsaved), max(self._unsaved)
            data = claim_file.encode_checkpoint(self._unsaved)
            self._work.checkpoint(f"rows-{first:07}-{last:07}", data)
        self._unsaved = {}
        self._due = time.monotonic() + self._work.options["checkpoint_seconds"]


def _check(rows: Rows, sizes: Sequence[int], width: int, ids: Sequence[str]) -> None:
    """Refuse invalid results before they are saved anywhere."""
    if rows.shape != (sum(sizes), width):
        raise ClaimFailed(f"{len(ids)} sequences gave a table of {rows.shape}; report this defect.")
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        first = np.repeat(np.array(ids, object), sizes)[bad.argmax()]
        count = int(bad.sum())
        are = "1 vector is" if count == 1 else f"{count:,} vectors are"
        raise ClaimFailed(
            f"{are} not finite, even in float32, the first of sequence {first!r}; the model's "
            f"weights or the device are faulty. Fetch the model again, or try another GPU."
        )
