"""Spool locks: tried, never waited for, never removed; and the lock per host."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from fsqueue.errors import NotSupportedError
from fsqueue.storage.locks import host_lock, try_lock
from tests.support.interleave import run_in_threads
from tests.support.pools import held_by_another_process


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "gpu0.lock")


def free(path: str) -> bool:
    with try_lock(path) as answer:
        return answer


def test_a_free_lock_is_held_until_the_block_ends(path: str) -> None:
    with try_lock(path) as mine:
        assert mine
        assert not free(path)
    assert free(path)


def test_a_lock_is_let_go_when_the_block_raises(path: str) -> None:
    with pytest.raises(ZeroDivisionError), try_lock(path):
        raise ZeroDivisionError
    assert free(path)


def test_a_lock_that_another_process_holds_is_refused_and_dies_with_that_process(
    path: str,
) -> None:
    with held_by_another_process(path):
        assert not free(path)
    assert free(path)


def test_i9_a_lock_file_is_never_unlinked(path: str) -> None:
    with try_lock(path):
        before = os.stat(path).st_ino
    assert free(path)
    with held_by_another_process(path):
        assert not free(path)
    assert os.stat(path).st_ino == before


@pytest.mark.parametrize(
    "number",
    [errno.ENOLCK, errno.ENOSYS, errno.EIO, errno.ESTALE, errno.EMFILE],
)
def test_without_locks_a_thief_continues_and_leaves_no_soft_lock(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with try_lock(path) as mine:
        assert mine
        assert free(path), "a lock by existence would outlive a killed holder"
    assert set(os.listdir(os.path.dirname(path))) <= {"gpu0.lock"}
    monkeypatch.undo()
    assert free(path), "the file left behind excludes no process"


def test_the_host_lock_lets_one_in_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    inside: list[int] = []
    most: list[int] = []
    begin = threading.Barrier(4, timeout=10)

    def load() -> None:
        begin.wait()
        for _ in range(5):
            with host_lock("model"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    run_in_threads(load, load, load, load)
    assert max(most) == 1
    assert len(most) == 20


def test_the_host_locks_directory_is_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with host_lock("model"):
        (directory,) = tmp_path.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("theirs", ["writable by all", "a link", "a file", "of a stranger"])
def test_the_host_lock_refuses_another_users_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = tmp_path / f"fsqueue-{os.geteuid()}"
    if theirs == "a file":
        place.touch()
    elif theirs == "a link":
        (tmp_path / "precious").mkdir()
        place.symlink_to("precious")
    else:
        place.mkdir()
        place.chmod(0o777 if theirs == "writable by all" else 0o700)
    if theirs == "of a stranger":
        monkeypatch.setattr(os, "geteuid", lambda real=os.geteuid: real() + 1)
        place.rename(tmp_path / f"fsqueue-{os.geteuid()}")
    refused = pytest.raises(NotSupportedError, match="set TMPDIR to a directory of your own")
    with refused, host_lock("model"):
        pass
    assert not list(tmp_path.rglob("*.lock"))
