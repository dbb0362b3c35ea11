"""Handlers that misbehave: the claim is charged, and its worker is not harmed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, open_pool
from tests.support.handlers import install_handler
from tests.support.planning import counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import Running, alive, fsqueue, wait_for

pytestmark = pytest.mark.slow

CLAIMS = 4
SOURCE = """
import os, signal, sys, threading, time
from fsqueue import Handler

class Made(Handler):
    def run(self, work):
        if work.id.startswith("in000"):
            {}
        work.output.write_text("fine")
"""


class Site:
    """A pool whose first claim runs a piece of code, before it does what all do."""

    def __init__(self, root: Path, code: str) -> None:
        indent = "\n" + " " * 12
        self.notes = root / "notes"
        self.env = install_handler(
            root / "site", "odd", SOURCE.format(indent.join(code.split("\n")))
        )
        self.env["NOTES"] = str(self.notes)
        words = ("--gpus", "cpu", "--lease", "1")
        inputs = make_inputs(root / "in", CLAIMS)
        planned = fsqueue("plan", "odd", root / "pool", *inputs, *words, env=self.env)
        assert planned.returncode == 0, planned.stderr
        self.pool: PoolDirectory = open_pool(str(root / "pool"))

    def work(self) -> tuple[int, str]:
        run = fsqueue("work", self.pool.root, "--steal-interval", "2", env=self.env)
        assert "Traceback" not in run.stderr
        return run.returncode, run.stderr

    def assert_all_done(self) -> None:
        assert counts(self.pool) == {"done": CLAIMS}
        assert {name.attempt for name in names_in(self.pool, State.DONE)} == {0}
        outputs = Path(self.pool.directory("outputs")).iterdir()
        assert [path.read_text() for path in outputs] == ["fine"] * CLAIMS
        assert fsqueue("check", self.pool.root).returncode == 0

    def assert_only_the_odd_one_failed(self, begin: str) -> None:
        assert counts(self.pool) == {"done": CLAIMS - 1, "failed": 1}
        (id,) = ids(self.pool, State.FAILED)
        for attempt in range(3):
            record = json.loads(Path(self.pool.error(id, attempt)).read_text())
            assert record["error"].startswith(begin)
        assert {name.attempt for name in names_in(self.pool, State.DONE)} == {0}
        assert fsqueue("check", self.pool.root).returncode == 0


@pytest.fixture
def odd(tmp_path: Path) -> Callable[[str], Site]:
    return lambda code: Site(tmp_path, code)


@pytest.mark.parametrize("code", ["0", "1", "'stop'"])
def test_a_handler_that_calls_sys_exit_fails_its_claim_and_not_its_worker(
    odd: Callable[[str], Site], code: str
) -> None:
    """It used to end the worker with that status, and to put the claim back uncharged."""
    site = odd(f"sys.exit({code})")
    assert site.work()[0] == 3
    site.assert_only_the_odd_one_failed(f"the handler called sys.exit({code})")


@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_a_handler_that_ends_its_process_is_charged_each_time_and_fails_alone(
    odd: Callable[[str], Site], how: str
) -> None:
    site = odd(how)
    for attempt in range(3):
        assert site.work()[0] in (0, -signal.SIGSEGV)
        assert [name.attempt for name in names_in(site.pool, State.RUNNING)] == [attempt]
    assert site.work()[0] == 3
    site.assert_only_the_odd_one_failed("worker lost: ")


@pytest.mark.parametrize("then", ["pass", "raise ValueError('in the child')", "sys.exit(0)"])
def test_a_child_of_a_handler_that_comes_back_does_not_become_a_second_worker(
    odd: Callable[[str], Site], then: str
) -> None:
    """Two processes took claims under one name, and each charged what the other had done."""
    code = f"""pid = os.fork()
if pid == 0:
    with open(os.environ["NOTES"], "a") as notes:
        print(os.getpid(), file=notes)
    {then}
else:
    with open(os.environ["NOTES"], "a") as notes:
        print("status", os.waitpid(pid, 0)[1], file=notes)"""
    site = odd(code)
    status, log = site.work()
    assert (status, log.count("odd")) == (0, 0), log
    assert site.notes.read_text().endswith("status 256\n")
    site.assert_all_done()


def test_children_that_outlive_a_handler_delay_no_worker(odd: Callable[[str], Site]) -> None:
    code = """child = os.fork()
if child == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "1000"])
with open(os.environ["NOTES"], "w") as notes:
    print(child, file=notes)"""
    site = odd(f"sys.stdout.close(); sys.stderr.flush()\n{code}")
    run_status, _ = _work_without_pipes(site)
    child = int(site.notes.read_text())
    try:
        assert run_status == 0
        assert alive(child)
        site.assert_all_done()
    finally:
        os.kill(child, signal.SIGKILL)


def _work_without_pipes(site: Site) -> tuple[int, str]:
    """Run a worker whose stderr is a file: a pipe would be kept open by the child."""
    worker = Running(["work", site.pool.root], site.notes.with_name("log"), env=site.env)
    return worker.reap(), worker.log


def test_threads_that_outlive_a_handler_keep_no_worker_from_ending(
    odd: Callable[[str], Site],
) -> None:
    """The lease was retired, all was done, and the process stayed for as long as the thread did."""
    site = odd("threading.Thread(target=time.sleep, args=(1000,)).start()")
    status, log = site.work()
    assert status == 0
    assert "Thread-1" in log.splitlines()[-1]
    site.assert_all_done()


@pytest.mark.parametrize(
    "code", ["os.closerange(3, 256)", "os.closerange(0, 256)", "os.chdir('/')"]
)
def test_a_handler_that_closes_what_is_not_its_own_harms_no_claim(
    odd: Callable[[str], Site], code: str
) -> None:
    site = odd(code)
    assert site.work()[0] == 0
    site.assert_all_done()


def test_a_handler_that_ignores_signals_is_still_stopped_by_an_order(
    odd: Callable[[str], Site],
) -> None:
    code = """for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
open(os.environ["NOTES"], "w").close()
while not work.stopping:
    time.sleep(0.02)
from fsqueue.errors import Interrupted
raise Interrupted("asked to")"""
    site = odd(code)
    worker = Running(["work", site.pool.root], site.notes.with_name("log"), env=site.env)
    try:
        wait_for(site.notes.exists, "the handler to be deaf")
        worker.send(signal.SIGTERM)
        assert fsqueue("drain", site.pool.root, "--now").returncode == 0
        assert worker.reap() == 75
    finally:
        worker.kill()
    assert counts(site.pool) == {"waiting": CLAIMS}
    assert {name.attempt for name in names_in(site.pool, State.WAITING)} == {0}


def test_a_child_that_escaped_from_a_failed_attempt_cannot_write_into_the_next_ones_output(
    tmp_path: Path,
) -> None:
    """It is ended with its attempt (R22), although it left the session."""
    script = """
        begun=$2/begun stale=$2/stale
        if [ "$3" = 0 ]; then
            setsid sh -c 'until [ -e "$1" ]; do sleep 0.01; done; echo stale >> "$2"; : > "$3"' \
                sh "$begun" "$1" "$stale" > "$2/log" 2>&1 &
            exit 1
        fi
        echo first > "$1"; : > "$begun"
        for n in 1 2 3 4 5 6 7 8 9 10; do [ -e "$stale" ] || sleep 0.02; done
        echo second >> "$1"
    """
    argv = ("sh", "-c", script, "sh", "{output}", str(tmp_path), "{attempt}", "{input}")
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv)
    assert fsqueue("work", pool.root).returncode == 0
    (name,) = names_in(pool, State.DONE)
    assert name.attempt == 1
    assert Path(pool.output(name.id, ".out")).read_text() == "first\nsecond\n"
    assert not (tmp_path / "stale").exists()
    assert fsqueue("check", pool.root).returncode == 0
