"""Ask SLURM about workers that seem dead: does their job run on, and whose fault was its end?

A worker is in doubt while it is suspect, expired or ended, or its process is gone. If it was part
of a SLURM job, squeue is a second witness:

    squeue shows its job                                  what follows
    running                                               without a beat it is only suspect, yet
    being ended                                           the same, until it is over
    requeued, preempted, cancelled, suspended, out of     its claims go back without an attempt
        time, or without its node                             being charged
    failed, out of memory, completed, or not at all       as without SLURM

squeue is asked when a worker comes into doubt, at most once in a lease, about all of them together,
and is not waited for; a worker is left alone until the answer is there. All this ends three leases
after its last beat. Where there is no squeue, or it fails, nothing is different from no SLURM.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

from fsqueue.pool.leases import Observer
from fsqueue.pool.settings import PoolDirectory
from fsqueue.slurm.allocation import Job, Question, Row, parse_rows, rows_command

log = logging.getLogger(__name__)

DOUBT_LEASES: Final = 2.5
"""A worker is in doubt from half a lease after its last beat."""
ENDING: Final = frozenset("COMPLETING CONFIGURING SIGNALING STAGE_OUT STOPPED".split())
BLAMELESS: Final = frozenset(
    "PREEMPTED CANCELLED TIMEOUT DEADLINE NODE_FAIL BOOT_FAIL REVOKED SUSPENDED PENDING REQUEUED "
    "REQUEUE_HOLD".split()
)


class JobFate(Enum):
    """What SLURM says of a worker's job."""

    OPEN = "it was not asked yet, or the job is being ended"
    RUNNING = "the job runs"
    BLAMELESS = "the job was ended, or begun again, for no fault of its own"
    UNKNOWN = "nothing that helps"


class JobFates:
    """One recoverer's dealings with squeue."""

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
        self._question: Question | None = None
        self._asked = self._answered = -math.inf
        self._failed = False
        self._told: set[str] = set()
        self._rows: dict[str, Row] = {}

    def look(self, doubtful: Iterable[str]) -> None:
        """Take the answer if there is one; ask about these workers if it is time to."""
        now = self._clock()
        self._since = {worker: self._since.get(worker, now) for worker in doubtful}
        if self._question is not None and self._question.over:
            answer = self._question.answer()
            self._rows, self._failed = parse_rows(answer or ""), answer is None
            self._answered, self._question = self._question.begun, None
        jobs = {job for worker in self._since if (job := self._job(worker)) is not None}
        if jobs and self._question is None and now - self._asked >= self._pool.lease_s:
            log.debug("asking squeue about %d jobs", len(jobs))
            self._question = Question(rows_command(jobs), clock=self._clock)
            self._asked = self._question.begun

    def defers(self, worker: str, *, gone: bool) -> bool:
        """Say whether a worker that seems dead is to be left alone for now.

        `gone`: its process or its lease is known to have ended, whatever its job does.
        """
        since = self._since.get(worker, -math.inf)
        if self._clock() - since >= DOUBT_LEASES * self._pool.lease_s:
            return False
        fate = self.fate(worker)
        if fate is JobFate.RUNNING and not gone and worker not in self._told:
            self._told.add(worker)
            log.info("%s shows no beat, but squeue shows its job running: waiting", worker)
        return fate is JobFate.OPEN or (fate is JobFate.RUNNING and not gone)

    def excuses(self, worker: str) -> bool:
        """Say whether SLURM ended a worker's job for reasons of its own."""
        return self.fate(worker) is JobFate.BLAMELESS

    def fate(self, worker: str) -> JobFate:
        """Say what SLURM told of a worker since it is in doubt."""
        job, since = self._job(worker), self._since.get(worker)
        if job is None or since is None:
            return JobFate.UNKNOWN
        if self._answered < since:
            return JobFate.UNKNOWN if self._failed else JobFate.OPEN
        row = self._rows.get(job.name)
        if row is None or row.restarts < job.restarts:
            return JobFate.UNKNOWN
        if row.restarts > job.restarts:
            return JobFate.BLAMELESS
        if row.state == "RUNNING":
            return JobFate.RUNNING
        if row.state in ENDING:
            return JobFate.OPEN
        return JobFate.BLAMELESS if row.state in BLAMELESS else JobFate.UNKNOWN

    def _job(self, worker: str) -> Job | None:
        """Return a worker's job, unless it is of another cluster: its number says nothing here."""
        job = Job.of(self._observer.facts(worker))
        elsewhere = job and job.cluster and self._cluster and job.cluster != self._cluster
        return None if elsewhere else job
