"""Put the claims of dead workers back, for living workers to take.

Any process may do so at any time, however often.

Recovery goes by claims, not by workers: any claim in running/ whose owner shows no living lease may
be requeued. So nothing is stranded when a recoverer dies halfway, or when a worker takes one more
claim after its lease was ended. In a SLURM job, `slurm.job_fate` may defer a worker's death, or
excuse it: then its claims go back without an attempt being charged.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from fsqueue.errors import ClaimLost, PoolError
from fsqueue.pool import claims, plans
from fsqueue.pool.inbox import bounce_strays
from fsqueue.pool.journal import EventKind, Journal
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer, Process, Standing
from fsqueue.pool.names import SPOOL, ClaimName
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.slurm.job_fate import JobFates
from fsqueue.storage import atomic, directories

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
        self._looked_at = self._bounced_at = self._refreshed_at = -math.inf

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
        self.running = list(claims.owned(self._pool, State.RUNNING))
        self.swept_at = time.monotonic()
        self.view = planned, frozenset(self.running)
        owners = {name.owner for name in self.running if name.owner} - {self._me}
        if quiet and not owners and self.swept_at - self._looked_at < self._pool.lease_s:
            return []
        self._looked_at = self.swept_at
        self.observer.look(owners)
        workers = sorted(owners | set(self.observer.workers()) - {self._me})
        gone = {each for each in workers if self.observer.process(each) is Process.GONE}
        doubtful = {each for each in workers if self.observer.standing(each) is not Standing.LIVING}
        self.doubtful = doubtful | gone
        self._job_fates.look(self.doubtful)
        dead = {each for each in sorted(self.doubtful) if self._dead(each, gone=each in gone)}
        if (
            dead
            or not quiet
            or self.swept_at - self._bounced_at >= BOUNCE_LEASES * self._pool.lease_s
        ):
            bounce_strays(self._pool, self._me, dead | self.observer.ended)
            self._bounced_at = self.swept_at
        return [
            recovered
            for name in self.running
            if name.owner in dead and (recovered := self._recover(name)) is not None
        ]

    def refresh_listings(self, idle_s: float) -> bool:
        """Make this host list running/ and the spools afresh, once since the worker became idle.

        Returns whether it did so now; then do not trust an earlier listing that showed no claims.
        An NFS 3 client notices only by its timestamp that a directory changed. Two changes within
        one tick of the server's clock look like one, and a listing from between them stays cached
        until the next change. A change made by this host makes it list afresh on any file system.
        """
        if time.monotonic() - self._refreshed_at < idle_s:
            return False
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

    def _dead(self, worker: str, *, gone: bool) -> bool:
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
        excused = self._job_fates.excuses(name.owner or "")
        try:
            home, published = self._look_into(name)
            if excused or published:
                became = claims.release(self._pool, name, home)
            else:
                became = claims.charge(self._pool, name, home, self._record(name))
        except ClaimLost:
            # RACE: its owner finished after all, or another recoverer was faster.
            return None
        found = Recovered(name, became)
        facts = {"cost": name.cost, "failed": found.failed, "excused": excused or published}
        self._journal.write(EventKind.RECOVERED, id=name.id, of=name.owner, **facts)
        return found

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
