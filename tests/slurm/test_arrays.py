"""Arrays of workers, written and submitted by `fsqueue slurm` to a real Slurm."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import GPUS, Cluster
from tests.slurm.conftest import Farm
from tests.support.processes import fsqueue, wait_for

pytestmark = pytest.mark.slow

MEET = """
    mkdir -p "$3/met"; : > "$3/met/$FSQUEUE_ID"
    until [ "$(ls "$3/met" | wc -l)" -ge 8 ]; do sleep 0.05; done
    cat "$1"
"""
"""Eight claims must run at one time before any of them ends."""


def test_eight_workers_over_four_nodes_and_two_types_of_gpu_drain_a_pool(farm: Farm) -> None:
    farm.plan(24, MEET)
    tasks = farm.submit("--array", "8")
    assert len(tasks) == 8
    farm.finish(*tasks)

    reports = {job.name: status for job, status in farm.workers().items()}
    assert set(reports) == set(tasks)
    assert {status.slurm["slurmd_nodename"] for status in reports.values()} == set(GPUS)
    for status in reports.values():
        types = GPUS[status.slurm["slurmd_nodename"]]
        got = types[int(status.slurm["slurm_job_gpus"])]
        assert status.spool == {"rtx4090": "gpu0", "rtx3090": "gpu1"}[got]
        assert status.claims_done >= 1
    logs = [path.name for path in Path(farm.pool.directory("events")).glob("slurm-*.log")]
    assert sorted(logs) == sorted(f"slurm-{task}.log" for task in tasks)


def test_submitting_twice_adds_workers_and_no_work_and_the_merge_comes_last(farm: Farm) -> None:
    farm.plan(12)
    first = farm.submit()
    merged = farm.root / "merged"
    second = farm.submit("--merge", f"cat {farm.pool.directory('outputs')!r}/* > '{merged}'")
    assert len(first) == len(second) == 2
    for task in (*first, *second):
        farm.held(task)
    assert farm.cluster.states()[farm.merge] == "PENDING"
    farm.finish(*first, *second, farm.merge)
    assert merged.read_text() == "".join(
        path.read_text() for path in sorted(Path(farm.pool.directory("outputs")).iterdir())
        if path.is_file()
    )  # fmt: skip


def test_the_merge_does_not_run_while_work_remains(farm: Farm) -> None:
    farm.plan(4)
    merged = farm.root / "merged"
    tasks = farm.submit("--merge", f": > '{merged}'")
    for task in tasks:
        farm.held(task)
    farm.cluster.scancel(*tasks)
    assert set(farm.cluster.wait_for_end(tasks).values()) == {"CANCELLED"}
    assert farm.cluster.wait_for_end([farm.merge]) == {farm.merge: "FAILED"}
    assert not merged.exists()


def test_what_is_asked_of_sbatch_is_what_slurm_understood(farm: Farm) -> None:
    farm.plan(1)
    name = 'it\'s "quoted" # and no comment'
    options = ["--hold", "--time=1:00:00", "--job-name", name]
    tasks = farm.submit("--array", "6", "--throttle", "2", "--", *options)
    assert [task.partition("_")[2] for task in tasks] == ["0", "2", "4", "1", "3", "5"]
    for job, kind in zip(dict.fromkeys(t.partition("_")[0] for t in tasks),
                         ("rtx4090", "rtx3090"), strict=True):  # fmt: skip
        shown = farm.cluster.scontrol("show", "job", "--details", job)
        facts = dict(word.partition("=")[::2] for word in shown.split())
        assert facts["ArrayTaskThrottle"] == "2"
        assert facts["Requeue"] == "1"
        assert facts["TimeLimit"] == "01:00:00"
        assert f"gres:gpu:{kind}:1" in shown
        assert f"JobName={name}\n" in shown


def test_an_array_never_has_an_index_that_slurm_refuses(farm: Farm) -> None:
    """MaxArraySize is 16 here, so eight indices for each of two spools: forty need six arrays."""
    farm.plan(1)
    tasks = farm.submit("--array", "40", "--", "--hold")
    assert len(set(tasks)) == 40
    assert len({task.partition("_")[0] for task in tasks}) == 6
    assert max(int(task.partition("_")[2]) for task in tasks) == 15


def test_gpus_that_the_cluster_lacks_are_named_and_the_others_still_get_workers(
    farm: Farm,
) -> None:
    farm.plan(1)
    spec = ["slurm", farm.pool.root, "--dry-run", "--gpus"]
    some = fsqueue(*spec, "h100x2,4090", env=farm.cluster.environ)
    assert some.returncode == 0
    assert "H100" in some.stderr and "(sinfo shows: rtx3090, rtx4090)" in some.stderr
    assert some.stdout.count("#!/bin/bash") == 1
    assert "--gres=gpu:rtx4090:1" in some.stdout
    none = fsqueue(*spec, "h100x2", env=farm.cluster.environ)
    assert none.returncode == 2
    assert "H100" in none.stderr


def test_a_dry_run_prints_what_sbatch_takes_and_submits_nothing(farm: Farm) -> None:
    farm.plan(2)
    before = farm.cluster.states()
    given = ["slurm", farm.pool.root, "--dry-run", "--json", "--merge", "true", "--", "-t", "10"]
    done = fsqueue(*given, env=farm.cluster.environ)
    scripts = json.loads(done.stdout)["scripts"]
    assert farm.cluster.states() == before
    assert len(scripts) == 3
    for script in scripts[:2]:
        tested = farm.cluster.run("sbatch", "--test-only", text=script)
        assert tested.returncode == 0, tested.stderr


def test_what_slurm_refuses_is_reported_in_its_own_words(farm: Farm) -> None:
    farm.plan(1)
    given = ["slurm", farm.pool.root, "--", "-p", "nowhere"]
    done = fsqueue(*given, env=farm.cluster.environ)
    assert done.returncode == 1
    assert "invalid partition specified: nowhere" in done.stderr


def test_the_example_script_works_as_it_stands(farm: Farm, project: Path) -> None:
    farm.plan(6)
    script = str(project / "scripts" / "worker.sbatch")
    words = ["sbatch", "--parsable", "--array=0-1", "--gres=gpu:1", "--chdir", str(farm.root)]
    environ = {"PYTHON": sys.executable, "PYTHONPATH": str(project), "FSQUEUE_START_DELAY": "0s"}
    done = farm.cluster.run(*words, script, farm.pool.root, env=environ)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    for index in (0, 1):
        farm.held(f"{job}_{index}")
    farm.finish(f"{job}_0", f"{job}_1")


def test_a_worker_without_a_gpu_is_given_none(cluster: Cluster, farm: Farm) -> None:
    """A job that asks for no GPU has CUDA_VISIBLE_DEVICES unset, and would see every GPU."""
    farm.plan(2, 'printf "%s" "${CUDA_VISIBLE_DEVICES-unset}" > "$3/seen"; cat "$1"')
    (task,) = farm.submit("--gpus", "cpu")
    wait_for((farm.root / "seen").exists, "the first claim to run")
    farm.finish(task)
    assert (farm.root / "seen").read_text() == ""
