"""Make what a watcher reads, without the workers that would write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fsqueue import claims
from fsqueue.layout import State
from fsqueue.leases import Lease
from fsqueue.names import ClaimName
from fsqueue.pool import Pool
from fsqueue.status import Status

ELSEWHERE = "node7"


def report(pool: Pool, worker: str, **facts: Any) -> None:
    """Write a worker's status as it might be, with these fields."""
    status = {"worker_id": worker, "host": ELSEWHERE, "state": "running", "written_at": 5000.0}
    path = Path(pool.status(worker))
    path.write_text(json.dumps(status | facts), encoding="utf-8", errors="surrogatepass")


def enlist(pool: Pool, *workers: str) -> dict[str, Lease]:
    """Give workers a lease that nobody renews."""
    leases = {worker: Lease(pool, worker) for worker in workers}
    for lease in leases.values():
        lease.enlist()
    return leases


def tell(pool: Pool, worker: str, *events: dict[str, Any]) -> None:
    """Append events to a worker's journal."""
    with open(pool.events(worker), "a", encoding="utf-8") as file:
        for event in events:
            file.write(json.dumps({"worker": worker} | event) + "\n")


def take(pool: Pool, worker: str, spool: str = "gpu0") -> ClaimName:
    """Take the dearest claim that waits in a spool."""
    name = max(claims.waiting(pool, spool), key=lambda name: (name.cost, name.id))
    taken = claims.take(pool, spool, name, worker)
    assert taken is not None
    return taken


def finish(pool: Pool, worker: str, spool: str = "gpu0") -> ClaimName:
    """Take a claim and move it to done/."""
    name = take(pool, worker, spool)
    claims.finish(pool, name)
    return name


def fail(pool: Pool, worker: str, error: str = "boom", spool: str = "gpu0") -> ClaimName:
    """Take a claim and move it to failed/, with its record."""
    name = take(pool, worker, spool)
    claims.charge(pool, name, spool, {"error": error, "detail": "all of it"}, final=True)
    return name


def on_disk(pool: Pool) -> dict[str, int]:
    """Return how many names there are in each owned state's directory."""
    return {s.value: len(list(claims.owned(pool, s))) for s in State if s is not State.WAITING}


def blank(worker: str, **facts: Any) -> Status:
    """Return a status that was never written."""
    status = Status(worker)
    for name, value in facts.items():
        setattr(status, name, value)
    return status
