"""Commands by which a person moves claims: retry, recover, drain, cancel."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from fsqueue.cli.options import (
    SETTINGS,
    json_option,
    plural,
    pool_argument,
    print_json,
    split_pool,
    trust_option,
)
from fsqueue.errors import UsageError
from fsqueue.pool import claims
from fsqueue.pool.journal import EventKind, Journal
from fsqueue.pool.layout import Order, State
from fsqueue.pool.leases import Observer, lease_names
from fsqueue.pool.names import ID, WORKER, ClaimName, Role, new_worker_id
from fsqueue.pool.settings import PoolDirectory, open_pool, spool_names
from fsqueue.storage import atomic

WORDS = click.argument("words", nargs=-1, metavar="POOL [ID]...")


@click.command("retry", context_settings=SETTINGS)
@WORDS
@trust_option
@click.option("--dry-run", is_flag=True, help="Say what would be put back.")
@json_option
def retry(words: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Put failed claims back into their spools: all of them, or those named by ID."""
    pool, ids = _pool_and_ids(words)
    failed = {name.id: name for name in claims.owned(pool, State.FAILED)}
    _refuse_unknown(ids, failed.keys(), "failed", f"fsqueue failed {pool.root}")
    journal = Journal(pool, new_worker_id(Role.RETRY))
    done = []
    for id in ids or sorted(failed):
        name = failed[id]
        spool = _home(pool, State.FAILED, name)
        if not dry_run:
            atomic.discard(pool.order(Order.CANCEL, id))  # before the claim can be taken again
        if dry_run or claims.retry(pool, name, spool) is not None:
            done.append({"id": id, "spool": spool})
            if not dry_run:
                journal.write(EventKind.RETRIED, id=id, to=spool)
    journal.close()
    _report(done, as_json, "would be put back" if dry_run else "put back")


@click.command("cancel", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL ID...")
@trust_option
@click.option("--all", "everything", is_flag=True, help="Cancel everything that waits or runs.")
@click.option("--dry-run", is_flag=True, help="Say what would be cancelled.")
@json_option
def cancel(words: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool) -> None:
    """Take claims out of the pool: they end in failed/, and `fsqueue retry` brings them back.

    A claim that runs is given up by its worker at its next beat.
    """
    pool, ids = _pool_and_ids(words)
    if bool(ids) == everything:
        raise UsageError("name the claims to cancel by ID, or say --all. See: fsqueue status POOL")
    me = new_worker_id(Role.CANCEL)
    waiting = {n.id: (s, n) for s in spool_names(pool) for n in claims.waiting(pool, s)}
    running = {name.id: name for name in claims.owned(pool, State.RUNNING)}
    _refuse_unknown(ids, {**waiting, **running}.keys(), "waiting or running", "fsqueue status POOL")
    done = []
    for id in ids or sorted({**waiting, **running}):
        if id in waiting:
            spool, name = waiting[id]
            if not dry_run:
                ended = claims.cancel(pool, spool, name, me)
                if ended is None:
                    click.echo(f"fsqueue: {id} was taken first; cancel it again.", err=True)
                    continue
                claims.record_error(pool, ended, claims.CANCELLED_WAITING)
            done.append({"id": id, "was": "waiting"})
        else:
            if not dry_run:
                atomic.publish(pool.order(Order.CANCEL, id), b"")
            done.append({"id": id, "was": "running"})
    _report(done, as_json, "would be cancelled" if dry_run else "cancelled")


@click.command("drain", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL [WORKER]...")
@trust_option
@click.option("--now", is_flag=True, help="Do not finish the claim: put it back.")
@click.option("--pause", is_flag=True, help="Do not leave: only take nothing more.")
@click.option("--undo", is_flag=True, help="Take the order back.")
def drain(words: tuple[str, ...], now: bool, pause: bool, undo: bool) -> None:
    """Let workers finish their claim and leave: all of them, or those named.

    The order is a file in control/; while it is there, new workers leave at once. Workers, busy or
    idle, read it with every beat of their lease: within 7.5 s by default.
    """
    root, workers = split_pool(words)
    pool = open_pool(root)
    for worker in workers:
        if not WORKER.fullmatch(worker):
            raise UsageError(f"{worker!r} is no worker's name. See: fsqueue workers {pool.root}")
        if not undo and worker not in {name.worker for name in lease_names(pool) if name.living}:
            raise UsageError(f"{worker} does not work this pool. See: fsqueue workers {pool.root}")
    targets: list[str | None] = [*workers] or [None]
    if undo:
        for order in (Order.DRAIN, Order.STOP, Order.PAUSE):
            for target in targets:
                atomic.discard(pool.order(order, target))
        click.echo("Taken back. Workers that left do not come back by themselves.")
        return
    order = Order.PAUSE if pause else Order.STOP if now else Order.DRAIN
    for target in targets:
        atomic.publish(pool.order(order, target), b"")
    click.echo(f"Told {', '.join(workers) or 'every worker'} to {order}. Undo: drain --undo.")


@click.command("recover", context_settings=SETTINGS)
@pool_argument
@json_option
def recover(pool: PoolDirectory, as_json: bool) -> None:
    """Put back what dead workers hold. Idle workers do this by themselves.

    A worker of this host whose process is gone is dead at once; any other after its beat was not
    seen to move for a whole lease, which this command waits for.
    """
    from fsqueue.worker.recovery import Recovery

    me = new_worker_id(Role.RECOVER)
    journal = Journal(pool, me)
    observer = Observer(pool)
    recovery = Recovery(pool, me, observer, journal)
    done: list[dict[str, Any]] = []
    deadline = time.monotonic() + pool.lease_s * 1.25 + 1
    while True:
        for each in recovery.sweep():
            done.append({"id": each.name.id, "of": each.name.owner, "failed": each.failed})
        doubtful = {n.owner for n in recovery.running if not observer.beating(n.owner or "")}
        doubtful -= {entry["of"] for entry in done}
        if not doubtful or time.monotonic() > deadline:
            break
        if sys.stderr.isatty():
            left = deadline - time.monotonic()
            click.echo(
                f"\r\x1b[Kwatching {len(doubtful)} workers, {left:.0f} s more", nl=False, err=True
            )
        time.sleep(min(1.0, pool.lease_s / 8))
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    journal.close()
    _report(done, as_json, "recovered")


# ---- parts ----


def _pool_and_ids(words: tuple[str, ...]) -> tuple[PoolDirectory, list[str]]:
    root, ids = split_pool(words)
    for id in ids:
        if not ID.fullmatch(id):
            raise UsageError(
                f"{id!r} is no claim's ID. It is the part of its name before the first dot."
            )
    return open_pool(root), ids


def _refuse_unknown(ids: list[str], known: Any, state: str, look: str) -> None:
    for id in ids:
        if id not in known:
            raise UsageError(f"no claim {id!r} is {state}. See: {look}")


def _home(pool: PoolDirectory, state: State, name: ClaimName) -> str:
    """Return the spool a claim was planned for, or the pool's first."""
    from fsqueue.errors import PoolError
    from fsqueue.pool.untrusted import read_json

    spools = spool_names(pool)
    try:
        spool = read_json(pool.owned(state, name)).get("spool")
    except (PoolError, OSError):
        spool = None  # a damaged claim: whoever takes it next says so
    return spool if isinstance(spool, str) and spool in spools else spools[0]


def _report(done: list[dict[str, Any]], as_json: bool, verb: str) -> None:
    if as_json:
        print_json({"claims": done})
        return
    for entry in done:
        click.echo("  ".join(str(value) for value in entry.values()))
    click.echo(f"{plural(len(done), 'claim')} {verb}.")
