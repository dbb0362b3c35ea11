"""Fingerprints distinguish names, and find repeated ones, part by part."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as some

from fsqueue.storage.name_sets import Fingerprints, mark, repeated, sets

texts = some.lists(some.text("abc", max_size=3), max_size=40)


def marks_of(names: list[str]) -> Fingerprints:
    marks = Fingerprints()
    for name in names:
        marks.add(name)
    return marks


@given(texts, texts)
def test_what_is_there_more_than_once_is_found(some_names: list[str], others: list[str]) -> None:
    counts = Counter(some_names + others)
    twice = {mark(name) for name, count in counts.items() if count > 1}
    assert repeated(marks_of(some_names), marks_of(others)) == twice
    assert len(marks_of(some_names)) == len(some_names)


@given(texts, texts)
def test_parts_together_are_the_whole(some_names: list[str], others: list[str]) -> None:
    missing: set[int] = set()
    for mine, its in sets(marks_of(some_names), Fingerprints(map(mark, others))):
        missing |= mine - its
    assert missing == set(map(mark, some_names)) - set(map(mark, others))
    assert (marks_of(some_names) <= marks_of(others)) == (set(some_names) <= set(others))
