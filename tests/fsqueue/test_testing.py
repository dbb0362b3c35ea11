"""`fsqueue.testing` does to a user's handler what happens to it in a real pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsqueue import ClaimFailed, Handler, Interrupted, Option, UsageError, Work
from fsqueue.testing import PoolForTests
from tests.support.processes import fsqueue


class Slow(Handler):
    """Copies its input line by line, saving each line."""

    suffix = ".copy"
    options = (Option("stops", True, "Whether it obeys."),)

    def __init__(self) -> None:
        self.begun: list[int] = []

    def run(self, work: Work) -> None:
        saved = work.checkpoints()
        lines = work.input.read_text().splitlines()
        self.begun.append(len(saved))
        for number, line in enumerate(lines):
            if f"line{number:03}" not in saved:
                work.checkpoint(f"line{number:03}", line.encode())
                work.progress(number, len(lines))
                if work.options["stops"] and work.stopping:
                    raise Interrupted("asked to")
        work.output.write_bytes(b"\n".join(work.checkpoints().values()))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\nfour")
    return path


@pytest.fixture
def pool(tmp_path: Path) -> PoolForTests:
    return PoolForTests(tmp_path / "pool")


def outputs(pool: PoolForTests) -> dict[str, str]:
    return {output.inputs[0].name: output.path.read_text() for output in pool.outputs()}


def test_a_handler_runs_to_its_end(pool: PoolForTests, text: Path) -> None:
    pool.plan(Slow, [text])
    assert pool.counts() == {"waiting": 1}
    assert pool.worker().run() == 1
    assert outputs(pool) == {"a.txt": "one\ntwo\nthree\nfour"}
    assert pool.counts() == {"done": 1} and pool.problems() == []


def test_a_killed_run_is_charged_and_goes_on_from_its_checkpoints(
    pool: PoolForTests, text: Path
) -> None:
    slow = Slow()
    pool.plan(slow, [text])
    dead = pool.worker()
    assert dead.run(kill_after=3) == 0 and dead.killed
    (name,) = pool.names()
    assert pool.counts() == {"running": 1} and name.owner == dead.id
    assert pool.let_leases_end() == [name.id]
    (name,) = pool.names()
    assert (name.attempt, name.owner) == (1, None)
    assert pool.worker().run() == 1
    assert slow.begun == [0, 2] and outputs(pool) == {"a.txt": "one\ntwo\nthree\nfour"}
    assert pool.problems() == []


def test_a_preempted_run_is_put_back_uncharged(pool: PoolForTests, text: Path) -> None:
    slow = Slow()
    pool.plan(slow, [text])
    left = pool.worker()
    assert left.run(preempt_after=4) == 0 and left.gone and not left.killed
    (name,) = pool.names()
    assert (name.attempt, name.returns, name.vain) == (0, 1, 0), "it had saved something"
    assert pool.worker().run() == 1 and slow.begun == [0, 2]


def test_a_run_that_does_not_obey_ends_and_its_worker_leaves(
    pool: PoolForTests, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.txt").write_text("x")
    pool.plan(Slow, [text, tmp_path / "b.txt"], {"stops": False})
    assert pool.worker().run(preempt_after=0) == 1
    assert pool.counts() == {"waiting": 1, "done": 1}


def test_a_claim_whose_worker_is_killed_every_time_fails(tmp_path: Path, text: Path) -> None:
    pool = PoolForTests(tmp_path / "pool", attempts_max=2)
    pool.plan(Slow, [text])
    for _ in range(2):
        pool.worker().run(kill_after=1)
        pool.let_leases_end()
    assert pool.counts() == {"failed": 1}


def test_a_function_and_its_errors(pool: PoolForTests, text: Path) -> None:
    def count(work: Work) -> None:
        if work.attempt == 0:
            raise ClaimFailed("not yet")
        work.output.write_text(str(len(work.input.read_text()) * int(work.options["times"])))

    pool.plan(count, [text], {"times": 2}, suffix=".n")
    assert pool.worker().run(1) == 0 and pool.counts() == {"waiting": 1}
    assert list(pool.errors().values()) == [["not yet"]]
    assert pool.worker().run() == 1 and outputs(pool) == {"a.txt": "36"}


def test_an_installed_handler_runs_by_its_name_and_every_command_sees_the_pool(
    pool: PoolForTests, text: Path
) -> None:
    pool.plan("command", [text], {"argv": ["wc", "-l", "{input}"]})
    assert pool.worker().run() == 1
    status = fsqueue("status", pool.pool.root)
    assert status.returncode == 0 and "1 of 1 done" in status.stdout
    assert fsqueue("check", pool.pool.root, "--deep").returncode == 0


def test_what_cannot_be_planned_is_refused(pool: PoolForTests, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        pool.plan(Slow, [tmp_path / "nothing"])
    with pytest.raises(UsageError, match="no option 'stop'"):
        pool.plan(Slow, [tmp_path], {"stop": 1})


def test_a_worker_that_left_runs_nothing_more(pool: PoolForTests, text: Path) -> None:
    worker = pool.worker()
    worker.leave()
    with pytest.raises(AssertionError, match="has left"):
        worker.run()


def test_the_example_of_the_module_runs(tmp_path: Path) -> None:
    import fsqueue.testing as module

    source = str(module.__doc__).partition("\n\n")[2].partition("A *sign")[0]
    names: dict[str, Any] = {"MyHandler": type("MyHandler", (Slow,), {})}
    names["MyHandler"].options = (Option("batch", 1, "n"), *Slow.options)
    exec("\n".join(line[4:] for line in source.splitlines()), names)
    (tmp_path / "a.txt").write_text("one\ntwo\nthree")
    names["test_a_killed_run_goes_on_from_its_checkpoint"](tmp_path)
