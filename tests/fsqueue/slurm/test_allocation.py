"""Job names, output of SLURM's commands, and the end of an allocation."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.slurm import allocation
from fsqueue.slurm.allocation import (
    Allocation,
    Job,
    Query,
    Row,
    facts_of,
    left_by_environ,
    parse_rows,
    parse_time_left,
    rows_command,
)
from tests.support.fake_squeue import Squeue
from tests.support.pools import Clock
from tests.support.processes import wait_for

TASK = {
    "SLURM_JOB_ID": "18",
    "SLURM_ARRAY_JOB_ID": "17",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_CLUSTER_NAME": "lab",
    "SLURMD_NODENAME": "n4",
    "SLURM_SUBMIT_DIR": "/home/me",
}


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    return Squeue(tmp_path / "bin", monkeypatch)


# ---- which job ----


def test_a_task_is_named_by_its_array_and_not_by_its_job_id() -> None:
    """The last task to be split off has the array's own number, which there means all of it."""
    assert Job.of(facts_of(TASK)) == Job("17_3", 2, "lab")
    assert Job.of(facts_of(TASK | {"SLURM_JOB_ID": "17"})) == Job("17_3", 2, "lab")


def test_a_job_without_an_array_is_named_by_its_id_and_a_first_run_has_no_restarts() -> None:
    assert Job.of(facts_of({"SLURM_JOB_ID": "18"})) == Job("18", 0, "")


def test_outside_of_slurm_there_is_no_job() -> None:
    assert facts_of({"SLURM_CONF": "/etc/slurm.conf"}) == {}
    assert Job.of({}) is None


def test_only_facts_that_identify_the_job_are_kept() -> None:
    assert facts_of(TASK) == {
        "slurm_job_id": "18",
        "slurm_array_job_id": "17",
        "slurm_array_task_id": "3",
        "slurm_restart_count": "2",
        "slurm_cluster_name": "lab",
        "slurmd_nodename": "n4",
    }


@pytest.mark.parametrize("id", ["", "x", "-1", "1,2", "1 --states=all", 17, None, "9" * 11, "१"])
def test_a_lease_that_names_no_job_names_none(id: object) -> None:
    assert Job.of({"slurm_job_id": id}) is None


# ---- what it prints ----


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("0:05", 5),
        ("9:59", 599),
        ("1:04:59", 3899),
        ("2-00:00:00", 172800),
        ("12-03:04:05\n", 12 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
        ("N/A", None),
        ("", None),
        ("-5:00", None),
    ],
)
def test_the_time_left_is_read_as_squeue_writes_it(text: str, seconds: float | None) -> None:
    assert parse_time_left(text) == seconds


@given(st.text())
def test_any_output_of_squeue_can_be_parsed(text: str) -> None:
    left = parse_time_left(text)
    assert left is None or left >= 0
    assert all(row.restarts >= 0 for row in parse_rows(text).values())


def test_jobs_are_parsed_by_name_with_state_and_restarts() -> None:
    text = "17_3      RUNNING   2 \n17_4  COMPLETING  0\nslurm_load_jobs error: Invalid job id\n\n"
    assert parse_rows(text) == {"17_3": Row("RUNNING", 2), "17_4": Row("COMPLETING", 0)}


def test_all_jobs_are_asked_about_in_one_command() -> None:
    command = rows_command([Job("17_4"), Job("17_3", 1), Job("17_3")])
    assert command[0] == "squeue"
    assert "--jobs=17_3,17_4" in command


@pytest.mark.parametrize(
    "environ, left",
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1060"}, 60),
        ({"SLURM_JOB_END_TIME": "1000"}, None),
        ({"SLURM_JOB_END_TIME": "940"}, None),
        ({"SLURM_JOB_END_TIME": "soon"}, None),
    ],
)
def test_an_end_in_the_past_means_that_the_clock_is_wrong(
    environ: dict[str, str], left: float | None
) -> None:
    assert left_by_environ(environ, 1000.0) == left


# ---- asking ----


def answer(query: Query) -> str | None:
    wait_for(lambda: query.finished, "an answer")
    return query.answer()


def test_a_question_is_not_waited_for(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    query = Query(["sh", "-c", f"until [ -e '{gate}' ]; do sleep 0.01; done; echo yes"])
    assert not query.finished
    gate.touch()
    assert answer(query) == "yes\n"


def test_an_answer_longer_than_a_pipe_comes_whole() -> None:
    assert answer(Query([sys.executable, "-c", "print('x' * 300_000)"])) == "x" * 300_000 + "\n"


def test_a_command_that_fails_or_is_not_there_has_no_answer() -> None:
    assert answer(Query(["sh", "-c", "echo no; exit 1"])) is None
    assert answer(Query(["there-is-no-such-program"])) is None


def test_a_command_that_hangs_is_given_up() -> None:
    clock = Clock()
    query = Query(["sleep", "1000"], clock=clock)
    clock.forward(19)
    assert not query.finished
    clock.forward(2)
    assert query.finished
    assert query.answer() is None


def test_a_users_own_choice_of_columns_does_not_reach_squeue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "main")
    assert answer(Query(["sh", "-c", "echo ${SQUEUE_PARTITION-unset}"])) == "unset\n"


# ---- an allocation ----


def settled(allocation: Allocation) -> float:
    """Return the time left once squeue has answered, or failed to."""
    query = allocation._query
    if query is not None:
        wait_for(lambda: query.finished, "squeue's answer")
    return allocation.left_s()


def test_a_worker_leaves_the_grace_before_the_end_squeue_shows(squeue: Squeue) -> None:
    squeue.prints("1:00:00")
    clock = Clock()
    allocation = Allocation(TASK, grace_s=150, clock=clock)
    assert settled(allocation) == 3600 - 150
    clock.forward(450)
    assert allocation.left_s() == 3000
    assert squeue.asked == ["--noheader --jobs=17_3 --format=%L %l"]


def test_squeue_is_not_asked_if_the_environment_has_the_end(squeue: Squeue) -> None:
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 1000)}
    assert 935 < Allocation(TASK | end).left_s() <= 940
    assert squeue.asked == []


@pytest.mark.parametrize("off_s", [0, 3600, -3600])
def test_a_clock_that_is_wrong_by_an_hour_changes_nothing_for_the_batch_process(
    squeue: Squeue, off_s: int
) -> None:
    """It is as old as its job, by a clock that cannot be set."""
    batch = TASK | {"SLURM_TASK_PID": str(os.getpid())}
    age_s = allocation.process_age_s()
    assert age_s is not None and 0 < age_s < 3 * 3600  # that of these tests
    begun = int(time.time() - age_s) + off_s
    times = {"SLURM_JOB_START_TIME": str(begun), "SLURM_JOB_END_TIME": str(begun + 14400)}
    left_s = Allocation(batch | times, grace_s=0).left_s()
    assert left_s == pytest.approx(14400 - age_s, abs=5)
    assert squeue.asked == []
    by_clock = 14400 + off_s - age_s
    hours, seconds = divmod(int(by_clock), 3600)
    squeue.prints(f"{hours}:{seconds // 60:02}:{seconds % 60:02} 4:00:00")
    assert settled(Allocation(batch, grace_s=0)) == pytest.approx(14400 - age_s, abs=5)


def test_a_long_prolog_does_not_count_as_a_wrong_clock(squeue: Squeue) -> None:
    batch = TASK | {"SLURM_TASK_PID": str(os.getpid())}
    age_s = allocation.process_age_s()
    assert age_s is not None
    left_s = 24 * 3600 - int(age_s) - 170
    squeue.prints(f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02} 1-00:00:00")
    assert settled(Allocation(batch, grace_s=0)) == pytest.approx(left_s, abs=5)


def test_other_processes_than_the_batch_process_use_the_clock(squeue: Squeue) -> None:
    squeue.prints("1:00:00 8:00:00")
    assert settled(Allocation(TASK, grace_s=0)) == pytest.approx(3600, abs=5)


def test_a_short_allocation_is_left_a_quarter_before_its_end(squeue: Squeue) -> None:
    squeue.prints("1:00")
    assert settled(Allocation(TASK, clock=Clock())) == 45


@pytest.mark.parametrize("output", ["UNLIMITED", "INVALID", ""])
def test_without_a_known_end_there_is_no_limit(squeue: Squeue, output: str) -> None:
    squeue.prints(output)
    assert settled(Allocation(TASK)) == math.inf


def test_with_the_controller_down_there_is_no_limit(squeue: Squeue) -> None:
    assert settled(Allocation(TASK)) == math.inf
    assert len(squeue.asked) == 1


def test_outside_of_slurm_squeue_is_not_asked(squeue: Squeue) -> None:
    assert Allocation({}).left_s() == math.inf
    assert squeue.asked == []


def test_only_the_batch_process_itself_has_its_job_requeued(
    squeue: Squeue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requeueing from a step or a shell's child would also end its siblings."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/requeued"\n')
    scontrol.chmod(0o755)
    squeue.prints("17_3 RUNNING 2")
    batch = TASK | {"SLURM_TASK_PID": str(os.getpid())}
    assert not Allocation(TASK).requeue()
    assert not Allocation(batch | {"SLURM_STEP_ID": "0"}).requeue()
    assert not Allocation(batch | {"SLURM_TASK_PID": "1"}).requeue()
    assert not (tmp_path / "requeued").exists()
    assert Allocation(batch).requeue()
    assert (tmp_path / "requeued").read_text() == "requeue 17_3\n"


@pytest.mark.parametrize(
    "row", ["17_3 RUNNING 3", "17_3 COMPLETING 2", "17_3 CANCELLED 2", "17_3 PENDING 3", ""]
)
def test_a_run_that_slurm_has_given_up_does_not_requeue_the_job(
    squeue: Squeue, tmp_path: Path, row: str
) -> None:
    """`scontrol requeue` would end another run, or bring back a cancelled job."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/requeued"\n')
    scontrol.chmod(0o755)
    squeue.prints(row)
    assert not Allocation(TASK | {"SLURM_TASK_PID": str(os.getpid())}).requeue()
    assert not (tmp_path / "requeued").exists()
