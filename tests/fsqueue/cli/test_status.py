"""The looking commands: what they print, as text and as JSON, how they exit; they only look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fsqueue.cli import cli
from fsqueue.pool import claims
from fsqueue.pool.settings import PoolDirectory, create_pool
from tests.support.monitor_data import enlist, fail, finish, put_status, take, write_events
from tests.support.pools import contents, make_pool
from tests.support.processes import Start, fsqueue, wait_for

A, B = "node7-1-aaaaaa", "node8-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.40", "b.30", "c.20", "d.10")


@pytest.fixture
def done(tmp_path: Path) -> PoolDirectory:
    pool = make_pool(tmp_path / "done", "a.40")
    finish(pool, A)
    return pool


@pytest.fixture
def ended(tmp_path: Path) -> PoolDirectory:
    pool = make_pool(tmp_path / "ended", "a.40", "b.30")
    finish(pool, A)
    fail(pool, A, "CUDA error: out of memory")
    return pool


def run(*words: str, status: int = 0, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(cli, words, env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    return result


def facts(*words: str, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*words, "--json", status=status).stdout)
    return found


# ---- status ----


def test_status_says_how_far_the_pool_is(pool: PoolDirectory) -> None:
    finish(pool, A)
    take(pool, A)
    out = run("status", pool.root, status=5).stdout
    assert "1 of 4 done, 1 running, 2 waiting" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["waiting"] == ["2", "30", "30.0%"]
    assert rows["done"] == ["1", "40", "40.0%"]
    assert rows["planned"] == ["4", "100", "100.0%"]
    assert rows["gpu0"][:3] == ["RTX", "3090", "no"]


def test_status_exits_as_the_pool_stands(
    pool: PoolDirectory, done: PoolDirectory, ended: PoolDirectory
) -> None:
    run("status", pool.root, status=5)
    run("status", done.root, status=0)
    assert f"fsqueue failed {ended.root}" in run("status", ended.root, status=3).stdout


def test_status_of_an_empty_pool_is_done(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "empty"))
    assert "0 of 0 done" in run("status", pool.root).stdout
    assert facts("status", pool.root)["spools"] == []


def test_status_takes_the_pool_from_the_environment(done: PoolDirectory) -> None:
    run("status", env={"FSQUEUE_POOL": done.root})


def test_status_json_has_its_keys_and_adds_up(pool: PoolDirectory) -> None:
    finish(pool, A)
    take(pool, A)
    fail(pool, B)
    enlist(pool, A)
    found = facts("status", pool.root, status=5)
    states = ("waiting", "running", "done", "failed")
    assert [found[state] for state in states] == [1, 1, 1, 1]
    assert found["planned"] == sum(found[state] for state in states)
    assert found["cost"]["planned"] == sum(found["cost"][state] for state in states) == 100
    assert set(found) >= {
        "pool",
        "staged",
        "eta_s",
        "exit_status",
        "warnings",
        "certain",
        "finished",
    }
    assert found["exit_status"] == 5 and found["workers"] == {"running": 1}
    spool, *others = found["spools"]
    assert [row["name"] for row in others] == [None], (
        "a worker of which nothing is known but its lease"
    )
    assert (spool["name"], spool["planned"], spool["waiting"]) == ("gpu0", 4, 1)


def test_status_says_what_is_wrong_with_a_damaged_pool(pool: PoolDirectory) -> None:
    Path(pool.plan(1)).write_text("garbage\n")
    assert pool.plan(1) in run("status", pool.root, status=5).stdout


def test_status_tells_of_claims_that_a_dead_planner_left(pool: PoolDirectory) -> None:
    from fsqueue.pool import plans

    uid, name = plans.read_plan(pool, 1).uid, claims.waiting(pool, "gpu0")[0]
    os.makedirs(pool.staged(uid, "gpu0"))
    os.rename(pool.waiting("gpu0", name), f"{pool.staged(uid, 'gpu0')}/{name}")
    assert "1 waiting claim not in a spool yet" in run("status", pool.root, status=5).stdout


def test_what_is_no_pool_is_a_usage_error(tmp_path: Path) -> None:
    result = fsqueue("status", str(tmp_path))
    assert result.returncode == 2 and "is not a pool" in result.stderr


# ---- workers ----


def test_workers_are_listed_with_what_they_hold(pool: PoolDirectory) -> None:
    enlist(pool, A, B)
    name = take(pool, A)
    current = {"id": name.id, "cost": 40, "done": 1, "total": 4, "started": 4990.0}
    put_status(pool, A, spool="gpu0", current=current, claims_done=3)
    put_status(pool, B, state="idle", spool="gpu0")
    out = run("workers", pool.root).stdout
    line = next(line for line in out.splitlines() if line.startswith(A)).split()
    assert line[:7] == [A, "gpu0", "running", name.id, "25%", "3", "0"]
    assert B in out


def test_workers_json_is_a_list_under_workers(pool: PoolDirectory) -> None:
    enlist(pool, A)
    put_status(pool, A, gpu={"compute_percent": 93.0}, loaded=["k"], slurm={"slurm_job_id": "17"})
    (worker,) = facts("workers", pool.root)["workers"]
    assert (worker["worker_id"], worker["health"], worker["state"]) == (A, "healthy", "running")
    assert worker["compute_percent"] == 93.0 and worker["memory_percent"] is None
    assert worker["loaded"] == ["k"] and worker["slurm"] == {"slurm_job_id": "17"}


def test_workers_that_left_are_shown_on_demand(pool: PoolDirectory) -> None:
    enlist(pool, A)[A].retire()
    assert "1 more left or died" in run("workers", pool.root).stdout
    assert A in run("workers", "--all", pool.root).stdout


# ---- failed ----


def test_failed_lists_each_attempt_and_says_how_to_retry(pool: PoolDirectory) -> None:
    name = take(pool, A)
    again = claims.charge(pool, name, "gpu0", {"error": "first"})
    taken = claims.take(pool, "gpu0", again, B)
    assert taken is not None
    claims.charge(pool, taken, "gpu0", {"error": "second"}, final=True)
    out = run("failed", pool.root).stdout
    assert f"{name.id}  (trivial, cost 40, 2 attempts)" in out
    first, second = (line for line in out.splitlines() if line.startswith("  a"))
    assert A in first and first.endswith("first") and B in second and second.endswith("second")
    assert f"fsqueue retry {pool.root}" in out
    assert "Put them back" not in run("failed", make_pool(Path(pool.root + "2"), "a.1").root).stdout


def test_failed_json_holds_every_record(ended: PoolDirectory) -> None:
    (failure,) = facts("failed", ended.root)["failed"]
    assert (failure["attempts"], failure["worker"]) == (1, A)
    (error,) = failure["errors"]
    assert (error["error"], error["detail"]) == ("CUDA error: out of memory", "all of it")


def test_failed_log_shows_all_that_was_kept(ended: PoolDirectory) -> None:
    id = facts("failed", ended.root)["failed"][0]["id"]
    assert "all of it" not in run("failed", ended.root).stdout
    assert "all of it" in run("failed", ended.root, "--log", id).stdout
    (error,) = facts("failed", ended.root, "--log", id)["errors"]
    assert (error["error"], error["detail"]) == ("CUDA error: out of memory", "all of it")
    for asked, why in (
        ("missing-1", "no error of missing-1 is kept"),
        ("../x", "is not a claim's ID"),
    ):
        result = fsqueue("failed", ended.root, "--log", asked)
        assert result.returncode == 2 and why in result.stderr


def test_failed_log_is_of_any_claim_an_attempt_of_which_failed(pool: PoolDirectory) -> None:
    """The claim waits again; one attempt is shown whole, all of them by their last lines."""
    long = "".join(f"line {n}\n" for n in range(100))
    name = take(pool, A)
    again = claims.charge(pool, name, "gpu0", {"error": "first", "detail": long})
    taken = claims.take(pool, "gpu0", again, B)
    assert taken is not None
    claims.charge(pool, taken, "gpu0", {"error": "second", "detail": "short"})
    both = run("failed", pool.root, "--log", name.id).stdout
    assert "first" in both and "second" in both and "short" in both
    assert "line 99" in both and "line 80" in both and "line 79\n" not in both
    assert f"80 lines before: fsqueue failed POOL --log {name.id}.a0" in both
    one = run("failed", pool.root, "--log", f"{name.id}.a0").stdout
    assert "line 0\n" in one and "second" not in one
    other = fsqueue("failed", pool.root, "--log", f"{name.id}.a7")
    assert other.returncode == 2 and "there are a0, a1" in other.stderr


def test_failed_log_of_a_worker_that_was_killed_shows_the_end_of_its_slurm_log(
    pool: PoolDirectory,
) -> None:
    name = take(pool, A)
    put_status(pool, A, slurm={"slurm_array_job_id": "17", "slurm_array_task_id": "4"})
    log = Path(pool.directory("events"), "slurm-17_4.log")
    log.write_text("began\nslurmstepd: error: Detected 1 oom_kill event\x1b[2J\n")
    claims.charge(pool, name, "gpu0", {"error": "worker lost"})
    out = run("failed", pool.root, "--log", name.id).stdout
    assert "oom_kill event\\x1b[2J" in out and str(log) in out


def test_failed_shows_hostile_records_escaped(pool: PoolDirectory) -> None:
    name = fail(pool, A)
    record = {
        "error": "\x1b]0;x\x07\n[red]",
        "detail": "\x1b[2J\u202e",
        "worker": ["\x1b"],
        "at": "x",
    }
    Path(pool.error(name.id, 0)).write_text(json.dumps(record))
    out = run("failed", pool.root, "--log", name.id).stdout
    assert "\\x1b]0;x\\x07\\n[red]" in out
    assert all(char.isprintable() or char == "\n" for char in out)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"at": 1e300}', b'{"at": NaN}'])
def test_failed_survives_a_damaged_record(pool: PoolDirectory, data: bytes) -> None:
    name = fail(pool, A)
    Path(pool.error(name.id, 0)).write_bytes(data)
    assert name.id in run("failed", pool.root).stdout
    json.loads(run("failed", pool.root, "--json").stdout)


# ---- wait ----


def test_wait_ends_with_the_pool_and_its_exit_status(
    done: PoolDirectory, ended: PoolDirectory
) -> None:
    assert run("wait", done.root).stdout == "1 of 1 done\n"
    assert run("wait", ended.root, status=3).stdout == "1 of 2 done, 1 failed\n"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_wait_logs_a_line_at_each_tenth_unless_it_is_to_be_quiet(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch, quiet: tuple[str, ...]
) -> None:
    """Four claims of 40, 30, 20 and 10 are done one after the other while it looks."""
    enlist(pool, A)
    put_status(pool, A)
    monkeypatch.setattr(time, "sleep", lambda seconds: finish(pool, A))
    result = run("wait", pool.root, *quiet)
    assert result.stdout == "4 of 4 done\n"
    lines = [line.partition(" ")[2] for line in result.stderr.splitlines()]
    expected = [f"{n}0% of the work done: {m} of 4 done" for n, m in ((4, 1), (7, 2), (9, 3))]
    assert [line.partition(",")[0] for line in lines] == ([] if quiet else expected)


def test_wait_gives_up_after_its_timeout(pool: PoolDirectory) -> None:
    result = run("wait", pool.root, "--timeout", "0.1s", "--interval", "0.05", status=5)
    assert result.stdout.startswith("0 of 4 done, 4 waiting")


@pytest.mark.slow
def test_watch_stays_until_the_last_claim_is_done(pool: PoolDirectory, start: Start) -> None:
    while len(claims.waiting(pool, "gpu0")) > 1:
        finish(pool, A)
    name = take(pool, A)
    waiter = start("watch", pool.root, "--interval", "0.05")
    wait_for(lambda: "3 of 4 done, 1 running" in waiter.stdout, "the watcher's first lines")
    assert not waiter.ended()
    claims.finish(pool, name)
    assert waiter.reap() == 0 and "4 of 4 done" in waiter.stdout


def test_wait_goes_on_until_nothing_runs(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    while len(claims.waiting(pool, "gpu0")) > 1:
        finish(pool, A)
    name, looks = take(pool, A), []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        claims.finish(pool, name)

    monkeypatch.setattr(time, "sleep", sleep)
    assert run("wait", pool.root).stdout == "4 of 4 done\n"
    assert len(looks) == 1


# ---- watch, without a terminal ----


def test_watch_once_prints_one_frame(pool: PoolDirectory) -> None:
    out = run("watch", pool.root, "--once", status=5).stdout
    assert "gpu0" in out and "0 of 4 done" in out and "\x1b" not in out


def test_watch_once_by_worker_shows_workers(pool: PoolDirectory) -> None:
    enlist(pool, A)
    put_status(pool, A, spool="gpu0")
    assert A in run("watch", pool.root, "--once", "--by", "worker", status=5).stdout


def test_watch_writes_lines_to_a_pipe_and_ends_with_the_pool(ended: PoolDirectory) -> None:
    write_events(ended, A, {"t": 1, "event": "joined", "host": "node7", "spool": "gpu0"})
    out = run("watch", ended.root, status=3).stdout
    assert "joined node7" in out and out.rstrip().endswith("all: 1 of 2 done, 1 failed")


def test_watch_json_once_holds_what_is_shown(pool: PoolDirectory) -> None:
    facts_of_steal = {"event": "stole", "id": "x", "cost": 5, "from": "gpu1", "to": "gpu0"}
    write_events(pool, A, {"t": 0} | facts_of_steal)
    fail(pool, B)
    found = json.loads(run("watch", pool.root, "--once", "--json", status=5).stdout)
    assert found["steals"][0]["time"] == "1970-01-01T00:00:00Z"
    assert found["failures"][0]["error"] == "boom" and found["failed"] == 1
    assert [row["worker_id"] for row in found["worker_rows"]] == []


def test_watch_json_is_a_line_a_look_until_the_end(done: PoolDirectory) -> None:
    (line,) = run("watch", done.root, "--json").stdout.splitlines()
    assert json.loads(line)["finished"] is True


def test_the_stall_threshold_is_obeyed(pool: PoolDirectory) -> None:
    enlist(pool, A)
    take(pool, A)
    put_status(pool, A, spool="gpu0", last_activity=1000, written_at=1100)
    quiet = run("watch", pool.root, "--once", status=5).stdout
    loud = run("watch", pool.root, "--once", "--stall-threshold", "90", status=5).stdout
    assert "stalled" not in quiet and "GPU gpu0 stalled - no activity for 100s" in loud


# ---- all of them ----


def test_looking_changes_nothing(pool: PoolDirectory) -> None:
    enlist(pool, A)
    take(pool, A)
    fail(pool, B)
    before = contents(pool.root)
    run("status", pool.root, status=5)
    run("workers", pool.root)
    run("failed", pool.root)
    run("watch", pool.root, "--once", status=5)
    run("wait", pool.root, "--timeout", "0", status=5)
    assert contents(pool.root) == before


@pytest.mark.parametrize(
    "words", [("status",), ("workers",), ("failed",), ("wait", "--timeout", "0")]
)
def test_looking_needs_no_rich(pool: PoolDirectory, words: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from fsqueue.cli import cli\n"
        "try: cli(sys.argv[1:], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'torch', 'transformers', 'pynvml', 'numpy'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    command, *options = words
    argv = [sys.executable, "-c", code, command, pool.root, *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("command", ["status", "workers", "failed", "wait", "watch"])
def test_each_command_has_help(command: str) -> None:
    assert "POOL" in run(command, "--help").stdout


# ---- R30: done is seen ----


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("wait",),
        ("watch", "--once"),
        ("watch", "--once", "--json"),
        ("watch",),
        ("watch", "--metrics-only"),
    ],
)
def test_R30_no_command_answers_0_while_a_planned_claim_is_nowhere(
    pool: PoolDirectory, words: tuple[str, ...]
) -> None:
    (lost,) = Path(pool.spool("gpu0")).glob("d-*")
    lost.unlink()
    while claims.waiting(pool, "gpu0"):
        finish(pool, A)
    result = run(words[0], pool.root, *words[1:], status=1)
    if "--metrics-only" not in words:
        assert lost.name.partition(".")[0] in result.output
        assert "4 of 4 done" not in result.output


def test_R30_status_shows_a_missing_claim_as_missing(pool: PoolDirectory) -> None:
    (lost,) = Path(pool.spool("gpu0")).glob("d-*")
    lost.unlink()
    while claims.waiting(pool, "gpu0"):
        finish(pool, A)
    found = facts("status", pool.root, status=1)
    assert (found["done"], found["missing"], found["exit_status"]) == (3, 1, 1)
    assert found["missing_ids"] == [lost.name.partition(".")[0]]
    assert "3 of 4 done, 1 missing" in run("status", pool.root, status=1).stdout
