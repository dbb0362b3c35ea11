"""Batches hold every sequence once, within the budget, whatever comes before or after."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embed.batching import WINDOW_BATCHES, Tokenized, batches, divided


def made(lengths: list[int]) -> list[Tokenized]:
    return [Tokenized(row, bytes(length)) for row, length in enumerate(lengths)]


@given(lengths=st.lists(st.integers(1, 40), max_size=200), tokens_max=st.integers(1, 60))
def test_every_sequence_is_in_one_batch_and_no_batch_is_too_large(
    lengths: list[int], tokens_max: int
) -> None:
    found = list(batches(made(lengths), tokens_max))
    rows = [sequence.row for batch in found for sequence in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in found:
        tokens = [sequence.tokens for sequence in batch]
        assert len(batch) == 1 or sum(tokens) <= tokens_max
        assert tokens == sorted(tokens, reverse=True)


def test_windows_keep_memory_bounded_and_do_not_look_ahead() -> None:
    seen = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal seen
        while True:
            seen += 1
            yield Tokenized(seen, bytes(8))

    next(batches(endless(), 100))
    assert seen == WINDOW_BATCHES * 100 // 10


def test_dividing_keeps_the_order() -> None:
    parts = list(divided(made([5, 3, 9, 1]), 12))
    assert [[sequence.row for sequence in part] for part in parts] == [[0, 1], [2], [3]]
