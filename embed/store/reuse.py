"""Let a claim take vectors from the store, compute the rest once, and store it.

The keys of a claim's sequences are looked up before they are batched: those that are stored, and
those that occurred earlier in the claim, never reach the model. Computed vectors are published when
the claim ends, and every `checkpoint_seconds` before that, so the store is the checkpoint: the next
owner of the claim finds there what was done. (Batches then depend on what was found, so the rows of
a batch could not be saved under its number.) The output holds the vectors that are used in the
store, regardless of which worker computed them.

A claim's sequences are read ahead in a thread (`batching.prefetched`): `missing` runs there,
everything else in the worker's main thread. They share the view and the rows that are not published
yet, under one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from embed.engine.batching import Tokenized
from embed.engine.sequence_reader import SequenceReader
from embed.store import writer
from embed.store.keys import KEY, key
from embed.store.shards import Columns
from embed.store.view import View
from fsqueue import Interrupted, Work

LOOKUP: Final = 4096
"""How many sequences are looked up together."""

Rows = NDArray[np.float32]


@dataclass(slots=True)
class ReuseCounts:
    """How a claim's vectors were obtained; each sequence is counted once."""

    hits: int = 0
    repeats: int = 0
    """Sequences equal to an earlier one of the claim."""
    computed: int = 0

    @property
    def known(self) -> int:
        """Return how many needed no computation."""
        return self.hits + self.repeats


@dataclass(frozen=True, slots=True)
class _Entry:
    """A sequence to compute, as it will be stored."""

    key: bytes
    id: str
    length: int
    text: str = ""
    begin: int = -1


class Reuse:
    """One claim's use of the store; takes the place of its checkpoints."""

    def __init__(
        self,
        view: View,
        work: Work,
        reader: SequenceReader,
        input_of: Callable[[int], str],
    ) -> None:
        """`input_of` returns the input file of a row."""
        self._view, self._work, self._reader, self._input_of = view, work, reader, input_of
        self._digest = view.space.digest
        self._lock = threading.Lock()
        self._unpublished: dict[int, _Entry] = {}
        """The rows to compute that are not published yet."""
        self._first_row: dict[bytes, int] = {}
        self._repeats: list[tuple[int, int]] = []
        """(row, first row with the same key)."""
        self._computed: dict[int, Rows] = {}
        self._from_store: list[tuple[int, Rows]] = []
        self._due = time.monotonic() + work.options["checkpoint_seconds"]
        self.counts = ReuseCounts()
        view.refresh()

    def missing(self) -> Iterator[Tokenized]:
        """Yield the sequences to compute; remember those that are stored or repeated."""
        pending: list[list[Tokenized]] = []
        for windows in _by_row(self._reader):
            pending.append(windows)
            if len(pending) >= LOOKUP:
                yield from self._select_missing(pending)
                pending = []
        yield from self._select_missing(pending)

    def _select_missing(self, pending: list[list[Tokenized]]) -> list[Tokenized]:
        """Return which of these sequences, each with all its windows, must be computed."""
        columns = self._reader.columns()
        lengths, begins = columns["lengths"], columns.get("begins")
        new: dict[bytes, list[Tokenized]] = {}
        for windows in pending:
            row, row_key = windows[0].row, key(self._digest, (one.ids for one in windows))
            first = self._first_row.setdefault(row_key, row)
            if first == row:
                new[row_key] = windows
            else:
                self._repeats.append((row, first))
                self.counts.repeats += 1
        needed: list[Tokenized] = []
        with self._lock:
            found, vectors = self._view.lookup(np.array(list(new), KEY))
            stored = iter(vectors.astype(np.float32))
            for (row_key, windows), is_stored in zip(new.items(), found, strict=True):
                row = windows[0].row
                if is_stored:
                    self._from_store.append((row, next(stored)))
                    self.counts.hits += 1
                else:
                    begin = -1 if begins is None else int(begins[row])
                    self._unpublished[row] = _Entry(
                        key=row_key,
                        id=self._reader.ids[row],
                        length=int(lengths[row]),
                        text=windows[0].text,
                        begin=begin,
                    )
                    self.counts.computed += 1
                    needed += windows
        return needed

    # ---- in place of checkpoints ----

    def saved(self, _number: int, _count: int) -> Rows | None:
        """Return None: what is saved was found before there were batches."""
        return None

    def stop(self) -> NoReturn:
        """Store what is done, and raise Interrupted."""
        self._publish(self._computed)
        raise Interrupted("stopped between two batches; finished sequences are in the store")

    def save(self, _number: int, rows: Rows, batch: Sequence[Tokenized]) -> None:
        """Remember the rows of a batch; store those of whole sequences when it is time."""
        for one, row in zip(batch, rows, strict=True):
            if one.share == 1.0:
                self._computed[one.row] = row
        if time.monotonic() >= self._due:
            self._publish(self._computed)
            self._work.saved = True

    def finish(self, table: Rows) -> None:
        """Store the rest, and fill `table` with the vectors that are used in the store."""
        self._publish({row: table[row] for row in self._unpublished})
        for row, vector in self._from_store:
            table[row] = vector
        for row, first in self._repeats:
            table[row] = table[first]
        self._work.count(
            store_hits=self.counts.hits,
            store_repeats=self.counts.repeats,
            computed=self.counts.computed,
        )

    def _publish(self, rows: dict[int, Rows]) -> None:
        self._computed = {}
        self._due = time.monotonic() + self._work.options["checkpoint_seconds"]
        if not rows:
            return
        numbers = sorted(rows)
        with self._lock:
            entries = [self._unpublished.pop(number) for number in numbers]
            vectors = np.array([rows[number] for number in numbers])
            used = writer.add(self._view, self._columns(numbers, entries), vectors)
            self._from_store += zip(numbers, used.astype(np.float32), strict=True)

    def _columns(self, rows: list[int], entries: list[_Entry]) -> Columns:
        names: dict[str, int] = {}
        inputs = [names.setdefault(self._input_of(row), len(names)) for row in rows]
        texts = [entry.text for entry in entries]
        return Columns(
            keys=np.array([entry.key for entry in entries], KEY),
            lengths=np.array([entry.length for entry in entries], np.int64),
            inputs=np.array(inputs, np.int64),
            input_names=list(names),
            ids=[entry.id for entry in entries],
            texts=texts if any(texts) else [],
            begins=np.array([entry.begin for entry in entries], np.int64),
        )


def _by_row(sequences: Iterable[Tokenized]) -> Iterator[list[Tokenized]]:
    """Yield the windows of each sequence together."""
    windows: list[Tokenized] = []
    for one in sequences:
        if windows and one.row != windows[0].row:
            yield windows
            windows = []
        windows.append(one)
    if windows:
        yield windows


def inputs_by_row(parts: Iterable[tuple[str, int]]) -> Callable[[int], str]:
    """Return a function from a claim's row to its file, given (file, sequences) in order."""
    files = list(parts)
    ends = np.cumsum([count for _, count in files])
    return lambda row: files[int(np.searchsorted(ends, row, "right"))][0]
