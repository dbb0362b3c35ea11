"""What a worker makes of its SLURM job: what it still takes, when it leaves, if it comes back.

No Slurm is asked here: tests/slurm has the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsqueue.errors import ExitStatus
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import LeaveReason, Status, write_status
from fsqueue.slurm.allocation import Allocation
from fsqueue.worker.claim_source import ClaimSource
from fsqueue.worker.liveness.progress import Progress
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.shutdown import Shutdown, TookTooLong
from fsqueue.worker.worker import Worker
from tests.support.fake_squeue import Squeue
from tests.support.planning import FOREVER, make_inputs, names_in, plan_command
from tests.support.pools import Clock, ManualWorker, make_pool
from tests.support.processes import Start, state_of, wait_for

KIND = "trivial"


def job(seconds: float = 3600, **more: str) -> dict[str, str]:
    """Return the environment of a job that ends in so many seconds."""
    return {"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": str(int(time.time() + seconds)), **more}


# ---- what is still taken ----


def source_of(
    pool: PoolDirectory, left_s: float, *, rate: float = 0.0, model: str = "RTX 3090"
) -> ClaimSource:
    """Return the claim source of a worker with so much time left and a measured rate, if any."""
    hand = ManualWorker(pool, "gpu0")
    hand.status.model = model
    if rate:
        hand.status.rates[KIND] = rate
    return ClaimSource(
        pool,
        hand.beat,
        hand.journal,
        spool="gpu0",
        stealing=True,
        time_left_s=lambda: left_s,
    )


def taken(claim_source: ClaimSource) -> int | None:
    """Take a claim; return its cost, or None if none is taken."""
    found = claim_source.next()
    return found[0].cost if found else None


def test_claims_too_long_for_the_time_left_are_left_and_smaller_ones_taken(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.100", "b.50", "c.10", "d.9", "e.8")
    claim_source = source_of(pool, left_s=30, rate=1.0)
    assert [taken(claim_source) for _ in range(4)] == [10, 9, 8, None]
    waiting = claim_source.count_waiting()
    assert (waiting.all, waiting.could_take, waiting.too_long) == (2, 0, 2)


def test_a_claim_of_unknown_duration_is_tried(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.100", "b.50")
    assert taken(source_of(pool, left_s=1)) == 100


@pytest.mark.parametrize("model, cost", [("RTX 3090", 10), ("H100", 100)])
def test_a_rate_is_learned_from_others_on_the_same_gpu(
    tmp_path: Path, model: str, cost: int
) -> None:
    """The rate of a faster GPU would be too high, and of a slower one too low."""
    pool = make_pool(tmp_path / "pool", "a.100", "b.10")
    other = ManualWorker(pool, "gpu0")
    write_status(pool, Status(other.id, model=model, rates={KIND: 1.0}))
    assert taken(source_of(pool, left_s=30)) == cost


def test_a_fresh_worker_refuses_no_claim_as_too_long(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.100")
    worker = Worker(pool, WorkerSettings(spool="gpu0", allocation=Allocation(job(90), grace_s=60)))
    worker.status.rates[KIND] = 1.0
    assert worker._time_left_s() == float("inf")
    worker.taken = 1
    assert worker._time_left_s() < 31
    assert worker.claim_source.count_waiting().too_long == 1


# ---- whether it comes back ----


def ended_worker(tmp_path: Path, left_s: float, *, inputs: tuple[str, ...] = ("a.1",)) -> Worker:
    """Return a worker that has left its job with so much time left."""
    pool = make_pool(tmp_path / "pool", *inputs)
    worker = Worker(
        pool, WorkerSettings(spool="gpu0", allocation=Allocation(job(left_s), grace_s=0))
    )
    worker.progressed = True
    return worker


@pytest.mark.parametrize(
    "number, comes", [(signal.SIGUSR1, True), (signal.SIGTERM, False), (signal.SIGINT, False)]
)
def test_only_a_warning_is_a_reason_to_come_back(
    tmp_path: Path, number: signal.Signals, comes: bool
) -> None:
    worker = ended_worker(tmp_path, 1000)
    worker.shutdown.signal = number
    assert worker.should_requeue() is comes


def test_the_end_of_the_allocation_is_a_reason_to_requeue(tmp_path: Path) -> None:
    worker = ended_worker(tmp_path, 1.5)
    wait_for(lambda: worker.shutdown.departure(1), "the allocation to end")
    departure = worker.shutdown.departure(1)
    assert departure is not None and departure.exit_status == ExitStatus.DRAINED
    assert departure.reason is LeaveReason.ALLOCATION_ENDS
    assert worker.should_requeue()


def test_claims_that_need_more_time_than_is_left_are_a_reason_to_requeue(tmp_path: Path) -> None:
    worker = ended_worker(tmp_path, 1000)
    assert not worker.should_requeue()
    worker.ending.ran_out_of_time = True
    assert worker.should_requeue()


def test_a_drained_worker_is_not_requeued(tmp_path: Path) -> None:
    worker = ended_worker(tmp_path, 1000)
    worker.beat.orders = frozenset({"drain"})
    assert worker.shutdown.departure(1)
    assert not worker.should_requeue()


def test_no_worker_is_requeued_when_nothing_remains(tmp_path: Path) -> None:
    worker = ended_worker(tmp_path, 1000, inputs=())
    worker.shutdown.signal = signal.SIGUSR1
    assert not worker.should_requeue()


def test_claims_that_other_workers_run_are_work_that_remains(tmp_path: Path) -> None:
    worker = ended_worker(tmp_path, 1000)
    ManualWorker(worker.pool, "gpu0").take()
    worker.shutdown.signal = signal.SIGUSR1
    assert worker.should_requeue()


@pytest.mark.parametrize("left_s, comes", [(30, False), (1000, True)])
def test_a_whole_allocation_without_any_progress_is_not_repeated(
    tmp_path: Path, left_s: float, comes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    worker = ended_worker(tmp_path, left_s)
    worker.progressed = False
    worker.shutdown.signal = signal.SIGUSR1
    assert worker.should_requeue() is comes
    assert ("longer --time" in caplog.text) is not comes


# ---- signals: real processes ----


def waiting_name(pool: PoolDirectory) -> ClaimName:
    (name,) = names_in(pool, State.WAITING)
    return name


TIDY = """
    trap 'sleep 0.5; echo tidy > "$2"; exit 1' TERM
    : > "$3"
    while :; do sleep 0.05; done
"""


@pytest.mark.slow
def test_a_burst_of_slurms_signals_leaves_the_program_its_grace(
    start: Start, tmp_path: Path
) -> None:
    """Preemption sends SIGUSR1, SIGCONT and SIGTERM within 10 ms, and some SIGTERM twice."""
    tidied, begun = tmp_path / "tidied", tmp_path / "begun"
    argv = ["sh", "-c", TIDY, "sh", "{input}", str(tidied), str(begun)]
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv)
    worker = start("work", pool.root, env=job())
    wait_for(begun.exists, "the program to begin")
    for number in (signal.SIGUSR1, signal.SIGCONT, signal.SIGTERM, signal.SIGTERM):
        worker.send(number)
    assert worker.reap() == 143
    assert tidied.exists()
    assert (waiting_name(pool).attempt, waiting_name(pool).returns) == (0, 1)
    assert "stopped by SIGTERM" in worker.log


@pytest.mark.slow
def test_in_slurm_a_second_sigint_still_stops_at_once(start: Start, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = """trap ': > "$2"' TERM; while :; do sleep 0.05; done"""
    argv = ["sh", "-c", script, "sh", "{input}", str(asked)]
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv, grace=600.0)
    worker = start("work", pool.root, env=job())
    wait_for(lambda: names_in(pool, State.RUNNING), "the claim to run")
    worker.send(signal.SIGINT)
    wait_for(asked.exists, "the program to have been asked to end")
    worker.send(signal.SIGINT)
    assert worker.reap(deadline_s=10) == 130
    assert waiting_name(pool).attempt == 0


@pytest.mark.slow
def test_a_worker_leaves_before_its_allocation_ends(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only claim never ends, so nothing came of its allocation, and it is not requeued."""
    squeue = Squeue(tmp_path / "bin", monkeypatch)
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    worker = start("work", pool.root, "--grace", "60s", env=job(63))
    assert worker.reap() == 75
    assert "its allocation ends" in worker.log
    assert "longer --time" in worker.log
    assert (waiting_name(pool).attempt, waiting_name(pool).returns) == (0, 1)
    assert squeue.asked == []


@pytest.mark.slow
def test_a_handler_deaf_to_stopping_is_interrupted_half_way_to_sigkill() -> None:
    """The handler is a loop in this child, with half a second for SLURM's half a minute."""
    code = """
import signal, time, types
from fsqueue.slurm.allocation import Allocation
from fsqueue.worker import shutdown
from fsqueue.worker.liveness.progress import Progress
shutdown.KILL_WAIT_S = 0.5
allocation = Allocation({"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "x"})
beat = types.SimpleNamespace(announce_leaving=lambda: None, progress=Progress())
it = shutdown.Shutdown(beat, allocation=allocation)
it.install_handlers()
signal.raise_signal(signal.SIGUSR1)
signal.raise_signal(signal.SIGTERM)
begun = time.monotonic()
try:
    with it.interruptible():
        while True:
            time.sleep(10)
except shutdown.StopNow:
    print("interrupted", it.departure_by_signal().exit_status, 0.2 < time.monotonic() - begun < 5)
it.ignore_signals()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("interrupted 143 True\n", "")


def test_r5_the_time_in_which_a_worker_was_stopped_is_not_counted() -> None:
    """Woken together with its guardian, it first lets that say how long they stood still."""
    clock = Clock()
    progress = Progress(clock=clock)
    progress.tick(0)
    shutdown = Shutdown(SimpleNamespace(progress=progress), clock=clock)  # type: ignore[arg-type]
    alarm = partial(shutdown._on_alarm, signal.SIGALRM, None)
    with shutdown.interruptible(100.0):
        clock.forward(600.0)
        alarm()
        progress.note_stopped(590.0)
        progress.tick(0)
        alarm()
        clock.forward(90.0)
        progress.tick(0)
        with pytest.raises(TookTooLong):
            alarm()


def test_r5_a_guardian_that_says_nothing_does_not_keep_a_claim_from_its_timeout() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.tick(0)
    shutdown = Shutdown(SimpleNamespace(progress=progress), clock=clock)  # type: ignore[arg-type]
    with shutdown.interruptible(100.0):
        clock.forward(101.0)
        shutdown._on_alarm(signal.SIGALRM, None)
        clock.forward(2.0)
        with pytest.raises(TookTooLong):
            shutdown._on_alarm(signal.SIGALRM, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["exec sleep 1000", "trap 'exit 143' TERM; while :; do sleep 0.05; done"]
)
def test_a_program_stopped_together_with_its_worker_has_not_failed(
    start: Start, tmp_path: Path, script: str
) -> None:
    """SLURM's SIGTERM goes to every process of a job, and may reach the program first."""
    begun = tmp_path / "begun"
    argv = [
        "sh",
        "-c",
        f'echo $$ > "$2.tmp"; mv "$2.tmp" "$2"; {script}',
        "sh",
        "{input}",
        str(begun),
    ]
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv)
    worker = start("work", pool.root)
    wait_for(begun.exists, "the program to begin")
    program = int(begun.read_text())
    os.kill(program, signal.SIGTERM)
    wait_for(lambda: state_of(program) == "", "the worker to see the program's end")
    worker.send(signal.SIGTERM)
    assert worker.reap() == 143
    assert (waiting_name(pool).attempt, waiting_name(pool).returns) == (0, 1)
    assert os.listdir(pool.directory("errors")) == []


def test_an_allocation_of_unknown_end_limits_nothing(tmp_path: Path) -> None:
    clock = Clock()
    allocation = Allocation({"SLURM_JOB_ID": "17"}, clock=clock)
    clock.forward(1e9)
    assert allocation.left_s() > 1e9
