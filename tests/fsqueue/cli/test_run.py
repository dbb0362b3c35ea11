"""`fsqueue run`: a worker per seat, what it prints without a terminal, and its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.settings import PoolDirectory
from tests.support.planning import FOREVER, counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import (
    FSQUEUE,
    Start,
    alive,
    environment,
    fsqueue,
    leases_in,
    wait_for,
)

pytestmark = pytest.mark.slow

QUICK = ("--steal-interval", "0.2", "--interval", "0.2")


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """Six claims in two spools."""
    inputs = make_inputs(tmp_path / "in", 6)
    return plan_command(tmp_path / "pool", inputs, ("cat", "{input}"), spools=("cpu0", "cpu1"))


def pid_of(worker: str) -> int:
    """Return the process id that a worker's identity carries."""
    return int(worker.split("-")[-2])


def test_a_pool_that_is_done_at_the_end_is_status_0(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "2", *QUICK)
    assert run.returncode == 0, run.stderr
    assert counts(pool) == {"done": 6}
    assert len(leases_in(pool)) == 2
    assert fsqueue("run", pool.root, *QUICK).returncode == 0


def test_a_run_keeps_the_metrics_log(pool: PoolDirectory) -> None:
    assert fsqueue("run", pool.root, "--workers", "2", *QUICK).returncode == 0
    header, *lines = Path(pool.root, "gpu_metrics.log").read_text().splitlines()
    assert header == "timestamp,gpu_id,sequences_per_sec,compute_percent,memory_percent"
    assert {line.split(",")[1] for line in lines} == {"cpu0", "cpu1"}


def test_each_worker_gets_a_spool_in_turn(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "3", *QUICK)
    assert [run.stderr.count(f"spool {name} (as requested)") for name in ("cpu0", "cpu1")] == [2, 1]


def test_failed_claims_are_status_3(tmp_path: Path) -> None:
    argv = ("sh", "-c", "case $1 in *000) exit 1;; esac; echo fine", "sh", "{input}")
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 3), argv)
    assert fsqueue("run", pool.root, *QUICK).returncode == 3
    assert counts(pool) == {"done": 2, "failed": 1}


def test_a_pool_without_spools_is_status_2(tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    os.unlink(pool.spool_file("cpu0"))
    run = fsqueue("run", pool.root)
    assert run.returncode == 2
    assert "has no spools" in run.stderr


def test_without_a_terminal_it_prints_lines_and_no_control_codes(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "2", *QUICK)
    assert run.stdout.strip(), "not a word about what was going on"
    assert "\x1b" not in run.stdout + run.stderr


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)]
)
def test_a_signal_goes_to_every_worker_once_and_all_claims_go_back(
    start: Start, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    inputs = make_inputs(tmp_path / "in", 4)
    pool = plan_command(tmp_path / "pool", inputs, FOREVER, spools=("cpu0", "cpu1"))
    run = start("run", pool.root, "--workers", "2", *QUICK)
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "two claims to run")
    workers = [pid_of(name.owner or "") for name in names_in(pool, State.RUNNING)]
    run.send(number)
    assert run.reap() == status
    assert counts(pool) == {"waiting": 4}
    assert sorted((n.attempt, n.returns) for n in names_in(pool, State.WAITING)) == [
        (0, 0),
        (0, 0),
        (0, 1),
        (0, 1),
    ]
    assert not any(map(alive, workers))
    assert not [name for name in lease_names(pool) if name.living]


def gated(tmp_path: Path, count: int) -> PoolDirectory:
    """Plan claims that end once tmp_path/gate is there, one for each of as many spools."""
    script = 'until [ -e "$2" ]; do sleep 0.02; done; echo fine'
    return plan_command(
        tmp_path / "pool",
        make_inputs(tmp_path / "in", count),
        ("sh", "-c", script, "sh", "{input}", str(tmp_path / "gate")),
        spools=[f"cpu{n}" for n in range(count)],
        lease_s=2.0,
    )


def test_r9_a_worker_that_is_killed_is_started_again(start: Start, tmp_path: Path) -> None:
    """There is no other that could take over its claim."""
    pool = gated(tmp_path, 1)
    run = start("run", pool.root, "--workers", "1", *QUICK)
    first = wait_for(lambda: names_in(pool, State.RUNNING), "the claim to run")[0].owner or ""
    os.kill(pid_of(first), signal.SIGKILL)
    wait_for(
        lambda: [name for name in names_in(pool, State.RUNNING) if name.owner != first],
        "another worker to run it",
    )
    (tmp_path / "gate").touch()
    assert run.reap() == 0
    assert "was killed by signal 9; it is started again" in run.log
    assert [name.attempt for name in names_in(pool, State.DONE)] == [1]


def test_r9_a_holder_that_dies_after_its_peers_left_strands_nothing(
    start: Start, tmp_path: Path
) -> None:
    pool = gated(tmp_path, 1)
    run = start("run", pool.root, "--workers", "2", *QUICK)
    first = wait_for(lambda: names_in(pool, State.RUNNING), "the claim to run")[0].owner or ""
    left = lambda: "still runs elsewhere" in run.log  # noqa: E731
    wait_for(left, "the other worker to leave")
    os.kill(pid_of(first), signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert run.reap() == 0
    assert counts(pool) == {"done": 1}


def test_r9_a_closed_terminal_ends_a_run_and_its_workers_uncharged(
    start: Start, tmp_path: Path
) -> None:
    pool = gated(tmp_path, 2)
    run = start("run", pool.root, "--workers", "2", *QUICK)
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "two claims to run")
    workers = [pid_of(name.owner or "") for name in names_in(pool, State.RUNNING)]
    run.send(signal.SIGHUP)
    assert run.reap() == 129
    assert not any(map(alive, workers))
    assert counts(pool) == {"waiting": 2}
    assert {name.attempt for name in names_in(pool, State.WAITING)} == {0}


def test_r9_a_pipe_without_a_reader_ends_no_worker(tmp_path: Path) -> None:
    pool = gated(tmp_path, 1)
    reading, writing = os.pipe()
    run = subprocess.Popen(
        [*FSQUEUE, "run", pool.root, "--workers", "1", "--interval", "0.1", *QUICK],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    wait_for(lambda: ids(pool, State.RUNNING), "the claim to run")
    os.close(reading)
    (tmp_path / "gate").touch()
    _, log = run.communicate(timeout=60)
    assert run.returncode == 0, log
    assert counts(pool) == {"done": 1}


def test_r9_a_second_run_reports_the_workers_that_live_here_already(
    start: Start, tmp_path: Path
) -> None:
    pool = gated(tmp_path, 2)
    worker = start("work", pool.root, "--steal-interval", "0.2")
    wait_for(lambda: ids(pool, State.RUNNING), "a claim to run")
    run = start("run", pool.root, "--workers", "1", *QUICK)
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "two claims to run")
    (tmp_path / "gate").touch()
    assert run.reap() == 0
    assert f"a worker of this pool runs here already (process {worker.pid})" in run.log


def test_a_drained_run_is_status_75(start: Start, tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 2), FOREVER, lease_s=2.0)
    run = start("run", pool.root, *QUICK)
    wait_for(lambda: ids(pool, State.RUNNING), "a claim to run")
    assert fsqueue("drain", pool.root, "--now").returncode == 0
    assert run.reap() == 75
    assert counts(pool) == {"waiting": 2}


def test_no_work_stealing_is_handed_on(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "1", "--no-work-stealing", *QUICK)
    assert run.returncode == 5, run.stderr
    assert counts(pool) == {"done": 3, "waiting": 3}
    assert "work stealing disabled" in run.stderr


def test_nothing_but_usage_is_wrong_with_zero_workers(pool: PoolDirectory) -> None:
    assert fsqueue("run", pool.root, "--workers", "0").returncode == 2
    assert counts(pool) == {"waiting": 6}
