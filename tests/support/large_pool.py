"""Make a pool as after days of work: up to a million done claims, thousands waiting, 64 workers."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from fsqueue.pool.layout import FORMAT, State
from fsqueue.pool.leases import Lease
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, Spool, add_spool, create_pool
from fsqueue.records.status import Status

JOURNAL_LINES = 300
COST = 8_000


def make_large_pool(root: Path, *, done: int, waiting: int, workers: int) -> PoolDirectory:
    """Return a pool with this many claims done and waiting; each worker runs one more.

    Its files are as the planner and the workers leave them, but claims and outputs are empty:
    syncing a million claims would take an hour.
    """
    pool = create_pool(str(root), lease_s=3600.0)
    spools = [f"gpu{number}" for number in range(workers)]
    for spool in spools:
        add_spool(pool, Spool(spool, "NVIDIA GeForce RTX 3090", 1.0))
    names = [f"node{number}-{number + 100}-abcdef" for number in range(workers)]
    planned = done + waiting + workers
    _write_head(pool, spools, planned)
    for number in range(planned):
        name = ClaimName(f"c{number:07d}-5c1f09ab33d2", "esm2_t33", COST)
        worker = number % workers
        if number < done:
            path = pool.owned(State.DONE, name.owned_by(names[worker]))
        elif number < done + workers:
            path = pool.owned(State.RUNNING, name.owned_by(names[worker]))
        else:
            path = pool.waiting(spools[worker], name)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    for spool, worker_id in zip(spools, names, strict=True):
        Lease(pool, worker_id).enlist()
        put_status(pool, worker_id, spool)
        _write_journal(pool, worker_id)
    return pool


def put_status(pool: PoolDirectory, worker: str, spool: str) -> None:
    """Write the status of a busy worker."""
    now = time.time()
    status = Status(
        worker,
        host=worker.partition("-")[0],
        state="running",
        spool=spool,
        model="NVIDIA GeForce RTX 3090",
        written_at=now,
        last_activity=now,
        claims_done=15_625,
        rates={"esm2_t33": 3_200.0},
        gpu={"uuid": f"GPU-{spool}", "compute_percent": 97.0, "memory_percent": 41.0},
    )
    path = pool.status(worker)
    Path(f"{path}.new").write_text(json.dumps(asdict(status), indent=1) + "\n")
    os.replace(f"{path}.new", path)


def _write_head(pool: PoolDirectory, spools: list[str], planned: int) -> None:
    shares = {spool: planned // len(spools) for spool in spools}
    shares[spools[0]] += planned - sum(shares.values())
    head = {
        "format": FORMAT,
        "plan": "20261121T2218-7c1e",
        "created": "2026-11-21T22:18:00Z",
        "handler": "embed",
        "kinds": ["esm2_t33"],
        "suffix": ".safetensors",
        "total": _share(planned),
        "spools": {spool: _share(claims) for spool, claims in shares.items()},
        "options": {},
    }
    text = json.dumps(head)[:-1] + ",\n"
    Path(pool.plan(1)).write_text(text + '"sources":[\n],\n"claims":[\n]}\n')


def _share(claims: int) -> dict[str, object]:
    measures = {"sequences": 300 * claims, "residues": COST * claims}
    return {"claims": claims, "cost": COST * claims, "measures": measures}


def _write_journal(pool: PoolDirectory, worker: str) -> None:
    begin = time.time() - 2.5 * JOURNAL_LINES
    with open(pool.events(worker), "w", encoding="utf-8") as file:
        for line in range(JOURNAL_LINES):
            t = round(begin + 2.5 * line, 3)
            facts = {"t": t, "event": "finished", "worker": worker, "id": f"c{line:07d}-5c1f"}
            facts |= {"kind": "esm2_t33", "cost": COST, "attempt": 0, "seconds": 2.4}
            file.write(json.dumps(facts | {"sequences": 300}) + "\n")
