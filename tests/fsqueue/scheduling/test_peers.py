"""What a worker learns of others costs the same beside thirty of them as beside a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.pool.leases import Lease
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.records.status import Status, read_status, write_status
from fsqueue.scheduling import peers


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def test_r18_a_look_reads_a_few_statuses_and_comes_round_to_all(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        Lease(pool, f"node-{number}-aaaaaa").enlist()
        write_status(pool, Status(f"node-{number}-aaaaaa"))
    read: list[str] = []

    def note(pool: PoolDirectory, worker: str) -> Status | None:
        read.append(worker)
        return read_status(pool, worker)

    monkeypatch.setattr(peers, "read_status", note)
    known = peers.PeerStatuses(pool, "node-33-aaaaaa")
    counts = [len(known.look()) for _ in range(3)]
    assert counts == [24, 48, 59]
    assert read[0] == "node-34-aaaaaa" and "node-33-aaaaaa" not in read
    assert len(read) == 3 * peers.STATUSES_PER_LOOK
    assert len(known.look()) == 59
    assert read[72:] == read[13:37], "those read longest ago come first"


def test_r18_workers_that_are_gone_are_forgotten(pool: PoolDirectory) -> None:
    leases = [Lease(pool, f"node-{number}-aaaaaa") for number in range(3)]
    for lease in leases:
        lease.enlist()
        write_status(pool, Status(lease.name.worker))
    known = peers.PeerStatuses(pool, "me")
    assert len(known.look()) == 3
    leases[1].retire()
    assert sorted(status.worker_id for status in known.look()) == ["node-0-aaaaaa", "node-2-aaaaaa"]
