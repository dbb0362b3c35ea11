"""A real disk fails under running workers: nothing is lost, and each worker logs why in one line.

ext4 and btrfs on loop devices, with the errors that their own code raises: ENOSPC, EDQUOT, no more
inodes, read-only after an error, and EIO from a disk that is gone, which loses what was not synced.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from tests.support.mounts import Disk, btrfs_quota, ext4
from tests.support.planning import counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import Running, Start, fsqueue, wait_for

pytestmark = pytest.mark.slow

CLAIMS, WORKERS, LEASE_S = 18, 3, 2.0
PROGRAM = ("sh", "-c", 'sleep 0.2; head -c 8192 /dev/zero && cat "$1"', "sh", "{input}")
Made = Callable[[Path], AbstractContextManager[Disk]]


class Site:
    """A pool on its own disk, and workers in the middle of their claims."""

    def __init__(self, disk: Disk, inputs: list[Path], start: Start) -> None:
        self.disk = disk
        self.pool: PoolDirectory = plan_command(
            disk.path / "pool", inputs, PROGRAM, lease_s=LEASE_S
        )
        self.workers: list[Running] = [
            start("work", self.pool.root, "--steal-interval", "2") for _ in range(WORKERS)
        ]
        wait_for(lambda: len(ids(self.pool, State.DONE)) >= WORKERS, "the first claims to be done")

    def messages(self, words: str) -> list[str]:
        """Wait until every worker has left by itself; return the line in which it says these."""
        assert [worker.reap() for worker in self.workers] == [1] * WORKERS
        said = []
        for worker in self.workers:
            assert "Traceback" not in worker.log
            lines = [line for line in worker.log.splitlines() if words in line]
            passing = ("could not be", "trying again")
            last = [line for line in lines if not any(words in line for words in passing)]
            assert len(last) == 1, worker.log
            said += last
        return said

    def others_finish(self) -> None:
        """Let one more worker do what is left; then everything is there, once and whole."""
        run = fsqueue("work", self.pool.root)
        assert run.returncode == 0, run.stderr
        assert counts(self.pool) == {"done": CLAIMS}
        for id in ids(self.pool, State.DONE):
            output = Path(self.pool.output(id, ".out")).read_bytes()
            assert output.startswith(bytes(8192) + b"x") and output.strip(b"\0x") == b""
        assert fsqueue("check", self.pool.root).returncode == 0

    def attempts(self) -> int:
        """Return how many attempts were charged to what is done now."""
        return sum(name.attempt for name in names_in(self.pool, State.DONE))


@pytest.fixture
def on(tmp_path: Path, start: Start) -> Iterator[Callable[[AbstractContextManager[Disk]], Site]]:
    """Mount a disk, and put a pool at work on it."""
    disks: list[AbstractContextManager[Disk]] = []

    def begin(disk: AbstractContextManager[Disk]) -> Site:
        disks.append(disk)
        return Site(disk.__enter__(), make_inputs(tmp_path / "in", CLAIMS), start)

    yield begin
    for disk in disks:
        disk.__exit__(None, None, None)


On = Callable[[AbstractContextManager[Disk]], Site]


def test_a_disk_that_is_full_stops_each_worker_with_one_line_and_nothing_is_lost(
    on: On, tmp_path: Path
) -> None:
    site = on(ext4(tmp_path / "disk"))
    assert site.disk.fill() == errno.ENOSPC
    for line in site.messages("No space left on device"):
        assert "/pool/" in line and "ree some space" in line
    assert names_in(site.pool, State.RUNNING) == []
    assert fsqueue("check", site.pool.root).returncode == 0, "even while the disk is full"
    refused = fsqueue("work", site.pool.root)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 2)
    site.disk.relieve()
    site.others_finish()


def test_a_quota_that_is_used_up_stops_each_worker_with_one_line_and_nothing_is_lost(
    on: On, tmp_path: Path
) -> None:
    """On btrfs not even a rename is free: the claims return when the leases have ended."""
    site = on(btrfs_quota(tmp_path / "disk", limit_mib=4))
    assert site.disk.fill() == errno.EDQUOT
    for line in site.messages("Disk quota exceeded"):
        assert "/pool/" in line and "ree some space" in line
    site.disk.relieve()
    site.others_finish()
    assert site.attempts() <= 2 * WORKERS


def test_a_disk_without_inodes_stops_each_worker_with_one_line_and_costs_no_attempt(
    on: On, tmp_path: Path
) -> None:
    site = on(ext4(tmp_path / "disk", inodes=400))
    assert site.disk.use_up_inodes() == errno.ENOSPC
    for line in site.messages("No space left on device"):
        assert "/pool/" in line and "ree some space" in line
    assert names_in(site.pool, State.RUNNING) == []
    site.disk.relieve()
    site.others_finish()
    assert site.attempts() == 0


def test_a_disk_that_turns_read_only_stops_each_worker_and_costs_what_it_held_one_attempt(
    on: On, tmp_path: Path
) -> None:
    site = on(ext4(tmp_path / "disk"))
    site.disk.meet_an_error()
    for line in site.messages("Read-only file system"):
        assert "/pool/" in line and "check the mount" in line
    assert fsqueue("check", site.pool.root).returncode == 0, "it can still be read"
    site.disk.repair()
    site.others_finish()
    assert site.attempts() <= WORKERS


def test_a_disk_that_is_lost_with_what_was_not_synced_loses_nothing_that_was_done(
    on: On, tmp_path: Path
) -> None:
    """EIO from the kernel for whatever is tried; what comes back is what had reached the disk."""
    site = on(ext4(tmp_path / "disk"))
    site.disk.break_down()
    for line in site.messages("Input/output error"):
        assert "/pool/" in line and "check the file system" in line
    site.disk.repair()
    check = fsqueue("check", site.pool.root)
    assert check.returncode == 0, check.stdout
    site.others_finish()
    assert site.attempts() <= WORKERS
