"""Gather sequences into batches of a bounded number of tokens.

Batches follow from the sequences alone, in windows of bounded size: the same claim makes the same
batches wherever, whenever and after how many interruptions it runs. Inside a window the longest
come first, so that what does not fit into memory shows early, and equal lengths meet, which
attention can take in one call.

What this module does not know: residues. A sequence is its number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

Item = TypeVar("Item")

WINDOW_BATCHES: Final = 64
"""Sequences for about this many batches are held at a time. More sorts better; 64 leaves under
1 % to gain."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One sequence to embed: its row in the result, and its token ids without begin and end.

    Where a sequence is read in windows, each is one of these; `share` is its part of the letters.
    `text` is that of a document's chunk.
    """

    row: int
    ids: Sized
    window: int = 0
    share: float = 1.0
    text: str = ""

    @property
    def tokens(self) -> int:
        return len(self.ids) + 2


def batches(sequences: Iterable[Tokenized], tokens_max: int) -> Iterator[list[Tokenized]]:
    """Yield batches of at most `tokens_max` tokens; a longer sequence is a batch of its own."""
    for window in ahead(_windows(sequences, WINDOW_BATCHES * tokens_max)):
        yield from divided(window, tokens_max)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items, each prepared by a thread while the caller is busy with the one before.

    Raises in the caller what preparing raised, at the item that it happened to.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _windows(sequences: Iterable[Tokenized], tokens_max: int) -> Iterator[list[Tokenized]]:
    """Yield runs of about so many tokens, the longest sequences first in each."""
    window: list[Tokenized] = []
    tokens = 0
    for sequence in sequences:
        window.append(sequence)
        tokens += sequence.tokens
        if tokens >= tokens_max:
            yield _longest_first(window)
            window, tokens = [], 0
    yield _longest_first(window)


def divided(sequences: Iterable[Tokenized], tokens_max: int) -> Iterator[list[Tokenized]]:
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


def _longest_first(window: list[Tokenized]) -> list[Tokenized]:
    return sorted(window, key=lambda one: (-one.tokens, one.row, one.window))
