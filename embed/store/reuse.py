"""Let a claim take what the store has, compute the rest once, and store that.

A claim asks for its sequences' keys before they are batched: those that are stored, and those that
came before in the same claim, never reach the model. What is computed is published when the claim
ends, and every `checkpoint_seconds` before that: the store is the checkpoint, for whoever runs the
claim next finds there what was done. (Batches then depend on what was found, so the rows of a batch
could not be kept under its number.) The output holds the vectors that count in the store, whoever
computed them.

A claim's sequences are read ahead in a thread (`batching.ahead`): `missing` runs there, all else in
the worker's own. They share the view and the keys that are open, under one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.engine.batching import Tokenized
from embed.engine.tokenizing import Reading
from embed.store import writer
from embed.store.keys import KEY, key
from embed.store.shards import Columns
from embed.store.view import View
from fsqueue import Interrupted, Work

LOOKUP: Final = 4096
"""So many sequences are looked up together."""

Rows = NDArray[np.float32]


@dataclass(slots=True)
class Tally:
    """What a claim found and did: sequences, each counted once."""

    hits: int = 0
    repeats: int = 0
    """Equal to one that came before in the claim."""
    computed: int = 0

    @property
    def known(self) -> int:
        """Return how many needed no model."""
        return self.hits + self.repeats


@dataclass(frozen=True, slots=True)
class _Entry:
    """A sequence that is being computed, as it will be stored."""

    key: bytes
    id: str
    length: int
    text: str = ""
    begin: int = -1


class Reuse:
    """What one claim does with the store. Stands in for the keeper of checkpoints."""

    def __init__(
        self,
        view: View,
        work: Work,
        reading: Reading,
        input_of: Callable[[int], str],
    ) -> None:
        self._view, self._work, self._reading, self._input_of = view, work, reading, input_of
        self._digest = view.space.digest
        self._lock = threading.Lock()
        self._open: dict[int, _Entry] = {}
        """The rows to compute that are not published yet."""
        self._first: dict[bytes, int] = {}
        self._same: list[tuple[int, int]] = []
        self._done: dict[int, Rows] = {}
        self._settled: list[tuple[int, Rows]] = []
        self._due = time.monotonic() + work.options["checkpoint_seconds"]
        self.tally = Tally()
        view.refresh()

    def missing(self) -> Iterator[Tokenized]:
        """Yield what must be computed; note what is stored, and what came before."""
        pending: list[list[Tokenized]] = []
        for windows in _by_row(self._reading):
            pending.append(windows)
            if len(pending) >= LOOKUP:
                yield from self._sift(pending)
                pending = []
        yield from self._sift(pending)

    def _sift(self, pending: list[list[Tokenized]]) -> list[Tokenized]:
        """Return what of these sequences, which have been read to their ends, is to be computed."""
        columns = self._reading.columns()
        lengths, begins = columns["lengths"], columns.get("begins")
        fresh: dict[bytes, list[Tokenized]] = {}
        for windows in pending:
            row, mine = windows[0].row, key(self._digest, (one.ids for one in windows))
            first = self._first.setdefault(mine, row)
            if first == row:
                fresh[mine] = windows
            else:
                self._same.append((row, first))
                self.tally.repeats += 1
        needed: list[Tokenized] = []
        with self._lock:
            found, vectors = self._view.lookup(np.array(list(fresh), KEY))
            stored = iter(vectors.astype(np.float32))
            for (mine, windows), is_stored in zip(fresh.items(), found, strict=True):
                row = windows[0].row
                if is_stored:
                    self._settled.append((row, next(stored)))
                    self.tally.hits += 1
                else:
                    begin = -1 if begins is None else int(begins[row])
                    length, text = int(lengths[row]), windows[0].text
                    self._open[row] = _Entry(mine, self._reading.ids[row], length, text, begin)
                    self.tally.computed += 1
                    needed += windows
        return needed

    # ---- as a keeper ----

    def saved(self, _number: int, _count: int) -> Rows | None:
        """Return None: what is saved was found before there were batches."""
        return None

    def stop_if_asked(self) -> None:
        """Store what is done and raise Interrupted if the worker was asked to stop."""
        if self._work.stopping:
            self._publish(self._done)
            raise Interrupted("stopped between two batches; finished sequences are in the store")

    def keep(self, _number: int, rows: Rows, batch: Sequence[Tokenized]) -> None:
        """Take the rows of a batch; store all that are whole if it is time."""
        for one, row in zip(batch, rows, strict=True):
            if one.share == 1.0:
                self._done[one.row] = row
        if time.monotonic() >= self._due:
            self._publish(self._done)
            self._work.saved = True

    def finish(self, table: Rows) -> None:
        """Store the rest, and make `table` hold what counts in the store."""
        self._publish({row: table[row] for row in self._open})
        for row, vector in self._settled:
            table[row] = vector
        for row, first in self._same:
            table[row] = table[first]
        self._work.count(
            store_hits=self.tally.hits,
            store_repeats=self.tally.repeats,
            computed=self.tally.computed,
        )

    def _publish(self, rows: dict[int, Rows]) -> None:
        self._done = {}
        self._due = time.monotonic() + self._work.options["checkpoint_seconds"]
        if not rows:
            return
        numbers = sorted(rows)
        with self._lock:
            entries = [self._open.pop(number) for number in numbers]
            vectors = np.array([rows[number] for number in numbers])
            counting = writer.add(self._view, self._columns(numbers, entries), vectors)
            self._settled += zip(numbers, counting.astype(np.float32), strict=True)

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


def _by_row(units: Iterable[Tokenized]) -> Iterator[list[Tokenized]]:
    """Yield the windows of each sequence together."""
    windows: list[Tokenized] = []
    for one in units:
        if windows and one.row != windows[0].row:
            yield windows
            windows = []
        windows.append(one)
    if windows:
        yield windows


def inputs_by_row(parts: Iterable[tuple[str, int]]) -> Callable[[int], str]:
    """Return a function that tells the file of a claim's row, from (file, sequences) in order."""
    files = list(parts)
    ends = np.cumsum([count for _, count in files])
    return lambda row: files[int(np.searchsorted(ends, row, "right"))][0]
