"""Find out whether anything is left that a worker could take, and how all has ended.

R30 (in `pool.completeness`) is kept here for workers: none leaves as if all were done before every
planned claim was seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fsqueue.pool import claims
from fsqueue.pool.completeness import Completeness, look_for_all, trouble
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import LeaveReason
from fsqueue.worker.claim_source import ClaimSource
from fsqueue.worker.recovery import Recovery
from fsqueue.worker.shutdown import Departure


class Ending:
    """What one worker, which found nothing to take, knows about the end of the work."""

    def __init__(
        self,
        pool: PoolDirectory,
        worker: str,
        claim_source: ClaimSource,
        recovery: Recovery,
        observer: Observer,
        report: Callable[[Departure], Departure],
    ) -> None:
        """`report` says why the worker leaves, and returns it."""
        self.ran_out_of_time = False
        """Whether claims waited that would not end in the time this worker had left."""
        self.lost: set[ClaimName] = set()
        """Claims that this worker took, and that turned out to be another worker's."""
        self._pool = pool
        self._worker = worker
        self._claim_source = claim_source
        self._recovery = recovery
        self._observer = observer
        self._report = report

    def seen_at_once(self) -> Departure | None:
        """Return how all has ended, if one look shows every claim done or failed (R30).

        That is proof enough. Anything else is believed only at the second look; and a worker that
        lost a claim has most likely lost its lease, which it is about to be told.
        """
        if self._recovery.running or self.lost:
            return None
        if self._claim_source.count_waiting(since=self._recovery.swept_at).all:
            return None
        found = look_for_all(self._pool, looks=1)
        return None if found.is_broken or found.remaining else _departure_of(found)

    def nothing_left(self) -> Departure | None:
        """Return why to leave if no claim that we could take waits or will come back."""
        for name in self._recovery.running:
            if name.owner != self._worker and not self._observer.sees_alive(name.owner or ""):
                return None  # its owner may be dead: then it comes back within a lease
        # Running before waiting: what its owner puts back between the two is seen where it arrives.
        waiting = self._claim_source.count_waiting(since=self._recovery.swept_at)
        if waiting.could_take:
            return None
        if waiting.hopeless and not waiting.too_long:
            return self._report(
                Departure(
                    LeaveReason.WORK_REMAINS,
                    f"{_claims_wait(waiting.hopeless)} that longer runs than this worker has time "
                    f"for did not finish. Start a worker with a longer time limit, or without one; "
                    f"what they are: fsqueue status {self._pool.root}",
                )
            )
        if waiting.too_long:
            self.ran_out_of_time = True
            return self._report(
                Departure(
                    LeaveReason.OUT_OF_TIME,
                    f"{_claims_wait(waiting.too_long)} that would not end in the time it has left",
                )
            )
        if waiting.all:
            return self._report(
                Departure(
                    LeaveReason.WORK_REMAINS,
                    f"{_claims_wait(waiting.all)} that this worker cannot or may not take",
                )
            )
        return self.all_ended()

    def nothing_remains(self) -> bool:
        """Return whether no claim runs or waits: then a drained worker left at the end anyway."""
        # Running first and last: what was put back, or taken, between two listings is seen in one.
        return not (
            claims.any_owned(self._pool, State.RUNNING)
            or self._claim_source.count_waiting(since=time.monotonic()).all
            or claims.any_owned(self._pool, State.RUNNING)
        )

    def all_ended(self) -> Departure:
        """Return how all has ended, after looking for every planned claim (R30)."""
        found = look_for_all(self._pool)
        if found.is_broken:
            return self._report(Departure(LeaveReason.CLAIMS_MISSING, trouble(self._pool, found)))
        if found.remaining:
            claims_run = "1 claim still runs" if found.remaining == 1 else "claims still run"
            return self._report(
                Departure(
                    LeaveReason.OTHERS_RUN,
                    f"{claims_run} elsewhere. If a worker dies there, what it holds waits for "
                    f"another one: fsqueue work {self._pool.root}",
                )
            )
        return _departure_of(found)


def _departure_of(found: Completeness) -> Departure:
    return Departure(LeaveReason.SOME_FAILED if found.failed else LeaveReason.ALL_DONE)


def _claims_wait(count: int) -> str:
    return "1 claim waits" if count == 1 else f"{count:,} claims wait"
