"""Group sequences into batches of a bounded number of tokens.

Batches depend only on the sequences: the same claim gives the same batches, wherever it runs and
however often it was interrupted. Sequences are sorted within groups of bounded size, the longest
first, so that running out of memory shows early, and equal lengths are neighbours, which attention
can process in one call.

What this module does not know: residues. A sequence is its number of tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final, TypeVar

Item = TypeVar("Item")

BATCHES_SORTED: Final = 64
"""Sequences for about this many batches are sorted at a time. With more there would be less than
1 % to gain."""


@dataclass(
    slots=True
)  # not frozen: there is one for each sequence, and that would take 1.3 us more
class Tokenized:
    """One sequence to embed: its row in the result, and its token ids without begin and end.

    If a sequence is read in windows, each window is one of these; `share` is its fraction of the
    letters. `text` is that of a document's chunk.
    """

    row: int
    ids: Sized
    window: int = 0
    share: float = 1.0
    text: str = ""
    left_out: int = 0
    """How many ids at the beginning are a prefix that gets no rows of its own."""
    own: tuple[int, int | None] = (0, None)
    """Where every token has a row, the range of those that no other window has."""

    @property
    def rows(self) -> int:
        """Return how many rows it has where every token has one."""
        return len(self.ids) - self.left_out

    @property
    def tokens(self) -> int:
        return len(self.ids) + 2


def batches(
    sequences: Iterable[Tokenized], tokens_max: int
) -> Generator[list[Tokenized], None, None]:
    """Yield batches of at most `tokens_max` tokens; a longer sequence is a batch of its own.

    Sequences for BATCHES_SORTED batches are read ahead in a thread, which ends before its next
    sequence once the generator is closed. A caller that may leave it half-way must close it: an
    exception keeps the frames that it went through, and their generators, alive.
    """
    is_over = threading.Event()
    groups = _sorted_groups(sequences, BATCHES_SORTED * tokens_max, is_over)
    with closing(prefetched(groups, is_over)) as found:
        for group in found:
            yield from divide_batch(group, tokens_max)


def prefetched(
    items: Iterator[Item], is_over: threading.Event | None = None
) -> Generator[Item, None, None]:
    """Yield the items, each computed by a thread while the caller processes the one before.

    An exception is raised in the caller, in place of the item that it happened at. However the
    generator ends, `is_over` is set, and the item that is being computed is waited for.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        try:
            future = thread.submit(next, items, None)
            while (item := future.result()) is not None:
                future = thread.submit(next, items, None)
                yield item
        finally:
            if is_over is not None:
                is_over.set()


def _sorted_groups(
    sequences: Iterable[Tokenized], tokens_max: int, is_over: threading.Event
) -> Iterator[list[Tokenized]]:
    """Yield runs of about this many tokens, the longest sequences first in each."""
    group: list[Tokenized] = []
    tokens = 0
    for sequence in sequences:
        if is_over.is_set():
            return
        group.append(sequence)
        tokens += sequence.tokens
        if tokens >= tokens_max:
            yield _longest_first(group)
            group, tokens = [], 0
    yield _longest_first(group)


def divide_batch(sequences: Iterable[Tokenized], tokens_max: int) -> Iterator[list[Tokenized]]:
    """Yield runs of at most `tokens_max` tokens, or of one sequence, in the order given."""
    batch: list[Tokenized] = []
    tokens = 0
    for sequence in sequences:
        if batch and tokens + sequence.tokens > tokens_max:
            yield batch
            batch, tokens = [], 0
        batch.append(sequence)
        tokens += sequence.tokens
    if batch:
        yield batch


def _longest_first(group: list[Tokenized]) -> list[Tokenized]:
    return sorted(group, key=lambda one: (-one.tokens, one.row, one.window))
