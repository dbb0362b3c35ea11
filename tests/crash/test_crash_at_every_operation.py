"""Kill a process at every operation; then a fresh worker settles everything.

Whatever the dead one left, each claim ends done exactly once, or failed with its history, no human
repairs anything, and `fsqueue check` finds nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import ClaimFailed, ClaimImpossible, Interrupted
from fsqueue.handler import Work
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.worker.attempts.verdicts import Cause
from tests.support.crash import copies, die_after, every_crash
from tests.support.pools import (
    ManualWorker,
    Trivial,
    make_pool,
    names_in,
    only_claim,
    plan,
    problems,
    state_counts,
    work_until_done,
)

pytestmark = pytest.mark.slow


class Failing(Trivial):
    """Fail after half of the output is written."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, work: Work) -> None:
        work.output.write_text("half")
        raise self._error


class Saving(Trivial):
    """Save two checkpoints, and go on from those that are there."""

    def run(self, work: Work) -> None:
        saved = work.checkpoints()
        for part in ("1", "2"):
            if part not in saved:
                work.checkpoint(part, part.encode() * 10)
        assert work.checkpoints() == {"1": b"1" * 10, "2": b"2" * 10}
        super().run(work)


def records(pool: PoolDirectory, name: ClaimName) -> list[dict[str, Any]]:
    """Return what went wrong in each attempt before and including this one."""
    paths = (Path(pool.error(name.id, attempt)) for attempt in range(name.attempt + 1))
    return [json.loads(path.read_bytes()) for path in paths if path.exists()]


def settle(pool: PoolDirectory, expected: int) -> None:
    """Let a fresh worker finish everything, and look at what it leaves."""
    work_until_done(pool)
    done, failed = names_in(pool, State.DONE), names_in(pool, State.FAILED)
    assert state_counts(pool).keys() <= {"done", "failed"}
    assert len({name.id for name in done + failed}) == len(done + failed) == expected
    for name in done:
        assert Path(pool.output(name.id, ".txt")).read_text() == name.id
        assert len(records(pool, name)) >= name.attempt
    for name in failed:
        assert len(records(pool, name)) == name.attempt + 1
    assert problems(pool) == []
    assert not any(name.living for name in lease_names(pool))
    assert {p for p in os.listdir(pool.directory("outputs")) if p.startswith(".")} == set()
    assert os.listdir(pool.directory("partial")) == []


# ---- planning ----


def test_crashes_of_a_planner(tmp_path: Path) -> None:
    def prepare(n: int) -> PoolDirectory:
        return create_pool(f"{tmp_path}/{n}")

    n = 0
    for _, pool in every_crash(prepare, lambda pool: plan(pool, "a.3", "b.2", weights=(1.0, 1.5))):
        n += 1
        plan(pool, "a.3", "b.2", weights=(1.0, 1.5))
        settle(pool, 2)
    assert n > 25


def test_crashes_of_a_planner_into_a_pool_at_work(tmp_path: Path) -> None:
    template = make_pool(tmp_path / "pool", "a.3", "b.2")
    hand = ManualWorker(template)
    hand.run(hand.take())
    hand.leave()
    for _, pool in every_crash(copies(template), lambda pool: plan(pool, "b.2", "c.1")):
        plan(pool, "b.2", "c.1")
        settle(pool, 3)


# ---- working ----


def live(pool: PoolDirectory, **how: Any) -> None:
    """Do what a worker does in a short life: enlist, take, run, leave."""
    hand = ManualWorker(pool, **how)
    hand.beat.flush()
    name = hand.take()
    hand.lease.renew()
    hand.run(name)
    hand.leave()


LIVES: dict[str, Callable[[PoolDirectory], object]] = {
    "finishes": live,
    "saves checkpoints": lambda pool: live(pool, handler=Saving()),
    "fails an attempt": lambda pool: live(pool, handler=Failing(ClaimFailed("no luck"))),
    "finds it impossible": lambda pool: live(pool, handler=Failing(ClaimImpossible("never"))),
    "has a defect": lambda pool: live(pool, handler=Failing(ZeroDivisionError())),
    "is interrupted": lambda pool: live(pool, handler=Failing(Interrupted("stopped"))),
}


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())
def test_crashes_of_a_worker(tmp_path: Path, life: Callable[[PoolDirectory], object]) -> None:
    template = make_pool(tmp_path / "pool", "a.3", "b.2")
    n = 0
    for n, pool in every_crash(copies(template), life):
        assert [p for p in problems(pool) if not p.startswith("I1")] == [], n
        assert problems(pool) == [], n
        settle(pool, 2)
        assert max(name.attempt for name in names_in(pool, State.DONE)) <= 1, "charged once"
    assert n > 15


def test_crashes_of_a_worker_that_takes_up_a_dead_workers_claim(tmp_path: Path) -> None:
    """Its predecessor died after publishing the output, and left checkpoints behind."""
    template = make_pool(tmp_path / "pool", "a.3")

    def publish_and_die() -> None:
        id = ManualWorker(template, handler=Saving()).take().id
        os.mkdir(template.partial(id))
        Path(template.partial(id), "1").write_bytes(b"1" * 10)
        Path(template.output(id, ".txt")).write_text(id)

    die_after(publish_and_die)
    judge = ManualWorker(template)
    assert len(judge.sweep()) == 1
    judge.leave()
    published = os.stat(template.output(only_claim(template, State.WAITING).id, ".txt")).st_mtime_ns
    for _, pool in every_crash(copies(template), lambda pool: live(pool, handler=Saving())):
        settle(pool, 1)
        output = pool.output(only_claim(pool, State.DONE).id, ".txt")
        assert os.stat(output).st_mtime_ns == published, "I7: adopted, not made again"


def test_crashes_of_a_worker_that_puts_its_claim_back(tmp_path: Path) -> None:
    template = make_pool(tmp_path / "pool", "a.3")

    def action(pool: PoolDirectory) -> None:
        hand = ManualWorker(pool)
        claims.release(pool, hand.take(), "gpu0")
        hand.leave()

    for _, pool in every_crash(copies(template), action):
        settle(pool, 1)


# ---- people ----


def failed_pool(root: Path) -> PoolDirectory:
    """Return a pool in which one claim failed at its last attempt, and one waits."""
    pool = make_pool(root, "a.3", "b.2", attempts=2)
    hand = ManualWorker(pool, handler=Failing(ClaimFailed("no luck")))
    for _ in range(2):
        assert hand.run(hand.take()) is Cause.FAILED
    hand.leave()
    assert only_claim(pool, State.FAILED).id.startswith("a-")
    return pool


def test_crashes_of_retry(tmp_path: Path) -> None:
    template = failed_pool(tmp_path / "pool")

    def retry(pool: PoolDirectory) -> None:
        claims.retry(pool, only_claim(pool, State.FAILED), "gpu0")

    for _, pool in every_crash(copies(template), retry):
        for name in names_in(pool, State.FAILED):
            claims.retry(pool, name, "gpu0")
        settle(pool, 2)
        assert state_counts(pool) == {"done": 2}


def test_crashes_of_cancel(tmp_path: Path) -> None:
    template = make_pool(tmp_path / "pool", "a.3")

    def cancel(pool: PoolDirectory) -> None:
        name = only_claim(pool, State.WAITING)
        claims.record_error(pool, name.owned_by("cancel-1-aaaaaa"), {"error": "cancelled"})
        claims.cancel(pool, "gpu0", name, "cancel-1-aaaaaa")

    seen = set()
    for _, pool in every_crash(copies(template), cancel):
        settle(pool, 1)
        seen |= state_counts(pool).keys()
    assert seen == {"done", "failed"}
