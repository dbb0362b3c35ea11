"""What a real Slurm and its users do to running workers.

Whatever happens, every output is there once, no attempt is charged, and Slurm shows what is true.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.records.status import WorkerState
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import LEASE_S, Farm, install_deaf
from tests.support.planning import ids, names_in
from tests.support.processes import wait_for

pytestmark = pytest.mark.slow


def test_a_cancelled_task_puts_its_claim_back_and_stays_away(farm: Farm) -> None:
    farm.plan(5)
    one, *others = farm.submit("--array", "4")
    for task in others:
        farm.held(task)
    name = farm.held(one)
    farm.cluster.scancel(one)
    assert farm.cluster.wait_for_end([one]) == {one: "CANCELLED"}
    waiting = {each.id: each for each in names_in(farm.pool, State.WAITING)}
    assert (waiting[name.id].attempt, waiting[name.id].returns) == (0, 1)
    farm.finish(*others)
    assert farm.cluster.states()[one] == "CANCELLED"
    assert farm.restarts(one) == 0


def test_a_requeued_task_and_a_warned_one_put_back_their_claims_and_work_on_later(
    farm: Farm,
) -> None:
    """`scancel --batch --signal=USR1` does what Slurm does ahead of a time limit: the worker then
    has itself requeued.
    """
    farm.plan(6)
    requeued, warned = farm.submit()
    first, second = farm.held(requeued), farm.held(warned)
    farm.cluster.scontrol("requeue", requeued)
    farm.cluster.scancel("--batch", "--signal=USR1", warned)
    for name in (first, second):
        wait_for(lambda name=name: name not in names_in(farm.pool, State.RUNNING),
                 f"{name} to be put back")  # fmt: skip
    for task in (requeued, warned):
        again = farm.held(task, restarts=1)
        assert again.attempt == 0
    farm.finish(requeued, warned)
    assert farm.restarts(requeued) == farm.restarts(warned) == 1
    assert "stopped by SIGTERM" in farm.worker(requeued).message
    assert "stopped by SIGUSR1" in farm.worker(warned).message


def test_a_warned_worker_is_not_requeued_when_nothing_remains(farm: Farm) -> None:
    farm.plan(1, "cat $1")
    (task,) = farm.submit("--array", "1", "--", "--export=ALL,FSQUEUE_KEEP_ALIVE=1")
    wait_for(lambda: ids(farm.pool, State.DONE), "the only claim to be done")
    farm.cluster.scancel("--batch", "--signal=USR1", task)
    assert farm.cluster.wait_for_end([task]) == {task: "COMPLETED"}
    assert farm.cluster.facts(task)["ExitCode"] == "0:0"
    assert farm.restarts(task) == 0
    farm.verify()


def test_preemption_costs_no_attempt_even_if_the_handler_ignores_signals(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n1 has polite workers. The one on n2 is deaf to SIGTERM, and is killed with its claim."""
    install_deaf(tmp_path / "site", monkeypatch)
    deaf = Farm(farm.cluster, tmp_path / "deaf")
    farm.plan(5)
    deaf.plan(2, handler="deaf")
    polite = farm.submit("--gpus", "4090", "--", "--nodelist=n1")
    struck = deaf.submit("--gpus", "3090", "--", "--nodelist=n2")
    spared = deaf.submit("--gpus", "3090", "--", "--nodelist=n3")
    for each, task in ((farm, polite[0]), (deaf, struck[0]), (deaf, spared[0])):
        each.held(task)

    options = ("--partition=high", "--exclusive", "--nodes=2", "--nodelist=n1,n2", "--time=1")
    winner = farm.cluster.submit(*options, wrap="exec sleep 1")
    assert farm.cluster.wait_for_end([winner]) == {winner: "COMPLETED"}
    farm.held(polite[0], restarts=1)
    for each in (farm, deaf):
        each.open()
    farm.finish(*polite)
    deaf.finish(*struck, *spared)
    assert farm.restarts(polite[0]) == deaf.restarts(struck[0]) == 1
    ended = (farm.cluster.root / "log" / "ended.txt").read_text()
    assert ended.count("JobState=PREEMPTED") >= 2
    assert [fact["excused"] for fact in deaf.events("recovered")] == [True]


def test_a_node_set_down_whose_processes_live_on_gives_each_output_once(farm: Farm) -> None:
    """Split brain: one task runs twice, because its first run is out of Slurm's reach."""
    farm.plan(6)
    (task,) = farm.submit("--array", "1")
    old = farm.held(task)
    node = farm.worker(task).slurm["slurmd_nodename"]
    farm.cluster.lose_node(node)
    new = farm.held(task, restarts=1)
    assert old in names_in(farm.pool, State.RUNNING) and old.id != new.id
    farm.finish(task)
    wait_for(lambda: farm.worker(task).state is WorkerState.STOPPED, "the old run to leave")
    assert farm.worker(task).claims_done + farm.worker(task, restarts=1).claims_done == 6
    assert farm.restarts(task) == 1


def test_a_hung_node_is_excused_and_what_wakes_on_it_later_harms_nothing(
    farm: Farm, freeze: Callable[[int], None]
) -> None:
    """The old run stands still beyond its lease, and wakes when its job has long run again."""
    farm.plan(4)
    (task,) = farm.submit("--array", "1")
    old = farm.held(task)
    report = farm.worker(task)
    node = report.slurm["slurmd_nodename"]
    freeze(report.pid)
    farm.cluster.lose_node(node)
    farm.held(task, restarts=1)
    farm.finish(task)
    (recovered,) = farm.events("recovered")
    assert (recovered["id"], recovered["of"], recovered["excused"]) == (old.id, old.owner, True)

    os.kill(report.pid, signal.SIGCONT)
    wait_for(lambda: "declared dead" in farm.worker(task).message, "the zombie to give up")
    farm.verify()
    assert farm.cluster.states()[task] == "COMPLETED"
    assert farm.restarts(task) == 1


def test_a_silent_worker_whose_job_runs_is_only_suspect(
    farm: Farm, freeze: Callable[[int], None]
) -> None:
    farm.plan(2)
    one, other = farm.submit()
    name = farm.held(one)
    farm.held(other)
    freeze(farm.worker(one).pid)
    farm.open()
    waiting = f"{name.owner} does not renew its lease, but squeue shows its job running: waiting"
    wait_for(lambda: waiting in farm.logs(), "a recoverer to ask squeue", deadline_s=4 * LEASE_S)
    assert name in names_in(farm.pool, State.RUNNING)
    os.kill(farm.worker(one).pid, signal.SIGCONT)
    farm.finish(one, other)
    assert farm.events("ended") == farm.events("recovered") == []


def test_with_the_controller_down_a_dead_worker_is_recovered_as_without_slurm(
    farm: Farm, cluster: Cluster
) -> None:
    """It was killed with SIGKILL for no known reason: that costs an attempt."""
    farm.plan(2)
    one, other = farm.submit()
    name = farm.held(one)
    farm.held(other)
    cluster.stop_controller()
    os.kill(farm.worker(one).pid, signal.SIGKILL)
    farm.open()
    wait_for(lambda: len(ids(farm.pool, State.DONE)) == 2, "both claims to be done")
    (redone,) = (each for each in names_in(farm.pool, State.DONE) if each.id == name.id)
    assert (redone.attempt, redone.owner) == (1, farm.worker(other).worker_id)
    cluster.start_controller()
    wait_for(lambda: cluster.states()[other] == "COMPLETED", "the controller to hear of its end")
