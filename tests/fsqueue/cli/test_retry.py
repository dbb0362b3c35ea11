"""The commands by which a person moves claims: retry, cancel, recover."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from tests.support.planning import FOREVER, counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import Running, Start, fsqueue, leases_in, wait_for

pytestmark = pytest.mark.slow

QUICK = ("--steal-interval", "0.2")
LEASE_S = 2.0


@pytest.fixture
def failed(tmp_path: Path) -> PoolDirectory:
    """Two claims that failed their only attempt, because what they need was not there."""
    script = f"test -e {tmp_path}/needed && echo fine"
    argv = ("sh", "-c", script, "sh", "{input}")
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 2), argv, attempts=1)
    assert fsqueue("work", pool.root).returncode == 3
    assert counts(pool) == {"failed": 2}
    return pool


def one_running(start: Start, pool: PoolDirectory) -> Running:
    """Start a worker and wait until it runs a claim."""
    worker = start("work", pool.root, *QUICK)
    wait_for(lambda: ids(pool, State.RUNNING), "a claim to run")
    return worker


# ---- retry ----


def test_retry_puts_all_failed_claims_back_with_their_history_kept(
    failed: PoolDirectory, tmp_path: Path
) -> None:
    run = fsqueue("retry", failed.root)
    assert run.returncode == 0
    assert "2 claims put back" in run.stdout
    assert [(n.attempt, n.returns) for n in names_in(failed, State.WAITING)] == [(1, 1), (1, 1)]
    (tmp_path / "needed").touch()
    assert fsqueue("work", failed.root).returncode == 0
    assert counts(failed) == {"done": 2}
    assert sorted(os.listdir(failed.directory("errors"))) == [
        f"{id}.a0.json" for id in ids(failed, State.DONE)
    ]
    assert fsqueue("check", failed.root).returncode == 0


def test_retry_of_one_claim_leaves_the_others_failed(failed: PoolDirectory) -> None:
    first, second = ids(failed, State.FAILED)
    run = fsqueue("retry", failed.root, second, "--json")
    assert [claim["id"] for claim in json.loads(run.stdout)["claims"]] == [second]
    assert ids(failed, State.FAILED) == [first]
    assert ids(failed, State.WAITING) == [second]


def test_a_retried_claim_that_fails_again_has_a_record_for_each_attempt(
    failed: PoolDirectory,
) -> None:
    for _ in range(2):
        assert fsqueue("retry", failed.root).returncode == 0
        assert fsqueue("work", failed.root).returncode == 3
    assert sorted(os.listdir(failed.directory("errors"))) == [
        f"{id}.a{attempt}.json" for id in ids(failed, State.FAILED) for attempt in range(3)
    ]


def test_a_dry_run_of_retry_moves_nothing(failed: PoolDirectory) -> None:
    run = fsqueue("retry", failed.root, "--dry-run")
    assert "2 claims would be put back" in run.stdout
    assert counts(failed) == {"failed": 2}


@pytest.mark.parametrize("command", ["retry", "cancel"])
@pytest.mark.parametrize("id", ["no-such-claim", "../../etc/passwd", "a b"])
def test_a_claim_that_is_not_there_can_be_neither_retried_nor_cancelled(
    failed: PoolDirectory, command: str, id: str
) -> None:
    run = fsqueue(command, failed.root, ids(failed, State.FAILED)[0], id)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert counts(failed) == {"failed": 2}
    assert os.listdir(failed.directory("control")) == []


# ---- cancel ----


def test_a_waiting_claim_is_cancelled_at_once_and_retry_brings_it_back(tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 3), ("cat", "{input}"))
    first = ids(pool, State.WAITING)[0]
    assert fsqueue("cancel", pool.root, first).returncode == 0
    assert ids(pool, State.FAILED) == [first]
    record = json.loads(Path(pool.error(first, 0)).read_text())
    assert record["cancelled"] is True
    assert fsqueue("work", pool.root).returncode == 3
    assert counts(pool) == {"done": 2, "failed": 1}
    assert fsqueue("retry", pool.root, first).returncode == 0
    assert fsqueue("work", pool.root).returncode == 0
    assert counts(pool) == {"done": 3}


def test_that_a_claim_was_cancelled_is_said_even_if_its_record_was_never_written(
    tmp_path: Path,
) -> None:
    """`fsqueue cancel` was killed between the two."""
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), ("cat", "{input}"))
    (id,) = ids(pool, State.WAITING)
    assert fsqueue("cancel", pool.root, id).returncode == 0
    os.unlink(pool.error(id, 0))
    assert "cancel-" in (said := fsqueue("failed", pool.root).stdout)
    assert "cancelled before it ran" in said


def test_a_running_claim_is_given_up_when_cancelled_and_its_worker_goes_on(
    start: Start, tmp_path: Path
) -> None:
    script = f"case $1 in *000) test -e {tmp_path}/gate || exec sleep 1000;; esac; echo fine"
    pool = plan_command(
        tmp_path / "pool",
        make_inputs(tmp_path / "in", 3),
        ("sh", "-c", script, "sh", "{input}"),
        lease_s=LEASE_S,
    )
    worker = one_running(start, pool)
    (id,) = ids(pool, State.RUNNING)
    assert fsqueue("cancel", pool.root, id).returncode == 0
    assert worker.reap() == 3
    assert ids(pool, State.FAILED) == [id]
    assert counts(pool) == {"done": 2, "failed": 1}
    assert os.listdir(pool.directory("control")) == []

    (tmp_path / "gate").touch()
    assert fsqueue("retry", pool.root, id).returncode == 0
    assert fsqueue("work", pool.root).returncode == 0
    assert counts(pool) == {"done": 3}


def test_a_cancel_that_nobody_obeyed_does_not_hit_the_next_run_of_the_claim(
    start: Start, tmp_path: Path
) -> None:
    """The worker is killed before it hears of it; a person may still cancel again."""
    script = f"test -e {tmp_path}/gate || exec sleep 1000; echo fine"
    pool = plan_command(
        tmp_path / "pool",
        make_inputs(tmp_path / "in", 1),
        ("sh", "-c", script, "sh", "{input}"),
        lease_s=1000.0,
    )
    worker = one_running(start, pool)
    (id,) = ids(pool, State.RUNNING)
    assert fsqueue("cancel", pool.root, id).returncode == 0
    worker.kill()
    (tmp_path / "gate").touch()
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode in (0, 3)  # done, or given up: both are what was asked for
    assert fsqueue("retry", pool.root).returncode == 0
    assert fsqueue("work", pool.root).returncode == 0
    assert counts(pool) == {"done": 1}


def test_cancel_all_empties_the_pool(start: Start, tmp_path: Path) -> None:
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 3), FOREVER, lease_s=LEASE_S
    )
    worker = one_running(start, pool)
    dry = fsqueue("cancel", pool.root, "--all", "--dry-run", "--json")
    was = [claim["was"] for claim in json.loads(dry.stdout)["claims"]]
    assert sorted(was) == ["running", "waiting", "waiting"]
    assert fsqueue("cancel", pool.root, "--all").returncode == 0
    assert worker.reap() == 3
    assert counts(pool) == {"failed": 3}


def test_cancel_must_be_told_what(tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    assert fsqueue("cancel", pool.root).returncode == 2
    assert counts(pool) == {"waiting": 1}


# ---- recover ----


def test_what_a_killed_worker_of_this_host_held_is_recovered_at_once(
    start: Start, tmp_path: Path
) -> None:
    """Its lease would last an hour: the proof is that its process is gone."""
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER, lease_s=3600.0)
    worker = one_running(start, pool)
    identity = worker.worker_in(pool)
    worker.kill()
    run = fsqueue("recover", pool.root, "--json")
    assert run.returncode == 0
    (claim,) = json.loads(run.stdout)["claims"]
    assert (claim["of"], claim["failed"]) == (identity, False)
    assert [(n.attempt, n.returns) for n in names_in(pool, State.WAITING)] == [(1, 1)]
    (lease,) = leases_in(pool)
    assert lease == f"{identity}.dead@{identity}", "R17: it needed no recoverer"
    record = json.loads(Path(pool.error(claim["id"], 0)).read_text())
    assert record["worker"] == identity
    assert fsqueue("check", pool.root).returncode == 0


def test_recover_leaves_the_claims_of_the_living_alone(start: Start, tmp_path: Path) -> None:
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER, lease_s=LEASE_S
    )
    worker = one_running(start, pool)
    run = fsqueue("recover", pool.root)
    assert run.returncode == 0
    assert "0 claims recovered" in run.stdout
    assert counts(pool) == {"running": 1}
    worker.send(signal.SIGTERM)
    assert worker.reap() == 143


def test_recover_waits_a_lease_for_a_worker_that_stands_still(start: Start, tmp_path: Path) -> None:
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER, lease_s=LEASE_S
    )
    worker = one_running(start, pool)
    worker.freeze()
    run = fsqueue("recover", pool.root)
    assert "1 claim recovered" in run.stdout
    assert counts(pool) == {"waiting": 1}
    worker.thaw()
    assert worker.reap() == 1


def test_an_idle_worker_recovers_by_itself(start: Start, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/gate || exec sleep 1000; echo fine"
    pool = plan_command(
        tmp_path / "pool",
        make_inputs(tmp_path / "in", 1),
        ("sh", "-c", script, "sh", "{input}"),
        lease_s=3600.0,
    )
    worker = one_running(start, pool)
    worker.kill()
    (tmp_path / "gate").touch()
    assert fsqueue("work", pool.root, *QUICK).returncode == 0
    assert [name.attempt for name in names_in(pool, State.DONE)] == [1]
