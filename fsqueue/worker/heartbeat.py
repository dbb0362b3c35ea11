"""Renew the lease and write the status from a thread, however long a batch keeps the worker busy.

This is a worker's only thread beside the main one. They share `status`, which changes only under
`lock`; `lost` and `orders`, written here and read by the main thread; and `_finished`, an event.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from fsqueue.errors import FsqueueError, LeaseLost, NotSupportedError
from fsqueue.pool.layout import ORDER
from fsqueue.pool.leases import BEATS_PER_LEASE, Lease
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.pool.status import Status, write_status
from fsqueue.storage import atomic
from fsqueue.storage.operation_count import operations
from fsqueue.worker.backoff import RateLimit
from fsqueue.worker.progress import Progress

log = logging.getLogger(__name__)

STATUS_BUSY_S: Final = 2.0
STATUS_QUIET_S: Final = 30.0


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
        guarded: bool = False,
    ) -> None:
        """`sample_gpu` returns the GPU's last known use without waiting.

        `guarded`: a process beside this one renews the lease, if one can be started; else the
        thread does.
        """
        super().__init__(name="heartbeat", daemon=True)
        self.lock = threading.Lock()
        self.status = status
        self.lost: LeaseLost | None = None
        """Set once this worker was declared dead."""
        self.orders: frozenset[str] = frozenset()
        self.progress = Progress()
        self._guarded = guarded
        self._pool = pool
        self._lease = lease
        self._rate_limit = rate_limit
        self._sample_gpu = sample_gpu
        self._changed = False
        self._missed = 0
        self._orders_unreadable = False
        self._counted = operations.total, time.monotonic(), 0.0
        self._finished = threading.Event()

    def change(self, how: Callable[[Status], None]) -> None:
        """Change the status under `lock`; it is written at the next opportunity."""
        with self.lock:
            how(self.status)
            self._changed = True

    # ---- what the main thread says ----

    def step(self) -> None:
        """Say that the main thread is getting on; call it outside handlers, at least every beat."""
        self.progress.step()

    def handling(
        self,
        timeout_s: float = 0.0,
        name: ClaimName | None = None,
        *,
        addressed: bool = False,
    ) -> AbstractContextManager[None]:
        """Say that a handler runs `name`, which may be silent for as long as it likes.

        Also around anything else that may rightly take longer than a lease, such as publishing a
        large output. `timeout_s` (0: none): what runs longer than that, and some grace, is ended
        with this process. `addressed`: the claim is in the inbox, and not in the pool itself.
        """
        return self.progress.handling(timeout_s, str(name or ""), addressed=addressed)

    def announce_leaving(self) -> None:
        """Say in the lease's name that this worker leaves; may be called from a signal handler."""
        self.progress.announce_leaving()

    # ---- beating ----

    def start(self) -> None:
        """Begin to beat. Raises NotSupportedError if the process cannot start a thread."""
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
        last_beat = last_status = time.monotonic()
        while not self._finished.wait(min(beat_s / 4, 0.5)):
            now = time.monotonic()
            if now - last_beat >= beat_s and self.lost is None:
                if now - last_beat > self._pool.lease_s / 2:
                    log.warning(
                        "a beat came %.1f s late: was this process stopped?", now - last_beat
                    )
                self._beat()
                last_beat = now
            age_s = now - last_status
            if age_s >= (STATUS_BUSY_S if self._changed else STATUS_QUIET_S):
                self.flush()
                last_status = now

    def _beat(self) -> None:
        try:
            self._lease.renew()
            self._missed = 0
        except LeaseLost as error:
            self.lost = error
        except (OSError, FsqueueError) as error:
            self._missed += 1
            if self._missed == 2:  # not for one miss, and only once in a long outage
                log.warning("the lease could not be renewed (%s); trying again", error)
        try:
            self.read_orders()
            self._orders_unreadable = False
        except (OSError, FsqueueError) as error:
            if not self._orders_unreadable and not self._missed:
                log.warning("orders cannot be read (%s); trying again", error)
            self._orders_unreadable = True

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
                    self.status.gpu = gpu
                self._count_operations()
                write_status(self._pool, self.status)
        except Exception as error:
            # Whatever a GPU driver raises: this thread must survive, as it also renews the lease.
            log.debug("the status could not be written: %s", error)

    def _count_operations(self) -> None:
        count, since, waited_s = self._counted
        now_waited_s = self._rate_limit.waited_s if self._rate_limit is not None else 0.0
        self._counted = now_count, now, _ = operations.total, time.monotonic(), now_waited_s
        passed_s = max(now - since, 0.1)
        self.status.metadata_ops += now_count - count
        self.status.metadata_ops_per_s = round((now_count - count) / passed_s, 3)
        self.status.held_back = round(min(1.0, (now_waited_s - waited_s) / passed_s), 3)

    def stop(self) -> None:
        """End the thread."""
        self._finished.set()
        if self.is_alive():
            self.join(timeout=10.0)
