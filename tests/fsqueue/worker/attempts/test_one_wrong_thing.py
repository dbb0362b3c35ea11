"""One thing that is wrong stays one thing: real workers, bad claims, signals and mounts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from tests.support.handlers import install_handler
from tests.support.planning import FOREVER, counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import FSQUEUE, Start, environment, fsqueue, wait_for
from tests.support.users import USERS_NEEDED, Users, give

pytestmark = pytest.mark.slow

QUICK = ("--steal-interval", "0.2")
BY_CONTENT = ("sh", "-c", 'case $(cat "$1") in *F*) exit 1;; esac; cat "$1"', "sh", "{input}")
"""Fails for inputs that contain an F."""


def pool_of(tmp_path: Path, texts: list[str], **how: object) -> PoolDirectory:
    """Plan one claim per text; the larger the text, the earlier it is taken."""
    paths = make_inputs(tmp_path / "in", len(texts))
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return plan_command(tmp_path / "pool", paths, BY_CONTENT, **how)  # type: ignore[arg-type]


# ---- bad inputs (R2, R7) ----


def test_r7_a_dozen_large_bad_inputs_keep_no_good_one_from_being_done(tmp_path: Path) -> None:
    texts = ["F" * 100] * 12 + ["x"] * 200
    pool = pool_of(tmp_path, texts, spools=[f"cpu{n}" for n in range(4)], attempts=2)
    run = fsqueue("run", pool.root, "--workers", "4", "--no-gpu-dashboard", *QUICK)
    assert run.returncode == 3, run.stderr
    assert counts(pool) == {"failed": 12, "done": 200}


def test_r7_a_pool_of_bad_claims_alone_is_worked_to_its_end(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, ["F"] * 7, attempts=1)
    assert fsqueue("work", pool.root, *QUICK).returncode == 3
    assert counts(pool) == {"failed": 7}


HEALTHY = ("sh", "-c", 'test -n "$HEALTHY" && cat "$1"', "sh", "{input}")


def test_r7_a_worker_that_fails_a_claim_known_to_work_stops(tmp_path: Path) -> None:
    """Another worker did one claim; in this one's environment no program works."""
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 20), HEALTHY)
    first = fsqueue("work", pool.root, "--max-claims", "1", env={"HEALTHY": "1"})
    assert first.returncode == 75, first.stderr
    before = (ids(pool, State.DONE), sorted(os.listdir(pool.directory("outputs"))))
    bad = fsqueue("work", pool.root, *QUICK)
    assert bad.returncode == 1, bad.stderr
    assert "3 different claims failed here in a row" in bad.stderr
    assert f"{before[0][0]}, which is done, fails here too" in bad.stderr
    assert [name.attempt for name in names_in(pool, State.WAITING)].count(1) == 3
    assert (ids(pool, State.DONE), sorted(os.listdir(pool.directory("outputs")))) == before
    assert fsqueue("work", pool.root, env={"HEALTHY": "1"}).returncode == 0


def test_failed_attempts_are_listed_while_their_claims_are_tried_again(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, ["FF", "x"])
    fsqueue("work", pool.root, "--max-claims", "1", *QUICK)
    listed = fsqueue("failed", pool.root).stdout
    assert "No claim failed for good." in listed
    assert "1 claim has failed attempts and will be tried again" in listed
    assert "sh exited with status 1" in listed


def test_r7_a_claim_that_this_worker_did_itself_is_run_again_and_acquits_it(
    tmp_path: Path,
) -> None:
    """What went well before fails now: the proof is run before anything is believed."""
    texts = ["x" * 90, "x" * 80, *["F" * 70] * 5, "x"]
    pool = pool_of(tmp_path, texts, attempts=1)
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == 3, run.stderr
    assert counts(pool) == {"done": 3, "failed": 5}
    assert "which is done, works here: the claims that failed are to blame" in run.stderr


def test_r7_cancelled_claims_say_nothing_about_a_worker(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = 'case $(cat "$1") in *W*) until [ -e "$2" ]; do sleep 0.02; done;; esac; cat "$1"'
    argv = ("sh", "-c", script, "sh", "{input}", str(gate))
    paths = make_inputs(tmp_path / "in", 8)
    for index, path in enumerate(paths):
        path.write_text("W" * 50 if index < 4 else "x")
    pool = plan_command(tmp_path / "pool", paths, argv, lease_s=1.0)
    worker = start("work", pool.root, *QUICK)
    for _ in range(4):
        (id,) = wait_for(lambda: ids(pool, State.RUNNING), "a claim to run")
        assert fsqueue("cancel", pool.root, id).returncode == 0
        wait_for(lambda id=id: id in ids(pool, State.FAILED), f"{id} to be cancelled")
    assert worker.reap() == 3
    assert counts(pool) == {"done": 4, "failed": 4}


# ---- claims that are too long (R4) ----


def test_r4_a_claim_longer_than_every_time_limit_starves_no_other(tmp_path: Path) -> None:
    paths = make_inputs(tmp_path / "in", 7)
    script = 'case $(cat "$1") in *x*) exec sleep 3600;; *) sleep 0.02;; esac; cat "$1"'
    for index, path in enumerate(paths):
        path.write_text("x" * 50 if index == 0 else "y")
    pool = plan_command(tmp_path / "pool", paths, ("sh", "-c", script, "sh", "{input}"))
    statuses = [
        fsqueue("work", pool.root, "--time-limit", "1.5s", *QUICK).returncode for _ in range(6)
    ]
    assert counts(pool) == {"done": 6, "waiting": 1}
    assert statuses[0] == 75 and statuses[-1] == 5, statuses
    (name,) = names_in(pool, State.WAITING)
    assert name.attempt == 0 and name.vain >= 3
    status = fsqueue("status", pool.root)
    assert f"{name.id} was put back {name.vain} times without progress" in status.stdout
    assert "time is up" in status.stdout


def test_r4_a_worker_without_a_limit_takes_what_others_put_back(tmp_path: Path) -> None:
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), ("sh", "-c", "sleep 1", "{input}")
    )
    for _ in range(4):
        fsqueue("work", pool.root, "--time-limit", "0.3s", *QUICK)
    assert names_in(pool, State.WAITING)[0].vain >= 3
    assert fsqueue("work", pool.root, *QUICK).returncode == 0


# ---- claims that hang (--timeout) ----

SLEEPS = """
import os, time
from fsqueue import Handler

class Made(Handler):
    def run(self, work):
        if work.input.read_text().startswith("x"):
            try:
                while True:
                    time.sleep(1000)
            except Exception:
                pass  # a handler that forgives everything
        work.output.write_text("fine")
"""


def test_a_handler_that_sleeps_for_ever_is_ended_by_its_timeout(tmp_path: Path) -> None:
    env = install_handler(tmp_path / "site", "sleeps", SLEEPS)
    paths = make_inputs(tmp_path / "in", 3)
    for index, path in enumerate(paths):
        path.write_text("x" * 9 if index == 0 else "y")
    pool = tmp_path / "pool"
    words = ("plan", "sleeps", pool, *paths, "--timeout", "0.5s", "--attempts", "2")
    assert fsqueue(*words, env=env).returncode == 0
    run = fsqueue("work", pool, *QUICK, env=env)
    assert run.returncode == 3, run.stderr
    failed = fsqueue("failed", pool, env=env)
    assert failed.stdout.count("it ran longer than --timeout 0.5 seconds") == 2


# ---- signals (R5, R6) ----


def test_r6_a_worker_under_nohup_survives_its_terminal(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    argv = ("sh", "-c", 'until [ -e "$2" ]; do sleep 0.02; done; cat "$1"', "sh", "{input}",
            str(gate))  # fmt: skip
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv)
    command = ["nohup", *FSQUEUE, "work", pool.root]
    with open(tmp_path / "log", "wb") as log:
        worker = subprocess.Popen(
            command, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: ids(pool, State.RUNNING), "the claim to run")
        worker.send_signal(signal.SIGHUP)
        gate.touch()
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
    assert counts(pool) == {"done": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_r5_a_hail_of_signals_cannot_cut_the_first_ones_way_out_short(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    for _ in range(5):
        worker = start("work", pool.root)
        wait_for(lambda: ids(pool, State.RUNNING), "the claim to run")
        while not worker.ended():
            worker.send(number)
        assert worker.reap() == 128 + number
        assert counts(pool) == {"waiting": 1}
        assert not [each for each in os.listdir(pool.directory("workers")) if ".b" in each]
        assert "Traceback" not in worker.log
    assert names_in(pool, State.WAITING)[0].attempt == 0


# ---- the pool's and the mount's trouble (R1, R8) ----


def test_r1_a_claim_that_others_may_write_is_left_alone_and_charged_nothing(
    tmp_path: Path,
) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 4), ("cat", "{input}"))
    first = names_in(pool, State.WAITING)[0]
    os.chmod(pool.waiting("cpu0", first), 0o666)
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == 5, run.stderr
    assert f"{first.id} is left to other workers" in run.stderr
    assert counts(pool) == {"done": 3, "waiting": 1}
    (back,) = names_in(pool, State.WAITING)
    assert (back.id, back.attempt) == (first.id, 0)
    os.chmod(pool.waiting("cpu0", back), 0o600)
    assert fsqueue("work", pool.root, *QUICK).returncode == 0


def test_r1_a_mount_that_shows_whole_seconds_does_not_make_an_input_changed(
    tmp_path: Path,
) -> None:
    paths = make_inputs(tmp_path / "in", 2)
    for path in paths:
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    pool = plan_command(tmp_path / "pool", paths, ("cat", "{input}"))
    for path in paths:
        os.utime(path, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
    assert fsqueue("work", pool.root, *QUICK).returncode == 0
    assert counts(pool) == {"done": 2}


FLAKY = """
import errno, os, sys
from fsqueue.storage import atomic

def failing(function, when):
    calls = 0
    def call(path, *rest, **more):
        nonlocal calls
        if isinstance(path, (str, bytes, os.PathLike)) and when in str(path):
            calls += 1
            if calls in FAILING:
                raise OSError(errno.EIO, "Input/output error", str(path))
        return function(path, *rest, **more)
    return call

class Flaky:
    def __getattr__(self, name):
        return FAILS if name == OPERATION else getattr(os, name)

FAILS = failing(getattr(os, OPERATION), WHERE)
atomic.os = Flaky()
from fsqueue.cli import main
main()
"""


def flaky(tmp_path: Path, operation: str, where: str, failing: str) -> list[str]:
    """Return a command for fsqueue in which some calls of an operation of the pool fail once."""
    text = FLAKY.replace("OPERATION", repr(operation)).replace("WHERE", repr(where))
    script = tmp_path / "flaky.py"
    script.write_text(text.replace("FAILING", failing))
    return [sys.executable, str(script)]


@pytest.mark.parametrize(
    "operation, where",
    [
        ("open", "/spools/cpu0"),
        ("open", "/workers"),
        ("open", "/running"),
        ("rename", "/spools/cpu0/"),
        ("rename", "/running/"),
        ("link", "/outputs/"),
        ("open", "/spools"),
        ("link", "/workers/"),
        ("mkdir", "/outputs/."),
        ("open", "/control"),
        ("open", "/inbox/spools/"),
        ("open", "/inbox/running"),
        ("rename", "/workers/"),
    ],
)
def test_r8_one_error_of_the_mount_ends_nothing_and_charges_nothing(
    tmp_path: Path, operation: str, where: str
) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 3), ("cat", "{input}"))
    words = [*flaky(tmp_path, operation, where, "{1, 4}"), "work", pool.root, *QUICK]
    run = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=60, cwd=os.getcwd()
    )
    assert run.returncode == 0, run.stderr
    assert counts(pool) == {"done": 3}
    assert {name.attempt for name in names_in(pool, State.DONE)} == {0}
    assert fsqueue("check", pool.root).returncode == 0


@USERS_NEEDED
def test_r1_a_lock_that_another_user_made_is_no_lock(tmp_path: Path) -> None:
    """As after `sudo fsqueue run`: root's lock file, which alice can only read."""
    tmp_path.chmod(0o755)
    users, home = Users(tmp_path / "etc"), give_directory(tmp_path / "home")
    inputs = [str(path) for path in make_inputs(home / "in", 4)]
    words = ("plan", "command", str(home / "pool"), *inputs, "--gpus", "cpux2", "--", "cat")
    assert users.fsqueue("alice", *words, "{input}").returncode == 0
    Path(f"{home}/pool/spools/cpu1.lock").touch(0o644)
    run = users.fsqueue("alice", "work", str(home / "pool"), "--spool", "cpu0", *QUICK)
    assert run.returncode == 0, run.stderr


def give_directory(path: Path) -> Path:
    """Make a directory that is alice's."""
    path.mkdir()
    return give(path, "alice", mode=0o755)


def test_a_record_of_a_run_in_vain_says_why_and_how_long(tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    fsqueue("work", pool.root, "--time-limit", "0.5s", *QUICK)
    (name,) = names_in(pool, State.WAITING)
    record = json.loads(Path(pool.vain_run(name.id, 0)).read_text())
    assert record["put_back"].startswith("time is up")
    assert 0 < record["ran_s"] < 30


# ---- what cannot be removed (R3) ----


def test_r3_debris_that_cannot_be_removed_ends_no_worker(tmp_path: Path) -> None:
    """A program leaves a directory in which a child of its goes on making files."""
    script = (
        'case $(cat "$1") in *F*) mkdir "$2.d"; '
        '(n=0; while [ $n -lt 3000 ]; do : > "$2.d/$n"; n=$((n+1)); done)& '
        'sleep .1; exit 1;; esac; cat "$1" > "$2"'
    )
    paths = make_inputs(tmp_path / "in", 4)
    for index, path in enumerate(paths):
        path.write_text("F" * 50 if index == 0 else "x")
    argv = ("sh", "-c", script, "sh", "{input}", "{output}")
    pool = plan_command(tmp_path / "pool", paths, argv, attempts=2)
    run = fsqueue("work", pool.root, *QUICK, deadline_s=60)
    assert run.returncode == 3, run.stderr
    assert counts(pool) == {"done": 3, "failed": 1}


IMMORTAL = """
import os, subprocess
from fsqueue import Handler

class Made(Handler):
    def run(self, work):
        if work.input.read_text().startswith("F"):
            debris = work.output.parent / "debris"
            debris.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", debris], check=True)
            raise RuntimeError("leaves a directory that is busy")
        work.output.write_text("fine")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_r3_a_directory_that_is_busy_ends_no_worker(tmp_path: Path) -> None:
    env = install_handler(tmp_path / "site", "immortal", IMMORTAL)
    paths = make_inputs(tmp_path / "in", 4)
    for index, path in enumerate(paths):
        path.write_text("F" * 50 if index == 0 else "x")
    words = ("plan", "immortal", tmp_path / "pool", *paths, "--attempts", "2")
    assert fsqueue(*words, env=env).returncode == 0
    worker = ["unshare", "--mount", *FSQUEUE, "work", str(tmp_path / "pool"), *QUICK]
    run = subprocess.run(
        worker, env=environment(env), capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 3, run.stderr
    assert "is busy" in run.stderr and "Traceback" not in run.stderr
    assert len(os.listdir(tmp_path / "pool" / "done")) == 3


@pytest.mark.parametrize("words, status", [((), 5), (("--others-ok",), 0)])
def test_r30_a_worker_that_leaves_while_another_runs_the_last_claim_says_so(
    start: Start, tmp_path: Path, words: tuple[str, ...], status: int
) -> None:
    gate = tmp_path / "gate"
    argv = ("sh", "-c", 'until [ -e "$2" ]; do sleep 0.02; done; cat "$1"', "sh", "{input}",
            str(gate))  # fmt: skip
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv)
    holder = start("work", pool.root)
    wait_for(lambda: ids(pool, State.RUNNING), "the claim to run")
    other = fsqueue("work", pool.root, *QUICK, *words)
    assert other.returncode == status, other.stderr
    assert "1 claim still runs elsewhere" in other.stderr
    gate.touch()
    assert holder.reap() == 0
