"""Ask SLURM about workers that seem dead: is their job still running, and why did it end?

A worker is in doubt while it is suspect, expired or ended, or its process is gone. If it was part
of a SLURM job, squeue is asked as well:

    squeue shows its job                                  what follows
    running                                               without a beat it is still only suspect
    ending                                                the same, until it has ended
    requeued, preempted, cancelled, suspended, out of     its claims go back without charging an
        time, or without its node                             attempt
    failed, out of memory, completed, or not at all       as without SLURM

squeue is asked when a worker comes into doubt, at most once per lease, about all such workers
together. It is not waited for; nothing happens to a worker until the answer is there, for at most
three leases after its last beat. Where there is no squeue, or it fails, all is as without SLURM.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final

from fsqueue.pool.leases import Observer
from fsqueue.pool.settings import PoolDirectory
from fsqueue.slurm.allocation import Job, Query, Row, parse_rows, rows_command

log = logging.getLogger(__name__)

DOUBT_LEASES: Final = 2.5
"""A worker is in doubt from half a lease after its last beat."""
ENDING: Final = frozenset("COMPLETING CONFIGURING SIGNALING STAGE_OUT STOPPED".split())
BLAMELESS: Final = frozenset(
    "PREEMPTED CANCELLED TIMEOUT DEADLINE NODE_FAIL BOOT_FAIL REVOKED SUSPENDED PENDING REQUEUED "
    "REQUEUE_HOLD".split()
)


class JobFate(Enum):
    """What SLURM shows about a worker's job."""

    PENDING = auto()  # there is no answer yet, or the job is ending
    RUNNING = auto()
    BLAMELESS = auto()  # it was ended or requeued for reasons that are not its own
    UNKNOWN = auto()


class JobFates:
    """What one recovering process knows from squeue."""

    def __init__(
        self,
        pool: PoolDirectory,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._observer = observer
        self._clock = clock
        self._cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
        self._since: dict[str, float] = {}
        self._query: Query | None = None
        self._asked_at = self._answered_at = -math.inf
        self._failed = False
        self._reported: set[str] = set()
        self._rows: dict[str, Row] = {}

    def look(self, doubtful: Iterable[str]) -> None:
        """Read squeue's answer if there is one; ask about these workers if it is time to."""
        now = self._clock()
        self._since = {worker: self._since.get(worker, now) for worker in doubtful}
        if self._query is not None and self._query.finished:
            answer = self._query.answer()
            self._rows, self._failed = parse_rows(answer or ""), answer is None
            self._answered_at, self._query = self._query.started, None
        jobs = {job for worker in self._since if (job := self._job(worker)) is not None}
        if jobs and self._query is None and now - self._asked_at >= self._pool.lease_s:
            log.debug("asking squeue about %d jobs", len(jobs))
            self._query = Query(rows_command(jobs), clock=self._clock)
            self._asked_at = self._query.started

    def defers(self, worker: str, *, gone: bool) -> bool:
        """Return whether to wait before a worker that seems dead is treated as dead.

        `gone`: its process or its lease is known to have ended, whatever its job does.
        """
        since = self._since.get(worker, -math.inf)
        if self._clock() - since >= DOUBT_LEASES * self._pool.lease_s:
            return False
        fate = self.fate(worker)
        if fate is JobFate.RUNNING and not gone and worker not in self._reported:
            self._reported.add(worker)
            log.info(
                "%s does not renew its lease, but squeue shows its job running: waiting", worker
            )
        return fate is JobFate.PENDING or (fate is JobFate.RUNNING and not gone)

    def excuses(self, worker: str) -> bool:
        """Return whether SLURM ended a worker's job for reasons that are not the worker's."""
        return self.fate(worker) is JobFate.BLAMELESS

    def fate(self, worker: str) -> JobFate:
        """Return what SLURM has shown about a worker since it came into doubt."""
        job, since = self._job(worker), self._since.get(worker)
        if job is None or since is None:
            return JobFate.UNKNOWN
        if self._answered_at < since:
            return JobFate.UNKNOWN if self._failed else JobFate.PENDING
        row = self._rows.get(job.name)
        if row is None or row.restarts < job.restarts:
            return JobFate.UNKNOWN
        if row.restarts > job.restarts:
            return JobFate.BLAMELESS
        if row.state == "RUNNING":
            return JobFate.RUNNING
        if row.state in ENDING:
            return JobFate.PENDING
        return JobFate.BLAMELESS if row.state in BLAMELESS else JobFate.UNKNOWN

    def _job(self, worker: str) -> Job | None:
        """Return a worker's job, unless it belongs to another cluster, whose numbers differ."""
        job = Job.of(self._observer.facts(worker))
        elsewhere = job and job.cluster and self._cluster and job.cluster != self._cluster
        return None if elsewhere else job
