"""Touch the shared file system, in the few ways that are safe on all of them.

Calling sequence. Whole files appear by `publish` (never replacing) or, where one writer owns the
name, by `replace`. Names move by `rename`. Logs grow by `Appender`, one writer each. Readers use
`read`, `names` and `gather`. Every operation of the protocol goes through this module's `os`, so
that a simulated file system, or a crash at the n-th operation, can be put under the real code.

What readers are promised. A visible name holds a complete file; a published file never changes;
a replaced file is the old bytes or the new. A reader may still meet ENOENT or ESTALE for a moment
on a network mount: `read` retries both for `patience_s`.

What this module does not know: claims, leases, or what any file means.
"""

from __future__ import annotations

import errno
import os as os  # `directories` asks for it here: there is one door
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Final, TypeVar

from fsqueue.errors import NotSupportedError, PoolError
from fsqueue.storage import permissions
from fsqueue.storage.mounts import unpromised

T = TypeVar("T")

READ_LIMIT: Final = 64 << 20
STALE_S: Final = 2.0
READING: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
NO_LINK: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
GONE: Final = {errno.ENOENT, errno.ESTALE}
BUSY: Final = {errno.ETXTBSY, errno.EBUSY}


class Tally:
    """How many system calls of this process named a file, or asked what a name or directory is.

    Two threads may count at once, and lose one: it is for a budget, not for accounts.
    """

    __slots__ = ("operations",)

    def __init__(self) -> None:
        self.operations = 0


tally: Final = Tally()


def names(directory: str) -> list[str]:
    """List the visible names in `directory`; raises what `gather` does."""
    return gather(directory, list)


def gather(directory: str, into: Callable[[Iterator[str]], T]) -> T:
    """Return what `into` makes of the visible names in `directory`, one by one and in no order.

    A million need no memory if `into` keeps none; it is called anew if a mount loses its place.
    Raises PoolError if it is not a directory (a symbolic link is not followed), or if another user
    could have put there what it holds.
    """
    deadline = time.monotonic() + STALE_S
    while True:
        try:
            return _gather_once(directory, into)
        except OSError as error:
            # RACE: a network mount's handle on a directory can be stale for a moment.
            if error.errno != errno.ESTALE or time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def _gather_once(directory: str, into: Callable[[Iterator[str]], T]) -> T:
    tally.operations += 1
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_directory(directory, error) from error
    tally.operations += 3  # fstat, and getdents until there is no more
    try:
        with os.scandir(fd) as entries:
            first = list(islice(entries, 1))
            if first:  # what is empty holds nothing of a stranger's, and one call less counts
                tally.operations += 1
                permissions.require_trusted(directory, os.fstat(fd), os.geteuid())
            found = (entry.name for entry in chain(first, entries))
            return into(name for name in found if not name.startswith("."))
    finally:
        os.close(fd)


def private_names(directory: str) -> list[str]:
    """List the private names in a directory; none if it is not there."""
    tally.operations += 4
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []  # RACE: it was removed, or nobody has made it yet


def no_directory(directory: str, error: OSError) -> PoolError:
    """Return the error of whoever finds none where one must be."""
    return PoolError(
        f"{directory} is not a directory ({error.strerror}); something outside fsqueue removed "
        f"or replaced it. Put it back, then: fsqueue check POOL"
    )


def read(path: str, *, patience_s: float = STALE_S, limit: int = READ_LIMIT) -> bytes:
    """Return the bytes of a regular file, not following a symbolic link.

    Raises FileNotFoundError after `patience_s`; PoolError if it is not a regular file of ours.
    """
    return read_with_facts(path, patience_s=patience_s, limit=limit)[0]


def read_with_facts(
    path: str, *, patience_s: float = STALE_S, limit: int = READ_LIMIT
) -> tuple[bytes, os.stat_result]:
    """Do what `read` does, and also return what the file system says of the file."""
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
    fd, facts = opened(path)
    try:
        if facts.st_size > limit:
            raise PoolError(f"{path} is {facts.st_size:,} bytes long; no file of a pool is. Look.")
        data = os.read(fd, piece := min(facts.st_size + 1, 1 << 20))  # a large buffer is dear
        if len(data) != facts.st_size:
            data += b"".join(iter(lambda: os.read(fd, piece), b""))
        return data, facts
    finally:
        os.close(fd)


def opened(path: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading, once; return a descriptor and what `fstat` says.

    Raises OSError; PoolError if it is a symbolic link, no regular file, or not of ours.
    """
    tally.operations += 2
    try:
        fd = os.open(path, READING | unpromised(path.rpartition("/")[0]))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PoolError(f"{path} is a symbolic link; a pool holds none. Remove it.") from error
        if error.errno == errno.ENXIO:
            raise PoolError(
                f"{path} is a socket; a pool holds no such thing. Remove it."
            ) from error
        raise
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise PoolError(f"{path} is not a regular file; a pool holds no such thing. Remove it.")
        permissions.require_trusted(path, facts, os.geteuid())
        return fd, facts
    except BaseException:
        os.close(fd)
        raise


def rename(source: str, target: str) -> None:
    """Move one name. The only rename(2) in the program."""
    tally.operations += 1
    os.rename(source, target)


def publish(path: str, data: bytes, *, durable: bool = True, personal: bool = False) -> bool:
    """Make `data` visible as `path`, whole; return False if the name was there already.

    What is `personal` nobody else can read (see `trust.py`).
    """
    private = _write_private(path, data, durable=durable, personal=personal)
    try:
        return commit(private, path, durable=durable, synced=True)
    except (OSError, NotSupportedError):
        discard(private)
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
        discard(private)
    if durable:
        sync_directory(os.path.dirname(path))
    return won


def _link(private: str, path: str) -> bool:
    tally.operations += 1
    try:
        os.link(private, path)
        return True
    except FileExistsError:
        # RACE: another attempt published first, and its file stands for good (I7). Or our own link
        # was done and its reply lost: then our file has two names, though its count may be old.
        return os.stat(private).st_nlink > 1 or _is_file(path, private)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        if _links_work(private):
            # RACE: another published first; sshfs says EPERM where its cache does not show it yet.
            return os.stat(private).st_nlink > 1
        raise NotSupportedError(
            f"{os.path.dirname(path)}: hard links do not work here ({error.strerror}), and "
            f"fsqueue publishes by link(2) because it never replaces. Put the pool on another "
            f"file system."
        ) from error


def _links_work(private: str) -> bool:
    """Say whether a link to a name that only we could choose can be made here."""
    try:
        os.link(private, f"{private}~")
    except OSError:
        return False
    discard(f"{private}~")
    return True


def _is_file(path: str, ours: str) -> bool:
    try:
        return os.path.samefile(path, ours)
    except FileNotFoundError:
        return False  # RACE: this mount has not seen yet what another published


def replace(path: str, data: bytes) -> None:
    """Put `data` where `path` is, whole, for a name that only this process writes.

    Not durable: what is replaced like this is for eyes.
    """
    private = _write_private(path, data, durable=False)
    for _ in range(20):
        tally.operations += 1
        try:
            return os.replace(private, path)
        except OSError as error:
            # RACE: NFS answers ETXTBSY while somebody on this host has the old file open.
            if error.errno not in BUSY:
                discard(private)
                raise
            time.sleep(0.05)
    discard(private)


def stage(path: str, parts: Iterable[bytes], *, personal: bool = False) -> None:
    """Write a file that nobody looks for yet, durable, under its own name."""
    _write(path, parts, durable=True, personal=personal)


def discard(path: str) -> None:
    """Remove a file of ours, if it is still there."""
    tally.operations += 1
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # RACE: a network mount repeats an unlink whose first reply was lost.


def sync_directory(directory: str) -> None:
    """Make the directory's entries survive a power loss."""
    _sync(directory, os.O_DIRECTORY)


def _sync(path: str, flags: int = os.O_NOFOLLOW) -> None:
    tally.operations += 2 + (flags != os.O_DIRECTORY)
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        if flags != os.O_DIRECTORY:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if mode != permissions.output_mode(mode):  # a handler made it, with an umask of its own
                os.fchmod(fd, permissions.output_mode(mode))
        os.fsync(fd)
    except OSError as error:
        if flags != os.O_DIRECTORY or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise _named(error, path) from None  # some FUSE mounts cannot sync a directory
    finally:
        os.close(fd)


def _named(error: OSError, path: str) -> OSError:
    """Let an error of write(2), fsync(2) or close(2), which know no names, say where it was."""
    error.filename = error.filename or path
    return error


def _write_private(path: str, data: bytes, *, durable: bool, personal: bool = False) -> str:
    directory, name = os.path.split(path)
    private = f"{directory}/.{name[:120]}.{os.getpid()}-{secrets.token_hex(6)}"
    try:
        _write(private, (data,), durable=durable, personal=personal)
    except FileExistsError:
        # RACE: with ourselves. It was made and the reply was lost; nobody else chooses this name.
        discard(private)
        _write(private, (data,), durable=durable, personal=personal)
    return private


def _write(path: str, parts: Iterable[bytes], *, durable: bool, personal: bool = False) -> None:
    mode = permissions.file_mode(personal=personal)
    tally.operations += 1 + durable
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            if permissions.is_shared():
                os.fchmod(fd, mode)
            for part in parts:
                _write_all(fd, part)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)  # quota and I/O errors may come only here, and count
    except OSError as error:
        if error.errno != errno.EEXIST:
            discard(path)
        raise _named(error, path) from None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Appender:
    """A file that this process alone grows, a line at a time. Lines are not synced."""

    def __init__(self, path: str, *, in_turn: bool = False) -> None:
        """Open or make it. `in_turn`: others of a group may go on with it, one after the other."""
        tally.operations += 1
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
