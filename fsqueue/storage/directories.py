"""Make, empty and remove directories of a pool while other processes do the same.

What this module does not know: what a directory is for. Its operations go through `atomic`'s `os`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from fsqueue.errors import PoolError
from fsqueue.storage import atomic, permissions
from fsqueue.storage.operation_count import costs

log = logging.getLogger(__name__)


@costs(1)
def make(path: str, *, sticky: bool = False) -> bool:
    """Make a directory unless it is there; return whether it was made. PoolError without a parent.

    In a group's pool, a name in a `sticky` directory can be moved by its maker alone.
    """
    mode = permissions.directory_mode(sticky=sticky)
    try:
        atomic.os.mkdir(path, mode)
    except FileExistsError:
        return False  # RACE: another process made it, which is as good.
    except (FileNotFoundError, NotADirectoryError) as error:
        raise atomic.missing_directory_error(os.path.dirname(path), error) from error
    if permissions.is_shared():
        atomic.os.chmod(path, mode)
    return True


def make_private(path: str) -> None:
    """Make a directory for this user alone. Raises PoolError if another user's is there.

    A group's members could otherwise put a symbolic link where a handler is about to write.
    """
    try:
        atomic.os.mkdir(path, 0o700)
        return
    except FileExistsError:
        pass  # RACE: made before by this process; another user's is refused below.
    except (FileNotFoundError, NotADirectoryError) as error:
        raise atomic.missing_directory_error(os.path.dirname(path), error) from error
    try:
        facts = atomic.os.lstat(path)
    except FileNotFoundError:
        return  # RACE: a worker that declares us dead removes it; our next renewal finds out.
    ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == atomic.os.geteuid()
    if not ours or facts.st_mode & permissions.OTHERS_WRITE:
        raise PoolError(f"{path} was made by another user, or is writable by others. Remove it.")


@costs(4)
def empty(directory: str) -> bool:
    """Remove everything in a directory of ours; return whether the directory is still there.

    No symbolic link is followed, even if one is put in the directory's place meanwhile.
    """
    try:
        fd = atomic.os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _empty(fd)
        finally:
            atomic.os.close(fd)
        return True
    except OSError as error:
        # RACE: another process removed it first, or while it was emptied; ESTALE: another host did.
        if error.errno not in atomic.GONE:
            raise
        return False


def _empty(fd: int) -> None:
    for name in atomic.os.listdir(fd):
        try:
            atomic.os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass  # RACE: as in `atomic.discard`
        except IsADirectoryError:
            inner = atomic.os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            try:
                _empty(inner)
            finally:
                atomic.os.close(inner)
            atomic.os.rmdir(name, dir_fd=fd)


def discard(directory: str) -> None:
    """Remove a directory and its content as far as possible; what remains is harmless."""
    try:
        empty(directory)
        discard_empty(directory)
    except OSError as error:
        log.debug("%s is left behind: %s", directory, error)


def discard_at_once(directory: str) -> None:
    """Remove a directory as `discard` does, but so that its users lose all of it at one moment."""
    try:
        atomic.rename(directory, f"{directory}.dead")
    except OSError as error:
        log.debug("%s is left behind: %s", directory, error)  # most likely there is none
    else:
        discard(f"{directory}.dead")


@costs(1)
def discard_empty(directory: str) -> None:
    """Remove a directory if it is empty."""
    try:
        atomic.os.rmdir(directory)
    except OSError as error:
        # RACE: another process removes it too, or is putting something into it.
        if error.errno not in atomic.GONE | {errno.ENOTEMPTY, errno.EEXIST}:
            raise
