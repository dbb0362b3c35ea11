"""An array of workers under a real Grid Engine: deleted, rescheduled, and every output once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fsqueue
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, open_pool
from tests.gridengine.grid_engine import GridEngine, missing
from tests.support.planning import make_inputs, names_in, plan_command
from tests.support.processes import fsqueue as run_fsqueue
from tests.support.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

CLAIMS = 24
GATED = 'until [ -e "$2" ]; do sleep 0.1; done; cat "$1"'
"""Each claim waits until the test opens the gate."""


@pytest.fixture(scope="module")
def grid() -> Iterator[GridEngine]:
    grid = GridEngine()
    try:
        grid.start()
        yield grid
    finally:
        grid.stop()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def pool(tmp_path: Path, gate: Path) -> PoolDirectory:
    argv = ["sh", "-c", GATED, "sh", "{input}", str(gate)]
    spools = [f"cpu{n}" for n in range(4)]
    return plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", CLAIMS), argv, spools=spools, grace=1.0
    )


def submit(grid: GridEngine, pool: PoolDirectory, tmp_path: Path) -> str:
    words = ("--for", "sge", "--gpus", "0", "--workers", "4", "--time", "1h")
    printed = run_fsqueue("script", pool.root, *words)
    assert printed.returncode == 0, printed.stderr
    script = tmp_path / "workers.sge"
    script.write_text(printed.stdout)
    return grid.submit(script)


def running(pool: PoolDirectory) -> list[ClaimName]:
    return names_in(pool, State.RUNNING)


def log_of(pool: PoolDirectory, job: str, task: int) -> str:
    (path,) = Path(pool.directory("events")).glob(f"*.o{job}.{task}")
    return path.read_text()


def test_with_a_task_deleted_and_one_rescheduled_every_output_is_there_once(
    grid: GridEngine, pool: PoolDirectory, gate: Path, tmp_path: Path
) -> None:
    job = submit(grid, pool, tmp_path)
    wait_for(lambda: len(running(pool)) == 4, "four claims to run", deadline_s=90.0)
    assert "the batch system ends this job in 3" in log_of(pool, job, 1), "--time-limit auto"

    grid.run("qdel", job, "-t", "2")
    wait_for(lambda: 2 not in grid.tasks(), "task 2 to be gone", deadline_s=60.0)
    assert "stopped by SIGUSR2" in log_of(pool, job, 2)
    assert len(running(pool)) == 3 and not fsqueue.open_pool(pool.root).failed()

    grid.run("qmod", "-rj", f"{job}.3")
    gate.touch()
    # A task that is rescheduled waits for some minutes: its host might still be at it.
    wait_for(lambda: set(grid.tasks()) <= {3}, "the other tasks to end", deadline_s=90.0)
    found = fsqueue.open_pool(pool.root).wait(timeout_s=60.0)
    assert (found.count.done.claims, found.exit_status) == (CLAIMS, 0)
    outputs = list(fsqueue.open_pool(pool.root).outputs())
    assert len({output.inputs for output in outputs}) == len(outputs) == CLAIMS
    assert all(o.path.read_bytes() == o.inputs[0].read_bytes() for o in outputs)
    assert all(name.attempt == 0 for name in names_in(open_pool(pool.root), State.DONE))
    assert run_fsqueue("check", pool.root, "--deep").returncode == 0
