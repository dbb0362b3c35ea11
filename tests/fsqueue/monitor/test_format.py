"""Numbers read as people write them, and what is unknown is a dash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.monitor import format


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (250, "4m10s"),
        (3599.6, "1h00m"),
        (11_100, "3h05m"),
        (187_200, "2d04h"),
        (3.1e9, "35,879d15h"),
    ],
)
def test_a_duration_is_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert format.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.00"), (9.876, "9.88"), (98.76, "98.8"), (1234.5, "1,234")],
)
def test_a_rate_has_three_figures_or_so(value: float | None, text: str) -> None:
    assert format.rate(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 10, "0.0%"),
        (10, 10, "100.0%"),
        (1, 3, "33.3%"),
        (1, 10**6, "<0.1%"),
        (10**6 - 1, 10**6, ">99.9%"),
        (1, 0, "-"),
    ],
)
def test_a_share_is_all_or_nothing_only_if_it_is(part: float, whole: float, text: str) -> None:
    assert format.share(part, whole) == text


@pytest.mark.parametrize("t", [float("nan"), float("inf"), 1e300, -1e300])
def test_a_time_beyond_all_calendars_is_none(t: float) -> None:
    assert format.clock(t) == "--:--:--"


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_was_stolen_names_both_directions(came: int, went: int) -> None:
    text = format.stolen(came, went)
    assert text == "-" if not came and not went else text == f"+{came:,}/-{went:,}"
