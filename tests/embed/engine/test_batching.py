"""Batches hold every sequence once, within the budget, whatever is before or after them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.engine.batching import BATCHES_SORTED, Tokenized, batches, divide_batch, prefetched


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


def test_at_most_two_sorted_groups_are_held_at_a_time() -> None:
    seen = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal seen
        while True:
            seen += 1
            yield Tokenized(seen, bytes(8))

    found = batches(endless(), 100)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert BATCHES_SORTED * 100 // 10 <= seen <= 2 * BATCHES_SORTED * 100 // 10


def test_dividing_keeps_the_order() -> None:
    parts = list(divide_batch(made([5, 3, 9, 1]), 12))
    assert [[sequence.row for sequence in part] for part in parts] == [[0, 1], [2], [3]]


# ---- prefetching ----


def test_the_next_item_is_computed_while_the_caller_has_the_one_before() -> None:
    prepared, resumed = threading.Event(), threading.Event()

    def items() -> Iterator[str]:
        yield "first"
        prepared.set()  # only another thread can come here before "second" was asked for
        assert resumed.wait(30)
        yield "second"

    found = prefetched(items())
    assert next(found) == "first"
    assert prepared.wait(30)
    resumed.set()
    assert list(found) == ["second"]


def test_an_exception_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    found = prefetched(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_closing_the_generator_ends_its_thread() -> None:
    before = threading.active_count()
    found = prefetched(iter(range(1, 1000)))
    assert next(found) == 1
    assert isinstance(found, Generator)
    found.close()
    assert threading.active_count() == before


def test_closing_does_not_wait_for_a_whole_group() -> None:
    """Whose reading takes long, where a batch has many tokens."""
    seen = 0

    def one_group_and_then_endless() -> Iterator[Tokenized]:
        nonlocal seen
        yield Tokenized(0, range(BATCHES_SORTED * 10**9))
        while True:
            seen += 1
            yield Tokenized(seen, b"")

    found = batches(one_group_and_then_endless(), 10**9)
    assert [one.row for one in next(found)] == [0]
    found.close()
    assert seen < BATCHES_SORTED * 10**9 // 2


def test_an_exception_from_elsewhere_ends_the_thread_while_it_is_still_held() -> None:
    """As that of a signal, which may be raised at any line of the caller."""
    before = set(threading.enumerate())
    with pytest.raises(KeyError) as held, closing(batches(made([3] * 10_000), 20)) as found:
        for _batch in found:
            raise KeyError("elsewhere")
    assert held.traceback
    assert not set(threading.enumerate()) - before
