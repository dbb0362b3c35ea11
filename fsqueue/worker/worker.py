"""Take claims and run them until nothing is left that this worker could take.

A worker is one process. It shares with the others nothing but the pool's directory: it learns what
waits by listing, takes by rename, and tells that it lives by the name of its lease.

    enlist -> [take own | steal | idle: recover the dead] * -> put back -> retire
"""

from __future__ import annotations

import logging
import math
import random
import time
from typing import Final

from fsqueue.broadcast.jobs import JOBS
from fsqueue.errors import ClaimLost, FsqueueError
from fsqueue.handler import Handler
from fsqueue.pool import claims
from fsqueue.pool.inbox import Inbox
from fsqueue.pool.journal import Journal
from fsqueue.pool.layout import State
from fsqueue.pool.leases import BEATS_PER_LEASE, Lease, Observer
from fsqueue.pool.names import ClaimName, new_worker_id
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import directories
from fsqueue.worker.attempt import Attempt, Ending
from fsqueue.worker.backoff import Backoff, RateLimit
from fsqueue.worker.claim_source import ClaimSource
from fsqueue.worker.handler_cache import HandlerCache
from fsqueue.worker.heartbeat import Heartbeat
from fsqueue.worker.recovery import Recovery
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.shutdown import DRAINED, Shutdown, StopNow

log = logging.getLogger(__name__)

FAILURES_MAX: Final = 3
"""A worker that fails this many different claims in a row stops itself: a bad GPU must not eat the
queue."""
SECOND_LOOK_S: Final = 0.3
END_NEAR_S: Final = 120.0
"""SLURM's warning comes up to half a minute before the time that was asked for."""


class Worker:
    """One worker process's life. `run` returns the exit status."""

    def __init__(
        self, pool: PoolDirectory, settings: WorkerSettings, *, id: str | None = None
    ) -> None:
        self.pool = pool
        self.settings = settings
        self.id = id or new_worker_id()
        self.status = settings.status_of(self.id)
        self.journal = Journal(pool, self.id)
        self.lease = Lease(pool, self.id)
        self.beat = Heartbeat(pool, self.lease, self.status)
        self.observer = Observer(pool)
        self.recovery = Recovery(pool, self.id, self.observer, self.journal)
        self.claim_source = ClaimSource(
            pool,
            self.beat,
            self.journal,
            spool=settings.spool,
            stealing=settings.stealing,
            steal_threshold=settings.steal_threshold,
        )
        self.inbox = Inbox(pool, self.id)
        self.handler_cache = HandlerCache(settings, self.beat, self.journal)
        self.failed_in_a_row: list[str] = []
        self.taken = 0
        self.progressed = False
        self.outlasted = False
        self.why = ""
        self.shutdown = Shutdown(
            self.beat, settings.claims_max, settings.time_limit_s, allocation=settings.allocation
        )
        self.backoff = Backoff(
            pool, settings.steal_interval_s, settings.spool, stealing=settings.stealing
        )
        self.rate_limit = self.beat.rate_limit = RateLimit(
            settings.metadata_ops_max, sleep=self.shutdown.nap
        )
        self.claim_source.before_listing = self.rate_limit.wait
        self.claim_source.time_left_s = self._time_left_s
        self.claim_source.set_preferences(self.handler_cache.preferences())

    # ---- life ----

    def run(self) -> int:
        """Work until there is a reason to leave; return the exit status of design's table."""
        self.lease.enlist({"worker": self.id, "spool": self.settings.spool, **self.settings.slurm})
        try:
            self.shutdown.listen()
            directories.make_private(self.pool.workshop(self.id))
            self.beat.look_for_orders()
            self.beat.flush()
            self.beat.start()
            self.journal.write("joined", spool=self.settings.spool, host=self.status.host)
            log.info(
                "worker %s works on %s", self.id, self.settings.spool or "whatever others have"
            )
            status = self._loop()
            if status == DRAINED and self._nothing_remains():
                status = self._all_ended()
        except StopNow:
            status = self.shutdown.signal_status
        finally:
            try:
                self._leave()
            finally:
                self.shutdown.restore()
        return status

    def comes_back(self) -> bool:
        """Say, after `run`, whether SLURM should run this job again: the time was up, not the work.

        Not if nothing at all came of a whole allocation: the next would end the same way.
        """
        outlasted = self.outlasted and self.settings.time_limit_s is None
        if not (self.shutdown.for_slurm or outlasted):
            return False
        if not self.progressed and self.shutdown.time_left_s() <= END_NEAR_S:
            log.error(
                "nothing was finished or saved in a whole allocation, so this job is not requeued: "
                "its claims need more time than it has. Submit with a longer --time."
            )
            return False
        return self.claim_source.count_waiting().all > 0 or claims.any_owned(
            self.pool, State.RUNNING
        )

    def _loop(self) -> int:
        idle_since: float | None = None
        while True:
            if (reason := self.shutdown.why(self.taken)) is not None:
                self._say(reason[1])
                return reason[0]
            if not self.shutdown.paused and (job := self.inbox.next()) is not None:
                self._run_addressed(job)
                continue
            found = self._next()
            if found is not None:
                idle_since = None
                self.backoff.hurry()
                if (status := self._run(*found)) is not None:
                    return status
                self.recovery.sweep_if_due()
                continue
            if idle_since is None:
                idle_since = time.monotonic()
                self.beat.change(state="idle", current=None)
            if (status := self._idle(time.monotonic() - idle_since)) is not None:
                return status

    def _next(self) -> tuple[ClaimName, str] | None:
        self.rate_limit.wait()
        due = not self.shutdown.paused and self.backoff.is_due_everywhere()
        return self.claim_source.next() if due else None

    def _run(self, name: ClaimName, spool: str) -> int | None:
        status = None
        self.taken += 1
        at_once, handler = self.shutdown.at_once, self.handler_cache.handler
        attempt = Attempt(self.pool, name, spool, self.beat, self.journal, handler, at_once)
        ending = attempt.run()
        if done := ending is Ending.DONE:
            self.failed_in_a_row.clear()
            self.handler_cache.did(name)
        elif ending is Ending.FAILED:
            status = self._count_failure(name, attempt.reason)
        elif ending is Ending.UNABLE:
            self.handler_cache.cannot(name.kind)
            self._say(f"claims of kind {name.kind} are left alone: {attempt.reason}")
        elif ending is Ending.BROKEN:
            self._say(f"this worker stops: {attempt.reason}")
            status = 1
        self.progressed |= done or attempt.saved or ending is Ending.FAILED
        self.claim_source.set_preferences(self.handler_cache.preferences())
        return status

    def _run_addressed(self, name: ClaimName) -> None:
        """Run what was addressed to us. Its end, whichever, says nothing of the planned claims."""
        pool, spool = self.inbox.pool, self.inbox.spool
        directories.make_private(pool.workshop(self.id))
        at_once = self.shutdown.at_once
        attempt = Attempt(pool, name, spool, self.beat, self.journal, self._job, at_once)
        if attempt.run() is Ending.BROKEN:
            self._say(f"a job that was addressed to this worker ended badly: {attempt.reason}")
        self.claim_source.set_preferences(self.handler_cache.preferences())
        self.beat.look_for_orders()
        self.backoff.hurry()

    def _job(self, name: str) -> Handler:
        if name in JOBS:
            return JOBS[name](
                self.pool, self.id, self.handler_cache.handlers, self.handler_cache.handler
            )
        return self.handler_cache.handler(name)

    def _count_failure(self, name: ClaimName, reason: str) -> int | None:
        if name.id not in self.failed_in_a_row:
            self.failed_in_a_row.append(name.id)
        self.handler_cache.failed(name)
        if len(self.failed_in_a_row) < FAILURES_MAX:
            return None
        self._say(
            f"this worker stops: {FAILURES_MAX} different claims failed here in a row, the last "
            f"with: {reason}. Is its GPU or its environment broken? See: fsqueue failed "
            f"{self.pool.root}"
        )
        return 1

    def _idle(self, idle_s: float) -> int | None:
        """Nothing to take just now: put back what the dead held, then leave, or wait a little."""
        if self.recovery.sweep(quiet=self.backoff.quiet):
            self.backoff.hurry()
            return None
        for name in self.recovery.running:
            if name.owner == self.id:
                # RACE: we won this claim by a rename whose reply was lost.
                log.info("%s was ours without our knowing; running it", name.id)
                return self._run(name, self.claim_source.any_spool())
        patient = self.settings.keep_alive or idle_s < max(self.settings.linger_s, SECOND_LOOK_S)
        paused = self.shutdown.paused
        if not patient and not (paused and self.backoff.quiet):
            if (status := self._nothing_left()) is not None:
                return None if self.recovery.renews(idle_s) else status
        self.backoff.saw((*self.recovery.view, self.beat.orders))
        # Whoever stays only for what may come within a lease does not look ever more seldom for it.
        if self.recovery.doubtful or not paused and (not patient or self.claim_source.left_over):
            self.backoff.hurry()
        self._sleep(SECOND_LOOK_S if idle_s < SECOND_LOOK_S else self.backoff.wait_s)
        return None

    def _nothing_left(self) -> int | None:
        """Return the exit status if no claim waits, or will come back, that we could take."""
        for name in self.recovery.running:
            if name.owner != self.id and not self.observer.sees_alive(name.owner or ""):
                return None  # its owner may be dead: then it comes back within a lease
        # Running before waiting: what its owner puts back between the two is seen where it arrives.
        waiting = self.claim_source.count_waiting(since=self.recovery.swept)
        if waiting.could_take:
            return None
        if waiting.too_long:
            self.outlasted = True
            self._say(f"{waiting.too_long} claims wait that would not end in the time it has left")
            return DRAINED
        if waiting.all:
            self._say(f"{waiting.all} claims wait that this worker cannot or may not take")
            return 5
        return self._all_ended()

    def _nothing_remains(self) -> bool:
        """Say whether no claim runs or waits: then whoever was told to leave left at the end."""
        # Running first and last: what was put back, or taken, between two listings is seen in one.
        return not (
            claims.any_owned(self.pool, State.RUNNING)
            or self.claim_source.count_waiting(since=time.monotonic()).all
            or claims.any_owned(self.pool, State.RUNNING)
        )

    def _all_ended(self) -> int:
        return 3 if claims.any_owned(self.pool, State.FAILED) else 0

    def _leave(self) -> None:
        """Put back what is held, say goodbye, and only then retire the lease."""
        self.shutdown.ignore()
        self.beat.change(state="stopped", current=None, message=self.why)
        self.beat.stop()
        for name in claims.owned(self.pool, State.RUNNING):
            if name.owner == self.id:
                self._put_back(name)
        self.handler_cache.close()
        self.inbox.close()
        for pool in (self.pool, self.inbox.pool):
            directories.discard(pool.workshop(self.id))
        self.journal.write("left", done=self.status.claims_done, why=self.why)
        self.journal.close()
        self.beat.flush()
        if not self.beat.lost:
            self.lease.retire()

    def _put_back(self, name: ClaimName) -> None:
        try:
            claims.release(self.pool, name, self.claim_source.any_spool())
            self.journal.write("released", id=name.id)
        except ClaimLost:
            pass  # RACE: our lease was ended, and it was given to another meanwhile
        except (OSError, FsqueueError) as error:
            log.warning("%s could not be put back (%s); it returns within a lease", name.id, error)

    def _say(self, why: str) -> None:
        self.why = why
        log.warning("%s: %s", self.id, why)

    # ---- parts ----

    def _time_left_s(self) -> float:
        """Return the time that a claim taken now may need. A fresh worker refuses none: no other
        would have more time for it.
        """
        return self.shutdown.time_left_s() if self.taken else math.inf

    def _sleep(self, seconds: float) -> None:
        """Wait for the next look, but wake for an order, or for what is addressed to us."""
        orders = self.beat.orders
        seconds = min(seconds * random.uniform(0.9, 1.1), self.shutdown.time_left_s())
        self.shutdown.nap(seconds, lambda: self.beat.orders != orders or self.inbox.rings())
        if seconds < self.pool.lease_s / BEATS_PER_LEASE:
            self.beat.look_for_orders()
