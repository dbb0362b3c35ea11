"""Become the parent of the orphans that our programs leave, so that they can be found and reaped.

Rules:

R21 A process that runs programs is, where the kernel allows it (Linux: PR_SET_CHILD_SUBREAPER; PID
    1 of a container in any case), the parent of everything that outlives its own parent there. It
    reaps those that are its programs', by number: never by waiting for any child, which would take
    the exit status of a child that other code waits for. What this process started for itself
    is no orphan, whenever it began: `keep` says which those are.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_adopting: dict[int, bool] = {}
"""By process number: a forked child is none."""
_kept: set[int] = set()
"""Children that this process started for itself, in sessions of their own."""
_unended: set[int] = set()
"""Children of ours that not even SIGKILL has ended so far."""


def adopt_orphans() -> bool:
    """Make this process the parent of its descendants' orphans; return whether it is."""
    pid = os.getpid()
    if pid not in _adopting:
        _adopting[pid] = pid == 1 or _become_subreaper()
    return _adopting[pid]


def _become_subreaper() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # only here: most workers run no programs

    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def keep(pid: int) -> None:
    """Say that a child is this process's own, and belongs to no program."""
    _kept.add(pid)


def is_kept(pid: int) -> bool:
    """Return whether a child is this process's own."""
    return pid in _kept


def reap(pid: int) -> bool:
    """Take the exit status of a child that has ended; return whether the kernel forgot it."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True  # RACE: not our child, so that another process reaps it
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return True


def reap_group(group: int) -> None:
    """Reap those children in a program's group that have ended."""
    try:
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass  # there is none


def give_up(pid: int) -> None:
    """Remember a child that cannot be ended now, so that it is reaped if it ends later."""
    _unended.add(pid)


def reap_given_up() -> None:
    """Reap those that have ended meanwhile of the children that could not be ended."""
    for pid in list(_unended):
        if reap(pid):
            _unended.discard(pid)
