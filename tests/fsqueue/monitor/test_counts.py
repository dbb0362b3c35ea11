"""The counts are true whatever moves, is missing or is damaged; done/ is never listed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.monitor.counts import Amount, ClaimCounter, Count, Listing
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.storage import atomic
from tests.support.interleave import interpose
from tests.support.monitor_data import fail, finish, on_disk, take
from tests.support.pools import make_pool, plan

A, B = "vm-1-aaaaaa", "vm-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.40", "b.30", "c.20", "d.10", weights=[1.0, 1.0])


def adds_up(count: Count) -> bool:
    parts = count.waiting + count.running + count.done + count.failed
    in_spools = sum((waiting for _, waiting in count.spools.values()), count.staged)
    return parts == count.planned and in_spools == count.waiting


def spool_with_work(pool: PoolDirectory) -> str:
    return next(name for name in ("gpu0", "gpu1") if claims.waiting(pool, name))


def test_every_claim_is_counted_where_it_is(pool: PoolDirectory) -> None:
    finish(pool, A, spool_with_work(pool))
    take(pool, A, spool_with_work(pool))
    fail(pool, B, spool=spool_with_work(pool))
    count = ClaimCounter(pool).take()
    assert (count.planned, count.waiting.claims) == (Amount(4, 100), 1)
    assert (count.running.claims, count.done.claims, count.failed.claims) == (1, 1, 1)
    assert adds_up(count) and count.exit_status == 5


def test_an_empty_pool_is_finished(tmp_path: Path) -> None:
    count = ClaimCounter(create_pool(str(tmp_path / "empty"))).take()
    assert count.finished and count.exit_status == 0 and count.planned == Amount()


def test_a_finished_pool_tells_whether_claims_failed(pool: PoolDirectory) -> None:
    for spool in ("gpu0", "gpu1"):
        while claims.waiting(pool, spool):
            finish(pool, A, spool)
    assert ClaimCounter(pool).take().exit_status == 0
    plan(pool, "e.5", weights=[1.0, 1.0])
    fail(pool, A, spool=spool_with_work(pool))
    assert ClaimCounter(pool).take().exit_status == 3


def test_neither_done_nor_outputs_is_ever_listed(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(pool, A, spool_with_work(pool))
    listed: list[str] = []

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        listed.append(os.readlink(f"/proc/self/fd/{fd}"))
        return real(fd)

    interpose(monkeypatch, listdir=listdir)
    assert ClaimCounter(pool).take().done.claims == 1
    assert {Path(path).name for path in listed} == {
        "plans",
        "spools",
        "gpu0",
        "gpu1",
        "running",
        "failed",
    }


@pytest.mark.parametrize("moment", ["spool", "running", "failed"])
@pytest.mark.parametrize("verb", ["take", "fail", "cancel"])
def test_a_claim_that_moves_between_two_listings_counts_once(
    pool: PoolDirectory, moment: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before `moment` is listed, a claim leaves the place where it was, seen or not."""
    spool = spool_with_work(pool)
    directory = pool.spool(spool) if moment == "spool" else f"{pool.root}/{moment}"
    name = take(pool, A, spool) if verb == "fail" else claims.waiting(pool, spool)[0]
    real, moved = atomic.gather, []

    def gather(listed: str, into: Any) -> Any:
        if listed == directory and not moved:
            moved.append(moment)
            if verb == "fail":
                claims.fail(pool, name)
            elif verb == "take":
                claims.take(pool, spool, name, A)
            else:
                claims.cancel(pool, spool, name, A)
        return real(listed, into)

    monkeypatch.setattr(atomic, "gather", gather)
    census = ClaimCounter(pool)
    count = census.take()
    assert moved and adds_up(count)
    assert (count.done.claims, count.waiting.claims + count.running.claims) in ((0, 3), (0, 4))
    again = census.take()
    assert adds_up(again) and again.done.claims == 0
    assert (again.running.claims, again.failed.claims) == ((1, 0) if verb == "take" else (0, 1))


def test_nothing_left_is_said_only_after_a_second_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last claim goes back to waiting after its spool was listed: one look misses it."""
    pool = make_pool(tmp_path / "pool", "a.40")
    name = take(pool, A)
    real, moved = atomic.gather, []

    def gather(directory: str, into: Any) -> Any:
        if directory.endswith("running") and not moved:
            moved.append(claims.release(pool, name, "gpu0"))
        return real(directory, into)

    monkeypatch.setattr(atomic, "gather", gather)
    count = ClaimCounter(pool).take()
    assert moved and count.waiting.claims == 1 and not count.finished


def test_a_plan_that_appears_during_a_look_is_counted_with_its_claims(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, added = atomic.gather, []

    def gather(directory: str, into: Any) -> Any:
        if directory.endswith("/spools") and not added:
            added.append("e")
            plan(pool, "e.50", weights=[1.0, 1.0])
        return real(directory, into)

    monkeypatch.setattr(atomic, "gather", gather)
    count = ClaimCounter(pool).take()
    assert count.planned == count.waiting == Amount(5, 150)


def test_claims_of_a_planner_that_died_half_way_wait(pool: PoolDirectory) -> None:
    uid = plans.read_plan(pool, 1).uid
    spool = spool_with_work(pool)
    name = claims.waiting(pool, spool)[0]
    os.makedirs(pool.staged(uid, spool))
    os.rename(pool.waiting(spool, name), f"{pool.staged(uid, spool)}/{name}")
    count = ClaimCounter(pool).take()
    assert (count.staged.claims, count.waiting.claims, count.done.claims) == (1, 4, 0)
    assert adds_up(count)


def test_staged_claims_of_no_plan_are_no_claims(pool: PoolDirectory) -> None:
    os.makedirs(pool.staged("dead1", "gpu0"))
    Path(pool.staged("dead1", "gpu0"), "x-1.trivial.c5.a0.r0").write_text("{}")
    assert ClaimCounter(pool).take().planned.claims == 4


# ---- damage ----


def test_a_spool_that_cannot_be_listed_counts_as_waiting(pool: PoolDirectory) -> None:
    spool = spool_with_work(pool)
    share = len(claims.waiting(pool, spool))
    shutil.rmtree(pool.spool(spool))
    count = ClaimCounter(pool).take()
    assert not count.certain and count.spools[spool][1].claims == share
    assert count.exit_status == 5 and adds_up(count)
    assert pool.spool(spool) in count.damage[0]


def test_a_spool_that_vanishes_keeps_its_last_count(pool: PoolDirectory) -> None:
    census, spool = ClaimCounter(pool), spool_with_work(pool)
    finish(pool, A, spool)
    before = census.take()
    os.rename(pool.spool(spool), f"{pool.root}/elsewhere")
    after = census.take()
    assert after.waiting == before.waiting and not after.certain


def test_a_symbolic_link_is_no_spool(pool: PoolDirectory, tmp_path: Path) -> None:
    spool = spool_with_work(pool)
    os.rename(pool.spool(spool), tmp_path / "real")
    os.symlink(tmp_path / "real", pool.spool(spool))
    count = ClaimCounter(pool).take()
    assert not count.certain and not count.finished and adds_up(count)


def test_a_spool_without_its_file_still_counts(pool: PoolDirectory) -> None:
    os.unlink(pool.spool_file(spool_with_work(pool)))
    assert ClaimCounter(pool).take().waiting.claims == 4


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"garbage\n",
        b"[1,2\n",
        b'{"format":1,"plan":"ab","created":"","handler":"x","kinds":[],"suffix":null,'
        b'"total":{"claims":"4","cost":1},"spools":{},"options":{},\n',
        b'{"format":1,"plan":"ab","created":"","handler":"x","kinds":[],"suffix":null,'
        b'"total":{"claims":4,"cost":1,"measures":[1]},"spools":{},"options":{},\n',
        b'{"format":1,"plan":"ab","created":"","handler":"x","kinds":[],"suffix":null,'
        b'"total":{"claims":4,"cost":-1},"spools":{},"options":{},\n',
    ],
)
def test_a_damaged_plan_is_named_and_the_rest_is_counted(pool: PoolDirectory, head: bytes) -> None:
    take(pool, A, spool_with_work(pool))
    Path(pool.plan(1)).write_bytes(head)
    count = ClaimCounter(pool).take()
    assert (count.waiting.claims, count.running.claims, count.done.claims) == (3, 1, 0)
    assert not count.certain and len(count.damage) == 1 and adds_up(count)


def test_a_plan_that_is_restored_is_read_again(pool: PoolDirectory) -> None:
    census, path = ClaimCounter(pool), Path(pool.plan(1))
    sound = path.read_bytes()
    path.write_bytes(b"")
    assert not census.take().certain
    path.write_bytes(sound)
    assert census.take().certain


def test_names_that_are_no_claims_are_left_out(pool: PoolDirectory) -> None:
    for name in ("README", "x.y", "a b.k.c1.a0.r0", "x-1.trivial.c5.a0.r0@" + A, "é.k.c1.a0.r0"):
        Path(pool.spool("gpu0"), name).touch()
    Path(pool.state(State.RUNNING), "x-1.trivial.c5.a0.r0").touch()
    Path(pool.state(State.FAILED), "core.1234").touch()
    assert ClaimCounter(pool).take().waiting == Amount(4, 100)


@pytest.mark.parametrize("directory", ["spools", "running", "failed", "plans"])
def test_a_missing_directory_never_looks_finished(pool: PoolDirectory, directory: str) -> None:
    for spool in ("gpu0", "gpu1"):
        while claims.waiting(pool, spool):
            finish(pool, A, spool)
    shutil.rmtree(pool.directory(directory))
    count = ClaimCounter(pool).take()
    assert not count.certain and count.exit_status == 5


# ---- listings ----


@given(st.lists(st.sets(st.integers(0, 20)), max_size=6))
def test_a_listing_equals_the_last_one_it_saw(looks: list[set[int]]) -> None:
    listing = Listing()
    for numbers in looks:
        listing.look([f"x-{n}.k.c{n}.a0.r0" for n in numbers])
        assert listing.amount == Amount(len(numbers), sum(numbers))


def test_the_counts_equal_the_disk_while_claims_move(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", *(f"i{n}.{n + 1}" for n in range(12)))
    census = ClaimCounter(pool)
    for step in range(12):
        (finish, take, fail)[step % 3](pool, A)
        count, disk = census.take(), on_disk(pool)
        assert adds_up(count)
        assert (count.running.claims, count.done.claims, count.failed.claims) == (
            disk["running"],
            disk["done"],
            disk["failed"],
        )


@pytest.mark.slow
def test_done_is_never_more_than_what_is_done_while_claims_move(tmp_path: Path) -> None:
    """A process takes, finishes and fails claims as fast as it can; each look is between truths."""
    pool = make_pool(tmp_path / "pool", *(f"i{n}.{n + 1}" for n in range(120)))
    child = os.fork()
    if child == 0:
        try:
            for n in range(120):
                (fail if n % 10 == 0 else finish)(pool, A)
        finally:
            os._exit(0)
    census, looks = ClaimCounter(pool), 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        before = on_disk(pool)["done"]
        count = census.take()
        after = on_disk(pool)["done"]
        assert adds_up(count)
        assert before <= count.done.claims <= after, (before, count, after)
        looks += 1
    assert looks > 3
    assert (census.take().done.claims, census.take().failed.claims) == (108, 12)
