"""Take claims and run them until nothing is left that this worker could take.

A worker is one process. It shares nothing with other workers but the pool's directory: it learns
what waits by listing, takes a claim by renaming it, and shows that it is alive by renaming its
lease.

    enlist -> [take own | steal | idle: recover the dead] * -> put back -> retire

R8  A passing error of a mount while the worker looks for work ends nothing: it tries again for
    about a lease, as long as its own lease can be renewed.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from fsqueue.broadcast.jobs import JOBS
from fsqueue.errors import ClaimLost, ExitStatus, FsqueueError, PoolError
from fsqueue.handler import Handler
from fsqueue.pool import claims
from fsqueue.pool.inbox import Inbox
from fsqueue.pool.layout import State
from fsqueue.pool.leases import BEATS_PER_LEASE, Lease, Observer
from fsqueue.pool.names import ClaimName, new_worker_id
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.checksums import Checksums
from fsqueue.records.journal import EventKind, Journal
from fsqueue.records.status import LeaveReason, WorkerState
from fsqueue.storage import directories
from fsqueue.worker.attempts.attempt import Attempt
from fsqueue.worker.attempts.patience import patiently
from fsqueue.worker.attempts.probe import Found, Probe
from fsqueue.worker.attempts.provenance import Surroundings
from fsqueue.worker.attempts.suspicion import Suspicion
from fsqueue.worker.attempts.verdicts import PASSING, Cause, Evidence, ForClaim, ForWorker, verdict
from fsqueue.worker.backoff import Backoff, RateLimit
from fsqueue.worker.claim_source import ClaimSource
from fsqueue.worker.ending import Ending
from fsqueue.worker.handler_cache import HandlerCache
from fsqueue.worker.liveness.heartbeat import Heartbeat
from fsqueue.worker.recovery import Recovery
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.shutdown import Departure, Shutdown

log = logging.getLogger(__name__)

T = TypeVar("T")

EARLY_LOOK_S: Final = 0.05
SECOND_LOOK_S: Final = 0.3
"""When an idle worker looks again: early, for a small claim that another worker was just ending."""
TROUBLE_PAUSE_S: Final = 1.0
ENDED_OR_CHARGED: Final = frozenset(
    {ForClaim.DONE, ForClaim.CHARGED, ForClaim.IMPOSSIBLE, ForClaim.CANCELLED}
)
END_NEAR_S: Final = 120.0
"""SLURM's warning comes up to half a minute before the time that was asked for."""


class Worker:
    """One worker process's life. `run` returns the exit status."""

    def __init__(
        self,
        pool: PoolDirectory,
        settings: WorkerSettings,
        *,
        id: str | None = None,
        sample_gpu: Callable[[], dict[str, Any]] | None = None,
        guarded: bool = False,
    ) -> None:
        """`sample_gpu` returns the GPU's last known use without waiting.

        `guarded`: its lease is renewed by a process beside it (see `Heartbeat`).
        """
        self.pool = pool
        self.settings = settings
        self.id = id or new_worker_id()
        self.status = settings.initial_status(self.id)
        self.journal = Journal(pool, self.id)
        self.checksums = Checksums(pool, self.id, Surroundings(settings).facts)
        self.lease = Lease(pool, self.id)
        self.rate_limit = RateLimit(settings.metadata_ops_max)
        self.observer = Observer(pool)
        self.recovery = Recovery(pool, self.id, self.observer, self.journal)
        self.beat = Heartbeat(
            pool,
            self.lease,
            self.status,
            rate_limit=self.rate_limit,
            sample_gpu=sample_gpu,
            watch_others=self.recovery.sweep_while_busy,
            guarded=guarded,
        )
        self.shutdown = Shutdown(
            self.beat, settings.claims_max, settings.time_limit_s, allocation=settings.allocation
        )
        self.backoff = Backoff(
            pool, settings.steal_interval_s, settings.spool, stealing=settings.stealing
        )
        self.claim_source = ClaimSource(
            pool,
            self.beat,
            self.journal,
            spool=settings.spool,
            stealing=settings.stealing,
            steal_threshold=settings.steal_threshold,
            time_left_s=self._time_left_s,
            lifetime_s=self.shutdown.time_left_s,
            before_listing=self._wait_for_allowance,
        )
        self.inbox = Inbox(pool, self.id)
        self.handler_cache = HandlerCache(settings, self.beat, self.journal)
        self.claim_source.set_preferences(self.handler_cache.preferences())
        self.suspicion = Suspicion(pool)
        self.in_trouble_since: float | None = None
        self.ending = Ending(
            pool,
            self.id,
            self.claim_source,
            self.recovery,
            self.observer,
            self._report_departure,
        )
        self.taken = 0
        self.progressed = False
        """Whether anything came of its claims: one was done, or failed, or saved a checkpoint."""
        self.message = ""
        """What it reported last."""
        self.departure: Departure | None = None

    # ---- life ----

    def run(self) -> int:
        """Work until there is a reason to leave; return the exit status (see `ExitStatus`)."""
        facts = {"worker": self.id, "spool": self.settings.spool, **self.settings.slurm}
        self._patiently(lambda: self.lease.enlist(facts))
        try:
            self.shutdown.install_handlers()
            self._patiently(lambda: directories.make_private(self.pool.scratch(self.id)))
            self._patiently(self.beat.read_orders)
            self.beat.flush()
            self.beat.start()
            self.journal.write(EventKind.JOINED, spool=self.settings.spool, host=self.status.host)
            log.info("worker %s works on %s", self.id, self.settings.spool or "other spools")
            self.departure = self._loop()
            if self.departure.exit_status == ExitStatus.DRAINED and self._patiently(
                self.ending.nothing_remains
            ):
                self.departure = self._patiently(self.ending.all_ended)
        finally:
            try:
                self._leave()
            finally:
                if not self.settings.owns_process:
                    self.shutdown.restore_handlers()
        return self.departure.exit_status

    def should_requeue(self) -> bool:
        """Return, after `run`, whether SLURM should run this job again to go on with the work.

        Not if nothing at all came of a whole allocation: the next would end the same way.
        """
        ran_out_of_time = self.ending.ran_out_of_time and self.settings.time_limit_s is None
        if not (self.shutdown.is_for_allocation_end or ran_out_of_time):
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

    def _loop(self) -> Departure:
        idle_since: float | None = None
        while True:
            self.beat.step()
            if (departure := self.shutdown.departure(self.taken)) is not None:
                return self._report_departure(departure)
            try:
                departure, idle_since = self._step(idle_since)
                self.in_trouble_since = None
            except OSError as error:
                self._endure(error)
                continue
            if departure is not None:
                return departure

    def _step(self, idle_since: float | None) -> tuple[Departure | None, float | None]:
        """Do the next thing; return why to leave, if that is so, and since when it is idle."""
        if not self.shutdown.paused and (addressed := self.inbox.next()) is not None:
            self._run_addressed(addressed)
            return None, idle_since
        found = self._next()
        if found is not None:
            self.backoff.reset()
            if (departure := self._run(*found)) is not None:
                return departure, None
            self.recovery.sweep_if_due()
            return None, None
        if idle_since is None:
            idle_since = time.monotonic()
            self.beat.change(lambda status: status.become(WorkerState.IDLE))
        return self._idle(time.monotonic() - idle_since), idle_since

    def _endure(self, error: OSError) -> None:
        """Wait a little after an error of the mount that may pass; raise it if it does not (R8)."""
        now = time.monotonic()
        if error.errno not in PASSING:
            raise error
        if self.in_trouble_since is None:
            self.in_trouble_since = now
            self._report(f"{error.filename or self.pool.root}: {error.strerror}; trying again")
        if now - self.in_trouble_since >= self.pool.lease_s:
            raise error
        self.shutdown.sleep(min(TROUBLE_PAUSE_S, self.pool.lease_s / 10))

    def _next(self) -> tuple[ClaimName, str] | None:
        self._wait_for_allowance()
        due = not self.shutdown.paused and self.backoff.should_look_everywhere()
        return self.claim_source.next() if due else None

    def _run(self, name: ClaimName, spool: str) -> Departure | None:
        departure = None
        self.taken += 1
        attempt = self._attempt(self.pool, name, spool, self.handler_cache.handler)
        cause = attempt.run()
        if cause is Cause.LOST:
            self.ending.lost.add(attempt.name)
        follows = verdict(cause)
        if follows.evidence is Evidence.FOR:
            self.suspicion.note_done(name)
            self.handler_cache.note_done(name)
        elif follows.evidence is Evidence.AGAINST:
            self.suspicion.note_failed(name)
            self.handler_cache.note_failed(name)
        if follows.worker is ForWorker.LEAVE_KIND:
            self.handler_cache.note_unable(name.kind)
            why = attempt.reason.rstrip(".")
            self._report(f"claims of kind {name.kind} are left to other workers: {why}")
        elif follows.worker is ForWorker.LEAVE_IT:
            self.handler_cache.note_left(name.id)
            self._report(f"{name.id} is left to other workers: {attempt.reason}")
        elif follows.worker is ForWorker.RELOAD:
            self.handler_cache.reload(attempt.handler_name)
        elif follows.worker is ForWorker.STOP:
            departure = self._report_departure(
                Departure(LeaveReason.BROKEN, f"this worker stops: {attempt.reason}")
            )
        self.progressed |= follows.claim in ENDED_OR_CHARGED or attempt.saved
        if departure is None and self.suspicion.is_due:
            departure = self._examine_itself(name, attempt)
        self.claim_source.set_preferences(self.handler_cache.preferences())
        return departure

    def _examine_itself(self, name: ClaimName, attempt: Attempt) -> Departure | None:
        """Find out whether the claims that failed here are bad, or this worker is (R7)."""
        count = len(self.suspicion.in_a_row)
        log.info("%d claims failed here in a row; running one that is known to work", count)
        probe = Probe(
            self.pool,
            self.beat,
            self.shutdown,
            self.handler_cache.handler,
            self.settings.path_map,
        )
        handler = self.handler_cache.handlers.get(attempt.handler_name)
        try:
            known = list(self.suspicion.known_to_work(name.kind))
        except PoolError as error:
            log.debug("%s", error)
            known = []
        finding = probe.examine(known, handler, attempt.options)
        if finding.found is Found.FAILS:
            return self._report_departure(
                Departure(
                    LeaveReason.FAILURES,
                    f"this worker stops: {count} different claims failed here in a row, the last "
                    f"with: {attempt.reason.rstrip('.')}; and {finding.text.rstrip('.')}. So this "
                    f"worker's GPU or environment is broken. See: fsqueue failed {self.pool.root}",
                )
            )
        if finding.found is Found.WORKS:
            log.info("%s: the claims that failed are to blame", finding.text)
        self.suspicion.acquit()
        return None

    def _run_addressed(self, name: ClaimName) -> None:
        """Run a claim from the inbox. Its ending does not count for the planned claims."""
        pool = self.inbox.pool
        directories.make_private(pool.scratch(self.id))
        attempt = self._attempt(pool, name, self.inbox.spool, self._job_handler, addressed=True)
        if verdict(attempt.run()).worker is ForWorker.STOP:
            self._report(f"a job addressed to this worker ended badly: {attempt.reason}")
        self.claim_source.set_preferences(self.handler_cache.preferences())
        self.beat.read_orders()
        self.backoff.reset()

    def _attempt(
        self,
        pool: PoolDirectory,
        name: ClaimName,
        spool: str,
        handler: Callable[[str], Handler],
        *,
        addressed: bool = False,
    ) -> Attempt:
        return Attempt(
            pool,
            name,
            spool,
            self.beat,
            self.journal,
            handler,
            self.shutdown,
            checksums=None if addressed else self.checksums,
            path_map=self.settings.path_map,
            addressed=addressed,
        )

    def _job_handler(self, name: str) -> Handler:
        if name in JOBS:
            return JOBS[name](
                self.pool, self.id, self.handler_cache.handlers, self.handler_cache.handler
            )
        return self.handler_cache.handler(name)

    def _idle(self, idle_s: float) -> Departure | None:
        """Nothing to take now: put back what the dead held, then leave or wait a little."""
        if self.recovery.sweep(quiet=self.backoff.quiet):
            self.backoff.reset()
            return None
        for name in self.recovery.running:
            if name.owner == self.id and name not in self.ending.lost:
                # RACE: we won this claim by a rename whose reply was lost.
                log.info("resuming %s, whose take was reported as failed", name.id)
                return self._run(name, self.claim_source.any_spool())
        lingers = self.settings.keep_alive or idle_s < self.settings.linger_s
        patient = lingers or idle_s < SECOND_LOOK_S
        paused = self.shutdown.paused
        if not lingers and not (paused and self.backoff.quiet):
            departure = self.ending.seen_at_once() if patient else self.ending.nothing_left()
            if departure is not None:
                return None if self.recovery.refresh_listings(idle_s) else departure
        if EARLY_LOOK_S <= idle_s < SECOND_LOOK_S:
            self._sleep(SECOND_LOOK_S)
            return None
        self.backoff.observe((*self.recovery.view, self.beat.orders))
        # A worker that stays only for what may come within a lease must not look ever less often.
        if self.recovery.doubtful or not paused and (not patient or self.claim_source.left_claims):
            self.backoff.reset()
        if idle_s < EARLY_LOOK_S:
            self.shutdown.sleep(EARLY_LOOK_S)
        else:
            self._sleep(self.backoff.wait_s)
        return None

    def _leave(self) -> None:
        """Put back what is held, write the last status, and only then retire the lease."""
        self.shutdown.ignore_signals()
        if self.departure is not None:  # else an error ends it, and excuses nothing
            self.beat.announce_leaving()
        left_because = self.departure.reason.value if self.departure else ""
        self.beat.change(lambda status: status.stop(self.message, left_because))
        with self.beat.handling():  # a handler may take long to close; its lease is renewed
            try:
                self._put_back_everything()
                self.handler_cache.close()
                self._as_far_as_possible(self.inbox.close, "its inbox is left as it is")
                for pool in (self.pool, self.inbox.pool):
                    directories.discard(pool.scratch(self.id))
            finally:
                self.beat.stop()
        self.journal.write(EventKind.LEFT, done=self.status.claims_done, why=self.message)
        self.journal.close()
        self.checksums.close()
        self.beat.flush()
        if self.beat.lost is None:
            self._as_far_as_possible(self.lease.retire, "its lease ends by itself")

    def _as_far_as_possible(self, operation: Callable[[], object], otherwise: str) -> None:
        """Do what others will do if it cannot be done; a mount's error changes no exit status.

        A worker that leaves because of an error raises this one, too, and leaves its lease to end
        by itself: it may still hold something.
        """
        if self.departure is None:
            operation()
            return
        try:
            self._patiently(operation)
        except (OSError, PoolError) as error:
            log.warning("%s: %s (%s)", self.id, otherwise, error)

    def _patiently(self, operation: Callable[[], T]) -> T:
        return patiently(operation, self.id, self.beat, for_s=self.pool.lease_s)

    def _put_back_everything(self) -> None:
        def held() -> list[ClaimName]:
            found = claims.owned(self.pool, State.RUNNING)
            return [name for name in found if name.owner == self.id]

        try:
            names = patiently(held, self.id, self.beat, for_s=self.pool.lease_s)
        except PoolError as error:
            log.debug("%s", error)  # running/ is gone; what ended this worker says so
            return
        except OSError as error:
            log.warning("what this worker holds cannot be put back (%s)", error)
            return
        for name in names:
            self._put_back(name)

    def _put_back(self, name: ClaimName) -> None:
        try:
            spool = self.claim_source.any_spool()
            release = lambda: claims.release(self.pool, name, spool)  # noqa: E731
            patiently(release, name.id, self.beat, for_s=self.pool.lease_s)
            self.journal.write(EventKind.RELEASED, id=name.id)
        except ClaimLost:
            pass  # RACE: our lease was ended, and it was given to another meanwhile
        except (OSError, FsqueueError) as error:
            log.warning("%s could not be put back (%s); it returns within a lease", name.id, error)

    def _report(self, message: str) -> None:
        self.message = message
        log.warning("%s: %s", self.id, message)

    def _report_departure(self, departure: Departure) -> Departure:
        self._report(departure.message)
        return departure

    # ---- waiting ----

    def _time_left_s(self) -> float:
        """Return how long a claim taken now may run.

        A fresh worker refuses no claim: no other worker would have more time for it.
        """
        return self.shutdown.time_left_s() if self.taken else math.inf

    def _wait_for_allowance(self) -> None:
        self.rate_limit.wait(self.shutdown.sleep)

    def _sleep(self, seconds: float) -> None:
        """Wait for the next look, but wake for an order, or for a claim in the inbox."""
        orders = self.beat.orders
        seconds = min(seconds * random.uniform(0.9, 1.1), self.shutdown.time_left_s())
        self.shutdown.sleep(seconds, lambda: self.beat.orders != orders or self.inbox.has_claims())
        if seconds < self.pool.lease_s / BEATS_PER_LEASE:
            self.beat.read_orders()
