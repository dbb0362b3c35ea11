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

from fsqueue import atomic, claims
from fsqueue.attempt import Attempt, Ending
from fsqueue.errors import ClaimLost, FsqueueError
from fsqueue.habits import Habits
from fsqueue.handlers import Handler
from fsqueue.heartbeat import Heartbeat
from fsqueue.inbox import Inbox
from fsqueue.jobs import JOBS
from fsqueue.layout import State
from fsqueue.leases import Lease, Observer, Process
from fsqueue.leaving import DRAINED, Leaving, StopNow
from fsqueue.names import ClaimName, new_worker_id
from fsqueue.outfit import Outfit
from fsqueue.pool import Pool
from fsqueue.recovery import Recovery
from fsqueue.status import Journal
from fsqueue.stock import Stock

log = logging.getLogger(__name__)

FAILURES_MAX: Final = 3
"""A worker that fails this many different claims in a row stops itself: a bad GPU must not eat the
queue."""
SECOND_LOOK_S: Final = 0.3
END_NEAR_S: Final = 120.0
"""SLURM's warning comes up to half a minute before the time that was asked for."""


class Worker:
    """One worker process's life. `run` returns the exit status."""

    def __init__(self, pool: Pool, habits: Habits, *, id: str | None = None) -> None:
        self.pool = pool
        self.habits = habits
        self.id = id or new_worker_id()
        self.status = habits.status_of(self.id)
        self.journal = Journal(pool, self.id)
        self.lease = Lease(pool, self.id)
        self.beat = Heartbeat(pool, self.lease, self.status)
        self.observer = Observer(pool)
        self.recovery = Recovery(pool, self.id, self.observer, self.journal)
        self.stock = Stock(
            pool,
            self.beat,
            self.journal,
            spool=habits.spool,
            stealing=habits.stealing,
            steal_threshold=habits.steal_threshold,
        )
        self.inbox = Inbox(pool, self.id)
        self.outfit = Outfit(habits, self.beat, self.journal)
        self.failed_in_a_row: list[str] = []
        self.taken = 0
        self.progressed = False
        self.outlasted = False
        self.why = ""
        self.leaving = Leaving(
            self.beat, habits.claims_max, habits.time_limit_s, allocation=habits.allocation
        )
        self.stock.time_left_s = self._time_left_s
        self.stock.taste_changed(self.outfit.taste())

    # ---- life ----

    def run(self) -> int:
        """Work until there is a reason to leave; return the exit status of design's table."""
        self.lease.enlist({"worker": self.id, "spool": self.habits.spool, **self.habits.slurm})
        try:
            self.leaving.listen()
            atomic.make_private_directory(self.pool.workshop(self.id))
            self.beat.look_for_orders()
            self.beat.flush()
            self.beat.start()
            self.journal.write("joined", spool=self.habits.spool, host=self.status.host)
            log.info("worker %s works on %s", self.id, self.habits.spool or "whatever others have")
            status = self._loop()
            if status == DRAINED and self._nothing_remains():
                status = self._all_ended()
        except StopNow:
            status = self.leaving.signal_status
        finally:
            try:
                self._leave()
            finally:
                self.leaving.restore()
        return status

    def comes_back(self) -> bool:
        """Say, after `run`, whether SLURM should run this job again: the time was up, not the work.

        Not if nothing at all came of a whole allocation: the next would end the same way.
        """
        outlasted = self.outlasted and self.habits.time_limit_s is None
        if not (self.leaving.for_slurm or outlasted):
            return False
        if not self.progressed and self.leaving.time_left_s() <= END_NEAR_S:
            log.error(
                "nothing was finished or saved in a whole allocation, so this job is not requeued: "
                "its claims need more time than it has. Submit with a longer --time."
            )
            return False
        return self.stock.count_waiting().all > 0 or any(claims.owned(self.pool, State.RUNNING))

    def _loop(self) -> int:
        idle_since: float | None = None
        while True:
            if (reason := self.leaving.why(self.taken)) is not None:
                self._say(reason[1])
                return reason[0]
            if not self.leaving.paused and (job := self.inbox.next()) is not None:
                self._run_addressed(job)
                continue
            found = None if self.leaving.paused else self.stock.next()
            if found is not None:
                idle_since = None
                if (status := self._run(*found)) is not None:
                    return status
                self.recovery.sweep_if_due()
                continue
            if idle_since is None:
                idle_since = time.monotonic()
                self.beat.change(state="idle", current=None)
            if (status := self._idle(time.monotonic() - idle_since)) is not None:
                return status

    def _run(self, name: ClaimName, spool: str) -> int | None:
        self.taken += 1
        attempt = Attempt(
            self.pool,
            name,
            spool,
            self.beat,
            self.journal,
            self.outfit.handler,
            self.leaving.at_once,
        )
        ending = attempt.run()
        self.progressed |= attempt.saved or ending in (Ending.DONE, Ending.FAILED)
        if ending is Ending.DONE:
            self.failed_in_a_row.clear()
            self.outfit.did(name)
            self.stock.taste_changed(self.outfit.taste())
        elif ending is Ending.FAILED:
            return self._count_failure(name, attempt.reason)
        elif ending is Ending.UNABLE:
            self.outfit.cannot(name.kind)
            self.stock.taste_changed(self.outfit.taste())
            self._say(f"claims of kind {name.kind} are left alone: {attempt.reason}")
        elif ending is Ending.BROKEN:
            self._say(f"this worker stops: {attempt.reason}")
            return 1
        return None

    def _run_addressed(self, name: ClaimName) -> None:
        """Run what was addressed to us. Its end, whichever, says nothing of the planned claims."""
        pool, spool = self.inbox.pool, self.inbox.spool
        atomic.make_private_directory(pool.workshop(self.id))
        attempt = Attempt(
            pool, name, spool, self.beat, self.journal, self._job, self.leaving.at_once
        )
        if attempt.run() is Ending.BROKEN:
            self._say(f"a job that was addressed to this worker ended badly: {attempt.reason}")
        self.stock.taste_changed(self.outfit.taste())
        self.beat.look_for_orders()

    def _job(self, name: str) -> Handler:
        if name in JOBS:
            return JOBS[name](self.pool, self.id, self.outfit.handlers, self.outfit.handler)
        return self.outfit.handler(name)

    def _count_failure(self, name: ClaimName, reason: str) -> int | None:
        if name.id not in self.failed_in_a_row:
            self.failed_in_a_row.append(name.id)
        self.outfit.failed(name)
        self.stock.taste_changed(self.outfit.taste())
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
        if self.recovery.sweep():
            return None
        for name in self.recovery.running:
            if name.owner == self.id:
                # RACE: we won this claim by a rename whose reply was lost.
                log.info("%s was ours without our knowing; running it", name.id)
                return self._run(name, self.stock.any_spool())
        patient = self.habits.keep_alive or idle_s < max(self.habits.linger_s, SECOND_LOOK_S)
        if not patient and (status := self._nothing_left()) is not None:
            return status
        self._sleep(SECOND_LOOK_S if idle_s < SECOND_LOOK_S else self._interval())
        return None

    def _nothing_left(self) -> int | None:
        """Return the exit status if no claim waits, or will come back, that we could take."""
        # Running before waiting: what its owner puts back between the two is seen where it arrives.
        waiting = self.stock.count_waiting(since=self.recovery.swept)
        if waiting.could_take:
            return None
        for name in self.recovery.running:
            if name.owner != self.id and not self._seen_alive(name.owner or ""):
                return None  # its owner may be dead: then it comes back within a lease
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
        # Running before waiting, as above.
        return not any(claims.owned(self.pool, State.RUNNING)) and not (
            self.stock.count_waiting(since=time.monotonic()).all
        )

    def _all_ended(self) -> int:
        return 3 if any(claims.owned(self.pool, State.FAILED)) else 0

    def _seen_alive(self, worker: str) -> bool:
        here = self.observer.process(worker)
        return here is Process.RUNNING or self.observer.beating(worker)

    def _leave(self) -> None:
        """Put back what is held, say goodbye, and only then retire the lease."""
        self.leaving.ignore()
        self.beat.change(state="stopped", current=None, message=self.why)
        self.beat.stop()
        for name in claims.owned(self.pool, State.RUNNING):
            if name.owner == self.id:
                self._put_back(name)
        self.outfit.close()
        self.inbox.close()
        for pool in (self.pool, self.inbox.pool):
            atomic.discard_tree(pool.workshop(self.id))
        self.journal.write("left", done=self.status.claims_done, why=self.why)
        self.journal.close()
        self.beat.flush()
        if not self.beat.lost:
            self.lease.retire()

    def _put_back(self, name: ClaimName) -> None:
        try:
            claims.release(self.pool, name, self.stock.any_spool())
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
        return self.leaving.time_left_s() if self.taken else math.inf

    def _interval(self) -> float:
        return self.habits.steal_interval_s * random.uniform(0.9, 1.1)

    def _sleep(self, seconds: float) -> None:
        """Sleep, but wake for a signal or for being declared dead."""
        until = time.monotonic() + seconds
        while (
            (left := until - time.monotonic()) > 0
            and not self.leaving.signal
            and not self.beat.lost
        ):
            time.sleep(min(left, 0.2))
        self.beat.look_for_orders()
