"""Who lives is read from leases; what a worker reports is believed where it makes sense."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue.monitor.counts import ClaimCounter
from fsqueue.monitor.workers import LOADING_STALL_S, WorkerReader, WorkerRow
from fsqueue.pool import claims
from fsqueue.pool.leases import Lease, LeaseName
from fsqueue.pool.proof_of_life import _stat, proof_of_life
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.journal import Journals
from fsqueue.storage import atomic
from tests.support.monitor_data import enlist, finish, put_status, take, write_events
from tests.support.pools import Clock, id_here, make_pool
from tests.support.processes import wait_for

A, B = "node7-1-aaaaaa", "node8-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.40", "b.30", "c.20", lease_s=30.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def roster(pool: PoolDirectory, clock: Clock) -> WorkerReader:
    return WorkerReader(pool, clock=clock)


def rows(
    pool: PoolDirectory, roster: WorkerReader, *, paused: bool = False
) -> dict[str, WorkerRow]:
    count, journals = ClaimCounter(pool).take(), Journals(pool)
    roster.look(count.held)
    journals.look(roster.ended)
    return {row.id: row for row in roster.rows(count, journals, paused=paused)}


def watch_for_a_lease(
    pool: PoolDirectory, roster: WorkerReader, clock: Clock, worker: str = A
) -> WorkerRow:
    """Look often enough, for longer than a lease; return how a worker looks then."""
    for _ in range(3):
        clock.forward(pool.lease_s / 2)
        row = rows(pool, roster)[worker]
    return row


# ---- who lives ----


def test_a_worker_lives_by_its_lease_without_any_status(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    name = take(pool, A)
    row = rows(pool, roster)[A]
    assert (row.health, row.state, row.holds) == ("healthy", "running", (name.id,))


def test_a_worker_is_suspect_after_half_a_lease_and_lost_after_a_whole_one(
    pool: PoolDirectory, roster: WorkerReader, clock: Clock
) -> None:
    lease = enlist(pool, A)[A]
    put_status(pool, A)
    seen = []
    for seconds in (0, 14, 2, 15):
        clock.forward(seconds)
        seen.append(rows(pool, roster)[A].state)
    assert seen == ["running", "running", "suspect", "lost"]
    lease.renew()
    assert rows(pool, roster)[A].health == "healthy"


def test_a_worker_that_left_is_not_one_that_died(pool: PoolDirectory, roster: WorkerReader) -> None:
    enlist(pool, A)[A].retire()
    enlist(pool, B)
    os.rename(pool.lease(LeaseName(B, beat=0)), pool.lease(LeaseName(B, ended_by=A)))
    found = rows(pool, roster)
    assert (found[A].health, found[B].health) == ("left", "lost")
    assert A in found[B].trouble and not found[B].living


def test_a_claim_whose_owner_has_no_lease_is_held_by_a_suspect_then_by_a_lost_worker(
    pool: PoolDirectory, roster: WorkerReader, clock: Clock
) -> None:
    take(pool, A)
    assert rows(pool, roster)[A].state == "suspect"
    assert watch_for_a_lease(pool, roster, clock).state == "lost"


def test_a_worker_of_this_host_is_lost_as_soon_as_its_process_is_gone(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    facts = proof_of_life() | {"pid": child.pid, "started": "1"}
    worker = id_here(child.pid)
    atomic.publish(pool.lease(LeaseName(worker, beat=3)), json.dumps(facts).encode())
    row = rows(pool, roster)[worker]
    assert (row.health, row.living) == ("lost", False) and "gone" in row.trouble


@pytest.fixture
def sleeper() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def test_a_stopped_process_is_said_to_be_stopped(
    pool: PoolDirectory, roster: WorkerReader, clock: Clock, sleeper: int
) -> None:
    facts = proof_of_life() | {"pid": sleeper, "started": _stat(sleeper)[1]}
    worker = id_here(sleeper)
    atomic.publish(pool.lease(LeaseName(worker, beat=3)), json.dumps(facts).encode())
    os.kill(sleeper, signal.SIGSTOP)
    wait_for(lambda: _stat(sleeper)[0] == "T", "the process to stop")
    row = rows(pool, roster)[worker]
    assert (row.health, row.living) == ("degraded", True) and "kill -CONT" in row.trouble
    assert watch_for_a_lease(pool, roster, clock, worker).health == "lost"


def test_a_process_of_another_host_is_not_looked_for_here(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    facts = proof_of_life() | {"pid": 2**22 + 1, "started": "1"}
    atomic.publish(pool.lease(LeaseName(A, beat=3)), json.dumps(facts).encode())
    put_status(pool, A, host="elsewhere")
    assert rows(pool, roster)[A].health == "healthy"


def test_ended_workers_are_remembered_not_read_again(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    put_status(pool, A, claims_done=7)
    enlist(pool, A)[A].retire()
    assert rows(pool, roster)[A].status.claims_done == 7
    assert rows(pool, roster)[A].status.claims_done == 7
    put_status(pool, A, claims_done=8)
    assert rows(pool, roster)[A].status.claims_done == 7


def test_a_dead_worker_that_still_holds_a_claim_shows_it(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    put_status(pool, A)
    enlist(pool, A)
    name = take(pool, A)
    os.rename(pool.lease(LeaseName(A, beat=0)), pool.lease(LeaseName(A, ended_by=B)))
    for _ in range(2):
        assert rows(pool, roster)[A].holds == (name.id,)
    claims.requeue(pool, name, "gpu0")
    assert rows(pool, roster)[A].holds == ()


def test_a_status_without_a_lease_or_a_claim_is_of_nobody_who_lives(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    put_status(pool, A)
    assert not rows(pool, roster)[A].living


def test_a_lease_that_a_renewal_hides_for_a_moment_is_not_missed(
    pool: PoolDirectory, roster: WorkerReader, clock: Clock
) -> None:
    enlist(pool, A)
    assert rows(pool, roster)[A].living
    os.unlink(pool.lease(LeaseName(A, beat=0)))
    clock.forward(2)
    assert rows(pool, roster)[A].health == "healthy"
    clock.forward(30)
    assert A not in rows(pool, roster)


def test_without_workers_the_damage_is_said(pool: PoolDirectory, roster: WorkerReader) -> None:
    shutil.rmtree(pool.directory("workers"))
    assert pool.directory("workers") in roster.look(())


# ---- stalled (T2) ----


def stalled(
    pool: PoolDirectory, roster: WorkerReader, last: float, now: float, **facts: Any
) -> bool:
    put_status(pool, A, last_activity=last, written_at=now, **facts)
    return rows(pool, roster)[A].stalled


def test_a_worker_is_stalled_after_more_than_the_threshold(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    take(pool, A)
    assert not stalled(pool, roster, 1000, 1300)
    assert stalled(pool, roster, 1000, 1301)


def test_a_worker_with_a_queue_and_no_progress_is_stalled(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    assert stalled(pool, roster, 1000, 1301, spool="gpu0")


def test_a_worker_with_nothing_to_do_is_not_stalled(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    while claims.waiting(pool, "gpu0"):
        finish(pool, A)
    assert not stalled(pool, roster, 1000, 9999, spool="gpu0", state="idle")


def test_an_empty_queue_does_not_excuse_a_worker_that_holds_a_claim(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    while len(claims.waiting(pool, "gpu0")) > 1:
        finish(pool, A)
    take(pool, A)
    assert stalled(pool, roster, 1000, 1301, spool="gpu0")


def test_loading_a_model_may_take_longer(pool: PoolDirectory, roster: WorkerReader) -> None:
    enlist(pool, A)
    take(pool, A)
    assert not stalled(pool, roster, 1000, 1000 + LOADING_STALL_S, state="loading")
    assert stalled(pool, roster, 1000, 1001 + LOADING_STALL_S, state="loading")


def test_an_idle_worker_is_not_stalled_by_a_plan_that_came_a_moment_ago(
    pool: PoolDirectory, roster: WorkerReader, clock: Clock
) -> None:
    enlist(pool, A)
    assert not stalled(pool, roster, 1000, 9000, spool="gpu0", state="idle")
    clock.forward(29)
    roster._observer.look()
    assert not stalled(pool, roster, 1000, 9001, spool="gpu0", state="idle")
    clock.forward(1)
    lease = Lease(pool, A)
    lease.renew()
    assert stalled(pool, roster, 1000, 9002, spool="gpu0", state="idle")


def test_nobody_is_stalled_by_a_queue_while_the_pool_is_paused(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    put_status(pool, A, last_activity=1000, written_at=9000, spool="gpu0")
    assert not rows(pool, roster, paused=True)[A].stalled


def test_the_clock_of_the_worker_and_ours_are_never_compared(
    pool: PoolDirectory, roster: WorkerReader, clock: Clock
) -> None:
    """Its wall clock is years off; only differences of its own times, and of ours, are used."""
    enlist(pool, A)
    take(pool, A)
    assert not stalled(pool, roster, 4_000_000_000, 4_000_000_250)
    clock.forward(20)
    assert rows(pool, roster)[A].idle_s == 270


# ---- what it reports ----


def test_speed_falls_back_to_all_its_claims_then_to_the_progress_of_its_first(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    take(pool, A)
    current = {"id": "x", "cost": 40, "started": 4990.0, "done": 25, "total": 100}
    put_status(pool, A, current=current)
    row = rows(pool, roster)[A]
    assert row.progress == 0.25 and row.cost_left == 30
    assert row.cost_per_s == pytest.approx(1.0)
    put_status(
        pool, A, current=current, claims_done=4, busy_s=2.0, cost_done=100, written_at=5001.0
    )
    row = rows(pool, roster)[A]
    assert (row.items_per_s, row.cost_per_s) == (2.0, 50.0)
    write_events(pool, A, {"t": 4999, "event": "finished", "cost": 30, "seconds": 10})
    assert rows(pool, roster)[A].cost_per_s == pytest.approx(3.0)


def test_an_idle_worker_has_no_speed(pool: PoolDirectory, roster: WorkerReader) -> None:
    enlist(pool, A)
    write_events(pool, A, {"t": 4999, "event": "finished", "cost": 30, "seconds": 10})
    put_status(pool, A, state="idle", claims_done=1, busy_s=1.0)
    assert rows(pool, roster)[A].items_per_s is None


def test_a_speed_of_long_ago_is_none(pool: PoolDirectory, roster: WorkerReader) -> None:
    """No claim finished for twice as long as the longest of the last took."""
    enlist(pool, A)
    write_events(pool, A, {"t": 4970, "event": "finished", "cost": 30, "seconds": 10})
    put_status(pool, A, written_at=4990.0)
    assert rows(pool, roster)[A].cost_per_s == 3.0
    put_status(pool, A, written_at=4991.0)
    assert rows(pool, roster)[A].cost_per_s is None


def test_what_the_gpu_did_is_believed_only_where_it_can_be(
    pool: PoolDirectory, roster: WorkerReader
) -> None:
    enlist(pool, A)
    gpu = {"compute_percent": 93, "memory_percent": 4294967295, "temperature": "hot"}
    put_status(pool, A, gpu=gpu | {"power_watts": 250.0})
    use = rows(pool, roster)[A].use
    assert (use.compute_percent, use.memory_percent) == (93.0, None)
    assert (use.temperature, use.power_watts) == (None, 250.0)


def test_hostile_texts_are_made_fit_to_be_shown(pool: PoolDirectory, roster: WorkerReader) -> None:
    enlist(pool, A)
    bad = "\x1b]0;pwned\x07\x1b[2J\n\u202e\ud800"
    put_status(pool, A, model=bad, spool=bad, message=bad, host=bad, loaded=[bad], slurm={bad: bad})
    status = rows(pool, roster)[A].status
    for text in (status.model, status.spool, status.message, status.host, *status.loaded):
        assert text is not None and text.isprintable()
    assert "\\x1b]0;pwned" in status.model
