"""Write what the monitor reads, without workers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fsqueue.monitor.counts import Amount, Count
from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.spools import SpoolRow, total_rates
from fsqueue.monitor.workers import Use, WorkerRow
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Lease
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import Status

ELSEWHERE = "node7"


def put_status(pool: PoolDirectory, worker: str, **facts: Any) -> None:
    """Write a worker's status, with these fields."""
    status = {"worker_id": worker, "host": ELSEWHERE, "state": "running", "written_at": 5000.0}
    path = Path(pool.status(worker))
    path.write_text(json.dumps(status | facts), encoding="utf-8", errors="surrogatepass")


def enlist(pool: PoolDirectory, *workers: str) -> dict[str, Lease]:
    """Give workers a lease that is not renewed."""
    leases = {worker: Lease(pool, worker) for worker in workers}
    for lease in leases.values():
        lease.enlist()
    return leases


def write_events(pool: PoolDirectory, worker: str, *events: dict[str, Any]) -> None:
    """Append events to a worker's journal."""
    with open(pool.events(worker), "a", encoding="utf-8") as file:
        for event in events:
            file.write(json.dumps({"worker": worker} | event) + "\n")


def take(pool: PoolDirectory, worker: str, spool: str = "gpu0") -> ClaimName:
    """Take the largest claim that waits in a spool."""
    name = max(claims.waiting(pool, spool), key=lambda name: (name.cost, name.id))
    taken = claims.take(pool, spool, name, worker)
    assert taken is not None
    return taken


def finish(pool: PoolDirectory, worker: str, spool: str = "gpu0") -> ClaimName:
    """Take a claim and move it to done/."""
    name = take(pool, worker, spool)
    claims.finish(pool, name)
    return name


def fail(pool: PoolDirectory, worker: str, error: str = "boom", spool: str = "gpu0") -> ClaimName:
    """Take a claim and move it to failed/, with its record."""
    name = take(pool, worker, spool)
    claims.charge(pool, name, spool, {"error": error, "detail": "all of it"}, final=True)
    return name


def on_disk(pool: PoolDirectory) -> dict[str, int]:
    """Return how many names there are in each owned state's directory."""
    return {s.value: len(list(claims.owned(pool, s))) for s in State if s is not State.WAITING}


# ---- snapshots without a pool ----


def spool_row(name: str, **facts: Any) -> SpoolRow:
    """Return a row at work, with these fields."""
    row = SpoolRow(
        name=name,
        model="NVIDIA GeForce RTX 3090",
        weight=1.0,
        planned=Amount(100, 100_000),
        waiting=Amount(20, 20_000),
        share_left=0.25,
        workers=1,
        state="running",
        running=1,
        done=40,
        errors=0,
        stolen_in=0,
        stolen_out=0,
        items_per_s=322.6,
        rates={"tokens": 80_650.0},
        cost_per_s=100.0,
        eta_s=200.0,
        use=Use(91.0, 40.0, 71.0, 310.0),
        stale=False,
        stalled=False,
        host="node7",
        gpu="GPU-1",
        last_activity=1000.0,
    )
    return replace(row, **facts)


def worker_row(id: str, **facts: Any) -> WorkerRow:
    """Return a healthy worker, with these fields."""
    row = WorkerRow(
        id=id,
        health="healthy",
        trouble="",
        stalled=False,
        holds=("output_12-5c1f",),
        status=Status(id, spool="gpu0", model="RTX 3090", weight=1.0, claims_done=40),
        state="running",
        progress=0.62,
        cost_left=380.0,
        items_per_s=322.6,
        rates={"tokens": 80_650.0},
        cost_per_s=100.0,
        idle_s=1.0,
        age_s=2.0,
        use=Use(91.0, 40.0, 71.0, 310.0),
    )
    return replace(row, **facts)


def snapshot(spools: Sequence[SpoolRow] = (), **facts: Any) -> Snapshot:
    """Return a snapshot of these rows, taken at 12:00:00 UTC, whose counts add up."""
    waiting = sum((row.waiting for row in spools), Amount())
    done = Amount(sum(row.done for row in spools), 1000 * sum(row.done for row in spools))
    running = Amount(sum(row.running for row in spools), 1000 * sum(row.running for row in spools))
    count = Count(
        planned=waiting + running + done,
        staged=Amount(),
        waiting=waiting,
        running=running,
        done=done,
        failed=Amount(),
        spools={row.name: (row.planned, row.waiting) for row in spools},
        held=(),
        lost=(),
        damage=(),
        certain=True,
        measures={"sequences": 1},
    )
    whole = Snapshot(
        pool="/data/runs/pool",
        taken_at=43_200.0,
        took_s=0.01,
        count=count,
        spools=tuple(spools),
        workers=tuple(
            worker_row(f"node7-{n}-abcdef") for n, row in enumerate(spools) if row.workers
        ),
        steals=(),
        events=(),
        events_seen=0,
        failures=(),
        warnings=(),
        orders=frozenset(),
        unit="seq",
        items_per_s=sum(row.items_per_s or 0.0 for row in spools) or None,
        rates=total_rates(row.rates for row in spools),
        counters={},
        cost_per_s=100.0,
        eta_s=1234.0,
    )
    return replace(whole, **facts)
