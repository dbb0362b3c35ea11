"""The questions of a load balancer are answered from the directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fsqueue.monitor.coordinator import WorkStealingCoordinator
from fsqueue.pool import claims
from fsqueue.pool.settings import PoolDirectory
from tests.support.monitor_data import enlist, finish, put_status, take, write_events
from tests.support.pools import Clock, make_pool

A, B = "node7-1-aaaaaa", "node8-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", *(f"i{n}.10" for n in range(6)), weights=[2.0, 1.0])


def test_the_metrics_of_a_gpu_have_the_agreed_names(pool: PoolDirectory) -> None:
    enlist(pool, A, B)
    put_status(pool, A, spool="gpu0", claims_done=7, steals_in=2, stolen_from={"gpu1": 2})
    put_status(pool, B, spool="gpu1", last_activity=4000.5)
    write_events(pool, A, {"t": 4999, "event": "finished", "cost": 10, "seconds": 2})
    metrics = WorkStealingCoordinator(pool).get_gpu_metrics()
    assert set(metrics) == {"gpu0", "gpu1"}
    gpu0, gpu1 = metrics["gpu0"], metrics["gpu1"]
    assert (gpu0["device_id"], gpu0["device_name"]) == ("gpu0", "RTX 3090")
    assert (gpu0["queue_depth"], gpu0["files_completed"]) == (4, 7)
    assert (gpu0["work_stolen_from"], gpu0["work_stolen_to"]) == (0, 2)
    assert (gpu1["work_stolen_from"], gpu1["work_stolen_to"]) == (2, 0)
    assert (gpu0["throughput"], gpu1["throughput"]) == (0.5, None)
    assert gpu1["last_activity_time"] == 4000.5 and gpu1["is_stalled"] is True
    assert (gpu0["worker_ids"], gpu1["host"]) == ([A], "node7")
    assert time.time() - 60 < gpu0["timestamp"] <= time.time()


def test_recent_steals_have_the_agreed_names(pool: PoolDirectory) -> None:
    facts = {"event": "stole", "cost": 10, "from": "gpu0", "to": "gpu1"}
    write_events(pool, B, *({"t": 100 + n, "id": f"x{n}"} | facts for n in range(60)))
    coordinator = WorkStealingCoordinator(pool)
    events = coordinator.get_recent_steal_events()
    assert len(events) == 50
    assert events[-1] == {
        "timestamp": 159,
        "source_gpu": "gpu0",
        "dest_gpu": "gpu1",
        "file_name": "x59",
        "cost": 10,
        "worker": B,
    }
    assert len(coordinator.get_recent_steal_events(limit=5)) == 5


def test_a_stalled_gpu_is_warned_of_once_and_so_is_its_recovery(
    pool: PoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = WorkStealingCoordinator(pool, clock=Clock())
    enlist(pool, A)
    take(pool, A)
    for last, now in ((1000, 1300), (1000, 1301), (1000, 1400), (1401, 1402)):
        put_status(pool, A, spool="gpu0", last_activity=last, written_at=now)
        coordinator.detect_stalled_workers()
    assert [record.getMessage() for record in caplog.records] == [
        "GPU gpu0 stalled - no activity for 301s",
        "GPU gpu0 recovered",
    ]


def test_the_threshold_of_a_stall_can_be_chosen(pool: PoolDirectory) -> None:
    coordinator = WorkStealingCoordinator(pool)
    enlist(pool, A)
    take(pool, A)
    put_status(pool, A, spool="gpu0", last_activity=1000, written_at=1050)
    assert coordinator.detect_stalled_workers() == []
    assert coordinator.detect_stalled_workers(stall_threshold=30) == ["gpu0"]


def test_imbalance_is_by_the_weights_of_the_spools(pool: PoolDirectory) -> None:
    coordinator = WorkStealingCoordinator(pool)
    assert not coordinator.detect_imbalance()
    while claims.waiting(pool, "gpu1"):
        finish(pool, B, "gpu1")
    assert not coordinator.detect_imbalance()  # 4 claims of a GPU twice as fast are 2
