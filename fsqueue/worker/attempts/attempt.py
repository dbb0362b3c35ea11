"""Run one claim once: read it, run its handler, publish, finish; or settle it as its verdict says.

Every way out leaves the claim in exactly one place, and records in the journal which. What the
cause of an ending means is decided by `verdicts`; this module finds the cause and carries out what
is decided for the claim.

What this module does not know: which claim to run next, or what its ending means for the worker.
"""

from __future__ import annotations

import errno
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from fsqueue.errors import (
    ClaimFailed,
    ClaimLost,
    FsqueueError,
    PoolError,
    TimedOut,
    UsageError,
)
from fsqueue.handler import Computing, Handler, Work
from fsqueue.pool import claims
from fsqueue.pool.layout import CANCEL, State, order_name
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of, requiring
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.checksums import Checksums, measure
from fsqueue.records.journal import FINISHED_FIELDS, EventKind, Journal
from fsqueue.records.status import Current, Status
from fsqueue.storage import atomic, directories
from fsqueue.worker.attempts.path_map import PathMap
from fsqueue.worker.attempts.patience import patiently
from fsqueue.worker.attempts.verdicts import Cause, ForClaim, cause_of, lacked_memory, verdict
from fsqueue.worker.handler_cache import require_output, run_handler
from fsqueue.worker.liveness.heartbeat import Heartbeat
from fsqueue.worker.shutdown import Shutdown, StopNow, TookTooLong

log = logging.getLogger(__name__)

T = TypeVar("T")

DETAIL_MAX: Final = 64 << 10
NO_OUTPUT: Final = Path()


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
    shutdown: Shutdown
    checksums: Checksums | None = None
    """Where the size and checksum of its output are recorded."""
    path_map: PathMap = field(default_factory=PathMap)
    """Where this host has what the claim names."""
    addressed: bool = False
    """Whether the claim is from the inbox."""
    reason: str = ""
    """Why it was not done."""
    saved: bool = False
    """Whether a checkpoint was saved, however the run ended."""
    handler_name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of its plan."""
    retry_requires: str = ""
    """What another worker must have, if this run fails for lack of memory (R77)."""
    _loaded_first: bool = False
    """Whether the run had to load something first, so that its time shows no rate."""
    _missing: PoolError | None = None
    """That outputs/ is gone, without which no claim can be done."""
    _in_handler: bool = False
    """Whether what was raised came out of the handler."""

    def run(self) -> Cause:
        """Run the claim, settle it, and return why the run ended."""
        started = time.monotonic()
        measures: Mapping[str, int] = {}
        error: BaseException | None = None
        try:
            cause, measures = self._work()
        except (StopNow, KeyboardInterrupt) as stopped:
            cause, error = self.shutdown.interruption() or Cause.LEAVING, stopped
        except Exception as failed:
            cause, error = self._cause(failed), failed
        seconds = time.monotonic() - started
        try:
            self._settle(cause, error, seconds)
        except ClaimLost as lost:
            cause, self.reason = Cause.LOST, str(lost)
            log.warning("%s", lost)
            self.journal.write(EventKind.LOST, id=self.name.id, reason=self.reason)
        if verdict(cause).claim is ForClaim.DONE:
            self._count(seconds, measures)
        if self._missing is not None:
            raise self._missing
        self._tidy(cause)
        if isinstance(error, KeyboardInterrupt):
            raise error
        return cause

    def _work(self) -> tuple[Cause, Mapping[str, int]]:
        """Read the claim, run its handler, publish its output. I6: before it is finished."""
        worker, id = self.beat.status.worker_id, self.name.id
        claim, handler = self._read()
        started = time.monotonic()
        final, private = "", NO_OUTPUT
        if handler.suffix is not None:
            suffix = claim.suffix or handler.suffix
            final = self.pool.output(id, suffix)
            private = Path(self.pool.unpublished(worker, id, self.name.returns, suffix))
            if self.name.returns and os.path.lexists(final):
                # I7: the worker that published it died before it finished the claim.
                self.journal.write(EventKind.ADOPTED, id=id)
                directories.discard(self.pool.partial(id))
                return Cause.ALREADY_DONE, claim.measures
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
            timeout_s=claim.timeout_s,
            worker=worker,
            code=self.pool.code(),
            note_computing=self._note_computing,
        )
        self._show_running(handler.unit)
        loaded_before = handler.loaded()
        self._run(handler, work)
        self._loaded_first = work.kind in handler.loaded() and work.kind not in loaded_before
        if final:
            self._patiently(lambda: require_output(str(private), claim.handler))
            with self.beat.handling(
                name=self.name, addressed=self.addressed
            ):  # a large output may take long to be synced
                content = measure(private) if self.checksums is not None else None
                published = self._patiently(lambda: _publish(str(private), final))
            if not published:
                self.journal.write(EventKind.ADOPTED, id=id)  # I7
            elif self.checksums is not None and content is not None:
                made = {
                    "t": round(time.time(), 3),
                    "attempt": work.attempt,
                    "returns": self.name.returns,
                    "seconds": round(time.monotonic() - started, 3),
                }
                self.checksums.record(os.path.basename(final), content, **made)  # R32, R78
        if work.saved or self.name.returns:
            directories.discard(work.partial)  # a worker killed from here on leaves none behind
        return Cause.DONE, claim.measures | work.counted

    def _run(self, handler: Handler, work: Work) -> None:
        # One that ends in time by itself may take a grace of its own, which no other need know.
        timeout_s = 0.0 if handler.ends_in_time else work.timeout_s
        try:
            with (
                self.beat.handling(timeout_s, self.name, addressed=self.addressed),
                self.shutdown.interruptible(timeout_s),
            ):
                self._in_handler = True
                run_handler(handler, work)
                self._in_handler = False
        except TookTooLong:
            raise TimedOut(
                f"it ran longer than --timeout {work.timeout_s:g} seconds and was interrupted"
            ) from None
        finally:
            self.saved = work.saved

    def _read(self) -> tuple[claims.Claim, Handler]:
        """Return the claim and its handler.

        Raises UsageError if this process cannot or may not run it: then it goes back as it was.
        """
        claim = self._patiently(lambda: claims.read_claim(self.pool, self.name))
        claim = self.path_map.claim(claim)
        if claim.spool != self.spool and claim.spool in spool_names(self.pool):
            self.spool = claim.spool
        self.handler_name, self.options = claim.handler, claim.options
        self.retry_requires = claim.retry_requires
        with self.beat.handling(name=self.name, addressed=self.addressed):  # imports may take long
            handler = self.handler_for(claim.handler)
        if handler.personal and not claim.written_by_this_user:
            raise UsageError(
                f"{self.pool.owned(State.RUNNING, self.name)} was not planned by this user, or "
                f"another user moved it; the handler {claim.handler!r} runs what a claim says, so "
                f"only its planner's workers run it. It is left to them"
            )
        return claim, handler

    # ---- how it ended ----

    def _cause(self, error: Exception) -> Cause:
        cause = cause_of(error, running=self._in_handler)
        outputs = self.pool.directory("outputs")
        if cause is Cause.FAILED and not os.path.isdir(outputs):
            gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._missing = atomic.missing_directory_error(outputs, gone)
            cause = Cause.POOL_TROUBLE
        self.reason = str(error) or type(error).__name__
        if not isinstance(error, FsqueueError):
            self.reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        if cause is Cause.LEAVING:
            if self._is_cancelled():
                return Cause.CANCELLED
            return self.shutdown.interruption() or Cause.LEAVING
        if isinstance(error, OSError) and cause is not Cause.FAILED:
            self.reason = f"{error.filename or self.pool.root}: {error.strerror or error}"
        if cause is Cause.NO_SPACE:
            self.reason += (
                ". The claim was put back; free some space, then start this worker again."
            )
        return cause

    def _settle(self, cause: Cause, error: BaseException | None, seconds: float) -> None:
        """Do with the claim what the verdict says. Raises ClaimLost; OSError after a lease."""
        fate = verdict(cause).claim
        if fate is ForClaim.DONE:
            self._patiently(lambda: claims.finish(self.pool, self.name))
            self._forget_cancel()
        elif fate is ForClaim.CANCELLED:
            self._fail(claims.CANCELLED_RUNNING, final=True)
            self._forget_cancel()
        elif fate is ForClaim.PUT_BACK:
            self._put_back(cause, seconds)
        elif fate is ForClaim.NOT_OURS:
            raise ClaimLost(self.reason)
        else:
            assert error is not None, cause
            self._fail(self._record(error), final=fate is ForClaim.IMPOSSIBLE)

    def _record(self, error: BaseException) -> dict[str, Any]:
        if isinstance(error, ClaimFailed):
            detail = error.detail
        elif isinstance(error, FsqueueError):
            detail = ""
        else:
            detail = "".join(traceback.format_exception(error))
        record: dict[str, Any] = {"error": self.reason, "detail": detail[-DETAIL_MAX:]}
        if isinstance(error, ClaimFailed) and error.returncode is not None:
            record["returncode"] = error.returncode
        return record

    def _fail(self, record: dict[str, Any], *, final: bool) -> None:
        kind = None
        if self.retry_requires and lacked_memory(record):
            kind = requiring(self.name.kind, self.retry_requires)
        became = self._patiently(
            lambda: claims.charge(self.pool, self.name, self.spool, record, final=final, kind=kind)
        )
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
        blamed = None if record.get("cancelled") else self.handler_name
        self.beat.change(lambda status: status.fail_claim(blamed))

    def _put_back(self, cause: Cause, seconds: float) -> None:
        """Release the claim; if its run saved nothing, so that its name says so."""
        vain = not self.saved and cause is not Cause.UNABLE
        self.reason = self.reason or f"{cause}"
        if vain and cause is not Cause.LEAVING:
            claims.record_vain_run(self.pool, self.name, f"{cause}: {self.reason}", seconds)
        self._patiently(lambda: claims.release(self.pool, self.name, self.spool, vain=vain))
        self.journal.write(
            EventKind.RELEASED, id=self.name.id, to=self.spool, why=cause, seconds=round(seconds, 3)
        )
        self.beat.change(Status.release_claim)

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Repeat an operation that meets a passing error of the mount, for about a lease."""
        return patiently(operation, self.name.id, self.beat, for_s=self.pool.lease_s)

    def _tidy(self, cause: Cause) -> None:
        """Remove what this run left behind, as far as possible (R3).

        What remains is harmless: each run writes its output under a name of its own.
        """
        if verdict(cause).claim is ForClaim.DONE:
            return
        scratch = self.pool.scratch(self.beat.status.worker_id)
        try:
            if not directories.empty(scratch):
                directories.make_private(scratch)
        except (OSError, PoolError) as error:
            log.debug("%s: is not tidy: %s", scratch, error)

    def _is_cancelled(self) -> bool:
        """Return whether the claim is cancelled; a retry may have undone that meanwhile."""
        if self._cancel_order in self.beat.orders:
            self._patiently(self.beat.read_orders)
        return self._cancel_order in self.beat.orders

    def _forget_cancel(self) -> None:
        """Remove an order that was obeyed, or came too late, so that it does not hit a retry."""
        if self.beat.orders and self._cancel_order in self.beat.orders:
            try:
                atomic.discard(self.pool.order(CANCEL, self.name.id))
            except OSError as error:
                log.warning("the order to cancel %s stays (%s)", self.name.id, error)

    @property
    def _cancel_order(self) -> str:
        return order_name(CANCEL, self.name.id)

    # ---- what the handler may call ----

    def _is_stopping(self) -> bool:
        orders = self.beat.orders  # nearly always empty
        return (
            self.shutdown.interruption() is not None
            or self.beat.lost is not None
            or bool(orders and self._cancel_order in orders)
        )

    def _progress(self, done: int, total: int, measures: Mapping[str, int]) -> None:
        self.beat.change(lambda status: status.note_progress(done, total, measures))

    def _note_computing(self, spent: Computing) -> None:
        self.beat.change(lambda status: status.note_computing(asdict(spent)))

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
                name, self.handler_name, seconds, total, measure_rate=measure_rate
            )
        )


def _publish(private: str, final: str) -> bool:
    """Give an output its final name (I7); return False if another attempt's stands there."""
    if os.path.lexists(final) and not os.path.lexists(private):
        return True  # RACE: with ourselves; it took effect before an error was reported
    return atomic.commit(private, final)
