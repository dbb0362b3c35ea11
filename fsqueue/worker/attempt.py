"""Run one claim once: read it, run its handler, publish, finish; or record why not.

Every way out leaves the claim in exactly one place, and records in the journal which.

What this module does not know: which claim to run next, or what its ending means for the worker.
"""

from __future__ import annotations

import errno
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from fsqueue.errors import (
    BadInput,
    ClaimFailed,
    ClaimImpossible,
    ClaimLost,
    FsqueueError,
    Interrupted,
    NotSupportedError,
    PoolError,
    UsageError,
    WorkerBroken,
)
from fsqueue.handler import Handler, Work
from fsqueue.pool import claims
from fsqueue.pool.journal import FINISHED_FIELDS, EventKind, Journal
from fsqueue.pool.layout import CANCEL, State, order_name
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.pool.status import Current, Status
from fsqueue.storage import atomic, directories
from fsqueue.worker.handler_cache import run_handler
from fsqueue.worker.heartbeat import Heartbeat
from fsqueue.worker.shutdown import StopNow

log = logging.getLogger(__name__)

NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
DETAIL_MAX: Final = 64 << 10
NO_OUTPUT: Final = Path()


class Ending(Enum):
    """How a run of a claim ended."""

    DONE = auto()
    FAILED = auto()
    RELEASED = auto()
    UNABLE = auto()  # this worker lacks what the claim needs: a handler, a model
    LOST = auto()
    BROKEN = auto()  # this process must not go on


@dataclass(slots=True)
class Attempt:
    """One run of one claim by this worker."""

    pool: PoolDirectory
    name: ClaimName
    spool: str
    """Where it was taken from, and goes back to."""
    beat: Heartbeat
    journal: Journal
    handler_for: Callable[[str], Handler]
    is_stopping: Callable[[], bool]
    reason: str = ""
    saved: bool = False
    """Whether a checkpoint was saved, however the run ended."""
    _loaded_first: bool = False
    """Whether the run had to load something first, so that its time shows no rate."""
    _handler_name: str = ""

    def run(self) -> Ending:
        """Run the claim to one of its endings."""
        started = time.monotonic()
        try:
            try:
                measures = self._work()
            except (StopNow, KeyboardInterrupt):
                self._put_back()
                raise
            except Exception as error:
                self._clear_scratch()
                return self._ended_by(error)
            claims.finish(self.pool, self.name)
            self._forget_cancel()
        except ClaimLost as error:
            self.reason = str(error)
            log.warning("%s", error)
            self.journal.write(EventKind.LOST, id=self.name.id, reason=self.reason)
            return Ending.LOST
        self._count(time.monotonic() - started, measures)
        return Ending.DONE

    def _clear_scratch(self) -> None:
        """Remove what this attempt wrote: the next must not publish half an output as its own."""
        scratch = self.pool.scratch(self.beat.status.worker_id)
        if not directories.empty(scratch):
            directories.make_private(scratch)  # or the next attempt would fail as well

    def _work(self) -> Mapping[str, int]:
        """Read the claim, run its handler, publish its output. I6: before it is finished."""
        worker, id = self.beat.status.worker_id, self.name.id
        claim, handler = self._read()
        final, private = "", NO_OUTPUT
        if handler.suffix is not None:
            suffix = claim.suffix or handler.suffix
            final = self.pool.output(id, suffix)
            private = Path(self.pool.unpublished(worker, id, self.name.returns, suffix))
            if self.name.returns and os.path.lexists(final):
                # I7: the worker that published it died before it finished the claim.
                self.journal.write(EventKind.ADOPTED, id=id)
                directories.discard(self.pool.partial(id))
                return claim.measures
        work = Work(
            id=id,
            kind=base_of(self.name.kind),
            cost=self.name.cost,
            attempt=self.name.attempt,
            payload=claim.payload,
            options=claim.options,
            output=private,
            partial=self.pool.partial(id),
            is_stopping=self._is_stopping,
            report=self._progress,
            warn=self._warn,
            worker=worker,
        )
        self._show_running(handler.unit)
        loaded_before = handler.loaded()
        try:
            run_handler(handler, work)
        finally:
            self.saved = work.saved
        self._loaded_first = work.kind in handler.loaded() and work.kind not in loaded_before
        if final:
            if not os.path.isfile(private):
                # Not ClaimImpossible: a worker that declared this one dead may have removed it.
                raise ClaimFailed(
                    f"the handler {claim.handler!r} returned without writing its output"
                )
            if not atomic.commit(str(private), final):
                self.journal.write(EventKind.ADOPTED, id=id)  # I7
        if work.saved or self.name.returns:
            directories.discard(work.partial)
        return claim.measures | work.counted

    def _read(self) -> tuple[claims.Claim, Handler]:
        """Return the claim and its handler.

        Raises UsageError if this process cannot or may not run it: then it goes back as it was.
        """
        claim = claims.read_claim(self.pool, self.name)
        if claim.spool != self.spool and claim.spool in spool_names(self.pool):
            self.spool = claim.spool
        self._handler_name = claim.handler
        handler = self.handler_for(claim.handler)
        if handler.personal and not claim.written_by_this_user:
            raise UsageError(
                f"{self.pool.owned(State.RUNNING, self.name)} was not planned by this user, or "
                f"another user moved it; the handler {claim.handler!r} runs what a claim says, so "
                f"only its planner's workers run it. It is left to them"
            )
        return claim, handler

    def _ended_by(self, error: Exception) -> Ending:
        """Settle a claim whose run raised `error`. Raises ClaimLost."""
        if isinstance(error, ClaimLost):
            raise error
        self.reason = str(error) or type(error).__name__
        if isinstance(error, Interrupted) and self._is_cancelled():
            ending = self._fail(claims.CANCELLED_RUNNING, final=True)
            self._forget_cancel()
            return ending
        if isinstance(error, Interrupted):
            self._put_back()
            return Ending.RELEASED
        if isinstance(error, UsageError | NotSupportedError):
            self._put_back()
            return Ending.UNABLE
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            self.reason = (
                f"{error.filename or self.pool.root}: {error.strerror}. The claim was put back; "
                f"free some space, then start this worker again."
            )
            self._put_back()
            return Ending.BROKEN
        final = isinstance(error, ClaimImpossible | PoolError | BadInput)
        ending = self._fail(self._record(error), final=final)
        return Ending.BROKEN if isinstance(error, WorkerBroken) else ending

    def _record(self, error: Exception) -> dict[str, Any]:
        if isinstance(error, ClaimFailed):
            detail = error.detail
        elif isinstance(error, FsqueueError):
            detail = ""
        else:
            detail = "".join(traceback.format_exception(error))
            self.reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        record: dict[str, Any] = {"error": self.reason, "detail": detail[-DETAIL_MAX:]}
        if isinstance(error, ClaimFailed) and error.returncode is not None:
            record["returncode"] = error.returncode
        return record

    def _fail(self, record: dict[str, Any], *, final: bool) -> Ending:
        became = claims.charge(self.pool, self.name, self.spool, record, final=final)
        last = became.owner is not None
        log.warning(
            "%s failed (attempt %d%s): %s",
            self.name.id,
            self.name.attempt,
            ", the last" if last else "",
            record["error"],
        )
        cause = {key: record[key] for key in ("error", "returncode") if key in record}
        self.journal.write(
            EventKind.FAILED, id=self.name.id, attempt=self.name.attempt, last=last, **cause
        )
        blamed = None if record.get("cancelled") else self._handler_name
        self.beat.change(lambda status: status.fail_claim(blamed))
        return Ending.FAILED

    def _is_cancelled(self) -> bool:
        """Return whether the claim is cancelled; a retry may have undone that meanwhile."""
        if self._cancel_order in self.beat.orders:
            self.beat.read_orders()
        return self._cancel_order in self.beat.orders

    def _forget_cancel(self) -> None:
        """Remove an order that was obeyed, or came too late, so that it does not hit a retry."""
        if self.beat.orders and self._cancel_order in self.beat.orders:
            atomic.discard(self.pool.order(CANCEL, self.name.id))

    @property
    def _cancel_order(self) -> str:
        return order_name(CANCEL, self.name.id)

    def _put_back(self) -> None:
        claims.release(self.pool, self.name, self.spool)
        self.journal.write(EventKind.RELEASED, id=self.name.id, to=self.spool)
        self.beat.change(Status.release_claim)

    # ---- what the handler may call ----

    def _is_stopping(self) -> bool:
        orders = self.beat.orders  # nearly always empty
        return (
            self.is_stopping()
            or self.beat.lost is not None
            or bool(orders and self._cancel_order in orders)
        )

    def _progress(self, done: int, total: int, measures: Mapping[str, int]) -> None:
        self.beat.change(lambda status: status.note_progress(done, total, measures))

    def _warn(self, text: str) -> None:
        log.warning("%s: %s", self.name.id, text)
        self.journal.write(EventKind.WARNING, id=self.name.id, text=text)

    # ---- what is shown ----

    def _show_running(self, unit: str) -> None:
        name, now = self.name, time.time()
        current = Current(name.id, name.kind, name.cost, name.attempt, self.spool, now, unit=unit)
        self.beat.change(lambda status: status.start_claim(current))

    def _count(self, seconds: float, measures: Mapping[str, int]) -> None:
        name, current, total = self.name, self.beat.status.current, measures
        if current is not None and current.measures:
            total = {**current.measures, **measures}
        counters = {key: n for key, n in total.items() if key not in FINISHED_FIELDS}
        self.journal.claim(EventKind.FINISHED, name, seconds=round(seconds, 6), **counters)
        measure_rate = not self._loaded_first
        self.beat.change(
            lambda status: status.finish_claim(
                name, self._handler_name, seconds, total, measure_rate=measure_rate
            )
        )
