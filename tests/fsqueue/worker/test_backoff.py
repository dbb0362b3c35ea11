"""An idle worker looks ever less often while nothing changes; no worker exceeds its limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.monitor.snapshot import Reader
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.storage.operation_count import operations
from fsqueue.worker.backoff import SINGLE_LOOKS, WAIT_INTERVALS, Backoff, RateLimit
from tests.support.monitor_data import enlist, put_status
from tests.support.pools import Clock, ManualWorker, make_pool, only_claim, plan


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """Two spools, and a claim in gpu0."""
    return make_pool(tmp_path / "pool", "a.30", weights=(1.0, 1.0))


def quiet(pool: PoolDirectory, spool: str | None = "gpu1", *, stealing: bool = True) -> Backoff:
    """Return the backoff of a worker that has seen no change for long."""
    backoff = Backoff(pool, 3.0, spool, stealing=stealing)
    for _ in range(len(WAIT_INTERVALS)):
        assert backoff.should_look_everywhere()
        backoff.observe("the same")
    assert backoff.quiet
    return backoff


# ---- when an idle worker looks ----


def test_looks_come_ever_later_while_nothing_changes_and_soon_when_something_does(
    pool: PoolDirectory,
) -> None:
    backoff = Backoff(pool, 3.0, "gpu0", stealing=True)
    waits = []
    for _ in range(1100):
        backoff.observe("the same")
        waits.append(backoff.wait_s)
    assert waits[:6] == [3.0, 3.0, 6.0, 12.0, 21.0, 21.0]
    assert set(waits[6:]) == {21.0}
    backoff.observe("something else")
    assert backoff.wait_s == 3.0
    assert backoff.should_look_everywhere()


@pytest.mark.parametrize("lease_s, longest_s", [(30.0, 21.0), (10.0, 7.0), (3.0, 3.0)])
def test_no_wait_is_longer_than_most_of_a_lease(
    tmp_path: Path, lease_s: float, longest_s: float
) -> None:
    """Otherwise a death would be noticed leases later."""
    backoff = Backoff(
        create_pool(str(tmp_path / "pool"), lease_s=lease_s), 3.0, None, stealing=True
    )
    for _ in range(20):
        backoff.observe("the same")
    assert backoff.wait_s == pytest.approx(longest_s)


def test_a_quiet_worker_lists_one_spool_a_look_its_own_every_other_time(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", weights=[1.0] * 64)
    backoff = quiet(pool, "gpu5")
    before, listed = operations.total, []
    for _ in range(2 * 63):
        backoff._single_looks = 0
        assert not backoff.should_look_everywhere()
        listed.append(set(backoff._seen))
    assert set.union(*listed) == {f"gpu{n}" for n in range(64)}
    assert operations.total - before <= 5 * (2 * 63) + 5, "spools/ itself was listed once"


def test_a_claim_put_back_by_hand_is_found_by_looking_at_one_spool(pool: PoolDirectory) -> None:
    """In another worker's spool, where neither plans/ nor running/ shows it."""
    hand = ManualWorker(pool)
    claims.fail(pool, hand.take())
    backoff = quiet(pool)
    assert not any(backoff.should_look_everywhere() for _ in range(4))
    assert claims.retry(pool, only_claim(pool, State.FAILED), "gpu0")
    assert any(backoff.should_look_everywhere() for _ in range(2))
    assert backoff.wait_s == 3.0 and not backoff.quiet


def test_a_claim_that_keeps_waiting_is_not_news(pool: PoolDirectory) -> None:
    backoff = quiet(pool)
    assert any(backoff.should_look_everywhere() for _ in range(2)), "seen for the first time"
    for _ in range(len(WAIT_INTERVALS)):
        backoff.observe("the same")
    assert not any(backoff.should_look_everywhere() for _ in range(4))


def test_a_worker_that_does_not_steal_looks_only_at_its_own_spool(pool: PoolDirectory) -> None:
    backoff = quiet(pool, "gpu1", stealing=False)
    assert not any(backoff.should_look_everywhere() for _ in range(SINGLE_LOOKS))
    plan(pool, "b.10", "c.10", weights=(1.0, 1.0))
    assert set(backoff._seen) == {"gpu1"}


def test_a_quiet_worker_still_looks_everywhere_now_and_then(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", weights=(1.0, 1.0))
    backoff = quiet(pool)
    looks = [backoff.should_look_everywhere() for _ in range(3 * (SINGLE_LOOKS + 3))]
    assert looks.count(True) == 3


def test_a_pool_without_spools_is_looked_at_everywhere(tmp_path: Path) -> None:
    backoff = quiet(create_pool(str(tmp_path / "pool")), None)
    assert backoff.should_look_everywhere()


# ---- the rate limit ----


class Spender:
    """A process with a rate limit, on a clock that its sleeping moves."""

    def __init__(self, per_s: float) -> None:
        self.clock = Clock()
        self.rate_limit = RateLimit(per_s, clock=self.clock)
        self.begun = self.clock.now

    def spend(self, count: int, *, asking: bool = True) -> float:
        """Do `count` operations, asking first or not; return how long it had to wait."""
        before = self.clock.now
        if asking:
            self.rate_limit.wait(self.clock.forward)
        operations.total += count
        return self.clock.now - before


def test_the_limit_holds_over_time_and_allows_a_seconds_worth_at_once() -> None:
    spender = Spender(10.0)
    waits = [spender.spend(5) for _ in range(42)]
    assert waits[:3] == [0.0, 0.0, 0.0]
    assert 10.0 * (spender.clock.now - spender.begun) + 10 + 5 >= 42 * 5
    assert spender.rate_limit.waited_s == spender.clock.now - spender.begun


def test_operations_that_cannot_wait_delay_those_that_can() -> None:
    spender = Spender(10.0)
    assert [spender.spend(25, asking=False) for _ in range(2)] == [0.0, 0.0]
    assert spender.spend(1) == pytest.approx(4.0)


def test_spending_less_never_waits_and_saves_at_most_a_seconds_allowance() -> None:
    spender = Spender(10.0)
    for _ in range(20):
        spender.clock.forward(1.0)
        assert spender.spend(9) == 0.0
    spender.clock.forward(3600.0)
    spender.spend(20)
    assert spender.spend(1) == pytest.approx(1.0)


# ---- what is shown ----


def test_a_worker_held_back_by_its_limit_raises_an_alert(pool: PoolDirectory) -> None:
    worker = "node7-1-aaaaaa"
    enlist(pool, worker)
    put_status(pool, worker, metadata_ops_max=5.0, metadata_ops_per_s=5.2, held_back=0.62)
    (alert,) = Reader(pool).snapshot().warnings
    assert (alert.kind, alert.subject) == ("budget", worker)
    assert "62% of its time is spent waiting because of --max-metadata-ops 5" in alert.text
