"""The interface of a load balancer's coordinator, answered by reading the pool's directory.

There is no coordinator process: everything is on disk, and there may be any number of readers. A
GPU's id is the name of its spool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from fsqueue.monitor.alerts import imbalanced, weighted_depths
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.monitor.workers import STALL_S, WorkerRow
from fsqueue.pool.settings import PoolDirectory

log = logging.getLogger(__name__)


class WorkStealingCoordinator:
    """Reads a pool; it coordinates nothing itself."""

    def __init__(self, pool: PoolDirectory, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = Reader(pool, clock=clock)
        self._stalled: set[str] = set()
        self.pool = pool

    def snapshot(self) -> Snapshot:
        """Look at the pool now."""
        return self._reader.snapshot()

    def get_gpu_metrics(self) -> dict[str, dict[str, Any]]:
        """Return what is known about each GPU, by its id.

        `work_stolen_from` counts claims stolen from this GPU's spool, `work_stolen_to` those that
        its workers stole from others.
        """
        snapshot = self.snapshot()
        return {
            row.name: {
                "device_id": row.name,
                "device_name": row.model,
                "host": row.host,
                "uuid": row.gpu,
                "worker_ids": [w.id for w in snapshot.workers if w.living and _gpu(w) == row.name],
                "queue_depth": row.waiting.claims,
                "files_completed": row.done,
                "work_stolen_from": row.stolen_out,
                "work_stolen_to": row.stolen_in,
                "throughput": row.items_per_s,
                "last_activity_time": row.last_activity,
                "is_stalled": row.stalled,
                "timestamp": snapshot.taken_at,
            }
            for row in snapshot.spools
            if row.name
        }

    def get_recent_steal_events(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return the last steals, newest last."""
        return [
            {
                "timestamp": steal.t,
                "source_gpu": steal.source,
                "dest_gpu": steal.to,
                "file_name": steal.id,
                "cost": steal.cost,
                "worker": steal.worker,
            }
            for steal in self.snapshot().steals[-limit:]
        ]

    def detect_stalled_workers(self, stall_threshold: float = STALL_S) -> list[str]:
        """Return the GPUs whose workers hold or could take work but make no progress.

        Logs a warning when that begins, and another when it ends.
        """
        stalled: dict[str, float] = {}
        for row in self._reader.snapshot(stall_s=stall_threshold).workers:
            if row.stalled:
                stalled[_gpu(row)] = max(stalled.get(_gpu(row), 0.0), row.idle_s or 0.0)
        for gpu in sorted(stalled.keys() - self._stalled):
            log.warning("GPU %s stalled - no activity for %.0fs", gpu, stalled[gpu])
        for gpu in sorted(self._stalled - stalled.keys()):
            log.warning("GPU %s recovered", gpu)
        self._stalled = set(stalled)
        return sorted(stalled)

    def detect_imbalance(self) -> bool:
        """Return whether some spool has much more left to do than another, by their weights."""
        snapshot = self.snapshot()
        weights = {row.name: row.weight for row in snapshot.spools}
        return imbalanced(list(weighted_depths(snapshot.count, weights).values()))


def _gpu(row: WorkerRow) -> str:
    return row.status.spool or row.id
