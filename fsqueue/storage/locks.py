"""Try a lock without waiting, and hold one per host while a model loads.

The only module that imports filelock. Both are flock(2) on a file that is never unlinked (I9):

* `try_lock` keeps thieves from scanning one spool at the same time. It only saves work: where the
  file system has no flock, or its flock excludes no other host, everything is still correct (I5).
  So any error of it, such as a file that another user made, means that there is no lock.
* `host_lock` serialises something among this user's processes on this host.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from fsqueue.errors import NotSupportedError, PoolError
from fsqueue.storage import directories
from fsqueue.storage.permissions import lock_mode

log = logging.getLogger(__name__)


@contextmanager
def try_lock(path: str) -> Iterator[bool]:
    """Yield True while holding the lock, False at once if another process holds it.

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
        log.debug("%s: locks do not work here (%s); continuing without", path, error)
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def excludes_other_processes(path: str) -> bool | None:
    """Return whether locks exclude other processes here; None if they do not work at all."""
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError, Timeout):
        return None
    try:
        # Not forked: a forked process would share the lock it is supposed to be refused.
        script = "import sys; from fsqueue.storage.locks import try_lock\n"
        script += "with try_lock(sys.argv[1]) as free: sys.exit(not free)"
        return (
            subprocess.run([sys.executable, "-P", "-c", script, path], check=False).returncode != 0
        )
    finally:
        lock.release()


@contextmanager
def host_lock(name: str, *, timeout_s: float = 3600.0) -> Iterator[None]:
    """Hold the lock called `name` of this user on this host; wait for it up to `timeout_s`.

    Raises NotSupportedError if the directory of the locks may belong to another user: anyone can
    make directories where it is.
    """
    directory = os.path.join(tempfile.gettempdir(), f"fsqueue-{os.geteuid()}")
    try:
        directories.make_private(directory)
    except PoolError as error:
        raise NotSupportedError(
            f"{directory}, for locks on this host, belongs to another user or others may write to "
            f"it. Remove it, or set TMPDIR to a directory of your own."
        ) from error
    with FileLock(os.path.join(directory, f"{name}.lock"), timeout=timeout_s):
        yield
