"""How long a job has left, from what each batch system really prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.batch import systems
from fsqueue.batch.systems import (
    System,
    left_in_flux,
    left_in_lsf,
    limit_in_pbs,
    limit_in_qstat,
    system_of,
    time_left_s,
    worker_limit_s,
)

QSTAT = """\
==============================================================
job_number:                 17
owner:                      ada
hard resource_list:         h_vmem=16G,h_rt=14400,gpu=1
mail_list:                  ada@localhost
job-array tasks:            1-4:1
"""
PBS = """\
Job Id: 12[3].server
    Job_Name = fsqueue-pool
    resources_used.walltime = 00:00:12
    Resource_List.ncpus = 1
    Resource_List.walltime = 04:00:00
"""


def test_each_answer_is_read_as_its_system_prints_it() -> None:
    assert limit_in_qstat(QSTAT) == 14400
    assert limit_in_qstat(QSTAT.replace("h_rt=14400,", "")) is None
    assert limit_in_qstat("hard resource_list: s_rt=1:00:00") == 3600
    assert limit_in_pbs(PBS) == 14400
    assert limit_in_pbs("") is None
    assert left_in_lsf("3:59 L\n") == (3 * 60 + 59) * 60
    assert left_in_lsf("-\n") is None
    assert left_in_flux("3599\n") == 3599
    assert left_in_flux("4294967295\n") is None and left_in_flux("0") is None


@pytest.mark.parametrize(
    ("environ", "system"),
    [
        ({"SGE_ROOT": "/x", "JOB_ID": "17", "SGE_TASK_ID": "undefined"}, System.SGE),
        ({"PBS_JOBID": "12[3].server"}, System.PBS),
        ({"LSB_JOBID": "9"}, System.LSF),
        ({"FLUX_JOB_ID": "f9"}, System.FLUX),
        ({"JOB_ID": "an unrelated variable"}, None),
        ({}, None),
    ],
)
def test_a_job_is_known_by_its_environment(environ: dict[str, str], system: System | None) -> None:
    assert system_of(environ) is system


def test_a_worker_leaves_in_time_however_short_its_job_is() -> None:
    assert worker_limit_s(14400) == 14340
    assert worker_limit_s(40) == 30
    assert worker_limit_s(0) == 0


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    path.chmod(0o755)


def test_what_is_left_of_a_limit_is_reckoned_from_the_age_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "qstat", PBS)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(systems, "process_age_s", lambda: 1000.0)
    assert time_left_s({"PBS_JOBID": "12"}) == 13400


def test_a_system_that_does_not_answer_sets_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert time_left_s({"FLUX_JOB_ID": "f9"}) is None
    (tmp_path / "flux").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "flux").chmod(0o755)
    assert time_left_s({"FLUX_JOB_ID": "f9"}) is None
