"""A worker's life, in real processes: what it takes, when it leaves, and its exit status."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from fsqueue.handler import Handler
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.settings import PoolDirectory
from tests.support.handlers import install_handler
from tests.support.planning import (
    FOREVER,
    counts,
    ids,
    make_inputs,
    names_in,
    plan,
    plan_command,
)
from tests.support.pools import ManualWorker
from tests.support.processes import Start, fsqueue, leases_in, wait_for

pytestmark = pytest.mark.slow

QUICK = ("--steal-interval", "0.2")
CAT = ("cat", "{input}")


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """Five claims that succeed, in one spool."""
    return plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 5), CAT)


def pool_of(tmp_path: Path, verdicts: str, *, attempts: int = 1) -> PoolDirectory:
    """Plan one claim per letter, run in this order: `.` succeeds, `F` fails."""
    paths = make_inputs(tmp_path / "in", len(verdicts))
    for index, (path, verdict) in enumerate(zip(paths, verdicts, strict=True)):
        path.write_text(verdict * (len(verdicts) - index))
    script = 'case $(cat "$1") in *F*) echo broken >&2; exit 1;; esac'
    argv = ("sh", "-c", script, "sh", "{input}")
    return plan_command(tmp_path / "pool", paths, argv, attempts=attempts)


def events(pool: PoolDirectory) -> list[dict[str, object]]:
    """Return the events in all workers' journals."""
    paths = Path(pool.directory("events")).glob("*.jsonl")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def plan_made(
    tmp_path: Path, name: str, source: str, count: int = 1
) -> tuple[PoolDirectory, dict[str, str]]:
    """Plan `count` claims for a test handler; return the environment in which it is installed."""
    env = install_handler(tmp_path / "site", name, source)
    handler = Handler()
    handler.name = name
    inputs = make_inputs(tmp_path / "in", count)
    pool, _ = plan(tmp_path / "pool", handler, [*inputs], {}, attempts=2)
    return pool, env


# ---- exit status ----


def test_a_worker_that_did_everything_leaves_with_0(pool: PoolDirectory) -> None:
    run = fsqueue("work", pool.root)
    assert run.returncode == 0, run.stderr
    assert counts(pool) == {"done": 5}
    assert fsqueue("check", pool.root).returncode == 0
    assert fsqueue("work", pool.root).returncode == 0


def test_a_worker_leaves_nothing_behind_but_outputs_and_records(pool: PoolDirectory) -> None:
    assert fsqueue("work", pool.root).returncode == 0
    assert sorted(os.listdir(pool.directory("outputs"))) == [
        f"{id}.out" for id in ids(pool, State.DONE)
    ]
    (lease,) = leases_in(pool)
    assert lease.endswith(".left")
    assert [os.listdir(pool.directory(name)) for name in ("running", "partial", "errors")] == [
        [],
        [],
        [],
    ]


def test_failed_claims_make_it_leave_with_3(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, ".F.")
    assert fsqueue("work", pool.root).returncode == 3
    assert counts(pool) == {"done": 2, "failed": 1}


def test_work_that_it_cannot_take_makes_it_leave_with_5_and_stays(tmp_path: Path) -> None:
    env = install_handler(tmp_path / "site", "elsewhere", "import fsqueue\nMade = fsqueue.Handler")
    inputs = make_inputs(tmp_path / "in", 2)
    planned = fsqueue("plan", "elsewhere", tmp_path / "pool", *inputs, "--gpus", "cpu", env=env)
    assert planned.returncode == 0, planned.stderr
    run = fsqueue("work", tmp_path / "pool", *QUICK)
    assert run.returncode == 5
    assert "no handler is called 'elsewhere'" in run.stderr
    waiting = os.listdir(tmp_path / "pool/spools/cpu0")
    assert len(waiting) == 2
    assert all(".a0." in name for name in waiting)


def test_a_handler_that_cannot_be_imported_costs_no_attempt(tmp_path: Path) -> None:
    pool, env = plan_made(tmp_path, "needy", "import a_package_that_is_not_here\n", count=4)
    run = fsqueue("work", pool.root, *QUICK, env=env)
    assert run.returncode == 5
    assert "a_package_that_is_not_here" in run.stderr
    assert "Traceback" not in run.stderr
    assert {name.attempt for name in names_in(pool, State.WAITING)} == {0}
    assert counts(pool) == {"waiting": 4}


def test_a_worker_takes_claims_it_can_do_among_others_it_cannot(tmp_path: Path) -> None:
    pool, _ = plan_made(tmp_path, "elsewhere", "", count=2)
    plan_command(tmp_path / "pool", make_inputs(tmp_path / "more", 2), CAT)
    assert fsqueue("work", pool.root, *QUICK).returncode == 5
    assert counts(pool) == {"done": 2, "waiting": 2}


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--spool", "gpu7"], "no spool 'gpu7'; it has: cpu0"),
        (["--steal-interval", "0"], "more than 0 seconds"),
        (["--time-limit", "soon"], "not a duration"),
        (["--max-claims", "0"], "--max-claims"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_invalid_options_exit_with_2(pool: PoolDirectory, words: list[str], complaint: str) -> None:
    run = fsqueue("work", pool.root, *words)
    assert run.returncode == 2
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr
    assert leases_in(pool) == []


def test_a_path_without_a_pool_exits_with_2(tmp_path: Path) -> None:
    run = fsqueue("work", tmp_path)
    assert run.returncode == 2
    assert f"{tmp_path} is not a pool" in run.stderr


def test_the_environment_stands_in_for_pool_and_options(pool: PoolDirectory) -> None:
    options = {"SPOOL": "cpu0", "STEAL_INTERVAL": "2.5", "MAX_CLAIMS": "2", "POOL": pool.root}
    run = fsqueue("work", env={f"FSQUEUE_{name}": value for name, value in options.items()})
    assert run.returncode == 75
    assert counts(pool) == {"done": 2, "waiting": 3}
    assert "interval 2.5s" in run.stderr
    assert "spool cpu0 (as requested)" in run.stderr


# ---- limits ----


def test_max_claims_is_kept(pool: PoolDirectory) -> None:
    assert fsqueue("work", pool.root, "--max-claims", "2").returncode == 75
    assert counts(pool) == {"done": 2, "waiting": 3}


def test_the_last_claim_may_be_the_last_that_it_may_take(
    tmp_path: Path, pool: PoolDirectory
) -> None:
    """75 means that work remains, and makes a batch system start another worker for it."""
    assert fsqueue("work", pool.root, "--max-claims", "4").returncode == 75
    assert fsqueue("work", pool.root, "--max-claims", "1").returncode == 0
    failing = pool_of(tmp_path / "failing", ".F")
    assert fsqueue("work", failing.root, "--max-claims", "2").returncode == 3


def test_a_claim_that_another_runs_is_left(pool: PoolDirectory) -> None:
    other = ManualWorker(pool)
    held = other.take()
    assert fsqueue("work", pool.root, "--max-claims", "4").returncode == 75
    claims.release(pool, held, "cpu0")
    other.leave()
    assert fsqueue("work", pool.root, "--max-claims", "1").returncode == 0


def test_a_worker_drained_when_all_is_done_exits_with_0(pool: PoolDirectory) -> None:
    assert fsqueue("drain", pool.root).returncode == 0
    assert fsqueue("work", pool.root, "--keep-alive").returncode == 75
    assert fsqueue("drain", pool.root, "--undo").returncode == 0
    assert fsqueue("work", pool.root).returncode == 0
    assert fsqueue("drain", pool.root).returncode == 0
    assert fsqueue("work", pool.root, "--keep-alive").returncode == 0


def test_a_time_limit_puts_the_claim_back_at_the_same_attempt(tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    run = fsqueue("work", pool.root, "--time-limit", "0.3s")
    assert run.returncode == 75
    assert [(name.attempt, name.returns) for name in names_in(pool, State.WAITING)] == [(0, 1)]


def test_a_lingering_worker_takes_what_is_planned_meanwhile(
    start: Start, tmp_path: Path, pool: PoolDirectory
) -> None:
    worker = start("work", pool.root, "--linger", "3", *QUICK)
    wait_for(lambda: counts(pool) == {"done": 5}, "the first claims to be done")
    plan_command(tmp_path / "pool", make_inputs(tmp_path / "more", 2), CAT)
    wait_for(lambda: counts(pool) == {"done": 7}, "the claims planned later to be done")
    assert not worker.ended()
    assert worker.reap() == 0


def test_a_worker_kept_alive_waits_for_more(
    start: Start, tmp_path: Path, pool: PoolDirectory
) -> None:
    worker = start("work", pool.root, "--keep-alive", *QUICK)
    for batch in range(2):
        wait_for(lambda: set(counts(pool)) == {"done"}, "everything planned so far to be done")
        plan_command(tmp_path / "pool", make_inputs(tmp_path / f"more{batch}", 2), CAT)
    wait_for(lambda: counts(pool) == {"done": 9}, "the claims planned later to be done")
    worker.send(signal.SIGTERM)
    assert worker.reap() == 143


# ---- spools and stealing ----


@pytest.fixture
def two_spools(tmp_path: Path) -> PoolDirectory:
    inputs = make_inputs(tmp_path / "in", 6)
    return plan_command(tmp_path / "pool", inputs, CAT, spools=("cpu0", "cpu1"))


def test_a_worker_steals_when_its_own_spool_is_dry(two_spools: PoolDirectory) -> None:
    run = fsqueue("work", two_spools.root, "--spool", "cpu1")
    assert run.returncode == 0
    assert counts(two_spools) == {"done": 6}
    kinds = [event["event"] for event in events(two_spools)]
    assert (kinds.count("took"), kinds.count("stole")) == (3, 3)
    assert run.stderr.count("stole work from cpu0") == 3


def test_without_work_stealing_others_spools_are_left_alone(two_spools: PoolDirectory) -> None:
    run = fsqueue("work", two_spools.root, "--spool", "cpu1", "--no-work-stealing", *QUICK)
    assert run.returncode == 5
    assert [name.id for name in claims.waiting(two_spools, "cpu1")] == []
    assert len(claims.waiting(two_spools, "cpu0")) == 3


def test_a_worker_without_a_spool_is_a_pure_thief(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", 1)
    pool = plan_command(tmp_path / "pool", inputs, CAT, spools=["gpu0"], model="RTX 3090")
    run = fsqueue("work", pool.root)
    assert run.returncode == 0, run.stderr
    assert "spool none (no spool is planned for cpu)" in run.stderr
    assert [event["event"] for event in events(pool) if "cost" in event] == ["stole", "finished"]


def test_a_pure_thief_that_may_not_steal_leaves_with_5(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", 2)
    pool = plan_command(tmp_path / "pool", inputs, CAT, spools=["gpu0"], model="RTX 3090")
    assert fsqueue("work", pool.root, "--no-work-stealing", *QUICK).returncode == 5
    assert counts(pool) == {"waiting": 2}


def test_three_workers_share_one_pool_and_each_claim_is_finished_once(
    start: Start, tmp_path: Path
) -> None:
    argv = ("sh", "-c", 'sleep 0.02; cat "$1"', "sh", "{input}")
    spools = ("cpu0", "cpu1", "cpu2")
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 60), argv, spools=spools)
    workers = [start("work", pool.root, "--others-ok", *QUICK) for _ in range(3)]
    assert [worker.reap() for worker in workers] == [0, 0, 0]
    finished = [event["id"] for event in events(pool) if event["event"] == "finished"]
    assert sorted(map(str, finished)) == ids(pool, State.DONE)
    assert len(finished) == 60
    assert fsqueue("check", pool.root).returncode == 0


# ---- failures ----


def test_failures_that_are_not_in_a_row_do_not_stop_it(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "FF.FF.F")
    assert fsqueue("work", pool.root).returncode == 3
    assert counts(pool) == {"failed": 5, "done": 2}


def test_one_claim_that_fails_again_and_again_does_not_stop_it(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "F.F", attempts=5)
    run = fsqueue("work", pool.root)
    assert run.returncode == 3, run.stderr
    assert counts(pool) == {"done": 1, "failed": 2}
    assert len(os.listdir(pool.directory("errors"))) == 10


def test_any_exception_of_a_handler_fails_the_claim_and_keeps_its_traceback(
    tmp_path: Path,
) -> None:
    source = """
from fsqueue import Handler

class Made(Handler):
    def run(self, work):
        raise KeyError("what was expected")
"""
    pool, env = plan_made(tmp_path, "raising", source)
    run = fsqueue("work", pool.root, *QUICK, env=env)
    assert run.returncode == 3
    assert "KeyError: 'what was expected'" in run.stderr
    assert "Traceback" not in run.stderr
    (id,) = ids(pool, State.FAILED)
    record = json.loads(Path(pool.error(id, 1)).read_text())
    assert record["detail"].startswith("Traceback")
    assert record["attempt"] == 1


def test_a_broken_process_stops_at_its_first_failure(tmp_path: Path) -> None:
    source = """
import fsqueue

class Made(fsqueue.Handler):
    def run(self, work):
        raise fsqueue.WorkerBroken("the device is lost")
"""
    pool, env = plan_made(tmp_path, "breaking", source, count=3)
    run = fsqueue("work", pool.root, env=env)
    assert run.returncode == 1
    assert "this worker stops: the device is lost" in run.stderr
    assert counts(pool) == {"waiting": 3}
    assert sorted(name.attempt for name in names_in(pool, State.WAITING)) == [0, 0, 1]


def test_a_handler_that_returns_without_an_output_has_failed(tmp_path: Path) -> None:
    source = """
import fsqueue

class Made(fsqueue.Handler):
    def run(self, work):
        pass
"""
    pool, env = plan_made(tmp_path, "idle", source)
    run = fsqueue("work", pool.root, env=env)
    assert run.returncode == 3
    assert "returned without writing its output" in run.stderr


# ---- others ----


def test_a_busy_worker_recovers_claims_before_its_own_work_ends(
    start: Start, tmp_path: Path
) -> None:
    inputs = make_inputs(tmp_path / "in", 40)
    script = 'test -e "$2" || exec sleep 1000; exec sleep 0.05'
    argv = ("sh", "-c", script, "sh", "{input}", str(tmp_path / "gate"))
    pool = plan_command(tmp_path / "pool", inputs, argv, lease_s=0.5)
    dead = start("work", pool.root, "--spool", "cpu0")
    worker = dead.worker_in(pool)
    wait_for(lambda: ids(pool, State.RUNNING), "the first claim to run")
    dead.vanish()
    (lease,) = lease_names(pool)
    Path(pool.lease(lease)).write_text("{}")  # it cannot be proved that its process is gone
    (tmp_path / "gate").touch()
    run = fsqueue("work", pool.root, "--spool", "cpu0", *QUICK)
    assert run.returncode == 0, run.stderr
    kinds = [event["event"] for event in events(pool) if event["worker"] != worker]
    after = kinds[kinds.index("recovered") :]
    assert after.count("took") > 1, "it was put back when all else was done"
    assert counts(pool) == {"done": 40}


# ---- checkpoints ----

STEPS = """
import os, pathlib, time
from fsqueue import Handler, Interrupted

class Made(Handler):
    '''Write the numbers 0 to 5; stand still after the third, unless the gate is open.'''

    def run(self, work):
        done = work.checkpoints()
        log = pathlib.Path(os.environ["STEPS_LOG"])
        for step in range(6):
            name = f"step-{step}"
            if name not in done:
                with log.open("a") as file:
                    file.write(f"{step}\\n")
                work.checkpoint(name, f"{step}\\n".encode())
            while step == 2 and not os.path.exists(os.environ["STEPS_GATE"]):
                if work.stopping:
                    raise Interrupted("asked to stop")
                time.sleep(0.01)
        saved = work.checkpoints()
        work.output.write_bytes(b"".join(saved[f"step-{step}"] for step in range(6)))
"""


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_an_interrupted_claim_resumes_from_its_checkpoints(
    start: Start, tmp_path: Path, end: str
) -> None:
    pool, env = plan_made(tmp_path, "steps", STEPS)
    log, gate = tmp_path / "steps", tmp_path / "gate"
    env |= {"STEPS_LOG": str(log), "STEPS_GATE": str(gate)}
    first = start("work", pool.root, env=env)
    (id,) = wait_for(lambda: ids(pool, State.RUNNING), "the claim to run")
    third = Path(pool.partial(id), "step-2")
    wait_for(third.exists, "the third checkpoint")
    first.send(signal.Signals[end])
    assert first.reap() == {"SIGTERM": 143, "SIGKILL": -9}[end]
    gate.touch()
    run = fsqueue("work", pool.root, *QUICK, env=env)
    assert run.returncode == 0, run.stderr
    assert log.read_text().split() == list("012345")
    assert Path(pool.output(id, ".out")).read_text().split() == list("012345")
    (name,) = names_in(pool, State.DONE)
    assert name.attempt == {"SIGTERM": 0, "SIGKILL": 1}[end]
    assert os.listdir(pool.directory("partial")) == []
