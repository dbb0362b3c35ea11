"""The actors of explorations: real code, each with little to do, on a small pool."""

from __future__ import annotations

from typing import Final

from fsqueue.errors import LeaseLost
from fsqueue.maintenance.audit import audit_pool
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, create_pool, open_pool
from fsqueue.records.journal import Journal
from fsqueue.storage import directories
from fsqueue.worker.recovery import Recovery
from fsqueue.worker.worker import Worker, WorkerSettings
from tests.sim.actors import ROOT, planner
from tests.sim.explore import MADE_BEFORE, Body, Explorer
from tests.sim.world import Process, Violation

LEASE_S: Final = 8.0
SPOOL: Final = "gpu0"


def make_pool(explorer: Explorer, *inputs: str, attempts_max: int = 2) -> None:
    """Plan these inputs into a new pool."""
    process = explorer.process("planner")
    explorer.checker.attempts_max = attempts_max
    with explorer.alone(process):
        create_pool(ROOT, lease_s=LEASE_S, attempts_max=attempts_max)
        for name in MADE_BEFORE:
            directories.make(f"{ROOT}/{name}")
        if inputs:
            planner(inputs, (SPOOL,), LEASE_S, attempts_max)(process)


def worker(explorer: Explorer, *, beats: int = 0, newcomer: bool = False) -> Body:
    """Enlist, take, run and finish; put back what is held; retire. A thread renews the lease.

    Unless it is a newcomer, it enlists before the exploration begins.
    """

    def body(process: Process) -> None:
        pool = open_pool(ROOT)
        me = Worker(pool, WorkerSettings(spool=SPOOL), id=process.name)
        if newcomer:
            explorer.begin()
        me.lease.enlist({"worker": me.id})
        directories.make(pool.scratch(me.id))
        explorer.begin()
        if beats and explorer.run is not None:
            explorer.run.add(lambda: _beat(me, beats))
        name = _take(pool, me.id)
        if name is not None:
            me._run(name, SPOOL)
        explorer.join()
        me._leave()

    return body


def _take(pool: PoolDirectory, me: str) -> ClaimName | None:
    for name in claims.waiting(pool, SPOOL):
        taken = claims.take(pool, SPOOL, name, me)
        if taken is not None:
            return taken
    return None


def _beat(me: Worker, beats: int) -> None:
    for _ in range(beats):
        try:
            me.lease.renew()
        except LeaseLost as error:
            me.beat.lost = error
            return


def recoverer(explorer: Explorer, sweeps: int = 3) -> Body:
    """Sweep several times, half a lease apart."""

    def body(process: Process) -> None:
        pool = open_pool(ROOT)
        recovery = Recovery(pool, process.name, Observer(pool), Journal(pool, process.name))
        explorer.begin()
        for _ in range(sweeps):
            recovery.sweep()
            explorer.sleep(pool.lease_s / 2)

    return body


def late_planner(explorer: Explorer, *inputs: str, attempts_max: int = 2) -> Body:
    """Plan these inputs while others act."""
    plan = planner(inputs, (SPOOL,), LEASE_S, attempts_max)

    def body(process: Process) -> None:
        explorer.begin()
        plan(process)

    return body


def completer(explorer: Explorer) -> Body:
    """Complete the plans that have a number, twice."""

    def body(process: Process) -> None:
        pool = open_pool(ROOT)
        explorer.begin()
        for _ in range(2):
            plans.complete(pool)

    return body


def settle(explorer: Explorer) -> None:
    """Let a fresh worker finish the pool; raise Violation if it cannot, or leaves problems."""
    process = explorer.process("settler")
    try:
        with explorer.alone(process):
            pool = open_pool(ROOT)
            Worker(pool, WorkerSettings(spool=SPOOL), id="settler").run()
            left = list(claims.waiting(pool, SPOOL))
            left += claims.owned(pool, State.RUNNING)
            if left:
                raise Violation(f"a healthy worker could not finish {left}")
            problems = audit_pool(pool).problems
            if problems:
                raise Violation(f"fsqueue check says {problems}")
    finally:
        explorer.processes.remove(process)
