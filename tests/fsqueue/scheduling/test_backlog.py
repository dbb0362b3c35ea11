"""Adding to a live pool: claims go where they will be done soonest, and to whom they suit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.records.status import write_status
from fsqueue.scheduling.backlog import NEVER, Wanted, loads, look, spool_speeds
from fsqueue.scheduling.choose import LOAD_S
from fsqueue.scheduling.planner import plan_into
from tests.support.pools import Divisible, ManualWorker, make_pool, plan, request, spools

WANTED = Wanted("embed", "esm2_t6", 100.0)


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """An empty pool with two spools, gpu1 twice as fast."""
    return make_pool(tmp_path / "pool", weights=(1.0, 2.0))


def worker(pool: PoolDirectory, spool: str, **facts: Any) -> ManualWorker:
    """Let a worker live, and report these facts."""
    hand = ManualWorker(pool, spool)
    for name, value in facts.items():
        setattr(hand.status, name, value)
    write_status(pool, hand.status)
    return hand


def before(pool: PoolDirectory, wanted: Wanted = WANTED) -> list[float]:
    return loads(look(pool), spools(1.0, 2.0), wanted)


def test_where_nobody_lives_what_waits_decides(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.30", "b.7", weights=(1.0, 1.0))
    assert sorted(before(pool)) == [7, 30]


def test_what_a_spool_s_workers_still_have_to_run_counts_too(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.30")
    worker(pool, "gpu0").take()
    assert before(pool)[0] == 30


def test_a_load_is_worth_the_time_that_it_takes(pool: PoolDirectory) -> None:
    worker(pool, "gpu0", loaded=["esm2_t6"])
    worker(pool, "gpu1")
    ready, cold = before(pool)
    assert ready == 0
    assert cold == pytest.approx(LOAD_S * 100.0 * 2.0, rel=1e-3)


def test_a_specialist_comes_before_others(pool: PoolDirectory) -> None:
    worker(pool, "gpu0")
    worker(pool, "gpu1", specialization="esm2")
    other, special = before(pool)
    assert special == 0 and other == pytest.approx(LOAD_S / 2 * 100.0, rel=1e-3)


def test_workers_that_may_not_do_it_get_it_only_if_nobody_may(pool: PoolDirectory) -> None:
    storage = worker(pool, "gpu0", tier=3)
    assert before(pool) == [0, 0], "nobody may: what waits decides"
    worker(pool, "gpu1", tier=1)
    assert before(pool)[0] >= NEVER and before(pool)[1] == 0
    storage.status.tier = 2
    write_status(pool, storage.status)
    assert before(pool)[0] < NEVER


def test_without_a_unit_scores_decide_among_equals(pool: PoolDirectory) -> None:
    worker(pool, "gpu0", loaded=["trivial"])
    worker(pool, "gpu1")
    first, second = before(pool, Wanted("trivial", "trivial"))
    assert first == 0 < second < 1


def test_claims_added_to_a_live_pool_go_to_who_has_their_model(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", weights=(1.0, 1.0))
    worker(pool, "gpu1", loaded=["divisible"])
    worker(pool, "gpu0")
    handler = Divisible()
    handler.cost_per_second = 1.0
    outcome = plan_into(pool, request("a.40", weights=(1.0, 1.0), handler=handler))
    assert outcome.total.cost == 40 and outcome.shares["gpu1"].cost in range(33, 37)


def test_claims_added_to_a_live_pool_go_where_least_is_left(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.100", weights=(1.0, 1.0))
    busy = worker(pool, "gpu0").take()
    worker(pool, "gpu1")
    assert busy is not None
    outcome = plan(pool, "b.90", weights=(1.0, 1.0))
    assert outcome.shares["gpu1"].claims == 1


def test_the_terms_of_a_routing_are_in_the_log(
    pool: PoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    worker(pool, "gpu0", loaded=["esm2_t6"])
    with caplog.at_level(logging.DEBUG, "fsqueue.scheduling.backlog"):
        before(pool)
    assert "model +100 (esm2_t6 is loaded)" in caplog.text


def test_a_pool_without_workers_is_shared_by_weight_as_ever(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "pool"))
    outcome = plan_into(pool, request("a.90", weights=(1.0, 2.0), handler=Divisible()))
    assert [share.cost for share in outcome.shares.values()] == [30, 60]


# ---- measured speeds (R76) ----


def test_r76_spools_are_as_fast_as_their_workers_measured(pool: PoolDirectory) -> None:
    worker(pool, "gpu0", weight=1.0, rates={"esm2_t6": 250.0})
    worker(pool, "gpu1", weight=1.0, rates={"esm2_t6": 10.0})
    found = spool_speeds(pool, look(pool), spools(1.0, 1.0), WANTED)
    assert found.by_spool[0] / found.by_spool[1] == pytest.approx(25)
    assert found.measured == {"gpu0", "gpu1"} and found.unit == pytest.approx(130)


def test_r76_two_workers_of_a_spool_count_twice_and_what_is_not_measured_by_its_weight(
    pool: PoolDirectory,
) -> None:
    for _ in range(2):
        worker(pool, "gpu0", weight=1.0, rates={"esm2_t6": 50.0})
    worker(pool, "gpu1", weight=2.0, rates={"other": 9.0})
    found = spool_speeds(pool, look(pool), spools(1.0, 2.0), WANTED)
    assert found.by_spool == (2.0, 2.0) and found.measured == {"gpu0"}


def test_r76_a_plan_into_a_live_pool_is_shared_out_by_measured_speeds(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", weights=(1.0, 1.0))
    worker(pool, "gpu0", weight=1.0, rates={"trivial": 25.0})
    worker(pool, "gpu1", weight=1.0, rates={"trivial": 1.0})
    inputs = [f"i{n}.10" for n in range(52)]
    result = plan(pool, *inputs, weights=(1.0, 1.0))
    assert [result.shares[name].claims for name in ("gpu0", "gpu1")] == [50, 2]
    assert result.measured.keys() == {"gpu0", "gpu1"}
    assert result.eta_s == pytest.approx(520 / 26)


def test_r76_speeds_of_workers_that_left_tell_how_long_it_takes(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", weights=(1.0, 1.0))
    hand = worker(pool, "gpu0", weight=1.0, rates={"trivial": 5.0})
    hand.leave()
    result = plan(pool, "a.40", "b.40", weights=(1.0, 1.0))
    assert not result.measured and result.eta_s == pytest.approx(8.0)
    assert [result.shares[name].claims for name in ("gpu0", "gpu1")] == [1, 1]


def test_nothing_is_guessed_where_nothing_was_measured(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", weights=(1.0,))
    assert plan(pool, "a.40").eta_s is None
