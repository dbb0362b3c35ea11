"""Time limits, as the controller enforces them: it looks every half minute, by its own clock."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from tests.slurm.conftest import Farm, install_deaf
from tests.support.planning import counts, names_in
from tests.support.processes import wait_for

pytestmark = pytest.mark.slow

FIRST_IS_QUICK = (
    'case "$1" in */in000) ;; *) until [ -e "$2" ]; do sleep 0.05; done;; esac; cat "$1"'
)


def test_a_time_limit_costs_no_attempt_and_is_no_end_while_work_is_done(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four workers at once, since each has to wait for the controller's clock.

    One knows its end and leaves by itself; one is warned by Slurm; one does nothing in all its time
    and must not come back; one is deaf, and is killed at its limit.
    """
    install_deaf(tmp_path / "site", monkeypatch)
    knowing, warned, fruitless, deaf = (
        Farm(farm.cluster, tmp_path / name) for name in ("knowing", "warned", "fruitless", "deaf")
    )
    for each in (knowing, warned):
        each.plan(3, FIRST_IS_QUICK)
    fruitless.plan(1)
    deaf.plan(2, handler="deaf")

    (by_end,) = knowing.submit("--array", "1", "--", "--time=1")
    by_signal = _submit_with_warning(warned)
    (in_vain,) = fruitless.submit("--array", "1", "--", "--time=1")
    killed, spared = deaf.submit("--gpus", "3090x2")
    struck = deaf.held(killed)
    deaf.held(spared)
    ends = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1))
    farm.cluster.scontrol("update", f"JobId={killed}", f"EndTime={ends}")

    assert farm.cluster.wait_for_end([in_vain]) == {in_vain: "FAILED"}
    assert farm.cluster.facts(in_vain)["ExitCode"] == "75:0"
    assert "this job is not requeued" in fruitless.logs()
    assert counts(fruitless.pool) == {"waiting": 1}
    assert {name.attempt for name in names_in(fruitless.pool, State.WAITING)} == {0}

    knowing.worker(by_end, restarts=1)
    assert "its allocation ends" in knowing.worker(by_end).message
    knowing.finish(by_end)

    assert farm.cluster.wait_for_end([killed]) == {killed: "TIMEOUT"}
    deaf.finish(spared)
    (recovered,) = deaf.events("recovered")
    assert (recovered["id"], recovered["excused"]) == (struck.id, True)

    wait_for(lambda: warned.restarts(by_signal) == 1, "the warning to come", deadline_s=60)
    warned.worker(by_signal, restarts=1)
    assert "stopped by SIGUSR1" in warned.worker(by_signal).message
    warned.finish(by_signal)


def _submit_with_warning(farm: Farm) -> str:
    """Submit a worker that learns of its time limit only by Slurm's signal."""
    work = f"exec {sys.executable} -m fsqueue work {farm.pool.root!r} --grace 0s"
    options = ["--array=0", "--time=1", "--signal=B:USR1@15", "--requeue", "--open-mode=append"]
    return f"{farm.cluster.submit(*options, wrap=work)}_0"
