"""A directory is deleted under a running worker, which goes on or ends with a clear message.

What was deleted is gone, and nothing else is: no claim is run twice, none fails that need not.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from tests.support.planning import counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import Running, Start, fsqueue, wait_for

pytestmark = pytest.mark.slow

CLAIMS = 4
PROGRAM = 'echo "$1" >> "$3"; until [ -e "$2" ]; do sleep 0.02; done; cat "$1"'


class Site:
    """A pool whose first claim is in the middle of its run, and notes of every run."""

    def __init__(self, root: Path, start: Start) -> None:
        self.gate, self.runs = root / "gate", root / "runs"
        argv = ("sh", "-c", PROGRAM, "sh", "{input}", str(self.gate), str(self.runs))
        self.pool = plan_command(root / "pool", make_inputs(root / "in", CLAIMS), argv, lease_s=1.0)
        self.worker: Running = start("work", self.pool.root, "--steal-interval", "2")
        self.id = self.worker.worker_in(self.pool)
        wait_for(self.runs.exists, "the first claim to run")

    def lose(self, path: str) -> None:
        """Delete a directory of the pool, and let the claim go on."""
        shutil.rmtree(path)
        self.gate.touch()

    def messages(self) -> list[str]:
        """Return what the worker said since it began."""
        assert "Traceback" not in self.worker.log
        begun = f"worker {self.id} works on"
        return self.worker.log.partition(begun)[2].splitlines()[1:]

    def count_runs(self) -> int:
        """Return how many claims ran; none of them did twice."""
        ran = self.runs.read_text().split()
        assert len(ran) == len(set(ran))
        return len(ran)


@pytest.fixture
def site(tmp_path: Path, start: Start) -> Site:
    return Site(tmp_path, start)


@pytest.mark.parametrize("name", ["status", "events", "partial", "errors"])
def test_without_a_directory_that_it_does_not_need_just_now_a_worker_goes_on(
    site: Site, name: str
) -> None:
    site.lose(site.pool.directory(name))
    assert site.worker.reap() == 0
    assert counts(site.pool) == {"done": CLAIMS}
    assert (site.count_runs(), site.messages()) == (CLAIMS, [])
    check = fsqueue("check", site.pool.root)
    assert check.returncode == 1
    assert f"{site.pool.directory(name)} is not a directory" in check.stdout
    os.mkdir(site.pool.directory(name))
    assert fsqueue("check", site.pool.root).returncode == 0


@pytest.mark.parametrize("name", ["running", "done", "failed", "outputs", "workers", "spools"])
def test_without_a_directory_that_it_needs_a_worker_stops_and_names_it(
    site: Site, name: str
) -> None:
    path = f"{site.pool.root}/{name}"
    site.lose(path)
    assert site.worker.reap() == 1
    said = [line for line in site.messages() if line.startswith("fsqueue: ")]
    assert len(said) == 1
    assert f"{path} is not a directory" in said[0] and "Put it back" in said[0]
    assert not [line for line in site.messages() if "was given to another" in line]
    assert site.count_runs() >= 1


@pytest.mark.parametrize("name", ["outputs", "workers"])
def test_a_directory_that_held_no_claims_is_put_back_by_mkdir_and_all_is_done(
    site: Site, name: str
) -> None:
    site.lose(site.pool.directory(name))
    assert site.worker.reap() == 1
    os.mkdir(site.pool.directory(name))
    assert fsqueue("work", site.pool.root).returncode == 0
    assert counts(site.pool) == {"done": CLAIMS}
    assert {name.attempt for name in names_in(site.pool, State.DONE)} == {0}
    assert fsqueue("check", site.pool.root).returncode == 0


def test_a_claim_whose_directory_for_half_outputs_was_deleted_fails_once_and_no_other_does(
    site: Site,
) -> None:
    """It used to fail three claims and end the worker: the directory was not made again."""
    site.lose(site.pool.scratch(site.id))
    assert site.worker.reap() == 0
    assert counts(site.pool) == {"done": CLAIMS}
    assert sorted(name.attempt for name in names_in(site.pool, State.DONE)) == [0, 0, 0, 1]
    (message,) = site.messages()
    assert "in000" in message and "failed (attempt 0)" in message
    assert fsqueue("check", site.pool.root).returncode == 0


def test_without_its_spool_a_worker_does_what_it_holds_and_check_names_what_is_lost(
    site: Site,
) -> None:
    site.lose(site.pool.spool("cpu0"))
    assert site.worker.reap() == 5
    named = [line for line in site.messages() if f"{site.pool.spool('cpu0')} is not" in line]
    assert len(named) == 1
    assert len(ids(site.pool, State.DONE)) == site.count_runs() == 1
    check = fsqueue("check", site.pool.root)
    assert check.returncode == 1
    lost = [line for line in check.stdout.splitlines() if "is planned but nowhere" in line]
    assert len(lost) == CLAIMS - 1


def test_a_worker_whose_orders_cannot_be_read_logs_it_and_keeps_its_lease(site: Site) -> None:
    """It said that its lease could not be renewed, which was not so."""
    shutil.rmtree(site.pool.directory("control"))
    wait_for(lambda: "orders cannot be read" in site.worker.log, "the worker to miss control/")
    site.gate.touch()
    assert site.worker.reap() in (0, 1)  # 1 if it looked for orders once more before it left
    assert "could not be renewed" not in site.worker.log
    assert counts(site.pool) == {"done": CLAIMS}


def test_when_the_whole_pool_is_deleted_a_worker_ends_with_one_line(site: Site) -> None:
    site.lose(site.pool.root)
    assert site.worker.reap() == 1
    (message,) = site.messages()
    assert message.startswith(f"fsqueue: {site.pool.root}/")
    assert "something outside fsqueue removed or replaced it" in message
    assert not os.path.exists(site.pool.root), "nothing of it was made again"
    assert site.count_runs() == 1
