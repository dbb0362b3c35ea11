"""What squeue shows about workers that seem dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.leases import Lease, Observer
from fsqueue.pool.settings import PoolDirectory
from fsqueue.slurm.job_fate import DOUBT_LEASES, JobFate, JobFates
from tests.support.fake_squeue import Squeue
from tests.support.pools import Clock, ManualWorker, make_pool, only_claim
from tests.support.processes import wait_for

LEASE_S = 30.0
FACTS = {"slurm_job_id": "18", "slurm_array_job_id": "17", "slurm_array_task_id": "3",
         "slurm_restart_count": "1", "slurm_cluster_name": "lab"}  # fmt: skip


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    return Squeue(tmp_path / "bin", monkeypatch)


class Court:
    """A worker of job 17_3 in its second run, a recoverer that doubts it, and a clock."""

    def __init__(self, pool: PoolDirectory, *, facts: dict[str, str] | None = None) -> None:
        self.clock = Clock()
        self.worker = "n4-31-abc123"
        Lease(pool, self.worker).enlist(FACTS if facts is None else facts)
        self.observer = Observer(pool, self.clock)
        self.observer.look()
        self.job_fates = JobFates(pool, self.observer, clock=self.clock)

    def doubt(self, *workers: str) -> JobFate:
        """Come into doubt, or stay in it, and wait for squeue's answer."""
        named = workers or (self.worker,)
        self.job_fates.look(named)
        query = self.job_fates._query
        if query is not None:
            wait_for(lambda: query.finished, "squeue's answer")
            self.job_fates.look(named)
        return self.job_fates.fate(self.worker)


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.30", lease_s=LEASE_S)


@pytest.fixture
def court(pool: PoolDirectory) -> Court:
    return Court(pool)


@pytest.mark.parametrize(
    "row, fate",
    [
        ("17_3 RUNNING 1", JobFate.RUNNING),
        ("17_3 COMPLETING 1", JobFate.PENDING),
        ("17_3 COMPLETING 2", JobFate.BLAMELESS),
        ("17_3 PENDING 2", JobFate.BLAMELESS),
        ("17_3 RUNNING 2", JobFate.BLAMELESS),
        ("17_3 PREEMPTED 1", JobFate.BLAMELESS),
        ("17_3 TIMEOUT 1", JobFate.BLAMELESS),
        ("17_3 NODE_FAIL 1", JobFate.BLAMELESS),
        ("17_3 CANCELLED 1", JobFate.BLAMELESS),
        ("17_3 FAILED 1", JobFate.UNKNOWN),
        ("17_3 OUT_OF_MEMORY 1", JobFate.UNKNOWN),
        ("17_3 COMPLETED 1", JobFate.UNKNOWN),
        ("17_3 RUNNING 0", JobFate.UNKNOWN),
        ("17_4 RUNNING 1", JobFate.UNKNOWN),
        ("17_3 SOMETHING_NEW 1", JobFate.UNKNOWN),
    ],
)
def test_a_jobs_state_and_restarts_decide_its_workers_fate(
    court: Court, squeue: Squeue, row: str, fate: JobFate
) -> None:
    squeue.prints(row)
    assert court.doubt() is fate
    assert court.job_fates.excuses(court.worker) == (fate is JobFate.BLAMELESS)


def test_a_running_job_vouches_for_a_silent_worker_but_not_for_a_dead_process(
    court: Court, squeue: Squeue
) -> None:
    squeue.prints("17_3 RUNNING 1")
    court.doubt()
    assert court.job_fates.defers(court.worker, gone=False)
    assert not court.job_fates.defers(court.worker, gone=True)


@pytest.mark.parametrize("row", ["17_3 RUNNING 1", "17_3 COMPLETING 1"])
def test_no_death_is_deferred_beyond_three_leases(court: Court, squeue: Squeue, row: str) -> None:
    squeue.prints(row)
    court.doubt()
    court.clock.forward(DOUBT_LEASES * LEASE_S - 0.1)
    court.doubt()
    assert court.job_fates.defers(court.worker, gone=False)
    court.clock.forward(0.1)
    court.doubt()
    assert not court.job_fates.defers(court.worker, gone=False)


def test_squeue_is_asked_once_a_lease_about_all_workers_in_doubt(
    pool: PoolDirectory, court: Court, squeue: Squeue
) -> None:
    squeue.prints("17_3 RUNNING 1")
    Lease(pool, "other").enlist(FACTS | {"slurm_array_task_id": "5"})
    court.observer.look()
    for _ in range(5):
        court.doubt(court.worker, "other")
        court.clock.forward(LEASE_S / 5 - 0.1)
    assert len(squeue.asked) == 1
    assert "--jobs=17_3,17_5 " in squeue.asked[0]
    court.clock.forward(1)
    court.doubt(court.worker, "other")
    assert len(squeue.asked) == 2


def test_an_answer_from_before_a_worker_came_into_doubt_does_not_count(
    pool: PoolDirectory, court: Court, squeue: Squeue
) -> None:
    squeue.prints("17_3 RUNNING 1", "17_5 RUNNING 1")
    Lease(pool, "other").enlist(FACTS | {"slurm_array_task_id": "5"})
    court.observer.look()
    court.doubt("other")
    court.clock.forward(1)
    assert court.doubt("other", court.worker) is JobFate.PENDING
    assert court.job_fates.defers(court.worker, gone=True)
    court.clock.forward(LEASE_S)
    assert court.doubt("other", court.worker) is JobFate.RUNNING


def test_a_worker_that_beats_again_is_doubted_afresh(court: Court, squeue: Squeue) -> None:
    squeue.prints("17_3 RUNNING 1")
    court.doubt()
    court.job_fates.look(())
    assert court.job_fates.fate(court.worker) is JobFate.UNKNOWN
    court.clock.forward(1)
    assert court.doubt() is JobFate.PENDING


@pytest.mark.parametrize("facts", [{}, {"slurm_job_id": "x"}])
def test_without_a_job_squeue_is_not_asked(
    pool: PoolDirectory, squeue: Squeue, facts: dict[str, str]
) -> None:
    court = Court(pool, facts=facts)
    assert court.doubt() is JobFate.UNKNOWN
    assert not court.job_fates.defers(court.worker, gone=False)
    assert squeue.asked == []


def test_a_job_of_another_cluster_is_not_asked_about_here(
    pool: PoolDirectory, squeue: Squeue, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue.prints("17_3 RUNNING 1")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "another")
    assert Court(pool).doubt() is JobFate.UNKNOWN
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    (Path(pool.directory("workers")) / "n4-31-abc123.b000000").unlink()
    assert Court(pool).doubt() is JobFate.RUNNING


def test_slurm_being_down_defers_nothing(court: Court, squeue: Squeue) -> None:
    assert court.doubt() is JobFate.UNKNOWN
    assert not court.job_fates.defers(court.worker, gone=False)
    assert not court.job_fates.excuses(court.worker)
    assert len(squeue.asked) == 1


def test_where_there_is_no_squeue_nothing_is_deferred(
    court: Court, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert court.doubt() is JobFate.UNKNOWN


# ---- with a recoverer ----


class Case:
    """A worker that took a claim in job 17_3 and stopped renewing, and another that recovers."""

    def __init__(self, pool: PoolDirectory) -> None:
        self.pool = pool
        self.clock = Clock()
        self.lost = ManualWorker(pool, "gpu0", enlist=False)
        self.lost.lease.enlist(FACTS | {"host": "elsewhere"})
        self._be_elsewhere()
        self.name = self.lost.take()
        self.other = ManualWorker(pool, "gpu0", clock=self.clock)
        self.job_fates = self.other.recovery._job_fates
        self.job_fates._clock = self.clock

    def _be_elsewhere(self) -> None:
        """Make the lost worker's death impossible to prove."""
        path = Path(self.pool.lease(self.lost.lease.name))
        path.write_text(path.read_text().replace('"boot": "', '"boot": "not '))

    def sweep(self, seconds: float = 0.0) -> int:
        """Let time pass, with a sweep every second; return how many claims were put back."""
        came = 0
        for _ in range(int(seconds) or 1):
            self.clock.forward(1.0)
            came += len(self.other.sweep())
            if (query := self.job_fates._query) is not None:
                wait_for(lambda query=query: query.finished, "squeue's answer")
        return came


@pytest.fixture
def case(pool: PoolDirectory) -> Case:
    return Case(pool)


def test_a_lost_worker_whose_job_was_preempted_is_charged_nothing(
    case: Case, squeue: Squeue
) -> None:
    squeue.prints("17_3 PENDING 2")
    assert case.sweep(LEASE_S) == 0
    assert case.sweep(5) == 1
    back = only_claim(case.pool, State.WAITING)
    assert (back.attempt, back.returns) == (0, 1)
    assert len(squeue.asked) == 1


@pytest.mark.parametrize("row", ["17_3 FAILED 1", ""])
def test_a_lost_worker_whose_job_failed_is_charged_an_attempt(
    case: Case, squeue: Squeue, row: str
) -> None:
    squeue.prints(row)
    assert case.sweep(LEASE_S + 5) == 1
    assert only_claim(case.pool, State.WAITING).attempt == 1


def test_a_lost_worker_whose_job_runs_is_only_suspect_until_three_leases_are_over(
    case: Case, squeue: Squeue
) -> None:
    squeue.prints("17_3 RUNNING 1")
    assert case.sweep(3 * LEASE_S - 2) == 0
    assert only_claim(case.pool, State.RUNNING) == case.name
    assert case.sweep(5) == 1
    assert only_claim(case.pool, State.WAITING).attempt == 1
    assert len(squeue.asked) <= 3


def test_a_worker_that_beats_again_in_time_keeps_its_claim(case: Case, squeue: Squeue) -> None:
    squeue.prints("17_3 RUNNING 1")
    assert case.sweep(2 * LEASE_S) == 0
    case.lost.lease.renew()
    assert case.sweep(LEASE_S / 3) == 0
    assert case.other.observer.beating(case.lost.id)
    assert only_claim(case.pool, State.RUNNING) == case.name


def test_slurm_being_down_changes_nothing_for_a_lost_worker(case: Case, squeue: Squeue) -> None:
    assert case.sweep(LEASE_S) == 0
    assert case.sweep(3) == 1
    assert only_claim(case.pool, State.WAITING).attempt == 1
    assert len(squeue.asked) == 1


def test_a_claim_found_after_its_owners_lease_was_ended_is_excused_too(
    case: Case, squeue: Squeue
) -> None:
    """The recoverer that ended the lease died before it put the claim back."""
    squeue.prints("17_3 NODE_FAIL 1")
    first = ManualWorker(case.pool, "gpu0", clock=case.clock)
    first.observer.look()
    assert first.observer.end(case.lost.id, first.id)
    assert case.sweep(3) == 1
    assert only_claim(case.pool, State.WAITING).attempt == 0
