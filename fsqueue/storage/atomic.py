"""Touch the shared file system, in the few ways that are safe on all of them.

Calling sequence. Whole files appear by `publish` (never replacing) or, where one writer owns the
name, by `replace`. Names move by `rename`. Logs grow by `Appender`, one writer each. Readers use
`read`, `names` and `gather`. Every operation of the protocol goes through this module's `os`, so
that a simulated file system, or a crash at the n-th operation, can be put under the real code.

What readers are promised. A visible name holds a complete file; a published file never changes;
a replaced file is the old bytes or the new. On a network mount a reader may still get ENOENT or
ESTALE for a moment: `read` retries both for `patience_s`.

What this module does not know: claims, leases, or what any file means.
"""

from __future__ import annotations

import errno
import logging
import os as os  # re-exported: `directories` uses this module's `os`, so there is one door
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Final, TypeVar

from fsqueue.errors import NotSupportedError, PoolError
from fsqueue.storage import permissions
from fsqueue.storage.mounts import no_delegation_flag
from fsqueue.storage.operation_count import costs

log = logging.getLogger(__name__)

T = TypeVar("T")

READ_LIMIT: Final = 64 << 20
STALE_S: Final = 2.0
READING: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
NO_LINK: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
GONE: Final = {errno.ENOENT, errno.ESTALE}
BUSY: Final = {errno.ETXTBSY, errno.EBUSY}


# ---- listing ----


def names(directory: str) -> list[str]:
    """List the visible names in `directory`; raises what `gather` does."""
    return gather(directory, list)


def gather(directory: str, into: Callable[[Iterator[str]], T]) -> T:
    """Return what `into` makes of the visible names in `directory`, one by one and in no order.

    Listing a million names takes no memory if `into` keeps none. `into` is called again if a mount
    loses its place. Raises PoolError if `directory` is not a directory (a symbolic link is not
    followed), or if another user could have put its content there.
    """
    deadline = time.monotonic() + STALE_S
    while True:
        try:
            return _gather_once(directory, into)
        except OSError as error:
            # RACE: a network mount's handle on a directory can be stale for a moment.
            if error.errno != errno.ESTALE or time.monotonic() >= deadline:
                if isinstance(error.filename, int):
                    error.filename = directory  # not the number of a descriptor
                raise
            time.sleep(0.05)


def _gather_once(directory: str, into: Callable[[Iterator[str]], T]) -> T:
    fd = _open_directory(directory)
    try:
        return _gather_from(fd, directory, into)
    finally:
        os.close(fd)


@costs(1)
def _open_directory(directory: str) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing_directory_error(directory, error) from error


@costs(3)  # fstat, and getdents until there is no more
def _gather_from(fd: int, directory: str, into: Callable[[Iterator[str]], T]) -> T:
    with os.scandir(fd) as entries:
        first = list(islice(entries, 1))
        if first:  # an empty directory holds nothing from another user: save a call
            _require_trusted(directory, fd)
        found = (entry.name for entry in chain(first, entries))
        return into(name for name in found if not name.startswith("."))


@costs(1)
def _require_trusted(path: str, fd: int) -> None:
    permissions.require_trusted(path, os.fstat(fd), os.geteuid())


@costs(4)
def private_names(directory: str) -> list[str]:
    """List the private names in a directory; none if it is not there."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []  # RACE: it was removed, or has not been made yet


def missing_directory_error(directory: str, error: OSError) -> PoolError:
    """Return the error to raise where a directory of the pool is not there."""
    return PoolError(
        f"{directory} is not a directory ({error.strerror}); something outside fsqueue removed "
        f"or replaced it. Put it back, then: fsqueue check POOL"
    )


# ---- reading ----


def read(path: str, *, patience_s: float = STALE_S, limit: int = READ_LIMIT) -> bytes:
    """Return the bytes of a regular file, not following a symbolic link.

    Raises FileNotFoundError after `patience_s`; PoolError if it is not a regular, trusted file.
    """
    return read_with_facts(path, patience_s=patience_s, limit=limit)[0]


def read_with_facts(
    path: str, *, patience_s: float = STALE_S, limit: int = READ_LIMIT
) -> tuple[bytes, os.stat_result]:
    """Do what `read` does, and also return the file's stat."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _read_once(path, limit)
        except OSError as error:
            # RACE: on a network mount a file that was just published or replaced can be out of
            # sight, or its old handle stale, for up to 2 s.
            if error.errno not in GONE or time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def _read_once(path: str, limit: int) -> tuple[bytes, os.stat_result]:
    fd, facts = open_for_reading(path)
    try:
        if facts.st_size > limit:
            raise PoolError(
                f"{path} is {facts.st_size:,} bytes long, which no file of a pool is. "
                f"Find out what wrote it, then remove it."
            )
        piece = min(facts.st_size + 1, 1 << 20)  # allocating a large buffer is expensive
        data = os.read(fd, piece)
        if len(data) != facts.st_size:
            data += b"".join(iter(lambda: os.read(fd, piece), b""))
        return data, facts
    finally:
        os.close(fd)


@costs(2)
def open_for_reading(path: str) -> tuple[int, os.stat_result]:
    """Open a regular file, without retrying; return its descriptor and its stat.

    Raises OSError; PoolError if it is a symbolic link, not a regular file, or not trusted.
    """
    try:
        fd = os.open(path, READING | no_delegation_flag(path.rpartition("/")[0]))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PoolError(
                f"{path} is a symbolic link, and a pool holds none. Remove it."
            ) from error
        if error.errno == errno.ENXIO:
            raise PoolError(f"{path} is a socket, and a pool holds none. Remove it.") from error
        raise
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise PoolError(f"{path} is not a regular file, as all files of a pool are. Remove it.")
        permissions.require_trusted(path, facts, os.geteuid())
        return fd, facts
    except BaseException:
        os.close(fd)
        raise


# ---- moving and publishing ----


@costs(1)
def rename(source: str, target: str) -> None:
    """Move one name. The only rename(2) in the program."""
    os.rename(source, target)


def publish(path: str, data: bytes, *, durable: bool = True, personal: bool = False) -> bool:
    """Make `data` visible as `path`, whole; return False if the name was there already.

    A `personal` file is readable by its owner alone (see `permissions`).
    """
    private = _write_private(path, data, durable=durable, personal=personal)
    try:
        return commit(private, path, durable=durable, synced=True)
    except (OSError, NotSupportedError):
        _tidy(private)
        raise


def commit(
    private: str, path: str, *, durable: bool = True, synced: bool = False, keep: bool = False
) -> bool:
    """Give a finished private file its final name, never replacing; the private name goes.

    Returns False if the final name was there already: then that file stands, and ours is dropped
    (or kept under its private name, with `keep`). A crash at any point leaves either no final name,
    or a whole file under it.
    """
    if durable and not synced:
        _sync(private)
    won = _link(private, path)
    if won or not keep:
        _tidy(private)
    if durable:
        sync_directory(os.path.dirname(path))
    return won


@costs(1)
def _link(private: str, path: str) -> bool:
    try:
        os.link(private, path)
        return True
    except FileExistsError:
        # RACE: another attempt published first, and its file stands for good (I7). Or our own link
        # took effect and its reply was lost: then our file has two names, though the link count
        # this mount shows may be out of date.
        return os.stat(private).st_nlink > 1 or _is_same_file(path, private)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        if _links_work(private):
            # RACE: another published first; sshfs says EPERM where its cache does not show it yet.
            return os.stat(private).st_nlink > 1
        raise NotSupportedError(
            f"{os.path.dirname(path)}: hard links do not work here ({error.strerror}), and "
            f"fsqueue needs link(2) to publish files without replacing any. Put the pool on "
            f"another file system."
        ) from error


def _tidy(private: str) -> None:
    """Remove a private name that is not needed any more; that it stays changes nothing (R3).

    Nor does it hide the error after which it is removed, by which blame is decided (R1).
    """
    try:
        discard(private)
    except OSError as error:
        log.debug("%s is left behind: %s", private, error)


def _links_work(private: str) -> bool:
    """Return whether a link to a name that only this process could choose can be made here."""
    try:
        os.link(private, f"{private}~")
    except OSError:
        return False
    _tidy(f"{private}~")
    return True


def _is_same_file(path: str, ours: str) -> bool:
    try:
        return os.path.samefile(path, ours)
    except FileNotFoundError:
        return False  # RACE: this mount does not show yet what another process published


def replace(path: str, data: bytes) -> None:
    """Put `data` where `path` is, whole, for a name that only this process writes.

    Not durable: only files for display are replaced.
    """
    private = _write_private(path, data, durable=False)
    for _ in range(20):
        try:
            return _replace_once(private, path)
        except OSError as error:
            # RACE: NFS answers ETXTBSY while a process on this host has the old file open.
            if error.errno not in BUSY:
                _tidy(private)
                raise
            time.sleep(0.05)
    _tidy(private)


@costs(1)
def _replace_once(private: str, path: str) -> None:
    os.replace(private, path)


def stage(path: str, parts: Iterable[bytes], *, personal: bool = False) -> None:
    """Write a file that nothing looks for yet, durably, under its own name."""
    _write(path, parts, durable=True, personal=personal)


@costs(1)
def discard(path: str) -> None:
    """Remove a file of ours, if it is still there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # RACE: a network mount repeats an unlink whose first reply was lost.


# ---- writing ----


@costs(1)
def sync_directory(directory: str) -> None:
    """Make the directory's entries survive a power loss."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise _with_path(error, directory) from None  # some FUSE mounts cannot sync a directory
    finally:
        os.close(fd)


@costs(2)
def _sync(path: str) -> None:
    """Sync a handler's finished file, after correcting the mode that its umask gave it."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode != permissions.output_mode(mode):
            os.fchmod(fd, permissions.output_mode(mode))
        _fsync(fd)
    except OSError as error:
        raise _with_path(error, path) from None
    finally:
        os.close(fd)


@costs(1)
def _fsync(fd: int) -> None:
    os.fsync(fd)


def _with_path(error: OSError, path: str) -> OSError:
    """Add the path to an error of write(2), fsync(2) or close(2), which do not have it."""
    error.filename = error.filename or path
    return error


def _write_private(path: str, data: bytes, *, durable: bool, personal: bool = False) -> str:
    directory, name = os.path.split(path)
    private = f"{directory}/.{name[:120]}.{os.getpid()}-{secrets.token_hex(6)}"
    try:
        _write(private, (data,), durable=durable, personal=personal)
    except FileExistsError:
        # RACE: with ourselves. The file was made and the reply was lost; no other process chooses
        # this name.
        discard(private)
        _write(private, (data,), durable=durable, personal=personal)
    return private


@costs(1)
def _write(path: str, parts: Iterable[bytes], *, durable: bool, personal: bool = False) -> None:
    mode = permissions.file_mode(personal=personal)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            if permissions.is_shared():
                os.fchmod(fd, mode)
            for part in parts:
                _write_all(fd, part)
            if durable:
                _fsync(fd)
        finally:
            os.close(fd)  # quota and I/O errors may come only here, and count
    except OSError as error:
        if error.errno != errno.EEXIST:
            _tidy(path)
        raise _with_path(error, path) from None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Appender:
    """A file that this process alone grows, a line at a time. Lines are not synced."""

    @costs(1)
    def __init__(self, path: str, *, in_turn: bool = False) -> None:
        """Open or make it. `in_turn`: members of a group may write it, one after the other."""
        mode = permissions.lock_mode() if in_turn else permissions.file_mode()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, mode)
        if permissions.is_shared() and os.fstat(self._fd).st_uid == os.geteuid():
            os.fchmod(self._fd, mode)

    def line(self, data: bytes) -> None:
        """Append one line in a single write."""
        os.write(self._fd, data + b"\n")

    def close(self) -> None:
        """Close it; errors that a network mount kept until now are raised here."""
        os.close(self._fd)

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
