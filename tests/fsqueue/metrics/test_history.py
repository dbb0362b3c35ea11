"""The metrics log of a whole run in little memory, whatever its lines are."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.metrics.history import SLOTS_MAX, read_metrics
from fsqueue.metrics.log_file import HEADER


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join([HEADER, *lines, ""]))
    return str(path)


def test_the_gpus_of_one_look_are_added_up(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log",
        "2026-11-30T10:00:00Z,gpu0,10.0,90,40",
        "2026-11-30T10:00:00Z,gpu1,30.0,70,",
        "2026-11-30T10:00:10Z,gpu0,,50,40",
        "2026-11-30T10:00:10Z,gpu1,20.0,,",
    )
    (_, first), (_, second) = read_metrics(log).times()
    assert (first.items_per_s, first.compute_percent, first.low, first.high) == (40.0, 80, 70, 90)
    assert (second.items_per_s, second.compute_percent) == (20.0, 50)
    assert first.memory_percent == 40.0


def test_what_is_no_line_of_the_log_is_skipped(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log",
        "2026-11-30T10:00:00Z,gpu0,nan,101,-3",
        "yesterday,gpu0,1,2,3",
        "2026-11-30T10:0",
        "\0\0\0",
        "2026-11-30T10:00:04Z,gpu0,1e99,inf,x",
        "2026-11-30T10:00:08Z,gpu0,5,5,5",
    )
    times = read_metrics(log).times()
    assert [slot.items_per_s for _, slot in times] == [0.0, 0.0, 5.0]
    assert [slot.gpus for _, slot in times] == [0, 0, 1]
    assert read_metrics(str(tmp_path / "none")).times() == []


@pytest.mark.parametrize("seconds", [10, 10_000, 2_000_000])
def test_a_long_run_takes_no_more_slots_than_a_short_one(tmp_path: Path, seconds: int) -> None:
    day, lines = 86_400, []
    for t in range(0, seconds, max(2, seconds // 2000)):
        at = f"2026-10-{1 + t // day:02}T{t % day // 3600:02}:{t % 3600 // 60:02}:{t % 60:02}Z"
        lines.append(f"{at},gpu0,7.0,50,10")
    history = read_metrics(write(tmp_path / "log", *lines))
    assert len(history.slots) <= SLOTS_MAX + 1
    assert sum(slot.looks for slot in history.slots.values()) == len(lines)
    assert all(slot.items_per_s == pytest.approx(7.0) for _, slot in history.times())


def test_the_log_that_was_set_aside_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "log.1", "2026-11-30T10:00:00Z,gpu0,1.0,,")
    log = write(tmp_path / "log", "2026-11-30T10:01:00Z,gpu0,2.0,,")
    assert [slot.items_per_s for _, slot in read_metrics(log).times()] == [1.0, 2.0]
