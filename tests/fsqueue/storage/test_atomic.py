"""Whole files, one winner, lost replies and full disks on a shared file system.

The file system's misbehaviour is put under the real code through the module's `os`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import NotSupportedError, PoolError
from fsqueue.storage import atomic
from tests.support.crash import CHANGES, every_crash
from tests.support.interleave import (
    FakeDirEntry,
    Sequencer,
    interpose,
    refused,
    reply_lost,
    run_in_threads,
)

STRANGER = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="giving a file to another user needs root"
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A final name in an empty directory."""
    return f"{tmp_path}/final"


def present(path: str) -> list[str]:
    """Return every name in the directory of `path`, private ones too."""
    return sorted(os.listdir(os.path.dirname(path)))


# ---- publish ----


def test_a_published_file_is_whole_and_leaves_no_private_name(path: str) -> None:
    assert atomic.publish(path, b"one")
    assert atomic.read(path) == b"one"
    assert present(path) == ["final"]


def test_publish_never_replaces(path: str) -> None:
    atomic.publish(path, b"one")
    before = os.stat(path)
    assert not atomic.publish(path, b"two")
    assert atomic.read(path) == b"one"
    assert os.stat(path).st_ino == before.st_ino
    assert present(path) == ["final"]


def test_of_two_publishers_that_meet_inside_link_one_wins_and_its_bytes_stand(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Sequencer()
    arrived = threading.Barrier(2, timeout=10)

    def link(real: Callable[..., None], private: str, target: str) -> None:
        arrived.wait()
        with steps(0 if b"first" in Path(private).read_bytes() else 1):
            real(private, target)

    interpose(monkeypatch, link=link)
    results = run_in_threads(
        lambda: atomic.publish(path, b"first"), lambda: atomic.publish(path, b"second")
    )
    assert results == [True, False]
    assert atomic.read(path) == b"first"
    assert present(path) == ["final"]


def test_a_crash_at_any_operation_of_publish_leaves_nothing_or_the_whole_file(
    tmp_path: Path,
) -> None:
    def prepare(n: int) -> str:
        (tmp_path / str(n)).mkdir()
        return f"{tmp_path}/{n}/final"

    outcomes = []
    for _, path in every_crash(prepare, lambda path: atomic.publish(path, b"all of it")):
        there = os.path.exists(path)
        assert not there or atomic.read(path) == b"all of it"
        assert atomic.names(os.path.dirname(path)) in ([], ["final"])
        outcomes.append(there)
    assert outcomes == sorted(outcomes), "once visible, it stays"
    assert not outcomes[0] and outcomes[-1]
    assert len(outcomes) == 7, "open, write, fsync, link, unlink, fsync of the directory, through"


def test_a_link_whose_reply_was_lost_is_recognised_as_done(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, link=reply_lost(errno.EEXIST))
    assert atomic.publish(path, b"one")
    assert atomic.read(path) == b"one"
    assert present(path) == ["final"]


def test_a_link_whose_reply_was_lost_counts_as_done_even_if_the_link_count_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(real: Callable[..., os.stat_result], path: str) -> os.stat_result:
        facts = list(real(path))
        facts[3] = 1  # st_nlink
        return os.stat_result(facts)

    interpose(monkeypatch, link=reply_lost(errno.EEXIST), stat=stat)
    assert atomic.publish(f"{tmp_path}/x", b"mine")
    monkeypatch.undo()
    interpose(monkeypatch, stat=stat)
    assert not atomic.publish(f"{tmp_path}/x", b"another's")
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_an_unlink_whose_reply_was_lost_does_not_undo_what_was_published(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, unlink=reply_lost(errno.ENOENT))
    assert atomic.publish(path, b"one")
    assert present(path) == ["final"]


@pytest.mark.parametrize("number", sorted(atomic.NO_LINK))
def test_publishing_without_hard_links_raises_and_leaves_nothing(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, link=refused(number))
    with pytest.raises(NotSupportedError, match="hard links do not work here") as caught:
        atomic.publish(path, b"one")
    assert os.path.dirname(path) in str(caught.value)
    assert present(path) == []


def test_where_the_name_is_taken_but_out_of_sight_publishing_loses(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshfs refuses a link with EPERM if the name exists but its cache does not show it yet."""

    def link(real: Callable[..., None], source: str, target: str) -> None:
        if target == path:
            raise OSError(errno.EPERM, "Operation not permitted")
        real(source, target)

    interpose(monkeypatch, link=link)
    assert not atomic.publish(path, b"one")
    assert present(path) == []


def close_that_fails(number: int) -> Callable[..., None]:
    """Return a close(2) that closes, and then reports what a network mount kept until now."""

    def close(real: Callable[..., None], fd: int) -> None:
        writable = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2].startswith(".")
        real(fd)
        if writable:
            raise OSError(number, os.strerror(number))

    return close


FULL: dict[str, dict[str, Callable[..., Any]]] = {
    "open": {"open": refused(errno.ENOSPC, only="/.")},
    "write": {"write": refused(errno.ENOSPC)},
    "fsync": {"fsync": refused(errno.EIO)},
    "close": {"close": close_that_fails(errno.EDQUOT)},
    "link": {"link": refused(errno.ENOSPC)},
}


@pytest.mark.parametrize("hooks", FULL.values(), ids=FULL.keys())
def test_a_disk_that_is_full_leaves_neither_a_private_nor_a_final_name(
    path: str, hooks: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, **hooks)
    with pytest.raises(OSError):
        atomic.publish(path, b"one")
    assert present(path) == []


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_full_disk_does_not_harm_what_is_replaced(
    path: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(path).write_bytes(b"old")
    interpose(monkeypatch, **FULL[where])
    with pytest.raises(OSError):
        atomic.replace(path, b"new")
    assert Path(path).read_bytes() == b"old"
    assert present(path) == ["final"]


def test_a_write_that_takes_only_a_part_goes_on_with_the_rest(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, write=lambda real, fd, data: real(fd, data[:3]))
    assert atomic.publish(path, b"0123456789")
    assert atomic.read(path) == b"0123456789"


def test_a_directory_that_cannot_be_synced_is_put_up_with(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(real: Callable[[int], None], fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "a FUSE mount")
        real(fd)

    interpose(monkeypatch, fsync=fsync)
    assert atomic.publish(path, b"one")


def test_a_failed_sync_of_a_directory_is_reported(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(real: Callable[[int], None], fd: int) -> None:
        raise OSError(errno.EIO, "the disk")

    interpose(monkeypatch, fsync=fsync)
    with pytest.raises(OSError, match="the disk"):
        atomic.sync_directory(os.path.dirname(path))


def test_what_is_not_durable_is_never_synced(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpose(monkeypatch, fsync=refused(errno.EIO))
    assert atomic.publish(path, b"one", durable=False)
    atomic.replace(path, b"two")
    assert atomic.read(path) == b"two"


# ---- commit ----


def test_commit_syncs_a_handlers_file_before_it_is_visible(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = f"{path}.private"
    Path(private).write_bytes(b"made by a handler")
    done = []

    def note(name: str) -> Callable[..., Any]:
        def hook(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
            done.append(name)
            return real(*args, **options)

        return hook

    interpose(monkeypatch, **{name: note(name) for name in CHANGES})
    assert atomic.commit(private, path)
    assert done == ["fsync", "link", "unlink", "fsync"]
    assert present(path) == ["final"]


def test_commit_drops_the_loser_or_keeps_it_under_its_private_name(path: str) -> None:
    atomic.publish(path, b"one")
    private = f"{os.path.dirname(path)}/.loser"
    Path(private).write_bytes(b"two")
    assert not atomic.commit(private, path, keep=True)
    assert present(path) == [".loser", "final"]
    assert not atomic.commit(private, path)
    assert present(path) == ["final"]
    assert atomic.read(path) == b"one"


def test_commit_does_not_follow_a_private_name_that_is_a_symbolic_link(path: str) -> None:
    private = f"{os.path.dirname(path)}/.loser"
    os.symlink("/etc/passwd", private)
    with pytest.raises(OSError):
        atomic.commit(private, path)
    assert not os.path.lexists(path)


# ---- replace ----


def test_replace_puts_the_new_bytes_in_place_of_the_old(path: str) -> None:
    atomic.replace(path, b"one")
    atomic.replace(path, b"two")
    assert atomic.read(path) == b"two"
    assert present(path) == ["final"]


@pytest.mark.parametrize("number", sorted(atomic.BUSY))
def test_replace_retries_while_the_old_file_is_open(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    interpose(monkeypatch, replace=refused(number, times=3))
    atomic.replace(path, b"one")
    assert atomic.read(path) == b"one"
    assert len(naps) == 3


def test_replace_gives_up_on_a_file_that_stays_busy_and_leaves_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic.replace(path, b"old")
    monkeypatch.setattr("time.sleep", lambda s: None)
    interpose(monkeypatch, replace=refused(errno.ETXTBSY))
    atomic.replace(path, b"new")
    assert atomic.read(path) == b"old"
    assert present(path) == ["final"]


def test_replace_that_fails_leaves_the_old_bytes_and_no_private_name(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic.replace(path, b"old")
    interpose(monkeypatch, replace=refused(errno.EACCES))
    with pytest.raises(PermissionError):
        atomic.replace(path, b"new")
    assert atomic.read(path) == b"old"
    assert present(path) == ["final"]


def test_a_crash_at_any_operation_of_replace_leaves_the_old_bytes_or_the_new(
    tmp_path: Path,
) -> None:
    def prepare(n: int) -> str:
        (tmp_path / str(n)).mkdir()
        path = f"{tmp_path}/{n}/final"
        atomic.replace(path, b"old")
        return path

    seen = [
        atomic.read(path)
        for _, path in every_crash(prepare, lambda path: atomic.replace(path, b"new"))
    ]
    assert seen == [b"old", b"old", b"old", b"new"]


# ---- reading ----


def test_read_returns_all_of_a_file_of_any_size(path: str) -> None:
    for size in (0, 1, 4096, 3 << 20):
        Path(path).write_bytes(b"x" * size)
        assert len(atomic.read(path)) == size


def test_read_waits_for_a_file_that_is_out_of_sight_for_a_moment(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(path).write_bytes(b"one")
    interpose(monkeypatch, open=refused(errno.ENOENT, times=2))
    assert atomic.read(path) == b"one"


def test_read_tries_again_when_the_handle_of_a_replaced_file_is_stale(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(path).write_bytes(b"one")
    interpose(monkeypatch, read=refused(errno.ESTALE, times=1))
    assert atomic.read(path) == b"one"


def test_read_avoids_delegations_where_the_server_grants_them(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a delegation, an NFS 4 server makes renames wait for a reader, even a dead one."""
    atomic.publish(path, b"what a later rename moves")
    flags = {os.path.dirname(path): os.O_DIRECT}
    monkeypatch.setattr(atomic, "no_delegation_flag", flags.__getitem__)
    opened, real = [], os.open

    def unaligned(path: str, flags: int, *mode: int) -> int:
        opened.append(flags & os.O_DIRECT)
        return real(path, flags & ~os.O_DIRECT, *mode)

    monkeypatch.setattr(os, "open", unaligned)
    assert atomic.read(path) == b"what a later rename moves"
    assert opened == [os.O_DIRECT]


def test_read_does_not_wait_longer_than_its_patience(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.read(path, patience_s=0.0)


def test_read_raises_other_errors_without_waiting(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(path).write_bytes(b"one")
    monkeypatch.setattr("time.sleep", lambda s: pytest.fail("it waited"))
    interpose(monkeypatch, open=refused(errno.EIO))
    with pytest.raises(OSError, match="final"):
        atomic.read(path)


def make_symlink(path: str) -> None:
    os.symlink("/etc/hostname", path)


def make_dangling_symlink(path: str) -> None:
    os.symlink("/nowhere", path)


STRANGE: dict[str, tuple[Callable[[str], object], str]] = {
    "symbolic link": (make_symlink, "is a symbolic link"),
    "dangling link": (make_dangling_symlink, "is a symbolic link"),
    "FIFO": (os.mkfifo, "is not a regular file"),
    "directory": (os.mkdir, "is not a regular file"),
}


@pytest.mark.parametrize(("make", "message"), STRANGE.values(), ids=STRANGE.keys())
def test_read_refuses_what_is_not_a_regular_file_and_names_it(
    path: str, make: Callable[[str], object], message: str
) -> None:
    make(path)
    with pytest.raises(PoolError, match=message) as caught:
        atomic.read(path)
    assert path in str(caught.value)


@needs_root
def test_read_refuses_a_file_of_another_user(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(path).write_bytes(b"run this")
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(PoolError, match=f"belongs to user {STRANGER}, not to you"):
        atomic.read(path)
    monkeypatch.setattr("os.geteuid", lambda: STRANGER)
    assert atomic.read(path) == b"run this"


@needs_root
def test_read_trusts_root_as_it_trusts_oneself(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(path).write_bytes(b"one")
    monkeypatch.setattr("os.geteuid", lambda: STRANGER)
    assert atomic.read(path) == b"one"


def test_read_refuses_a_file_that_is_larger_than_any_of_a_pool(path: str) -> None:
    Path(path).write_bytes(b"x" * 101)
    with pytest.raises(PoolError, match="101 bytes long"):
        atomic.read(path, limit=100)
    assert len(atomic.read(path, limit=101)) == 101


# ---- listing ----


def test_names_leaves_private_and_half_removed_names_out(tmp_path: Path) -> None:
    for name in ("a", ".b.1-2", ".nfs0001", ".fuse_hidden0001"):
        (tmp_path / name).touch()
    assert atomic.names(str(tmp_path)) == ["a"]


def make_file(path: str) -> None:
    Path(path).touch()


def link_to_a_directory(path: str) -> None:
    os.symlink("/", path)


@pytest.mark.parametrize(
    "make", [lambda path: None, make_file, link_to_a_directory], ids=["nothing", "file", "link"]
)
def test_names_refuses_what_is_not_a_directory(path: str, make: Callable[[str], object]) -> None:
    make(path)
    with pytest.raises(PoolError, match="is not a directory") as caught:
        atomic.names(path)
    assert path in str(caught.value)


@needs_root
def test_names_refuses_a_directory_that_another_user_could_fill(path: str) -> None:
    os.mkdir(path)
    os.chown(path, STRANGER, STRANGER)
    assert atomic.names(path) == [], "an empty directory holds nothing to refuse"
    Path(path, "a").touch()
    with pytest.raises(PoolError, match=f"belongs to user {STRANGER}"):
        atomic.names(path)


def test_names_lists_again_when_the_handle_of_a_directory_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    interpose(monkeypatch, listdir=refused(errno.ESTALE, times=2))
    assert atomic.names(str(tmp_path)) == ["a"]


def test_a_listing_that_loses_its_place_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    began: list[list[str]] = []

    def scandir(real: Callable[[int], Any], fd: int) -> Any:
        entries = iter(sorted(os.listdir(fd)))
        return nullcontext(stale(entries) if len(began) < 1 else map(FakeDirEntry, entries))

    def stale(entries: Iterator[str]) -> Iterator[FakeDirEntry]:
        yield FakeDirEntry(next(entries))
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def into(texts: Iterator[str]) -> list[str]:
        began.append([])
        began[-1].extend(texts)
        return began[-1]

    interpose(monkeypatch, scandir=scandir)
    assert atomic.gather(str(tmp_path), into) == ["a", "b", "c"]
    assert len(began) == 2


def test_no_listing_leaves_a_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        atomic.names(str(tmp_path))
        with pytest.raises(PoolError):
            atomic.names(f"{tmp_path}/nothing")
        with pytest.raises(PoolError):
            atomic.read(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


# ---- removing, making ----


def test_discarding_a_missing_file_succeeds(path: str) -> None:
    atomic.discard(path)


def test_a_staged_file_never_replaces_and_leaves_nothing_when_it_fails(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic.stage(path, [b"o", b"n", b"e"])
    with pytest.raises(FileExistsError):
        atomic.stage(path, [b"two"])
    assert atomic.read(path) == b"one"
    interpose(monkeypatch, write=refused(errno.ENOSPC))
    with pytest.raises(OSError):
        atomic.stage(f"{path}2", [b"two"])
    assert present(path) == ["final"]


# ---- lines ----


def test_an_appender_grows_a_file_a_line_at_a_time(path: str) -> None:
    for text in (b"one", b"two"):
        with atomic.Appender(path) as file:
            file.line(text)
    assert Path(path).read_bytes() == b"one\ntwo\n"


def test_a_small_file_is_read_by_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claim"
    path.write_bytes(b"{}\n")
    reads: list[bytes] = []

    def read(real: Callable[..., bytes], fd: int, size: int) -> bytes:
        reads.append(real(fd, size))
        return reads[-1]

    interpose(monkeypatch, read=read)
    assert atomic.read(str(path)) == b"{}\n"
    assert len(reads) == 1
