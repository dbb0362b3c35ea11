"""What needs attention is said, once for each trouble, the gravest first."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsqueue.monitor.alerts import imbalanced, weighted_depths
from fsqueue.monitor.counts import Amount, ClaimCounter
from fsqueue.monitor.snapshot import Reader
from fsqueue.pool import claims
from fsqueue.pool.settings import PoolDirectory
from tests.support.monitor_data import enlist, finish, put_status, take
from tests.support.pools import Clock, make_pool

A, B = "node7-1-aaaaaa", "node8-2-bbbbbb"
BROKE = {"left_because": "failures", "message": "3 different claims failed"}


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", *(f"i{n}.10" for n in range(12)), weights=[2.0, 1.0])


def kinds(reader: Reader) -> list[str]:
    return [alert.kind for alert in reader.snapshot().warnings]


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ([3, 0], True),
        ([2, 0], False),
        ([5, 3], False),
        ([6, 3], True),
        ([3, 1], True),
        ([7, 5], False),
        ([4, 4], False),
        ([9], False),
        ([], False),
    ],
)
def test_imbalance_is_judged_as_agreed(depths: list[float], expected: bool) -> None:
    assert imbalanced(depths) is expected


def test_depths_are_weighted(pool: PoolDirectory) -> None:
    count = ClaimCounter(pool).take()
    assert count.spools["gpu0"][1] == Amount(8, 80)
    depths = weighted_depths(count, {"gpu0": 2.0, "gpu1": 1.0})
    assert depths == {"gpu0": pytest.approx(4.0), "gpu1": pytest.approx(4.0)}


def test_work_that_nobody_does_is_said_with_what_to_type(pool: PoolDirectory) -> None:
    reader = Reader(pool)
    (alert,) = reader.snapshot().warnings
    assert alert.kind == "deserted" and f"fsqueue work {pool.root}" in alert.text
    enlist(pool, A)
    assert kinds(reader) == []


def test_a_finished_pool_has_no_trouble_with_workers(pool: PoolDirectory) -> None:
    put_status(
        pool, A, state="stopped", left_because="failures", message="3 different claims failed"
    )
    for spool in ("gpu0", "gpu1"):
        while claims.waiting(pool, spool):
            finish(pool, A, spool)
    assert kinds(Reader(pool)) == []


def test_a_worker_that_stopped_itself_is_said_with_its_reason(pool: PoolDirectory) -> None:
    lease = enlist(pool, A, B)[A]
    put_status(
        pool, A, state="stopped", left_because="failures", message="3 different claims failed"
    )
    lease.retire()
    (alert,) = Reader(pool).snapshot().warnings
    assert alert.kind == "broken" and "3 different claims failed" in alert.text


def test_a_stalled_worker_is_named_by_its_gpu(pool: PoolDirectory) -> None:
    enlist(pool, A)
    take(pool, A)
    put_status(pool, A, spool="gpu0", last_activity=1000, written_at=1312)
    (alert,) = Reader(pool).snapshot().warnings
    assert (alert.kind, alert.subject) == ("stalled", A)
    assert alert.text == "GPU gpu0 stalled - no activity for 312s"


def test_a_claim_that_runs_for_much_longer_than_expected_is_named(pool: PoolDirectory) -> None:
    """By the rate that another worker measured: it takes ten units of cost in two seconds."""
    enlist(pool, A, B)
    name = take(pool, A)
    current = {"id": name.id, "kind": name.kind, "cost": 10, "attempt": 0, "spool": "gpu0"}
    put_status(pool, B, rates={name.kind: 5.0}, last_activity=4999)
    for ran_s, expected in ((50, []), (90, ["slow"])):
        running = current | {"started": 5000 - ran_s}
        put_status(pool, A, current=running, last_activity=4999, written_at=5000)
        assert kinds(Reader(pool)) == expected, ran_s
    (alert,) = Reader(pool).snapshot().warnings
    assert f"{name.id} has run for 1m30s, and 2s were expected" in alert.text


def test_a_claim_that_was_put_back_in_vain_again_and_again_is_named(pool: PoolDirectory) -> None:
    enlist(pool, A)
    put_status(pool, A, last_activity=4999)
    for runs in range(1, 4):
        name = max(claims.waiting(pool, "gpu0"), key=lambda name: name.vain)
        taken = claims.take(pool, "gpu0", name, A)
        assert taken is not None
        claims.record_vain_run(pool, taken, "time is up: its worker left", 61.0)
        back = claims.release(pool, taken, "gpu0", vain=True)
        assert kinds(Reader(pool)) == (["in vain"] if runs == 3 else [])
    (alert,) = Reader(pool).snapshot().warnings
    assert f"{back.id} was put back 3 times without progress" in alert.text
    assert "after 1m01s: time is up" in alert.text


@pytest.mark.parametrize("order", ["pause", "drain", "stop"])
def test_an_order_that_holds_is_said(pool: PoolDirectory, order: str) -> None:
    enlist(pool, A)
    Path(pool.order(order)).touch()
    (alert,) = Reader(pool).snapshot().warnings
    assert alert.kind == "order" and f"control/{order}" in alert.text


def test_idle_workers_beside_a_full_spool_are_said_after_a_while(pool: PoolDirectory) -> None:
    clock = Clock()
    reader = Reader(pool, clock=clock)
    leases = enlist(pool, A, B)
    while claims.waiting(pool, "gpu1"):
        finish(pool, B, "gpu1")
    put_status(pool, A, spool="gpu0", last_activity=4999)
    put_status(pool, B, spool="gpu1", state="idle", last_activity=4999)
    assert kinds(reader) == []
    for lease in leases.values():
        lease.renew()
    put_status(pool, A, spool="gpu0", last_activity=5034, written_at=5035.0)
    put_status(pool, B, spool="gpu1", state="idle", last_activity=4999, written_at=5035.0)
    assert kinds(reader) == ["imbalance"]


def test_a_nearly_full_disk_is_said_even_when_all_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(tmp_path / "pool", "a.1")
    finish(pool, A)
    facts = {"f_bavail": 1000, "f_frsize": 4096, "f_blocks": 10**9, "f_files": 100, "f_favail": 1}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**facts))
    texts = [alert.text for alert in Reader(pool).snapshot().warnings]
    assert "0.0 GiB left" in texts[0] and "inodes: 1 left" in texts[1]


def test_a_disk_that_does_not_tell_its_size_is_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CephFS without its manager, and MooseFS before its data servers have registered."""
    pool = make_pool(tmp_path / "pool", "a.1")
    finish(pool, A)
    facts = {"f_bavail": 0, "f_frsize": 4096, "f_blocks": 0, "f_files": 1, "f_favail": -1}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**facts))
    assert not Reader(pool).snapshot().warnings


def test_a_damaged_pool_is_said_first(pool: PoolDirectory) -> None:
    Path(pool.plan(1)).write_text("garbage\n")
    first, *rest = Reader(pool).snapshot().warnings
    assert first.kind == "damage" and pool.plan(1) in first.text
    assert [alert.kind for alert in rest] == ["deserted"]
