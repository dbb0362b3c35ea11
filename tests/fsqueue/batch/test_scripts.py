"""What is printed for each batch system follows that system's own rules."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fsqueue.batch.scripts import Wanted, script
from fsqueue.batch.systems import System
from fsqueue.errors import UsageError
from fsqueue.pool.settings import PoolDirectory, create_pool
from tests.hyperqueue.hyper_queue import read_submit
from tests.support.processes import fsqueue

SHELL = (System.SGE, System.PBS, System.LSF)
PREFIX = {System.SGE: "#$ ", System.PBS: "#PBS ", System.LSF: "#BSUB "}
WANTED = Wanted(4, "/opt/env/bin/python", time_s=4 * 3600.0, cpus=2, memory_gib=16)
COMMAND = ["/opt/env/bin/python", "-P", "-m", "fsqueue", "work"]


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "my pool"))


def directives(system: System, text: str) -> list[list[str]]:
    """Return the words of the system's own lines, which come before the first command."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith(PREFIX[system]) for line in lines[first:])
    found = [line.removeprefix(PREFIX[system]) for line in lines if line.startswith(PREFIX[system])]
    assert not any("#" in line for line in found), "a comment there would be read as options"
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("system", System)
@pytest.mark.parametrize("gpus", [0, 2])
def test_every_script_runs_a_worker_of_this_pool_and_is_valid_shell(
    pool: PoolDirectory, system: System, gpus: int
) -> None:
    text = script(system, pool, Wanted(4, "/opt/env/bin/python", gpus=gpus))
    assert ("CUDA_VISIBLE_DEVICES" in text) == (gpus == 0)
    if system is System.KUBERNETES:
        return
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    last = shlex.split(text.splitlines()[-1])
    begin = last.index("/opt/env/bin/python")
    assert last[0] == "exec" and last[begin : begin + 6] == [*COMMAND, pool.root]
    assert ("auto" in last) == (system is not System.HYPERQUEUE)


@pytest.mark.parametrize("system", SHELL)
def test_array_time_log_gpus_and_memory_are_asked_for(pool: PoolDirectory, system: System) -> None:
    found = directives(system, script(system, pool, WANTED))
    asked = {
        System.SGE: [["-t", "1-4"], ["-l", "h_rt=4:00:00"], ["-l", "gpu=1"], ["-l", "h_vmem=16G"],
                     ["-pe", "smp", "2"], ["-notify"], ["-r", "y"],
                     ["-o", *f"{pool.root}/events/".split()]],
        System.PBS: [["-J", "0-3"], ["-l", "select=1:ncpus=2:ngpus=1:mem=16gb"],
                     ["-l", "walltime=4:00:00"], ["-r", "y"], ["-j", "oe"]],
        System.LSF: [["-J", "fsqueue-my_pool[1-4]"], ["-n", "2"], ["-W", "240"], ["-r"],
                     ["-gpu", "num=1"], ["-R", "rusage[mem=16GB]"], ["-wa", "USR1", "-wt", "2"]],
    }[system]  # fmt: skip
    assert [each for each in asked if each not in found] == []


def test_a_single_worker_is_no_array_in_pbs(pool: PoolDirectory) -> None:
    found = directives(System.PBS, script(System.PBS, pool, Wanted(1, "python3")))
    assert not any(words[0] == "-J" for words in found)


def test_a_job_of_kubernetes_follows_its_schema(pool: PoolDirectory) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    import yaml

    for wanted in (WANTED, Wanted(1, "python3", gpus=0, image="lab/fsqueue:1")):
        job: dict[str, Any] = yaml.safe_load(script(System.KUBERNETES, pool, wanted))
        job["metadata"]["name"] = "of-the-validator"  # which knows no generateName
        kubernetes_validate.validate(job, "1.29", strict=True)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["command"][2:6] == ["-m", "fsqueue", "work", pool.root]
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == wanted.workers


@pytest.mark.parametrize("gpus", [0, 2])
def test_hyperqueue_is_asked_for_what_it_knows_by_these_names(
    pool: PoolDirectory, gpus: int
) -> None:
    wanted = Wanted(4, "python3", time_s=3600.0, gpus=gpus, cpus=2, memory_gib=16)
    options = read_submit(script(System.HYPERQUEUE, pool, wanted)).options
    gpus_asked = ["gpus/nvidia=2"] if gpus else []
    assert options.resource == [*gpus_asked, "mem=16384"], "in MiB"
    assert options.env == ([] if gpus else ["CUDA_VISIBLE_DEVICES="]), "that of hq is not passed on"
    assert (options.array, options.cpus, options.time_limit) == ("0-3", "2", "3600s")
    assert options.crash_limit == "unlimited"
    assert options.stdout != options.stderr, "each is opened, and truncated, by itself"
    assert "%{INSTANCE_ID}" in options.stdout and "%{INSTANCE_ID}" in options.stderr


def test_a_limit_that_a_system_does_not_tell_is_given_as_a_number(pool: PoolDirectory) -> None:
    for system in (System.HYPERQUEUE, System.KUBERNETES):
        text = script(system, pool, WANTED)
        assert "14340s" in text and "14400" in text


def test_a_path_that_a_batch_system_would_misread_is_refused(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "a'b"))
    with pytest.raises(UsageError, match="plain path"):
        script(System.SGE, pool, WANTED)


def test_the_command_prints_one_worker_per_spool(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    words = ("--gpus", "cpux3", "--", "cat", "{input}")
    assert fsqueue("plan", "command", tmp_path / "pool", tmp_path / "a", *words).returncode == 0
    done = fsqueue("script", tmp_path / "pool", "--for", "sge", "--gpus", "0")
    assert done.returncode == 0 and "#$ -t 1-3\n" in done.stdout
    assert fsqueue("script", tmp_path / "pool", "--for", "condor").returncode == 2
