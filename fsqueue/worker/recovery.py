"""Give the claims of dead workers to living ones.

Anybody may do it, at any time, as often as they like.

Recovery goes by claims, not by workers: any claim in running/ whose owner shows no living lease may
be requeued. So nothing is stranded when a recoverer dies half-way, or when a worker takes one more
claim after its lease was ended. SLURM, where there is one, may ask for patience, and may excuse a
worker (`witness.py`): then its claims go back without an attempt being charged.
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
from fsqueue.pool.journal import Journal
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer, Process, Standing
from fsqueue.pool.names import SPOOL, ClaimName
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.slurm.job_fate import JobFates
from fsqueue.storage import atomic, directories

log = logging.getLogger(__name__)

BOUNCE_LEASES: Final = 4
"""A quiet worker looks so seldom for what is addressed to those who left: whoever waits for an
answer looks himself."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A claim that was taken from a dead worker, and where it went."""

    name: ClaimName
    became: ClaimName

    @property
    def failed(self) -> bool:
        """Say whether this was the claim's last attempt."""
        return self.became.owner is not None


class Recovery:
    """One recoverer: it remembers whose beats it saw."""

    def __init__(self, pool: PoolDirectory, me: str, observer: Observer, journal: Journal) -> None:
        self._pool = pool
        self._me = me
        self._journal = journal
        self._witness = JobFates(pool, observer)
        self.observer = observer
        self.running: list[ClaimName] = []
        self.swept = time.monotonic()
        """When running/ was listed last."""
        self.view: tuple[object, ...] = ()
        """What plans/ and running/ held then, to be compared with what they hold next."""
        self.doubtful: Collection[str] = ()
        """Who has not been seen to beat lately, or has no process any more."""
        self._looked = self._bounced = self._renewed = -math.inf

    def sweep_if_due(self) -> list[Recovered]:
        """Sweep, if the last sweep was half a lease ago; for those who have other work to do.

        Whoever begins to watch the dead only when all else is done waits a whole lease at the end.
        """
        due = time.monotonic() - self.swept >= self._pool.lease_s / 2
        return self.sweep() if due else []

    def sweep(self, *, quiet: bool = False) -> list[Recovered]:
        """Look once; end expired leases; put back what their owners held.

        `quiet`: nothing has changed for a while. Then, where nobody holds anything, the beats are
        looked at once a lease.
        """
        planned = frozenset(atomic.names(self._pool.directory("plans")))
        try:
            plans.complete(self._pool, planned)
        except PoolError as error:
            log.debug("%s", error)  # the planner and check say so; claims of the dead do not wait
        self.running = list(claims.owned(self._pool, State.RUNNING))
        self.swept = time.monotonic()
        self.view = planned, frozenset(self.running)
        owners = {name.owner for name in self.running if name.owner} - {self._me}
        if quiet and not owners and self.swept - self._looked < self._pool.lease_s:
            return []
        self._looked = self.swept
        self.observer.look(owners)
        everybody = sorted(owners | set(self.observer.workers()) - {self._me})
        gone = {each for each in everybody if self.observer.process(each) is Process.GONE}
        doubtful = {
            each for each in everybody if self.observer.standing(each) is not Standing.LIVING
        }
        self.doubtful = doubtful | gone
        self._witness.look(self.doubtful)
        dead = {each for each in sorted(self.doubtful) if self._dead(each, gone=each in gone)}
        if dead or not quiet or self.swept - self._bounced >= BOUNCE_LEASES * self._pool.lease_s:
            bounce_strays(self._pool, self._me, dead | self.observer.ended)
            self._bounced = self.swept
        return [
            recovered
            for name in self.running
            if name.owner in dead and (recovered := self._recover(name)) is not None
        ]

    def renews(self, idle_s: float) -> bool:
        """Have this host list anew where claims run and wait, if it did not since it became idle.

        Say whether it did so now: then an emptiness that was seen before is not believed. NFS 3
        tells by its time alone that a directory has changed, and two changes in one tick of the
        server's clock look like one; a listing from in between stays until there is another. What
        one does there oneself makes one list anew, on any file system.
        """
        if time.monotonic() - self._renewed < idle_s:
            return False
        self._renewed = time.monotonic()
        spools = map(self._pool.spool, spool_names(self._pool))
        for directory in (self._pool.state(State.RUNNING), *spools):
            private = f"{directory}/.renew.{self._me}"
            try:
                directories.make(private)
                directories.discard_empty(private)
            except (OSError, PoolError) as error:
                log.debug("%s could not be renewed: %s", directory, error)  # full, or no directory
        return True

    def _dead(self, worker: str, *, gone: bool) -> bool:
        """Say whether a worker is dead; if it is, its lease has been ended."""
        standing = self.observer.standing(worker)
        if standing is Standing.SUSPECT and not gone:
            return False
        has_ended = standing is Standing.ENDED
        if self._witness.defers(worker, gone=gone or has_ended):
            return False
        if has_ended:
            return True
        ended = self.observer.end(worker, self._me)
        if ended:
            log.info("%s is dead: its lease is ended", worker)
            self._journal.write("ended", of=worker)
            # At one blow, for it may yet come back. A program of its could write on by name between
            # the removal of its file and of the directory, and it would publish that half.
            directories.discard_at_once(self._pool.workshop(worker))
        return ended

    def _recover(self, name: ClaimName) -> Recovered | None:
        excused = self._witness.excuses(name.owner or "")
        try:
            home, published = self._look_into(name)
            if excused or published:
                became = claims.release(self._pool, name, home)
            else:
                became = claims.charge(self._pool, name, home, self._record(name))
        except ClaimLost:
            # RACE: its owner finished after all, or another recoverer was quicker.
            return None
        found = Recovered(name, became)
        facts = {"cost": name.cost, "failed": found.failed, "excused": excused or published}
        self._journal.write("recovered", id=name.id, of=name.owner, **facts)
        return found

    def _record(self, name: ClaimName) -> dict[str, str]:
        return {
            "error": f"worker lost: {name.owner} did not renew its lease while it ran this claim; "
            f"it was killed, crashed, or cut off",
            "recovered_by": self._me,
        }

    def _look_into(self, name: ClaimName) -> tuple[str, bool]:
        """Return the spool a claim goes back to, and whether its output is published already.

        Then no attempt is charged, for no handler will run again: whoever takes it next adopts the
        output (I7). Raises ClaimLost.
        """
        spools = spool_names(self._pool)
        try:
            claim = claims.read_claim(self._pool, name, patience_s=0.0)
        except (PoolError, OSError):
            return spools[0], False  # damaged: whoever takes it next says so and fails it by name
        known = SPOOL.fullmatch(claim.spool) and claim.spool in spools
        return claim.spool if known else spools[0], claims.is_published(self._pool, name, claim)
