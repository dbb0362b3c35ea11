"""What an operator does to a pool: retry, forget, cancel, drain and recover.

Each function may run beside workers, planners and other operators, and may be killed at any point:
what it has not done yet is done by running it again. The order of its steps is what makes that
true; the reason is given beside each step.

What this module does not know: how anything is typed or printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from fsqueue.errors import PoolError, UsageError
from fsqueue.pool import claims
from fsqueue.pool.layout import CANCEL, Order, State
from fsqueue.pool.leases import SILENCE_LEASES, Observer, Process, lease_names
from fsqueue.pool.names import ID, WORKER, ClaimName, Role, is_given_up, new_worker_id
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.journal import EventKind, Journal
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import read_json
from fsqueue.worker.recovery import Recovered, Recovery

RECOVERY_MARGIN: Final = 1.25
"""A lease is watched for this many times its length before its holder is believed to be alive."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A failed claim and the spool it went back to."""

    id: str
    spool: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancelled claim and where it was. A running one is given up at its worker's next beat."""

    id: str
    was: State


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What `cancel` did. Claims in `taken` were taken by a worker first: cancel them again."""

    cancelled: tuple[Cancelled, ...]
    taken: tuple[str, ...]


def retry(pool: PoolDirectory, ids: Sequence[str] = (), *, dry_run: bool = False) -> list[Retried]:
    """Put failed claims back into their spools: those named, or all of them.

    Raises UsageError if a named claim has not failed; then none is put back.
    """
    failed = _failed(pool)
    _refuse_unknown(ids, failed, "failed", f"fsqueue failed {pool.root}")
    journal = Journal(pool, new_worker_id(Role.RETRY))
    retried = []
    for id in ids or sorted(failed):
        name = failed[id]
        spool = _planned_spool(pool, name)
        if not dry_run:
            # Before the claim can be taken: an order that is left would cancel it again.
            atomic.discard(pool.order(CANCEL, id))
            if claims.retry(pool, name, spool) is None:
                continue  # RACE: another operator put it back first
            journal.write(EventKind.RETRIED, id=id, to=spool)
        retried.append(Retried(id, spool))
    journal.close()
    return retried


def forget(pool: PoolDirectory, ids: Sequence[str] = (), *, dry_run: bool = False) -> list[str]:
    """Give failed claims up for good: those named, or all of them; return their ids.

    They stay in failed/ with their errors and a record of this, and no longer count as failed.
    Raises UsageError if a named claim has not failed; then none is forgotten.
    """
    failed = _failed(pool)
    _refuse_unknown(ids, failed, "failed", f"fsqueue failed {pool.root}")
    me = new_worker_id(Role.FORGET)
    journal = Journal(pool, me)
    forgotten = []
    for id in ids or sorted(failed):
        if not dry_run:
            ended = claims.give_up(pool, failed[id], me)
            if ended is None:
                continue  # RACE: another operator put it back, or forgot it, first
            # After the move: a claim that another operator put back must find no error record.
            claims.record_error(pool, ended, claims.FORGOTTEN)
            journal.claim(EventKind.FORGOTTEN, ended)
        forgotten.append(id)
    journal.close()
    return forgotten


def cancel(pool: PoolDirectory, ids: Sequence[str] = (), *, dry_run: bool = False) -> Cancellation:
    """Take claims out of the pool: those named, or everything that waits or runs.

    Cancelled claims end in failed/, and `retry` brings them back. Raises UsageError if a named
    claim neither waits nor runs; then none is cancelled.
    """
    me = new_worker_id(Role.CANCEL)
    # Waiting before running: a claim that is taken between the two listings is seen in both.
    waiting = {
        name.id: (spool, name)
        for spool in spool_names(pool)
        for name in claims.waiting(pool, spool)
    }
    running = {name.id for name in claims.owned(pool, State.RUNNING)}
    _refuse_unknown(ids, {*waiting, *running}, "waiting or running", f"fsqueue status {pool.root}")
    cancelled, taken = [], []
    for id in ids or sorted({*waiting, *running}):
        was = State.WAITING if id in waiting else State.RUNNING
        if not dry_run and was is State.RUNNING:
            atomic.publish(pool.order(CANCEL, id), b"")
        elif not dry_run:
            ended = claims.cancel(pool, *waiting[id], me)
            if ended is None:
                taken.append(id)  # RACE: a worker took it first
                continue
            # After the move: if a worker takes the claim first, it must find no error record.
            claims.record_error(pool, ended, claims.CANCELLED_WAITING)
        cancelled.append(Cancelled(id, was))
    return Cancellation(tuple(cancelled), tuple(taken))


def drain(pool: PoolDirectory, workers: Sequence[str] = (), *, order: Order = Order.DRAIN) -> None:
    """Order workers to leave (or to pause): those named, or all of them, new ones included.

    The order is a file in control/. Workers read it with every beat of their lease, a quarter of
    `lease_s` apart. Raises UsageError for a worker that is not at work.
    """
    _refuse_bad_worker_names(pool, workers)
    living = {name.worker for name in lease_names(pool) if name.living}
    for worker in workers:
        if worker not in living:
            raise UsageError(
                f"{worker} is not working in this pool. See: fsqueue workers {pool.root}"
            )
    for target in _targets(workers):
        atomic.publish(pool.order(order, target), b"")


def undo_drain(pool: PoolDirectory, workers: Sequence[str] = ()) -> None:
    """Withdraw every order given to these workers, or to all. Workers that left stay away."""
    _refuse_bad_worker_names(pool, workers)
    for order in Order:
        for target in _targets(workers):
            atomic.discard(pool.order(order, target))


def recover(
    pool: PoolDirectory, *, on_wait: Callable[[int, float], object] | None = None
) -> list[Recovered]:
    """Put back what dead workers hold, without waiting for an idle worker to do it.

    A worker of this host whose process is gone is dead at once; any other is dead when its beat has
    not changed for a whole lease (three, if its process runs here), which this function waits for.
    `on_wait` is called once per look with the number of workers that are still watched, and the
    seconds left.
    """
    me = new_worker_id(Role.RECOVER)
    journal = Journal(pool, me)
    observer = Observer(pool)
    recovery = Recovery(pool, me, observer, journal)
    recovered: list[Recovered] = []
    begun = time.monotonic()
    while True:
        recovered += recovery.sweep()
        watched = {
            name.owner for name in recovery.running if not observer.beating(name.owner or "")
        }
        watched -= {each.name.owner for each in recovered}
        silent = any(observer.process(worker or "") is Process.RUNNING for worker in watched)
        patience_s = pool.lease_s * RECOVERY_MARGIN * (SILENCE_LEASES if silent else 1) + 1
        left_s = begun + patience_s - time.monotonic()
        if not watched or left_s <= 0:
            break
        if on_wait is not None:
            on_wait(len(watched), left_s)
        time.sleep(min(1.0, pool.lease_s / 8))
    journal.close()
    return recovered


# ---- parts ----


def _failed(pool: PoolDirectory) -> dict[str, ClaimName]:
    """Return the claims that failed and were not given up since, by id."""
    found = claims.owned(pool, State.FAILED)
    return {name.id: name for name in found if not is_given_up(str(name))}


def _targets(workers: Sequence[str]) -> Sequence[str | None]:
    """Return the targets of an order; None stands for every worker."""
    return workers or (None,)


def _refuse_unknown(ids: Sequence[str], known: Collection[str], state: str, look: str) -> None:
    for id in ids:
        if not ID.fullmatch(id):
            raise UsageError(
                f"{id!r} is not a claim's ID. The ID is the part of its name before the first dot."
            )
        if id not in known:
            raise UsageError(f"no claim {id!r} is {state}. See: {look}")


def _refuse_bad_worker_names(pool: PoolDirectory, workers: Sequence[str]) -> None:
    for worker in workers:
        if not WORKER.fullmatch(worker):
            raise UsageError(f"{worker!r} is not a worker's ID. See: fsqueue workers {pool.root}")


def _planned_spool(pool: PoolDirectory, name: ClaimName) -> str:
    """Return the spool a failed claim was planned for, or the pool's first."""
    spools = spool_names(pool)
    try:
        spool = read_json(pool.owned(State.FAILED, name)).get("spool")
    except (PoolError, OSError):
        spool = None  # a damaged claim: the worker that takes it next reports that
    return spool if isinstance(spool, str) and spool in spools else spools[0]
