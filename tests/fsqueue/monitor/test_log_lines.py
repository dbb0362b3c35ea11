"""Without a terminal each thing is said once, at once, on a line of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fsqueue.monitor.alerts import Alert, AlertKind
from fsqueue.monitor.counts import Amount
from fsqueue.monitor.log_lines import EVERY_S, PATIENCE_S, Lines, States, follow, spool_line
from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.workers import Use
from fsqueue.records.journal import Event
from tests.support.monitor_data import finish, put_status, snapshot, spool_row
from tests.support.pools import make_pool

pytestmark = pytest.mark.usefixtures("utc")


def seen(*serials: int, warnings: tuple[Alert, ...] = ()) -> Snapshot:
    events = tuple(Event(n, 43_000.0 + n, "w", "stole", f"event {n}") for n in serials)
    last = max(serials, default=0)
    whole = snapshot([spool_row("gpu0"), spool_row("gpu1")], events=events, events_seen=last)
    return replace(whole, warnings=warnings)


def test_a_line_per_spool_every_ten_seconds_and_no_more() -> None:
    lines = Lines()
    counts = [len(list(lines.news(seen(), now))) for now in (0.0, 2.0, EVERY_S - 0.1, EVERY_S)]
    assert counts == [3, 0, 0, 3]


def test_each_event_is_said_once_and_at_once() -> None:
    lines = Lines()
    list(lines.news(seen(1, 2), 0.0))
    assert list(lines.news(seen(1, 2, 3), 1.0)) == ["11:56:43 w: event 3"]
    assert list(lines.news(seen(1, 2, 3), 2.0)) == []


def test_events_that_were_missed_are_counted() -> None:
    lines = Lines()
    list(lines.news(seen(1, 2), 0.0))
    first, second = lines.news(seen(300), 1.0)
    assert "297 more events" in first and second.endswith("event 300")


def test_a_trouble_is_said_when_it_begins_and_when_it_ends() -> None:
    lines = Lines()
    list(lines.news(seen(), 0.0))
    first = Alert(AlertKind.STALLED, "w", "GPU gpu0 stalled - no activity for 301s")
    later = Alert(AlertKind.STALLED, "w", "GPU gpu0 stalled - no activity for 303s")
    assert list(lines.news(seen(warnings=(first,)), 1.0)) == [f"12:00:00 warning: {first.text}"]
    assert list(lines.news(seen(warnings=(later,)), 2.0)) == []
    assert list(lines.news(seen(), 3.0)) == [f"12:00:00 recovered: {first.text}"]
    assert list(lines.news(seen(warnings=(later,)), 4.0)) == [f"12:00:00 warning: {later.text}"]


def test_workers_get_a_while_to_start_before_they_are_missed() -> None:
    lines = Lines()
    list(lines.news(seen(), 0.0))
    deserted = Alert(AlertKind.DESERTED, "", "no worker is alive")
    assert list(lines.news(seen(warnings=(deserted,)), 1.0)) == []
    assert list(lines.news(seen(), 2.0)) == []
    assert list(lines.news(seen(warnings=(deserted,)), 3.0)) == []
    (line,) = lines.alerts(seen(warnings=(deserted,)), 3.0 + PATIENCE_S)
    assert line.endswith("warning: no worker is alive")


def at(done: int, **facts: object) -> Snapshot:
    """A pool of a hundred equal claims, of which so many are done."""
    row = spool_row("gpu0", done=done, running=0, waiting=Amount(100 - done, 1000 * (100 - done)))
    wide = {"eta_s": 720.0, "eta_low_s": 480.0, "eta_high_s": 1170.0}
    return snapshot([row], **(wide | facts))


def test_in_a_log_there_is_a_line_at_each_tenth_with_the_eta_and_its_range() -> None:
    lines = Lines(events=False, states=States.PROGRESS)
    said = [list(lines.news(at(done), 0.1 * done)) for done in range(100)]
    assert [n for n, each in enumerate(said) if each] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert said[40] == [
        "12:00:00 40% of the work done: 40 of 100 done, 60 waiting, ETA 12m00s (8m00s to 19m30s)"
    ]


def test_in_a_log_there_is_a_line_every_five_minutes_where_a_tenth_takes_longer() -> None:
    lines = Lines(events=False, states=States.PROGRESS)
    times = [30.0 * n for n in range(41)]
    said = [now for now in times if list(lines.news(at(int(14 + now / 400)), now))]
    assert said == [300.0, 600.0, 900.0, 1200.0]


def test_a_tenth_begins_the_five_minutes_again() -> None:
    lines = Lines(events=False, states=States.PROGRESS)
    looks = [(0.0, 18), (200.0, 21), (300.0, 22), (499.0, 23), (500.0, 23)]
    assert [now for now, done in looks if list(lines.news(at(done), now))] == [200.0, 500.0]


def test_more_work_than_before_is_no_progress_and_the_end_has_its_own_line() -> None:
    lines = Lines(events=False, states=States.PROGRESS)
    assert not [line for done in (55, 20, 25) for line in lines.news(at(done), 1.0)]
    assert len(list(lines.news(at(30), 2.0))) == 1
    over = replace(at(100), count=replace(at(100).count, certain=True))
    assert over.finished and list(lines.news(over, 3.0)) == []


def test_a_quiet_log_has_alerts_alone() -> None:
    lines = Lines(events=False, states=States.NOTHING)
    assert not [line for n in range(100) for line in lines.news(at(n), 400.0 * n)]
    alert = Alert(AlertKind.STALLED, "w", "GPU gpu0 stalled - no activity for 301s")
    assert list(lines.news(seen(warnings=(alert,)), 1.0)) == [f"12:00:00 warning: {alert.text}"]


def test_a_spool_has_a_line_with_all_that_is_known() -> None:
    assert spool_line(spool_row("gpu0", stolen_in=2), "seq") == (
        "gpu0: RTX 3090, util 91.0%, mem 40.0%, 323 seq/s, 20 waiting, 40 done, +2/-0 stolen, "
        "running, ETA 3m20s"
    )
    bare = spool_row("", model="", use=Use(), items_per_s=None, eta_s=None)
    assert spool_line(bare, "seq") == "others: 20 waiting, 40 done, running"


def test_follow_ends_with_what_became_of_all(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.40")
    put_status(pool, "node7-1-aaaaaa", model="\x1b[2J", spool="gpu0")
    finish(pool, "node7-1-aaaaaa")
    said: list[str] = []
    follow(pool, interval_s=0.01, echo=said.append)
    assert said[-1].endswith("all: 1 of 1 done")
    assert all(line.isprintable() for line in said)


def test_follow_looks_once_more_after_its_until(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.40", "b.30")

    def until() -> bool:
        finish(pool, "node7-1-aaaaaa")
        return True

    said: list[str] = []
    seen = follow(pool, until=until, interval_s=60.0, echo=said.append)
    assert seen.count.done.claims == 1 and "1 of 2 done" in said[-1]


def test_many_spools_are_one_line_every_ten_seconds() -> None:
    rows = [spool_row(f"gpu{n}") for n in range(200)]
    (line,) = Lines().news(snapshot(rows), 0.0)
    assert " all: " in line and line.endswith(", in 200 spools")


def test_attempts_that_fail_alike_one_after_the_other_are_one_line() -> None:
    texts = [f"a-x failed, attempt {n}: false exited 1" for n in range(3)]
    texts += ["b-x failed, attempt 0: false exited 1", "b-x failed, attempt 1: killed"]
    events = tuple(Event(n, 43_000.0, "w", "failed", text) for n, text in enumerate(texts, 1))
    lines = Lines()
    list(lines.news(snapshot([]), 0.0))
    shown = lines.news(snapshot([], events=events, events_seen=len(events)), 1.0)
    assert [line.partition(": ")[2] for line in shown] == [
        "a-x failed, attempts 0 to 2: false exited 1",
        "b-x failed, attempt 0: false exited 1",
        "b-x failed, attempt 1: killed",
    ]
