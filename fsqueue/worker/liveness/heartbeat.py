"""Renew the lease and write the status, however long a batch keeps the worker busy.

A worker's lease is renewed by the process beside it (`guardian`), or, where none can be started, by
the thread here. This is a worker's only thread beside the main one. They share `status`, which
changes only under `lock`; `lost` and `orders`, written here and read by the main thread;
`progress`, written there and read here; and `_finished`, an event.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from fsqueue.errors import FsqueueError, LeaseLost, NotSupportedError
from fsqueue.pool.layout import ORDER
from fsqueue.pool.leases import BEATS_PER_LEASE, Lease
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import Status, write_status
from fsqueue.storage import atomic
from fsqueue.storage.operation_count import operations
from fsqueue.storage.untrusted import number
from fsqueue.worker.backoff import RateLimit
from fsqueue.worker.liveness.guardian import GuardianProcess
from fsqueue.worker.liveness.progress import GRACE_S, Progress, Silence

log = logging.getLogger(__name__)

STATUS_BUSY_S: Final = 2.0
STATUS_QUIET_S: Final = 30.0
POWER_MAX: Final = 10_000.0
"""In watts: no GPU takes more."""


class Heartbeat(threading.Thread):
    """Start it after enlisting; `stop` it before retiring."""

    def __init__(
        self,
        pool: PoolDirectory,
        lease: Lease,
        status: Status,
        *,
        rate_limit: RateLimit | None = None,
        sample_gpu: Callable[[], dict[str, Any]] | None = None,
        watch_others: Callable[[], object] | None = None,
        guarded: bool = False,
    ) -> None:
        """`sample_gpu` returns the GPU's last known use without waiting. `watch_others` is called
        now and then while a handler runs, to look for dead workers (R14 in `recovery`).

        `guarded`: a process beside this one renews the lease, if one can be started.
        """
        super().__init__(name="heartbeat", daemon=True)
        self.lock = threading.Lock()
        self.status = status
        self.lost: LeaseLost | None = None
        """Set once this worker was declared dead."""
        self.orders: frozenset[str] = frozenset()
        self._pool = pool
        self._lease = lease
        self._rate_limit = rate_limit
        self._sample_gpu = sample_gpu
        self._sampled_at: float | None = None
        self._watch_others = watch_others
        self._guardian = self._prepare_guardian() if guarded else None
        self.progress = self._guardian.progress if self._guardian is not None else Progress()
        self._guardian_cost = 0
        self._changed = False
        self._missed = 0
        self._outage_reported = False
        self._orders_unreadable = self._watching_fails = False
        self._counted = operations.total, time.monotonic(), 0.0
        self._own_count = 0
        self._finished = threading.Event()

    def _prepare_guardian(self) -> GuardianProcess | None:
        try:
            return GuardianProcess(self._pool, self._lease)
        except OSError as error:
            log.warning("no memory can be shared with another process (%s)", error)
            return None

    def change(self, how: Callable[[Status], None]) -> None:
        """Change the status under `lock`; it is written at the next opportunity."""
        with self.lock:
            how(self.status)
            self._changed = True

    # ---- what the main thread says ----

    def step(self) -> None:
        """Say that the main thread is getting on.

        Call it outside handlers, at least at every beat. Operations on the file system count, too.
        A main thread that never called it is not watched.
        """
        self.progress.step()

    @contextmanager
    def handling(
        self,
        timeout_s: float = 0.0,
        name: ClaimName | None = None,
        *,
        addressed: bool = False,
        grace_s: float = GRACE_S,
    ) -> Iterator[None]:
        """Say that a handler runs `name`, which may be silent for as long as it likes.

        Also around anything else that may rightly take longer than a lease, such as importing a
        handler or publishing a large output; one inside another replaces it for that time.
        `timeout_s` (0: none): what runs longer than that, and the grace, is ended with this process
        (if it is guarded). `addressed`: the claim is in the inbox, and not in the pool itself.
        """
        claim = str(name or "")
        with self.progress.handling(timeout_s, claim, addressed=addressed, grace_s=grace_s):
            yield

    def announce_leaving(self) -> None:
        """Say in the lease's name that this worker leaves; may be called from a signal handler."""
        self.progress.announce_leaving()
        if self._guardian is not None:
            self._guardian.wake()

    # ---- beating ----

    def start(self) -> None:
        """Begin to beat. Raises NotSupportedError if the process cannot start a thread."""
        if self._guardian is not None:
            try:
                self._guardian.start()
            except (OSError, ValueError) as error:
                self._renew_in_this_thread(f"cannot be started ({error})")
        try:
            super().start()
        except RuntimeError as error:
            raise NotSupportedError(
                f"no thread can be started here to renew the lease ({error}): the process limit is "
                f"reached. Raise it (ulimit -u, or the pids limit of the job or container), then "
                f"start this worker again."
            ) from error

    def run(self) -> None:
        """Beat until stopped or lost."""
        beat_s = self._pool.lease_s / BEATS_PER_LEASE
        silence = Silence(self.progress, self._pool.lease_s, time.monotonic)
        last_beat = last_status = last_watch = time.monotonic()
        self._own_count = operations.total
        while not self._finished.wait(min(beat_s / 4, 0.5)):
            self._note_operations()
            self._look_at_guardian()
            now = time.monotonic()
            silent_s = silence.look()
            leaves = self.progress.leaving and not self._lease.name.leaving
            due = now - last_beat >= beat_s or leaves and self._guardian is None
            if due and self.lost is None:
                if self._guardian is None and now - last_beat > self._pool.lease_s / 2:
                    log.warning(
                        "a beat came %.1f s late: was this process stopped?", now - last_beat
                    )
                self._beat(silent_s)
                last_beat = now
            if now - last_watch >= self._pool.lease_s / 2:
                self._watch()
                last_watch = now
            age_s = now - last_status
            if age_s >= (STATUS_BUSY_S if self._changed else STATUS_QUIET_S):
                self.flush()
                last_status = now
            self._own_count = operations.total

    def _note_operations(self) -> None:
        """Note that the main thread got on if the file system was used while this one slept."""
        if operations.total != self._own_count and self.progress.stepped:
            self.progress.step()

    def _beat(self, silent_s: float = 0.0) -> None:
        if self._guardian is None:
            self._renew(silent_s)
        try:
            self.read_orders()
            self._orders_unreadable = False
        except (OSError, FsqueueError) as error:
            if not self._orders_unreadable and not self._missed:
                log.warning("orders cannot be read (%s); trying again", error)
            self._orders_unreadable = True

    def _renew(self, silent_s: float) -> None:
        """Renew the lease, unless the main thread is stuck (R10 in `guardian`)."""
        try:
            if silent_s >= 2 * self._pool.lease_s:
                raise LeaseLost(self._lease.give_up(leaving=True))
            if silent_s < self._pool.lease_s:
                self._lease.renew(leaving=self.progress.leaving)
            self._note_missed(0)
        except LeaseLost as error:
            self.lost = error
        except (OSError, FsqueueError) as error:
            self._note_missed(self._missed + 1, str(error))

    def _note_missed(self, missed: int, reason: str = "") -> None:
        """Report an outage: not for one miss, and only once in a long one."""
        self._missed = missed
        if missed >= 2 and not self._outage_reported:
            log.warning("the lease could not be renewed (%s); trying again", reason)
        self._outage_reported = missed >= 2

    def _watch(self) -> None:
        """Look for dead workers while the main thread is busy with a handler."""
        if self._watch_others is None or not self.progress.in_handler or self.lost is not None:
            return
        try:
            self._watch_others()
            self._watching_fails = False
        except Exception as error:  # this thread must survive
            if not self._watching_fails:
                log.warning("other workers could not be looked at (%s); trying again", error)
            self._watching_fails = True

    # ---- the process that renews the lease ----

    def _look_at_guardian(self) -> None:
        """Learn what the guardian did; take over from it if it has ended."""
        if (guardian := self._guardian) is None:
            return
        progress, cost = self.progress, self.progress.operations
        operations.total += cost - self._guardian_cost
        self._guardian_cost = cost
        self._lease.name = progress.beat_of(self._lease.name.worker)
        if progress.lost:
            self.lost = self.lost or LeaseLost(progress.reason)
        else:
            self._note_missed(progress.missed, progress.reason)
        guardian.end_if_stopped(self._pool.lease_s / 2)
        if guardian.has_ended() and not self._finished.is_set():
            # After its end, and not before: it may have got further than we have seen.
            self._lease.name = progress.beat_of(self._lease.name.worker)
            self._renew_in_this_thread("has ended")

    def _renew_in_this_thread(self, why: str) -> None:
        self._guardian = None
        log.warning(
            "the process that renews this worker's lease %s; a thread does so instead, which a "
            "handler can keep from its work",
            why,
        )

    def read_orders(self) -> None:
        """List control/ once: drain, pause, stop, cancel@ID and the like."""
        found = atomic.names(self._pool.directory("control"))
        self.orders = frozenset(filter(ORDER.fullmatch, found))

    def flush(self) -> None:
        """Write the status now. A status that cannot be written never stops the work (I8)."""
        try:
            gpu = self._sample_gpu() if self._sample_gpu else None
            with self.lock:
                self._changed = False
                if gpu is not None:
                    self._note_gpu(gpu)
                self._count_operations()
                write_status(self._pool, self.status)
        except Exception as error:
            # Whatever a GPU driver raises: this thread must survive, as it also renews the lease.
            log.debug("the status could not be written: %s", error)

    def _note_gpu(self, gpu: dict[str, Any]) -> None:
        """Note a GPU's use, and add up its energy from its power at each look.

        Of a GPU that several workers share, each counts its part.
        """
        now, watts = time.monotonic(), number(gpu.get("power_watts"))
        if self._sampled_at is not None and watts is not None and 0 <= watts < POWER_MAX:
            sharing = max(1.0, number(gpu.get("workers")) or 1.0)
            self.status.energy_wh += watts / sharing * (now - self._sampled_at) / 3600
        self._sampled_at = now
        self.status.gpu = gpu

    def _count_operations(self) -> None:
        count, since, waited_s = self._counted
        now_waited_s = self._rate_limit.waited_s if self._rate_limit is not None else 0.0
        self._counted = now_count, now, _ = operations.total, time.monotonic(), now_waited_s
        passed_s = max(now - since, 0.1)
        self.status.metadata_ops += now_count - count
        self.status.metadata_ops_per_s = round((now_count - count) / passed_s, 3)
        self.status.held_back = round(min(1.0, (now_waited_s - waited_s) / passed_s), 3)

    def stop(self) -> None:
        """End the thread, and the process that renews the lease."""
        self._finished.set()
        if self.is_alive():
            self.join(timeout=10.0)
        if self._guardian is not None:
            self._lease.name = self._guardian.stop()
            self._guardian = None
            if self.progress.lost:
                self.lost = self.lost or LeaseLost(self.progress.reason)
