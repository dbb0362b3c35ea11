"""Put the claims of dead workers back, for living workers to take.

Any process may do so at any time, however often.

Recovery goes by claims, not by workers: any claim in running/ whose owner shows no living lease may
be requeued. So nothing is stranded when a recoverer dies halfway, or when a worker takes one more
claim after its lease was ended. In a SLURM job, `slurm.job_fate` may defer a worker's death, or
excuse it; a worker that left, or was leaving, is excused, too (R15 in `pool.leases`): then its
claims go back without an attempt being charged.

R14  A worker that is busy watches the others, too: its heartbeat's thread sweeps every half lease
     while a handler runs, however long that is (`sweep_while_busy`). So a death is seen within
     about a lease although every living worker is busy.
R18  What a sweep costs the file server depends on the claims that run and on the workers in doubt,
     not on how many workers there are or have ever been: no lease is opened of a worker that is
     not in doubt, and none of another host's but to ask SLURM about its job.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from fsqueue.errors import ClaimLost, PoolError
from fsqueue.pool import claims, plans
from fsqueue.pool.inbox import bounce_strays
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer, Standing
from fsqueue.pool.names import SPOOL, ClaimName
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.journal import EventKind, Journal
from fsqueue.slurm.job_fate import JobFates
from fsqueue.storage import atomic, directories
from fsqueue.storage.mounts import listings_may_be_old

log = logging.getLogger(__name__)

BOUNCE_LEASES: Final = 4
"""How rarely a quiet worker ends what is addressed to workers that left. A broadcast that waits for
its copies does so itself."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A claim that a dead worker held, and what became of it."""

    name: ClaimName
    became: ClaimName

    @property
    def failed(self) -> bool:
        """Whether this was the claim's last attempt."""
        return self.became.owner is not None


class Recovery:
    """One recovering process, and what it remembers between its sweeps."""

    def __init__(self, pool: PoolDirectory, me: str, observer: Observer, journal: Journal) -> None:
        self._pool = pool
        self._me = me
        self._journal = journal
        self._job_fates = JobFates(pool, observer)
        self.observer = observer
        self.running: list[ClaimName] = []
        self.swept_at = time.monotonic()
        """When running/ was listed last."""
        self.view: tuple[object, ...] = ()
        """What plans/ and running/ held then, to compare with the next sweep."""
        self.doubtful: Collection[str] = ()
        """Workers whose beat has not moved lately, or whose process is gone."""
        self._dead: set[str] = set()
        """Those of them whose lease has ended."""
        self._looked_at = self._bounced_at = self._refreshed_at = -math.inf
        self._lock = threading.Lock()
        """Held during a sweep: the main thread sweeps, and while it is busy, the heartbeat's."""

    def sweep_while_busy(self) -> list[Recovered]:
        """Sweep if the last sweep was half a lease ago; for the thread of a busy worker. R14.

        It leaves alone what may take long, as this thread may have a lease to renew.
        """
        with self._lock:
            if time.monotonic() - self.swept_at < self._pool.lease_s / 2:
                return []
            self._list_running()
            return self._end_the_dead()

    def sweep_if_due(self) -> list[Recovered]:
        """Sweep if the last sweep was half a lease ago; for a worker that has claims to run.

        If it began to watch other workers only once it is idle, it would wait a whole lease then.
        """
        due = time.monotonic() - self.swept_at >= self._pool.lease_s / 2
        return self.sweep() if due else []

    def sweep(self, *, quiet: bool = False) -> list[Recovered]:
        """Look once; end expired leases; put back what their owners held.

        `quiet`: nothing has changed for a while. Then, while no other worker holds a claim, the
        beats are read only once per lease.
        """
        planned = frozenset(atomic.names(self._pool.directory("plans")))
        try:
            plans.complete(self._pool, planned)
        except PoolError as error:
            log.debug("%s", error)  # the planner and `check` report it; recovery need not wait
        with self._lock:
            self._list_running()
            self.view = planned, frozenset(self.running)
            alone = all(name.owner == self._me for name in self.running)
            if quiet and alone and self.swept_at - self._looked_at < self._pool.lease_s:
                return []
            found = self._end_the_dead()
            if (
                self._dead
                or not quiet
                or self.swept_at - self._bounced_at >= BOUNCE_LEASES * self._pool.lease_s
            ):
                living = set(self.observer.workers()) - self._dead
                bounce_strays(self._pool, self._me, living)
                self._bounced_at = self.swept_at
            return found

    def _list_running(self) -> None:
        self.running = list(claims.owned(self._pool, State.RUNNING))
        self.swept_at = time.monotonic()

    def _end_the_dead(self) -> list[Recovered]:
        """Look at the leases; end those of dead workers; put back what they held."""
        owners = {name.owner for name in self.running if name.owner} - {self._me}
        self._looked_at = self.swept_at
        self.observer.look(owners)
        workers = sorted(owners | set(self.observer.workers()) - {self._me})
        gone = {each for each in workers if self.observer.is_gone(each)}
        doubtful = {each for each in workers if self.observer.standing(each) is not Standing.LIVING}
        self.doubtful = doubtful | gone
        self._job_fates.look(self.doubtful)
        self._dead = {
            each for each in sorted(self.doubtful) if self._is_dead(each, gone=each in gone)
        }
        return [
            recovered
            for name in self.running
            if name.owner in self._dead and (recovered := self._recover(name)) is not None
        ]

    def refresh_listings(self, idle_s: float) -> bool:
        """Make this host list running/ and the spools afresh, once since the worker became idle.

        Returns whether it did so now; then do not trust an earlier listing that showed no claims.
        Only where listings may be old (`mounts.listings_may_be_old`): elsewhere this does nothing,
        and returns False. An NFS 3 client notices only by its timestamp that a directory changed.
        Two changes within one tick of the server's clock look like one, and a listing from between
        them stays cached until the next change. A change made by this host makes it list afresh on
        any file system.
        """
        if time.monotonic() - self._refreshed_at <= idle_s:
            return False
        if not listings_may_be_old(self._pool.root):
            return False  # R18: one look costs nothing in the spools that it does not need
        self._refreshed_at = time.monotonic()
        spools = map(self._pool.spool, spool_names(self._pool))
        for directory in (self._pool.state(State.RUNNING), *spools):
            private = f"{directory}/.renew.{self._me}"
            try:
                directories.make(private)
                directories.discard_empty(private)
            except (OSError, PoolError) as error:
                log.debug(
                    "%s: cannot be refreshed: %s", directory, error
                )  # disk full, or no directory
        return True

    def _is_dead(self, worker: str, *, gone: bool) -> bool:
        """Return whether a worker is dead; if it is, its lease has been ended."""
        standing = self.observer.standing(worker)
        if standing is Standing.SUSPECT and not gone:
            return False
        has_ended = standing is Standing.ENDED
        if self._job_fates.defers(worker, gone=gone or has_ended):
            return False
        if has_ended:
            return True
        ended = self.observer.end(worker, self._me)
        if ended:
            log.info("%s is dead: its lease is ended", worker)
            self._journal.write(EventKind.ENDED, of=worker)
            # At once, because the worker may come back. Its program could otherwise write a new
            # file by name after its own was removed and before the directory is, and the worker
            # would publish that half.
            directories.discard_at_once(self._pool.scratch(worker))
        return ended

    def _recover(self, name: ClaimName) -> Recovered | None:
        owner = name.owner or ""
        excused = self.observer.excuses(owner) or self._job_fates.excuses(owner)
        try:
            home, published = self._look_into(name)
            if excused or published:
                vain = not published and not self._has_checkpoint(name)
                became = claims.release(self._pool, name, home, vain=vain)
            else:
                became = claims.charge(self._pool, name, home, self._record(name))
        except ClaimLost:
            # RACE: its owner finished after all, or another recoverer was faster.
            return None
        found = Recovered(name, became)
        why = {"why": "it was leaving"} if self.observer.excuses(owner) else {}
        facts = {"cost": name.cost, "failed": found.failed, "excused": excused or published}
        self._journal.write(EventKind.RECOVERED, id=name.id, of=name.owner, **facts, **why)
        return found

    def _has_checkpoint(self, name: ClaimName) -> bool:
        try:
            return bool(atomic.names(self._pool.partial(name.id)))
        except (OSError, PoolError):
            return False  # none was saved, as mostly

    def _record(self, name: ClaimName) -> dict[str, str]:
        return {
            "error": f"worker lost: {name.owner} did not renew its lease while it ran this claim; "
            f"it was killed, crashed, or cut off",
            "recovered_by": self._me,
        }

    def _look_into(self, name: ClaimName) -> tuple[str, bool]:
        """Return the spool a claim goes back to, and whether its output is published already.

        If it is, no attempt is charged, because no handler will run again: the worker that takes it
        next adopts the output (I7). Raises ClaimLost.
        """
        spools = spool_names(self._pool)
        try:
            claim = claims.read_claim(self._pool, name, patience_s=0.0)
        except (PoolError, OSError):
            return spools[
                0
            ], False  # damaged: the worker that takes it next fails it with that reason
        known = SPOOL.fullmatch(claim.spool) and claim.spool in spools
        return claim.spool if known else spools[0], claims.is_published(self._pool, name, claim)
