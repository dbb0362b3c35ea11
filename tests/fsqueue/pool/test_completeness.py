"""Nothing is called done that was not seen to be done (R30, R31)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue.errors import ExitStatus, PoolError
from fsqueue.monitor.counts import Amount, ClaimCounter
from fsqueue.monitor.snapshot import Reader
from fsqueue.pool import claims, plans
from fsqueue.pool.completeness import LOOKS, look_for_all
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, create_pool
from tests.support.interleave import interpose
from tests.support.monitor_data import fail, finish, take
from tests.support.pools import make_pool, plan

A = "vm-1-aaaaaa"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.40", "b.30", "c.20", "d.10")


def finish_all(pool: PoolDirectory) -> None:
    while claims.waiting(pool, "gpu0"):
        finish(pool, A, "gpu0")


def remove_one(pool: PoolDirectory, state: State, stem: str) -> str:
    directory = Path(pool.spool("gpu0") if state is State.WAITING else pool.state(state))
    (path,) = directory.glob(f"{stem}-*")
    path.unlink()
    return path.name.partition(".")[0]


def test_R30_a_pool_whose_claims_are_all_done_is_complete(pool: PoolDirectory) -> None:
    finish_all(pool)
    seen = look_for_all(pool)
    assert (seen.planned, seen.remaining, seen.failed, seen.missing) == (4, 0, 0, ())
    assert seen.exit_status is ExitStatus.DONE


def test_R30_an_empty_pool_is_complete(tmp_path: Path) -> None:
    assert look_for_all(create_pool(str(tmp_path / "empty"))).exit_status is ExitStatus.DONE


@pytest.mark.parametrize("state", [State.WAITING, State.DONE])
def test_R30_a_claim_whose_file_was_removed_is_named_and_not_called_done(
    pool: PoolDirectory, state: State
) -> None:
    if state is State.WAITING:
        id = remove_one(pool, state, "d")
        finish_all(pool)
    else:
        finish_all(pool)
        id = remove_one(pool, state, "d")
    seen = look_for_all(pool)
    assert seen.missing == (id,) and seen.missing_cost == 10
    assert seen.exit_status is ExitStatus.ERROR
    count = ClaimCounter(pool).take_verified()
    assert count.exit_status == ExitStatus.ERROR
    assert (count.done, count.missing, count.missing_ids) == (Amount(3, 90), Amount(1, 10), (id,))
    snapshot = Reader(pool).snapshot()
    assert snapshot.exit_status == ExitStatus.ERROR
    assert any(id in alert.text and "--repair" in alert.text for alert in snapshot.warnings)


def test_R30_a_foreign_name_in_done_does_not_stand_for_a_missing_claim(
    pool: PoolDirectory,
) -> None:
    finish_all(pool)
    id = remove_one(pool, State.DONE, "d")
    Path(pool.state(State.DONE), "README").write_text("copied by hand")
    kept = next(Path(pool.state(State.DONE)).glob("a-*"))
    kept.with_name(f"{kept.name.partition('@')[0]}@vm-2-bbbbbb").write_bytes(kept.read_bytes())
    assert look_for_all(pool).missing == (id,)


def test_R30_claims_that_wait_run_or_failed_are_not_missing(pool: PoolDirectory) -> None:
    finish(pool, A, "gpu0")
    take(pool, A, "gpu0")
    fail(pool, A, spool="gpu0")
    seen = look_for_all(pool)
    assert (seen.remaining, seen.failed, seen.missing) == (2, 1, ())
    assert seen.exit_status is ExitStatus.WORK_REMAINS


def test_R30_an_unreadable_directory_is_no_proof_that_all_is_done(pool: PoolDirectory) -> None:
    finish_all(pool)
    os.rename(pool.state(State.DONE), f"{pool.root}/elsewhere")
    with pytest.raises(PoolError, match="done is not a directory"):
        look_for_all(pool)
    assert ClaimCounter(pool).take_verified().exit_status == ExitStatus.WORK_REMAINS


def test_R31_a_name_that_one_listing_misses_is_not_missing(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(pool)
    looks = 0

    def scandir(real: Callable[[int], object], fd: int) -> object:
        nonlocal looks
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/done"):
            looks += 1
            if looks == 1:
                empty = os.open(f"{pool.root}/partial", os.O_RDONLY)
                os.dup2(empty, fd)
                os.close(empty)
        return real(fd)

    interpose(monkeypatch, scandir=scandir)
    assert look_for_all(pool).missing == ()
    assert looks == 2


def test_R31_every_look_must_miss_a_claim_before_it_is_called_missing(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(pool)
    remove_one(pool, State.DONE, "a")
    looks = 0

    def scandir(real: Callable[[int], object], fd: int) -> object:
        nonlocal looks
        looks += os.readlink(f"/proc/self/fd/{fd}").endswith("/done")
        return real(fd)

    interpose(monkeypatch, scandir=scandir)
    assert len(look_for_all(pool).missing) == 1
    assert looks == LOOKS + 1, "the first look begins with what has ended"


def test_R31_what_is_planned_meanwhile_is_found_where_it_waits(pool: PoolDirectory) -> None:
    finish_all(pool)
    plan(pool, "e.5")
    seen = look_for_all(pool)
    assert (seen.planned, seen.remaining, seen.missing) == (5, 1, ())


def test_R30_a_plan_that_was_removed_is_not_forgotten(pool: PoolDirectory) -> None:
    plan(pool, "e.5")
    finish_all(pool)
    os.unlink(pool.plan(1))
    seen = look_for_all(pool)
    assert seen.lost_plans == (1,) and seen.exit_status is ExitStatus.ERROR
    snapshot = Reader(pool).snapshot()
    assert snapshot.exit_status == ExitStatus.ERROR
    assert any("000001.json is gone" in alert.text for alert in snapshot.warnings)


def test_R30_claims_that_no_plan_holds_show_that_the_last_plan_was_removed(
    pool: PoolDirectory,
) -> None:
    plan(pool, "e.5", "f.6")
    remove_one(pool, State.WAITING, "e")
    finish_all(pool)
    os.unlink(pool.plan(2))
    seen = look_for_all(pool)
    assert (seen.missing, seen.unplanned) == ((), 1)
    count = ClaimCounter(pool).take_verified()
    assert count.exit_status == ExitStatus.ERROR and "that no plan holds" in count.trouble


def test_R30_as_many_claims_of_an_unseen_plan_do_not_stand_for_those_that_are_missing(
    pool: PoolDirectory,
) -> None:
    plan(pool, "e.5")
    id = remove_one(pool, State.WAITING, "d")
    finish_all(pool)
    os.unlink(pool.plan(2))  # as an old listing of plans/ does not show it
    seen = look_for_all(pool)
    assert (seen.missing, seen.unplanned) == ((id,), 1)
    assert seen.exit_status is ExitStatus.ERROR


@pytest.mark.parametrize("block_bytes", [1, 70, plans.BLOCK_BYTES])
def test_the_ids_of_a_plan_are_the_same_however_they_are_read(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(plans, "BLOCK_BYTES", block_bytes)
    ids = [text.partition(".")[0] for text, _spool in plans.read_names(pool, 1)]
    assert [id for some in plans.read_ids(pool, 1, len(ids)) for id in some] == ids
    with open(pool.plan(1)) as file:
        reformatted = file.read().replace('["', '[ "')
    with open(pool.plan(1), "w") as file:
        file.write(reformatted)
    assert [id for some in plans.read_ids(pool, 1, len(ids)) for id in some] == ids
