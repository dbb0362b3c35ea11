"""Address claims to one worker: a small pool inside the pool, in which every worker has a spool.

    pool/inbox/spools/WORKER/CLAIM    addressed to that worker; no other worker takes it
    pool/inbox/running/CLAIM@WORKER   and done/, failed/, errors/, outputs/ as in the pool itself
    pool/inbox/ID.json                the response of `fsqueue broadcast`

Addressed claims move by the same renames (`claims`) through the same states as planned ones, but
apart from them: no plan holds them, so they are not counted as planned work, thieves do not look
there, and `retry` does not put them back. An addressed claim has one attempt. If its worker leaves
or dies before it ran, it ends in failed/ with a record of that: no other worker may run it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from fsqueue.errors import ClaimLost, PoolError
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import BEATS_PER_LEASE, ended_lease_names, lease_names
from fsqueue.pool.names import SPOOL, ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories

LOOK_S: Final = 1.0
ADDRESS_MAX: Final = 10
PARTS: Final = "spools running done failed errors partial outputs".split()


def inbox_of(pool: PoolDirectory) -> PoolDirectory:
    """Return the pool of addressed claims. Nothing of it need exist."""
    return replace(pool, root=f"{pool.root}/inbox", attempts_max=1)


def spool_of(worker: str) -> str:
    """Return the name of a worker's spool: the end of its id, where the random part is."""
    spool = worker[-40:].lstrip("_-")
    assert SPOOL.fullmatch(spool), worker
    return spool


def address(
    pool: PoolDirectory, worker: str, name: ClaimName, data: bytes, *, personal: bool = False
) -> None:
    """Put a claim into a worker's inbox, whole (I4). Raises OSError, PoolError."""
    inbox = inbox_of(pool)
    directories.make(inbox.root, sticky=True)
    for part in PARTS:
        directories.make(inbox.directory(part), sticky=part == "outputs")
    for attempt in range(ADDRESS_MAX):
        directories.make(inbox.spool(spool_of(worker)))
        try:
            atomic.publish(inbox.waiting(spool_of(worker), name), data, personal=personal)
            return
        except FileNotFoundError:
            if attempt + 1 == ADDRESS_MAX:
                raise
            # RACE: its worker found the spool empty, and removed it before we could publish there


def bounce(pool: PoolDirectory, worker: str, by: str, why: str) -> list[str]:
    """Move to failed/ what is addressed to a worker that will not run it; return the ids.

    The worker itself may do so, and any process once the worker's lease has ended.
    """
    inbox, spool = inbox_of(pool), spool_of(worker)
    ended = []
    for name in _waiting(inbox, spool):
        claims.record_error(inbox, name.owned_by(by), {"error": why})
        if claims.cancel(inbox, spool, name, by) is not None:
            ended.append(name.id)
    for name in _running(inbox):
        if name.owner == worker:
            try:
                claims.charge(inbox, name, spool, {"error": why}, final=True)
                ended.append(name.id)
            except ClaimLost:
                continue  # RACE: it was done after all, or another process bounced it
    directories.discard_empty(inbox.spool(spool))
    return ended


def bounce_strays(pool: PoolDirectory, by: str, living: Collection[str] | None = None) -> None:
    """Bounce what is addressed to workers whose lease has ended. `living`: those seen to live.

    Ended leases are listed only if something is addressed to a worker that is not among the living.
    """
    try:
        addressed = set(atomic.names(inbox_of(pool).directory("spools")))
    except PoolError:
        return  # nothing was ever addressed to any worker
    held = {name.owner for name in _running(inbox_of(pool))}
    if not addressed and not held:
        return
    if living is None:
        living = {name.worker for name in lease_names(pool) if name.living}
    addressed.difference_update(map(spool_of, living))
    held.difference_update(living)
    if not addressed and not held:
        return
    names = (*lease_names(pool), *ended_lease_names(pool))
    for worker in {name.worker for name in names if not name.living}:
        if spool_of(worker) in addressed or worker in held:
            bounce(pool, worker, by, f"{worker} left or died before it did this")


class Inbox:
    """One worker's own inbox; `next` lists it at most once a second, `has_claims` once a beat."""

    def __init__(self, pool: PoolDirectory, worker: str) -> None:
        self.pool = inbox_of(pool)
        self.spool = spool_of(worker)
        self._whole = pool
        self._worker = worker
        self._listed_at = -1e9
        self._known: list[ClaimName] = []

    def next(self) -> ClaimName | None:
        """Take the next claim addressed to this worker, in order of ids; None if there is none."""
        self._list_if_older(LOOK_S)
        while self._known:
            name = self._known.pop()
            if name.returns:
                record = {"error": f"{self._worker} could not run this; see its log"}
                claims.record_error(self.pool, name.owned_by(self._worker), record)
                claims.cancel(self.pool, self.spool, name, self._worker)
            elif taken := claims.take(self.pool, self.spool, name, self._worker):
                return taken
        return None

    def has_claims(self) -> bool:
        """Return whether something is addressed to this worker, which waits for it."""
        self._list_if_older(self._whole.lease_s / BEATS_PER_LEASE)
        return bool(self._known)

    def _list_if_older(self, age_s: float) -> None:
        if self._known or time.monotonic() - self._listed_at < age_s:
            return
        try:
            found = claims.waiting(self.pool, self.spool)
        except PoolError:
            found = []  # nothing was addressed to this worker, as nearly always
        else:
            if not found:  # listing a missing one costs one operation, an empty one five
                directories.discard_empty(self.pool.spool(self.spool))
        self._known = sorted(found, key=lambda name: name.id, reverse=True)
        self._listed_at = time.monotonic()

    def close(self) -> None:
        """Bounce what is still addressed to this worker: it leaves."""
        bounce(self._whole, self._worker, self._worker, f"{self._worker} left before it ran this")


def _waiting(inbox: PoolDirectory, spool: str) -> list[ClaimName]:
    try:
        return claims.waiting(inbox, spool)
    except PoolError:
        return []  # nothing was ever addressed to this worker


def _running(inbox: PoolDirectory) -> Iterator[ClaimName]:
    try:
        yield from claims.owned(inbox, State.RUNNING)
    except PoolError:
        return  # as above
