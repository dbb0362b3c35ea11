"""The batch scripts of `fsqueue slurm`: their text, and running them with bash."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fsqueue.errors import FsqueueError, NotSupportedError, UsageError
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.slurm.arrays import Array
from fsqueue.slurm.scripts import ScriptOptions, merge_script, parse_limit, submit, worker_script
from fsqueue.slurm.submit import check_merge
from tests.support.fake_embeddings import fasta, plan_embeddings

ARRAY = Array("RTX 4090", "gpu:rtx4090:1", (0, 2, 4))


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def directives(script: str) -> list[str]:
    return [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_a_worker_is_executed_and_its_job_may_come_back(pool: PoolDirectory) -> None:
    script = worker_script(pool, ARRAY, ScriptOptions(throttle=2, start_delay_s=0.3))
    assert directives(script) == [
        "--job-name=fsqueue-pool",
        f"--output={pool.root}/events/slurm-%A_%a.log",
        "--open-mode=append",
        "--array=0-4:2%2",
        "--gres=gpu:rtx4090:1",
        "--requeue",
        "--signal=B:USR1@120",
    ]
    worker = script.splitlines()[-1]
    assert worker == (
        f"exec {sys.executable} -P -m fsqueue work {pool.root} --others-ok --grace 150 "
        "--start-delay 0.3"
    )
    assert "trap '' USR1" in script


def test_the_users_options_come_last_and_win(pool: PoolDirectory) -> None:
    options = ["-p", "gpu", "--time=1:00:00", "--comment", 'a "b" #c']
    script = worker_script(pool, ARRAY, ScriptOptions(options, output="mine-%a.log"))
    assert directives(script)[-1] == '-p gpu --time=1:00:00 --comment "a \\"b\\" #c"'
    assert "--output=mine-%a.log" in directives(script)


def test_a_worker_without_a_gpu_asks_for_none_and_sees_none(pool: PoolDirectory) -> None:
    script = worker_script(pool, Array("cpu", "", (0,)), ScriptOptions())
    assert "--gres" not in script
    assert "export CUDA_VISIBLE_DEVICES=  #" in script


@pytest.mark.parametrize(
    "options, lead_s",
    [
        ([], 120),
        (["--time=4:00:00"], 120),
        (["-t", "5"], 120),
        (["-t4"], 105),
        (["--time", "2"], 45),
        (["--time=1"], 15),
        (["--time=0:30"], 10),
        (["--time=10", "--time=1"], 15),
        (["--time=UNLIMITED"], 120),
    ],
)
def test_the_warning_and_half_a_minute_fit_into_the_time_limit(
    pool: PoolDirectory, options: list[str], lead_s: int
) -> None:
    script = worker_script(pool, ARRAY, ScriptOptions(options))
    assert f"--signal=B:USR1@{lead_s}" in directives(script)
    assert f"--grace {lead_s + 30} " in script


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("5", 300),
        ("5:30", 330),
        ("1:05:30", 3930),
        ("2-0", 172800),
        ("1-2:30", 95400),
        ("1-2:30:10", 95410),
        ("UNLIMITED", None),
        ("", None),
        ("-1", None),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(text: str, seconds: int | None) -> None:
    assert parse_limit(text) == seconds


def test_a_percent_sign_in_the_pools_path_is_escaped(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "50%j pool"))
    script = worker_script(pool, ARRAY, ScriptOptions())
    assert f'--output="{tmp_path}/50%%j pool/events/slurm-%A_%a.log"' in directives(script)
    assert "--job-name=fsqueue-50_j_pool" in directives(script)


@pytest.mark.parametrize("name", ["a\nb", "a\\b"])
def test_a_path_that_sbatch_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    pool = create_pool(str(tmp_path / name))
    with pytest.raises(UsageError, match="sbatch cannot read"):
        worker_script(pool, ARRAY, ScriptOptions())


@pytest.mark.slow
@pytest.mark.parametrize("status, merged", [(0, True), (5, False), (3, False)])
def test_the_merge_runs_only_if_everything_is_done(
    pool: PoolDirectory, status: int, merged: bool
) -> None:
    script = merge_script(pool, ["17", "18"], "echo merged", ScriptOptions(["-p", "cpu"]))
    assert "--dependency=afterany:17:18" in directives(script)
    assert directives(script)[-1] == "-p cpu"
    for word, answer in (("status", status), ("check", 0)):
        command = shlex.join([sys.executable, "-P", "-m", "fsqueue", word, pool.root])
        assert command in script
        script = script.replace(command, f"(exit {answer})")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, "merged" in done.stdout) == (status, merged)


def test_without_sbatch_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotSupportedError, match="--dry-run"):
        submit("#!/bin/bash\n")


def test_sbatchs_error_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid account' >&2; exit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(FsqueueError, match="sbatch refused: invalid account"):
        submit("#!/bin/bash\n")
    sbatch.write_text("#!/bin/sh\ncat > /dev/null; echo '17;lab'\n")
    assert submit("#!/bin/bash\n") == "17"


# ---- R49: the merge line ----


@pytest.mark.parametrize(
    "command, reason",
    [
        ("fsqueue embed merge 'pool/ all.npz", "unexpected EOF"),
        ("fsqueue embed mergd pool/ all.npz", "mergd"),
        ("fsqueue frobnicate pool/", "frobnicate"),
        ("fsqueue embed merge {pool} all.npy", "Known are"),
        ("fsqueue embed merge {pool} {pool}/outputs/all.npz", "inside the pool"),
        ("fsqueue embed merge {pool} all.npz --format h5 && cp all.npz /home", "contradicts"),
    ],
)
def test_R49_a_merge_that_would_be_refused_is_refused_at_submission(
    tmp_path: Path, command: str, reason: str
) -> None:
    path = fasta(tmp_path / "a.faa", {"a": "MKV"})
    pool = plan_embeddings(tmp_path / "pool", [path])
    with pytest.raises(UsageError, match=reason):
        check_merge(command.format(pool=pool.root))


@pytest.mark.parametrize(
    "command",
    [
        "fsqueue embed merge {pool} {pool}/../all.npz",
        "cd /scratch; ./mine.sh $POOL > log 2>&1",
        "fsqueue embed merge $POOL all.npz",
        "fsqueue report {pool} -o {pool}/../report.html",
    ],
)
def test_R49_a_merge_that_would_be_accepted_is(tmp_path: Path, command: str) -> None:
    path = fasta(tmp_path / "a.faa", {"a": "MKV"})
    pool = plan_embeddings(tmp_path / "pool", [path])
    check_merge(command.format(pool=pool.root))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.faa", "pool"]
