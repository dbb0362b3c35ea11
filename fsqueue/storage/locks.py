"""Try a lock without waiting, and hold one per host while a model loads.

The only door to filelock. Two kinds, both flock(2) on a file that is never unlinked (I9):

* `try_lock` keeps thieves from scanning one spool at the same time. It is politeness: where the
  file system has no flock, or an flock that excludes nobody, everything is still correct (I5).
* `host_lock` serialises something on this host, on a local file system.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from filelock import FileLock, Timeout

from fsqueue.errors import NotSupportedError, PoolError
from fsqueue.storage import directories
from fsqueue.storage.permissions import lock_mode

log = logging.getLogger(__name__)

NO_LOCKS: Final = {
    *(errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTSUP),
    *(errno.EIO, errno.ESTALE),  # a network mount that lost its lock server
    *(errno.ELOOP, errno.EISDIR),  # somebody put something else there: nothing to lock by
}


@contextmanager
def try_lock(path: str) -> Iterator[bool]:
    """Yield True while holding the lock, False at once if somebody else holds it.

    `fallback_to_soft=False`: on a mount without flock, filelock would otherwise switch to a lock
    by existence, which outlives a killed holder. Here no lock at all is the better answer.
    """
    lock = FileLock(path, mode=lock_mode(), blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        number = getattr(error, "errno", None)
        if isinstance(error, OSError) and number not in NO_LOCKS:
            raise
        log.debug("%s: no locks here (%s); going on without", path, error)
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def free_elsewhere(path: str) -> bool | None:
    """Say whether another process gets a lock that we hold; None if there are no locks here."""
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError, Timeout):
        return None
    try:
        # Not forked: a forked process would share what it is to be refused.
        script = "import sys; from fsqueue.storage.locks import try_lock\n"
        script += "with try_lock(sys.argv[1]) as free: sys.exit(not free)"
        return subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 0
    finally:
        lock.release()


@contextmanager
def host_lock(name: str, *, timeout_s: float = 3600.0) -> Iterator[None]:
    """Hold the lock called `name` on this host, for this user; wait for it if need be.

    Raises NotSupportedError if the directory of our locks is not ours alone: where it is, everybody
    may make one.
    """
    directory = os.path.join(tempfile.gettempdir(), f"fsqueue-{os.geteuid()}")
    try:
        directories.make_private(directory)
    except PoolError as error:
        raise NotSupportedError(
            f"{directory}, for the locks of this host, is no directory of yours alone: somebody "
            f"else may have made it. Remove it, or set TMPDIR to a directory of your own."
        ) from error
    with FileLock(os.path.join(directory, f"{name}.lock"), timeout=timeout_s):
        yield
