"""Windows cover a sequence, fit into the model, and none is a stump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from embed.models.windows import Windows

ROOM = 12


@given(count=some.integers(1, 400), overlap=some.integers(0, ROOM // 2))
def test_windows_are_equal_or_overlap_and_divide_every_token_between_them(
    count: int, overlap: int
) -> None:
    spans = list(Windows(ROOM, equal=True, overlap=overlap).spans(count, ROOM))
    sizes = [end - begin for begin, end, _, _ in spans]
    assert max(sizes) <= ROOM and max(sizes) - min(sizes) <= 1
    own = [n for begin, _, first, stop in spans for n in range(begin + first, begin + stop)]
    assert own == list(range(count))
    assert all(0 <= first < stop <= end - begin for begin, end, first, stop in spans)
    if overlap:
        pairs = zip(spans, spans[1:], strict=False)
        assert all(one[1] - other[0] >= overlap for one, other in pairs)


def test_a_sequence_of_one_letter_too_many_is_not_a_window_and_one_letter() -> None:
    assert [end - begin for begin, end, _, _ in Windows(1022, True).spans(1023, 1022)] == [511, 512]


@pytest.mark.parametrize("how", [Windows(ROOM), Windows(ROOM, True), Windows(ROOM, True, 3)])
def test_what_fits_is_one_window_and_nothing_is_none(how: Windows) -> None:
    assert list(how.spans(ROOM, ROOM)) == [(0, ROOM, 0, ROOM)]
    assert list(how.spans(0, ROOM)) == []
