"""An array of workers under a real HyperQueue, one of whose workers is lost: every output once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fsqueue
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from tests.hyperqueue.hyper_queue import HyperQueue
from tests.support.planning import make_inputs, names_in, plan_command
from tests.support.processes import fsqueue as run_fsqueue
from tests.support.processes import wait_for

pytest.importorskip("hyperqueue", reason="hyperqueue: not installed (pip install hyperqueue)")
pytestmark = pytest.mark.slow

CLAIMS = 24
LEASE_S = 4.0
GATED = 'until [ -e "$2" ]; do sleep 0.1; done; cat "$1"'
"""Each claim waits until the test opens the gate."""


@pytest.fixture
def cluster() -> Iterator[HyperQueue]:
    cluster = HyperQueue()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def pool(tmp_path: Path, gate: Path) -> PoolDirectory:
    argv = ["sh", "-c", GATED, "sh", "{input}", str(gate)]
    spools = [f"cpu{n}" for n in range(4)]
    inputs = make_inputs(tmp_path / "in", CLAIMS)
    return plan_command(tmp_path / "pool", inputs, argv, spools=spools, grace=1.0, lease_s=LEASE_S)


def printed_for(pool: PoolDirectory) -> str:
    words = ("--for", "hyperqueue", "--gpus", "0", "--workers", "4")
    printed = run_fsqueue("script", pool.root, *words)
    assert printed.returncode == 0, printed.stderr
    return printed.stdout


def running(pool: PoolDirectory) -> list[ClaimName]:
    return names_in(pool, State.RUNNING)


def logs_of(pool: PoolDirectory, job: int) -> list[str]:
    return sorted(path.name for path in Path(pool.directory("events")).glob(f"hq-{job}_*.log"))


@pytest.mark.parametrize("lost", ["process", "host"])
def test_with_a_worker_of_hyperqueue_lost_every_output_is_there_once(
    cluster: HyperQueue, pool: PoolDirectory, gate: Path, lost: str
) -> None:
    first, second = cluster.add_worker(2), cluster.add_worker(2)
    job = cluster.submit(printed_for(pool))
    wait_for(lambda: len(running(pool)) == 4, "four claims to run", deadline_s=60.0)
    assert all(len(cluster.tasks_of(worker)) == 2 for worker in (first, second))
    for task in cluster.tasks_of(first):
        shown = Path(f"/proc/{task}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=" in shown, "a CPU worker, whatever HyperQueue's has"

    held = {name.id for name in running(pool)}
    (cluster.lose_process if lost == "process" else cluster.lose_host)(first)
    cluster.add_worker(2)
    wait_for(lambda: len(logs_of(pool, job)) == 6, "two tasks to start again", deadline_s=60.0)
    gate.touch()
    assert cluster.wait(job), "every task exits 0"

    found = fsqueue.open_pool(pool.root)
    assert (found.snapshot().count.done.claims, found.snapshot().exit_status) == (CLAIMS, 0)
    outputs = list(found.outputs())
    assert len({output.inputs for output in outputs}) == len(outputs) == CLAIMS
    assert all(o.path.read_bytes() == o.inputs[0].read_bytes() for o in outputs)
    charged = [name.id for name in names_in(pool, State.DONE) if name.attempt]
    assert set(charged) <= held and len(charged) == (0 if lost == "process" else 2)
    again = [name for name in logs_of(pool, job) if name.endswith(".1.log")]
    assert len(again) == 2 and len(logs_of(pool, job)) == 6, "the logs of the lost stay"
    assert run_fsqueue("check", pool.root, "--deep").returncode == 0
