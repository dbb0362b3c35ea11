"""Journals are hints: their reader survives whatever they hold, and uses what is valid."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.records.journal import EVENTS_KEPT, STEALS_KEPT, TAIL, Journal, Journals
from tests.support.monitor_data import write_events

A, B = "vm-1-aaaaaa", "vm-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def finished(t: float, seconds: float, sequences: int = 10_000, cost: int = 100) -> dict[str, Any]:
    facts = {"t": t, "event": "finished", "id": "x", "cost": cost, "seconds": seconds}
    return facts | {"sequences": sequences}


def stole(t: float, id: str = "x") -> dict[str, Any]:
    return {"t": t, "event": "stole", "id": id, "cost": 5, "from": "gpu0", "to": "gpu1"}


# ---- speed (T1) ----


def test_speed_is_over_the_last_ten_claims_where_a_minute_holds_fewer(pool: PoolDirectory) -> None:
    write_events(pool, A, *(finished(1000 + 31 * n, 31) for n in range(10)))
    journals = Journals(pool)
    journals.look()
    speed = journals.speed(A)
    assert speed is not None and speed.measures["sequences"] == pytest.approx(322.6, abs=0.1)


def test_speed_is_over_the_last_minute_where_that_holds_more_claims(pool: PoolDirectory) -> None:
    slow = [finished(100 + 10 * n, 10, sequences=10) for n in range(5)]
    fast = [finished(1000 + 2 * n, 2, sequences=10) for n in range(40)]
    write_events(pool, A, *slow, *fast)
    journals = Journals(pool)
    journals.look()
    speed = journals.speed(A)
    assert speed is not None and speed.measures["sequences"] == pytest.approx(5.0)
    assert speed.longest_s == 2


def test_waiting_for_work_does_not_lower_the_speed_but_overhead_does(pool: PoolDirectory) -> None:
    write_events(pool, A, finished(100, 10, 100), finished(1000, 10, 100))
    write_events(pool, B, finished(100, 1, 100), finished(101.5, 1, 100))
    journals = Journals(pool)
    journals.look()
    idle, busy = journals.speed(A), journals.speed(B)
    assert idle is not None and idle.measures["sequences"] == pytest.approx(200 / 21)
    assert busy is not None and busy.measures["sequences"] == pytest.approx(200 / 2.5)


def test_speed_of_claims_without_sequences_is_in_claims(pool: PoolDirectory) -> None:
    write_events(
        pool, A, *({"t": 100 + n, "event": "finished", "cost": 7, "seconds": 1} for n in range(4))
    )
    journals = Journals(pool)
    journals.look()
    speed = journals.speed(A)
    assert speed is not None and speed.claims == pytest.approx(1.0)
    assert speed.cost == pytest.approx(7.0) and speed.measures == {}


def test_a_worker_has_no_speed_before_it_finishes_a_claim(pool: PoolDirectory) -> None:
    journals = Journals(pool)
    journals.look()
    assert journals.speed(A) is None


def test_speed_follows_what_is_appended(pool: PoolDirectory) -> None:
    journals = Journals(pool)
    write_events(pool, A, finished(100, 10, 100))
    journals.look()
    first = journals.speed(A)
    write_events(pool, A, *(finished(110 + 5 * n, 5, 100) for n in range(12)))
    journals.look()
    second = journals.speed(A)
    assert first is not None and second is not None
    assert second.measures["sequences"] > first.measures["sequences"]


# ---- steals (T4) and events ----


def test_the_last_fifty_steals_are_kept_the_newest_last(pool: PoolDirectory) -> None:
    write_events(pool, A, *(stole(100 + n, f"s{n}") for n in range(60)))
    journals = Journals(pool)
    journals.look()
    assert [steal.id for steal in journals.steals] == [f"s{n}" for n in range(10, 60)]
    assert len(journals.steals) == STEALS_KEPT


def test_events_of_several_workers_come_in_order_of_time(
    pool: PoolDirectory,
) -> None:
    write_events(pool, A, stole(100, "first"), stole(300, "third"))
    write_events(pool, B, stole(200, "second"))
    journals = Journals(pool)
    journals.look()
    assert [steal.id for steal in journals.steals] == ["first", "second", "third"]


def test_each_event_is_shown_once(pool: PoolDirectory) -> None:
    journals = Journals(pool)
    write_events(pool, A, stole(100))
    journals.look()
    journals.look()
    write_events(pool, A, stole(101))
    journals.look()
    assert [event.serial for event in journals.events] == [1, 2]


def test_routine_events_are_not_shown(pool: PoolDirectory) -> None:
    write_events(
        pool, A, {"t": 1, "event": "took", "id": "x"}, finished(2, 1), {"t": 3, "event": "unheard"}
    )
    journals = Journals(pool)
    journals.look()
    assert not journals.events


def test_a_flood_of_events_keeps_the_last_and_counts_all(pool: PoolDirectory) -> None:
    journals = Journals(pool)
    journals.look()
    write_events(pool, A, *(stole(n) for n in range(EVENTS_KEPT + 50)))
    journals.look()
    assert len(journals.events) == EVENTS_KEPT and journals.count == EVENTS_KEPT + 50


def test_events_of_a_real_journal_are_put_into_words(pool: PoolDirectory) -> None:
    journal = Journal(pool, A)
    journal.write("joined", spool="gpu0", host="node7")
    journal.write("stole", id="x-1", cost=5, to="gpu0", **{"from": "gpu1"})
    journal.write("failed", id="x-1", attempt=0, last=False, error="boom")
    journal.write("left", done=3, why="")
    journal.close()
    journals = Journals(pool)
    journals.look()
    assert [event.text for event in journals.events] == [
        "joined node7, spool gpu0",
        "stole x-1 from gpu1 (cost 5)",
        "x-1 failed, attempt 0: boom",
        "left after 3 claims",
    ]


# ---- files as they are ----


def test_a_line_that_is_being_written_is_read_when_it_is_whole(pool: PoolDirectory) -> None:
    journals, path = Journals(pool), Path(pool.events(A))
    line = json.dumps(stole(100)).encode()
    path.write_bytes(line[:20])
    journals.look()
    assert not journals.steals
    path.write_bytes(line + b"\n")
    journals.look()
    assert len(journals.steals) == 1


def test_a_long_journal_is_read_from_near_its_end(pool: PoolDirectory) -> None:
    write_events(pool, A, *(stole(n, f"s{n}") for n in range(5000)))
    assert os.path.getsize(pool.events(A)) > 2 * TAIL
    journals = Journals(pool)
    journals.look()
    assert journals.steals[-1].id == "s4999" and journals.count < 1000


def test_a_journal_that_was_replaced_by_a_shorter_one_is_read_afresh(pool: PoolDirectory) -> None:
    journals = Journals(pool)
    write_events(pool, A, *(stole(n) for n in range(9)))
    journals.look()
    os.unlink(pool.events(A))
    write_events(pool, A, stole(100, "new"))
    journals.look()
    assert journals.steals[-1].id == "new"


def test_the_journal_of_an_ended_worker_is_read_for_the_last_time(pool: PoolDirectory) -> None:
    journals = Journals(pool)
    write_events(pool, A, stole(1))
    journals.look({A})
    write_events(pool, A, stole(2))
    journals.look({A})
    assert len(journals.steals) == 1


@pytest.mark.parametrize("what", ["fifo", "link", "directory", "unreadable", "nothing"])
def test_other_files_among_the_journals_are_skipped(pool: PoolDirectory, what: str) -> None:
    path = pool.events(A)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        write_events(pool, "elsewhere", stole(1))
        os.rename(pool.events("elsewhere"), f"{pool.root}/elsewhere")
        os.symlink(f"{pool.root}/elsewhere", path)
    elif what == "directory":
        os.mkdir(path)
    elif what == "unreadable":
        Path(path).write_bytes(b"\x00" * 5000 + b"\xff\xfe\n")
    write_events(pool, B, stole(1))
    journals = Journals(pool)
    journals.look()
    assert len(journals.steals) == 1


def test_without_events_nothing_is_shown(pool: PoolDirectory) -> None:
    os.rmdir(pool.directory("events"))
    journals = Journals(pool)
    journals.look()
    assert not journals.events and journals.speed(A) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"finished"',
        b'{"event": 3}',
        b'{"event": ["finished"]}',
        b'{"event": "finished", "t": "yesterday", "cost": "dear", "seconds": null}',
        b'{"event": "finished", "t": NaN, "cost": Infinity, "seconds": -Infinity}',
        b'{"event": "finished", "t": 1e308, "cost": 1' + b"0" * 400 + b', "seconds": 1e-300}',
        b'{"event": "finished", "t": -5, "cost": -5, "seconds": -5, "sequences": -5}',
        b'{"event": "finished", "t": true, "seconds": true, "sequences": [1]}',
        b'{"event": "stole", "id": {"a": 1}, "from": null, "to": 7, "cost": "x"}',
        b'{"event": "failed"}',
        b'{"event": "warning", "text": "\\u001b[2J\\ud800\\u202e{0.__class__}"}',
        b"[" * 20_000,
        b"1" * 5000,
        b"\x00" * 100 + b'{"event": "stole"}',
    ],
)
def test_hostile_lines_are_harmless(pool: PoolDirectory, line: bytes) -> None:
    Path(pool.events(A)).write_bytes(line + b"\n" + json.dumps(stole(9, "sound")).encode() + b"\n")
    journals = Journals(pool)
    journals.look()
    assert journals.steals[-1].id == "sound"
    speed = journals.speed(A)
    assert speed is None or (speed.claims > 0 and speed.cost >= 0)
    for event in journals.events:
        assert event.text.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from("t event id cost seconds sequences from to error text worker".split())
KINDS = st.sampled_from("finished stole failed left joined warning recovered ended".split())


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.tuples(KINDS, st.dictionaries(KEYS, JSON)), max_size=5))
def test_no_field_of_an_event_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, facts: list[tuple[str, dict[str, Any]]]
) -> None:
    pool = create_pool(str(tmp_path_factory.mktemp("pool") / "pool"))
    lines = [json.dumps(fields | {"event": kind}) for kind, fields in facts]
    Path(pool.events(A)).write_text("".join(line + "\n" for line in lines))
    journals = Journals(pool)
    journals.look()
    journals.speed(A)
    assert all(event.text.isprintable() for event in journals.events)
