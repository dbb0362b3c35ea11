"""A NameList behaves like a list of names, whatever its block size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fsqueue.storage import name_sets
from fsqueue.storage.name_sets import NameList

names = some.lists(some.text("abé", min_size=1, max_size=3), max_size=20, unique=True).map(sorted)


@pytest.fixture(autouse=True, params=[1, 2, 3, name_sets.BLOCK])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_sets, "BLOCK", request.param)


@given(names, some.integers(0, 20))
def test_a_roll_is_read_in_both_directions_and_taken_from_the_end(
    texts: list[str], taken: int
) -> None:
    roll, left = NameList(texts), texts.copy()
    for _ in range(min(taken, len(texts))):
        assert (roll.last, roll.pop()) == (left[-1], left.pop())
    assert (list(roll), list(reversed(roll)), len(roll)) == (left, left[::-1], len(left))


@given(names, some.lists(some.text("abé", min_size=1, max_size=3), max_size=5))
def test_a_name_is_removed_wherever_it_is(texts: list[str], gone: list[str]) -> None:
    roll, left = NameList(texts), texts.copy()
    for text in gone:
        assert roll.remove(text, str) == (text in left)
        left = [each for each in left if each != text]
        assert (list(roll), len(roll)) == (left, len(left))


@given(names, some.text("abé", max_size=3), some.integers(0, 3))
def test_what_is_above_a_limit_is_counted(texts: list[str], limit: str, taken: int) -> None:
    roll, left = NameList(texts), texts.copy()
    for _ in range(min(taken, len(texts))):
        roll.pop(), left.pop()
    assert roll.above(limit, str) == sum(text > limit for text in left)


def test_nothing_can_be_taken_from_an_empty_roll() -> None:
    with pytest.raises(IndexError):
        NameList().pop()
    with pytest.raises(IndexError):
        _ = NameList(["a"]).pop() and NameList().last
