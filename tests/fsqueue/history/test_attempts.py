"""Every attempt is told once, as it ended, in little memory, whatever else stands in a journal."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqueue.handler import Work
from fsqueue.history import attempts as module
from fsqueue.history.attempts import Attempted, attempts
from fsqueue.pool.settings import PoolDirectory, create_pool
from tests.support.monitor_data import enlist, take, write_events
from tests.support.planning import FOREVER, make_inputs, plan_command
from tests.support.pools import ManualWorker, Trivial, make_pool
from tests.support.processes import Start, fsqueue, wait_for

A, B = "node7-1-aaaaaa", "node8-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def took(t: float, id: str = "x-1", **facts: Any) -> dict[str, Any]:
    return {"t": t, "event": "took", "id": id, "cost": 5, "attempt": 0, "spool": "gpu0"} | facts


def stole(t: float, id: str = "x-1", **facts: Any) -> dict[str, Any]:
    return {"t": t, "event": "stole", "id": id, "cost": 5, "attempt": 0, "from": "gpu1"} | facts


def ends(event: str, t: float, id: str = "x-1", **facts: Any) -> dict[str, Any]:
    return {"t": t, "event": event, "id": id} | facts


def endings(pool: PoolDirectory) -> list[tuple[str, str]]:
    return [(attempt.id, attempt.ending) for attempt in attempts(pool)]


# ---- how an attempt ends ----


def test_an_attempt_has_its_claim_worker_host_times_and_spool(pool: PoolDirectory) -> None:
    write_events(
        pool, A, {"t": 1, "event": "joined", "host": "node7.cluster"}, took(10, kind="esm2")
    )
    write_events(pool, A, ends("finished", 14.5, seconds=4.25, attempt=0, kind="esm2", cost=5))
    assert list(attempts(pool)) == [
        Attempted(
            "x-1", A, "node7.cluster", "done", 10, 4.25, 0, "esm2", 5, "gpu0", False, None, ""
        )
    ]


@pytest.mark.parametrize(
    ("event", "ending"), [("failed", "failed"), ("released", "released"), ("lost", "lost")]
)
def test_an_attempt_that_ends_otherwise_lasted_until_then(
    pool: PoolDirectory, event: str, ending: str
) -> None:
    write_events(pool, A, stole(10, attempt=2), ends(event, 13, error="boom", returncode=-9))
    (attempt,) = attempts(pool)
    assert (attempt.ending, attempt.seconds, attempt.attempt) == (ending, 3, 2)
    assert (attempt.stolen, attempt.spool) == (True, "gpu1")
    assert (attempt.error, attempt.returncode) == ("boom", -9)


def test_an_attempt_of_a_killed_worker_lasts_until_its_claim_was_taken_back(
    pool: PoolDirectory,
) -> None:
    write_events(pool, A, took(10))
    write_events(pool, B, ends("recovered", 40, of=A))
    (attempt,) = attempts(pool)
    assert (attempt.worker, attempt.ending, attempt.seconds) == (A, "killed", 30)


def test_what_a_living_worker_has_begun_still_runs(pool: PoolDirectory) -> None:
    enlist(pool, A)
    write_events(pool, A, took(10))
    write_events(pool, B, took(11))
    assert endings(pool) == [("x-1", "running"), ("x-1", "unknown")]


def test_what_a_dead_worker_holds_still_runs_until_it_is_taken_back(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "p", "a.10")
    write_events(pool, A, took(10, take(pool, A).id))
    assert [attempt.ending for attempt in attempts(pool)] == ["running"]


def test_a_missing_line_costs_that_attempt_its_end_only(pool: PoolDirectory) -> None:
    """The disk was full: an end is missing, then a beginning."""
    write_events(pool, A, took(10, "a"), took(20, "b"), ends("finished", 25, "b", seconds=5))
    write_events(
        pool, A, ends("finished", 35, "c", seconds=4), took(40, "d"), ends("failed", 50, "e")
    )
    found = {attempt.id: attempt for attempt in attempts(pool)}
    assert {id: attempt.ending for id, attempt in found.items()} == {
        "a": "unknown",
        "b": "done",
        "c": "done",
        "d": "unknown",
        "e": "failed",
    }
    assert found["c"].started == 31 and found["e"].started is None and found["a"].seconds is None


def test_attempts_of_all_workers_come_in_the_order_in_which_they_ended(pool: PoolDirectory) -> None:
    for n in range(0, 40, 2):
        write_events(pool, A, took(n, f"a{n}"), ends("finished", n + 2, f"a{n}", seconds=2))
        write_events(pool, B, took(n + 1, f"b{n}"), ends("finished", n + 3, f"b{n}", seconds=2))
    found = [attempt.ended for attempt in attempts(pool)]
    assert len(found) == 40 and found == sorted(found)


def test_a_real_claim_is_told_through_failure_release_and_end(tmp_path: Path) -> None:
    """The worker's own parts wrote this journal."""

    class Fails(Trivial):
        def run(self, work: Work) -> None:
            if not work.attempt:
                raise ValueError("not today")
            super().run(work)

    pool = make_pool(tmp_path / "p", "a.10")
    hand = ManualWorker(pool, "gpu0", handler=Fails())
    for _ in range(2):
        name = hand.take()
        hand.journal.write("took", id=name.id, attempt=name.attempt, spool="gpu0")
        hand.run(name)
    hand.leave()
    assert [(a.ending, a.attempt, a.error) for a in attempts(pool)] == [
        ("failed", 0, "ValueError: not today"),
        ("done", 1, ""),
    ]


# ---- what a journal may hold ----


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\0\0\0\0",
        b"[1]",
        b'{"event": 7}',
        b'{"event": "took", "id": "../../etc"}',
        b'{"event": "took", "id": ["x"]}',
        b'{"event": "finished"}',
        b'{"event": "joined", "host": {"\\u001b": 1}}',
        b"[" * 100_000,
        b'{"event": "stole", "id": "' + b"x" * 3_000_000,
        b"\xff\xfe",
    ],
)
def test_junk_between_two_events_changes_neither(pool: PoolDirectory, junk: bytes) -> None:
    write_events(pool, A, took(10))
    with open(pool.events(A), "ab") as file:
        file.write(junk + b"\n")
    write_events(pool, A, ends("finished", 12, seconds=2), took(20, "y"))
    with open(pool.events(A), "ab") as file:
        file.write(b'{"t": 21, "event": "finished", "id": "y"')  # torn
    assert endings(pool) == [("x-1", "done"), ("y", "unknown")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(["took", "stole", "finished", "failed", "recovered", "joined"])},
    optional={
        name: VALUES | st.just("x")
        for name in "id of t seconds cost attempt from spool kind host returncode error".split()
    },
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=8))
def test_no_journal_whatever_its_fields_breaks_the_joblog_or_the_trace(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, Any]]
) -> None:
    from click.testing import CliRunner

    from fsqueue.cli import cli

    pool = create_pool(str(tmp_path_factory.mktemp("p") / "pool"))
    write_events(pool, A, *events)
    for words in (["joblog", pool.root], ["joblog", pool.root, "--json"], ["trace", pool.root]):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.exception
        if words[-1] == pool.root and words[0] == "joblog":
            assert {len(line.split()) for line in done.output.splitlines()} == {15}
        else:
            json.loads(done.output, parse_constant=lambda text: pytest.fail(text))


def test_what_is_no_journal_is_left_alone(pool: PoolDirectory, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps(took(1, "secret")) + "\n")
    os.symlink(secret, pool.events(A))
    os.mkfifo(pool.events(B))
    Path(pool.directory("events"), "-bad name.jsonl").write_text(json.dumps(took(1)) + "\n")
    assert endings(pool) == []


def test_a_pool_without_journals_has_no_attempts(pool: PoolDirectory) -> None:
    os.rmdir(pool.directory("events"))
    assert endings(pool) == []


@pytest.mark.slow
def test_more_attempts_need_no_more_memory(pool: PoolDirectory) -> None:
    lines = [
        json.dumps(took(2 * n, f"a{n}")) + "\n" + json.dumps(ends("finished", 2 * n + 1, f"a{n}"))
        for n in range(10_000)
    ]
    peaks = []
    for size in (1_000, 10_000):
        Path(pool.events(A)).write_text("\n".join(lines[:size]) + "\n")
        tracemalloc.start()
        assert sum(attempt.ending == "done" for attempt in attempts(pool)) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks


def test_only_one_journal_is_open_at_a_time(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(50):
        write_events(pool, f"w-{n}-aaaaaa", took(n), ends("finished", n + 1, seconds=1))
    before, most = len(os.listdir("/proc/self/fd")), 0
    pread = os.pread

    def counting(*args: int) -> bytes:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")) - before)
        return pread(*args)

    monkeypatch.setattr(module.os, "pread", counting)
    assert len(list(attempts(pool))) == 50
    assert most == 1


# ---- fsqueue joblog ----


@pytest.mark.slow
def test_joblog_tells_of_failures_and_of_a_killed_worker(tmp_path: Path, start: Start) -> None:
    inputs = make_inputs(tmp_path / "in", 3)
    script = "case $1 in *in000) exit 7;; *in001) kill -TERM $$;; esac; echo fine"
    argv = ("sh", "-c", script, "sh", "{input}")
    pool = plan_command(tmp_path / "pool", inputs, argv, attempts=1)
    assert fsqueue("work", pool.root).returncode == 3
    header, *rows = (line.split("\t") for line in fsqueue("joblog", pool.root).stdout.splitlines())
    assert " ".join(header[:9]) == (
        "Seq Host Starttime JobRuntime Send Receive Exitval Signal Command"
    )
    told = {row[8].partition("-")[0]: (row[6], row[7], row[11]) for row in rows}
    assert told == {
        "in000": ("7", "0", "failed"),
        "in001": ("143", "15", "failed"),
        "in002": ("0", "0", "done"),
    }
    pool = plan_command(tmp_path / "other", inputs[:1], FOREVER)
    worker = start("work", pool.root)
    wait_for(lambda: os.listdir(pool.directory("running")), "a claim to run")
    assert len(fsqueue("joblog", pool.root).stdout.splitlines()) == 1  # what runs is not in it
    worker.kill()
    assert fsqueue("recover", pool.root).returncode == 0
    _, row = (line.split("\t") for line in fsqueue("joblog", pool.root).stdout.splitlines())
    assert (row[6], row[11], row[10]) == ("-1", "killed", "0") and float(row[3]) > 0
    (fact,) = json.loads(fsqueue("joblog", pool.root, "--json").stdout)["attempts"]
    assert fact["ending"] == "killed" and fact["worker"] == row[9]
