"""Signals and orders that make a worker leave, wait, or stop at once, with real processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from fsqueue.handler import Handler
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.settings import PoolDirectory
from tests.support.handlers import install_handler
from tests.support.planning import FOREVER, counts, ids, make_inputs, names_in, plan, plan_command
from tests.support.processes import Running, Start, fsqueue, leases_in, wait_for, wait_until_gone

pytestmark = pytest.mark.slow

LEASE_S = 2.0
QUICK = ("--steal-interval", "0.2")


def gated(gate: Path) -> list[str]:
    """Return the argv of a program that ends well once `gate` is there."""
    return ["sh", "-c", 'until [ -e "$2" ]; do sleep 0.02; done; echo fine', "sh", "{input}",
            str(gate)]  # fmt: skip


def running(pool: PoolDirectory, count: int = 1) -> list[str]:
    """Wait until so many claims run; return their ids."""
    what = f"{count} claims in {pool.root}/running"
    return wait_for(lambda: (found := ids(pool, State.RUNNING))[count - 1 :] and found, what)


def state_of_worker(pool: PoolDirectory, worker: str) -> str:
    """Return the state that a worker's status file shows."""
    path = Path(pool.status(worker))
    return str(json.loads(path.read_text())["state"]) if path.exists() else ""


def fingerprint(path: Path) -> tuple[int, int, bytes]:
    """Return what changes when a file is replaced or written to."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns, path.read_bytes()


# ---- signals ----


@pytest.mark.parametrize(
    "number, status",
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 75),
        (signal.SIGUSR2, 75),
    ],
)
def test_a_signal_puts_the_claim_back_at_the_same_attempt(
    start: Start, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 2), FOREVER)
    worker = start("work", pool.root)
    (id,) = running(pool)
    worker.send(number)
    assert worker.reap() == status
    back = next(name for name in names_in(pool, State.WAITING) if name.id == id)
    assert (back.attempt, back.returns) == (0, 1)
    assert counts(pool) == {"waiting": 2}
    assert f"stopped by {number.name}" in worker.log
    (lease,) = leases_in(pool)
    assert lease.endswith(".left")
    assert not [each for each in os.listdir(pool.directory("errors")) if ".a" in each]


def test_a_signal_ends_an_idle_worker(start: Start, tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), ["cat", "{input}"])
    worker = start("work", pool.root, "--keep-alive", "--steal-interval", "60")
    wait_for(lambda: counts(pool) == {"done": 1}, "the only claim to be done")
    worker.send(signal.SIGTERM)
    assert worker.reap(deadline_s=5) == 143


def test_a_second_signal_stops_at_once_and_kills_all_descendants(
    start: Start, tmp_path: Path
) -> None:
    """The program ignores SIGTERM and has ten minutes of grace: only a second signal ends it."""
    family, asked = tmp_path / "family", tmp_path / "asked"
    script = """
        trap ': > "$3"' TERM
        sh -c 'trap "" TERM; sleep 1000' &
        echo "$$ $!" > "$2.tmp"; mv "$2.tmp" "$2"
        while kill -0 $!; do wait $!; done
    """
    argv = ["sh", "-c", script, "sh", "{input}", str(family), str(asked)]
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv, grace=600.0)
    worker = start("work", pool.root)
    wait_for(family.exists, "the program to start")
    pids = [int(word) for word in family.read_text().split()]
    worker.send(signal.SIGTERM)
    wait_for(asked.exists, "the program to have been asked to end")
    worker.send(signal.SIGTERM)
    assert worker.reap(deadline_s=10) == 143
    wait_until_gone(pids)
    assert [(name.attempt, name.returns) for name in names_in(pool, State.WAITING)] == [(0, 1)]
    assert "Traceback" not in worker.log


def test_a_worker_that_slept_through_its_lease_is_refused_and_leaves(
    start: Start, tmp_path: Path
) -> None:
    """It is stopped for longer than its lease; another does the claim; the late finish fails."""
    gate = tmp_path / "gate"
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), gated(gate), lease_s=LEASE_S
    )
    sleeper = start("work", pool.root, *QUICK)
    (id,) = running(pool)
    sleeper_id = sleeper.worker_in(pool)
    sleeper.freeze()
    other = start("work", pool.root, *QUICK)
    wait_for(
        lambda: any(name.owner != sleeper_id for name in names_in(pool, State.RUNNING)),
        "another worker to run the sleeper's claim",
    )
    gate.touch()
    assert other.reap() == 0
    output = Path(pool.output(id, ".out"))
    before = fingerprint(output)

    sleeper.thaw()

    assert sleeper.reap() == 1
    assert fingerprint(output) == before
    (name,) = names_in(pool, State.DONE)
    assert (name.attempt, name.owner == sleeper_id) == (1, False)
    assert "declared dead" in sleeper.log  # it may learn that before its claim comes to an end
    assert "Traceback" not in sleeper.log
    assert fsqueue("check", pool.root).returncode == 0
    record = json.loads(Path(pool.error(id, 0)).read_text())
    assert record["worker"] == sleeper_id


def test_a_late_finish_is_refused_though_its_handler_came_to_the_end(
    start: Start, tmp_path: Path
) -> None:
    """A handler without output: only the finish itself can fail."""
    source = """
import os, time
from fsqueue import Handler

class Made(Handler):
    suffix = None

    def run(self, work):
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.01)
"""
    env = install_handler(tmp_path / "site", "gated", source) | {"GATE": str(tmp_path / "gate")}
    handler = Handler()
    handler.name = "gated"
    inputs = make_inputs(tmp_path / "in", 1)
    pool, _ = plan(tmp_path / "pool", handler, [*inputs], {}, lease_s=LEASE_S)
    sleeper = start("work", pool.root, *QUICK, env=env)
    (id,) = running(pool)
    sleeper.freeze()
    (tmp_path / "gate").touch()
    assert fsqueue("work", pool.root, *QUICK, env=env).returncode == 0
    (done,) = names_in(pool, State.DONE)
    assert done.attempt == 1

    sleeper.thaw()

    assert sleeper.reap() == 1
    assert f"{id} could not be finished: it is no longer in running/" in sleeper.log
    assert "declared dead" in sleeper.log
    assert names_in(pool, State.DONE) == [done]
    assert counts(pool) == {"done": 1}


def test_a_worker_whose_lease_file_is_removed_puts_back_its_claim_and_logs_why(
    start: Start, tmp_path: Path
) -> None:
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER, lease_s=LEASE_S
    )
    worker = start("work", pool.root)
    running(pool)
    for _ in range(2):  # the first may be renewed under our hands
        for lease in lease_names(pool):
            Path(pool.lease(lease)).unlink(missing_ok=True)
    assert worker.reap() == 1
    assert "is gone from workers/" in worker.log
    assert counts(pool) == {"waiting": 1}
    assert names_in(pool, State.WAITING)[0].attempt == 0


# ---- orders ----


def test_drain_lets_every_worker_finish_its_claim_and_leave(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 5), gated(gate), lease_s=LEASE_S
    )
    workers = [start("work", pool.root, *QUICK) for _ in range(2)]
    running(pool, 2)
    assert fsqueue("drain", pool.root).returncode == 0
    wait_for_orders(pool, workers)
    gate.touch()
    assert [worker.reap() for worker in workers] == [75, 75]
    assert counts(pool) == {"done": 2, "waiting": 3}
    assert all("told to drain" in worker.log for worker in workers)

    late = fsqueue("work", pool.root, *QUICK)
    assert late.returncode == 75
    assert fsqueue("drain", pool.root, "--undo").returncode == 0
    assert fsqueue("work", pool.root, *QUICK).returncode == 0
    assert counts(pool) == {"done": 5}


def wait_for_orders(pool: PoolDirectory, workers: list[Running]) -> None:
    """Wait until every worker has renewed its lease twice: it reads its orders when it does."""

    def beats() -> list[str]:
        return sorted(map(str, lease_names(pool)))

    for _ in range(2):
        before = beats()
        wait_for(lambda: not set(before) & set(beats()), "every worker to renew its lease")  # noqa: B023


def test_drain_of_one_worker_leaves_the_others_at_work(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 4), gated(gate), lease_s=LEASE_S
    )
    chosen, other = (start("work", pool.root, *QUICK) for _ in range(2))
    running(pool, 2)
    drained = chosen.worker_in(pool)
    assert fsqueue("drain", pool.root, drained).returncode == 0
    wait_for_orders(pool, [chosen, other])
    gate.touch()
    assert other.reap() in (0, 5)  # 5 if it left while the drained one still ended its claim
    assert chosen.reap() in (0, 75)  # 0 if the other had done all the rest when it left
    assert counts(pool) == {"done": 4}
    assert sum(name.owner == drained for name in names_in(pool, State.DONE)) == 1


def test_drain_now_puts_the_claim_back_unfinished(start: Start, tmp_path: Path) -> None:
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER, lease_s=LEASE_S
    )
    worker = start("work", pool.root)
    running(pool)
    assert fsqueue("drain", pool.root, "--now").returncode == 0
    assert worker.reap() == 75
    assert [(name.attempt, name.returns) for name in names_in(pool, State.WAITING)] == [(0, 1)]


def test_a_paused_worker_takes_nothing_until_the_order_is_undone(
    start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 3), gated(gate), lease_s=LEASE_S
    )
    worker = start("work", pool.root, *QUICK)
    running(pool)
    identity = worker.worker_in(pool)
    assert fsqueue("drain", pool.root, "--pause").returncode == 0
    wait_for_orders(pool, [worker])
    gate.touch()
    wait_for(lambda: state_of_worker(pool, identity) == "idle", "the paused worker to be idle")
    assert counts(pool) == {"done": 1, "waiting": 2}
    assert fsqueue("drain", pool.root, "--undo").returncode == 0
    assert worker.reap() == 0
    assert counts(pool) == {"done": 3}


@pytest.mark.parametrize("name", ["nobody-1-abcdef", "../../etc", "a b"])
def test_only_workers_of_the_pool_can_be_drained(tmp_path: Path, name: str) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    run = fsqueue("drain", pool.root, name)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert os.listdir(pool.directory("control")) == []
