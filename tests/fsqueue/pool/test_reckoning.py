"""How many claims wait is reckoned without a look into any spool, and never too low."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.reckoning import Reckoning
from fsqueue.pool.settings import PoolDirectory
from tests.support.pools import ManualWorker, make_pool, names_in, plan


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.3", "b.2", "c.1", attempts=1)


def test_what_waits_is_what_neither_runs_nor_ended(pool: PoolDirectory) -> None:
    reckoning, hand = Reckoning(pool), ManualWorker(pool)
    assert reckoning.waiting() == 3
    held = hand.take()
    assert reckoning.waiting() == 2
    hand.run(held)
    assert reckoning.waiting() == 2
    claims.charge(pool, hand.take(), "gpu0", {"error": "it failed"})
    assert reckoning.waiting() == 1
    plan(pool, "d.9", "e.8")
    assert reckoning.waiting() == 3
    assert len(names_in(pool, State.WAITING)) == 3


def test_nothing_is_reckoned_where_claims_ended_that_no_plan_holds(pool: PoolDirectory) -> None:
    for number in range(4):
        Path(pool.state(State.DONE), f"x-{number}.k.c1.a0.r0@w").touch()
    assert Reckoning(pool).waiting() is None


def test_nothing_is_reckoned_from_a_damaged_plan(pool: PoolDirectory) -> None:
    Path(pool.plan(2)).write_bytes(b"{")
    assert Reckoning(pool).waiting() is None
