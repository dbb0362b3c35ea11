"""Memory, descriptors and processes run out: the claim that reached the limit is charged.

A real OOM kill needs a memory cgroup, and a limit of processes a pids cgroup, because root has no
ulimit -u. Both are made by the tests, in version 1 or 2, whichever is mounted here.
"""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, open_pool
from tests.support.cgroups import control_group
from tests.support.handlers import install_handler
from tests.support.planning import counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import FSQUEUE, environment, fsqueue

pytestmark = pytest.mark.slow

CLAIMS = 4
Before = Callable[[], None]


def limited(
    pool: PoolDirectory, before: Before, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a worker that calls `before` in its process; return its exit status and its log."""
    run = subprocess.run(
        [*FSQUEUE, "work", pool.root, "--steal-interval", "2"],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=before,
        timeout=60,
    )
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, run.stderr


def limit(what: int, size: int) -> Before:
    return lambda: resource.setrlimit(what, (size, size))


@pytest.fixture
def confined() -> Iterator[Callable[[str, int], Before]]:
    """Yield a function that puts a process into its own control group until the test ends."""
    with ExitStack() as groups:

        def make(controller: str, size: int) -> Before:
            try:
                return groups.enter_context(control_group(controller, size)).enter
            except OSError as error:
                pytest.skip(f"no control group can be made here: {error}")

        yield make


@pytest.fixture
def hungry(tmp_path: Path) -> tuple[PoolDirectory, dict[str, str]]:
    """A pool in which the first claim, and no other, wants a GiB of memory."""
    source = """
from fsqueue import Handler

class Made(Handler):
    def run(self, work):
        if work.id.startswith("in000"):
            held = bytearray(1 << 30)
            held[::4096] = bytes(len(held[::4096]))
        work.output.write_text("fine")
"""
    env = install_handler(tmp_path / "site", "hungry", source)
    inputs = make_inputs(tmp_path / "in", CLAIMS)
    words = ("--gpus", "cpu", "--lease", "1")
    planned = fsqueue("plan", "hungry", tmp_path / "pool", *inputs, *words, env=env)
    assert planned.returncode == 0, planned.stderr
    return open_pool(str(tmp_path / "pool")), env


def errors(pool: PoolDirectory) -> list[str]:
    """Return the errors recorded for the only failed claim, in order."""
    (id,) = ids(pool, State.FAILED)
    paths = [Path(pool.error(id, attempt)) for attempt in range(3)]
    return [json.loads(path.read_text())["error"] for path in paths]


def test_a_worker_that_the_oom_killer_ends_costs_its_claim_one_attempt_and_no_other_claim_any(
    hungry: tuple[PoolDirectory, dict[str, str]], confined: Callable[[str, int], Before]
) -> None:
    pool, env = hungry
    before = confined("memory", 200 << 20)
    for attempt in range(3):
        status, log = limited(pool, before, env)
        assert status == -9, log
        (held,) = names_in(pool, State.RUNNING)
        assert held.attempt == attempt and held.id.startswith("in000")
    assert limited(pool, before, env)[0] == 3
    assert counts(pool) == {"done": CLAIMS - 1, "failed": 1}
    assert all(error.startswith("worker lost") for error in errors(pool))
    assert all("killed" in error for error in errors(pool))
    assert {name.attempt for name in names_in(pool, State.DONE)} == {0}
    assert fsqueue("check", pool.root).returncode == 0


def test_a_handler_that_runs_out_of_memory_fails_its_claim_and_its_worker_goes_on(
    hungry: tuple[PoolDirectory, dict[str, str]],
) -> None:
    pool, env = hungry
    status, log = limited(pool, limit(resource.RLIMIT_AS, 900 << 20), env)
    assert status == 3, log
    assert counts(pool) == {"done": CLAIMS - 1, "failed": 1}
    assert errors(pool) == ["MemoryError"] * 3
    assert fsqueue("check", pool.root).returncode == 0


@pytest.mark.parametrize("files", [11, 12, 13])
def test_a_worker_that_has_no_descriptors_for_a_program_logs_it_and_charges_no_claim(
    tmp_path: Path, files: int
) -> None:
    """Each of its claims used to fail three times for a fault of the worker."""
    inputs = make_inputs(tmp_path / "in", CLAIMS)
    pool = plan_command(tmp_path / "pool", inputs, ("cat", "{input}"))
    status, log = limited(pool, limit(resource.RLIMIT_NOFILE, files))
    assert status == 5, log
    (line,) = [line for line in log.splitlines() if "cannot be started" in line]
    assert "Too many open files" in line and "ulimit -n" in line
    assert_untouched_and_workable(pool)


def assert_untouched_and_workable(pool: PoolDirectory) -> None:
    assert counts(pool) == {"waiting": CLAIMS}
    assert {name.attempt for name in names_in(pool, State.WAITING)} == {0}
    assert fsqueue("work", pool.root).returncode == 0
    assert counts(pool) == {"done": CLAIMS}
    assert fsqueue("check", pool.root).returncode == 0


def test_a_handler_that_leaks_descriptors_fails_its_claim_in_the_end_and_no_other(
    tmp_path: Path,
) -> None:
    source = """
import os
from fsqueue import Handler

class Made(Handler):
    held = []

    def run(self, work):
        while work.id.startswith("in000"):
            self.held.append(os.open("/dev/null", os.O_RDONLY))
        work.output.write_text("fine")
"""
    env = install_handler(tmp_path / "site", "leaky", source)
    inputs = make_inputs(tmp_path / "in", CLAIMS)
    words = ("--gpus", "cpu", "--lease", "1")
    assert fsqueue("plan", "leaky", tmp_path / "pool", *inputs, *words, env=env).returncode == 0
    pool = open_pool(str(tmp_path / "pool"))
    for _ in range(3):
        status, log = limited(pool, limit(resource.RLIMIT_NOFILE, 64), env)
        (line,) = [line for line in log.splitlines() if line.startswith("fsqueue: ")]
        assert (status, "Too many open files. This process" in line) == (1, True), log
    assert limited(pool, limit(resource.RLIMIT_NOFILE, 64), env)[0] == 3
    assert counts(pool) == {"done": CLAIMS - 1, "failed": 1}
    assert {name.attempt for name in names_in(pool, State.DONE)} == {0}
    assert fsqueue("check", pool.root).returncode == 0


def test_a_worker_that_may_start_no_program_logs_it_and_charges_no_claim(
    tmp_path: Path, confined: Callable[[str, int], Before]
) -> None:
    """Three: itself, its thread, and the process beside it that renews its lease."""
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", CLAIMS), ("cat", "{input}"))
    status, log = limited(pool, confined("pids", 3))
    assert status == 5, log
    (line,) = [line for line in log.splitlines() if "cannot be started" in line]
    assert "Resource temporarily unavailable" in line and "ulimit -n, -u" in line
    assert_untouched_and_workable(pool)


def test_a_worker_that_may_have_no_thread_does_not_begin_and_logs_it_in_one_line(
    tmp_path: Path, confined: Callable[[str, int], Before]
) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", CLAIMS), ("cat", "{input}"))
    status, log = limited(pool, confined("pids", 1))
    assert status == 4, log
    assert "no thread can be started here to renew the lease" in log.splitlines()[-1]
    assert "ulimit -u" in log.splitlines()[-1]
    assert_untouched_and_workable(pool)
