"""Make, empty and remove directories of a pool, whoever else does so at the same moment.

What this module does not know: what a directory is for. Its operations go through `atomic`'s `os`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from fsqueue.errors import PoolError
from fsqueue.storage import atomic, permissions

log = logging.getLogger(__name__)


def make(path: str, *, sticky: bool = False) -> None:
    """Make one directory; it may be there already. PoolError if the one above it is not.

    In a group's pool, a name in a `sticky` one is moved by whoever made it, and nobody else.
    """
    mode = permissions.directory_mode(sticky=sticky)
    atomic.tally.operations += 1
    try:
        atomic.os.mkdir(path, mode)
    except FileExistsError:
        return  # RACE: somebody else made it, which is as good.
    except (FileNotFoundError, NotADirectoryError) as error:
        raise atomic.no_directory(os.path.dirname(path), error) from error
    if permissions.is_shared():
        atomic.os.chmod(path, mode)


def make_private(path: str) -> None:
    """Make a directory for us alone. PoolError if another one is there: what we write would be his.

    A group's members could otherwise put a symbolic link where a handler is about to write.
    """
    try:
        atomic.os.mkdir(path, 0o700)
        return
    except FileExistsError:
        pass  # RACE: we made it before; anybody else's is refused.
    except (FileNotFoundError, NotADirectoryError) as error:
        raise atomic.no_directory(os.path.dirname(path), error) from error
    try:
        facts = atomic.os.lstat(path)
    except FileNotFoundError:
        return  # RACE: whoever declares us dead removes it; our next beat tells us.
    ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == atomic.os.geteuid()
    if not ours or facts.st_mode & permissions.OTHERS_WRITE:
        raise PoolError(f"{path} was put there by somebody else. Remove it.")


def empty(directory: str) -> bool:
    """Remove whatever a handler left in a directory of ours; return whether that is still there.

    No symbolic link is followed, whatever is put in the directory's place meanwhile.
    """
    atomic.tally.operations += 4
    try:
        fd = atomic.os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _empty(fd)
        finally:
            atomic.os.close(fd)
        return True
    except OSError as error:
        # RACE: someone removed the directory first, or while we emptied it; ESTALE: another host.
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
    """Remove a directory and all that is in it, as far as that can be done: it is only litter."""
    try:
        empty(directory)
        discard_empty(directory)
    except OSError as error:
        log.debug("%s is left behind: %s", directory, error)


def discard_at_once(directory: str) -> None:
    """Remove a directory as `discard` does, but at one moment for whoever is using it."""
    try:
        atomic.rename(directory, f"{directory}.dead")
    except OSError as error:
        log.debug("%s is left behind: %s", directory, error)  # most likely there is none
    else:
        discard(f"{directory}.dead")


def discard_empty(directory: str) -> None:
    """Remove a directory if nothing is in it."""
    atomic.tally.operations += 1
    try:
        atomic.os.rmdir(directory)
    except OSError as error:
        # RACE: someone removes it too, or is putting something into it.
        if error.errno not in atomic.GONE | {errno.ENOTEMPTY, errno.EEXIST}:
            raise
