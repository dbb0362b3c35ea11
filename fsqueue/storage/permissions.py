"""Decide whose files a process works with, and who may work with those that it makes.

A pool's claims say what is to be done, so whoever can write to a pool can give work to those who
work it. A file system tells who that is: a file's owner, and who else may write to it. What is read
must be

    owned by        us, or root; or, if we were told to, a member of the pool directory's group
    writable by     its owner alone; a directory also by that group, if we were told to

A process is told by `--trust-group` or FSQUEUE_TRUST_GROUP, and not by anything in a pool: a pool
cannot vouch for itself. It then trusts the group of the directory of every pool that it opens, and
what it makes in a directory that this group may write to is made for the group: directories 2770,
files 0640, locks 0660, whatever the umask. Files are never writable by the group: it puts, moves
and removes names, but what a claim says stands as its owner wrote it. The pool itself, spools/ and
outputs/ are sticky: nobody but its maker replaces one of the directories in them by a link.

A group's members can still move our own files about, an output to where a claim is looked for, say.
So a *personal* claim, one that says which program to run, is told by its mode, which no rename can
change: 0600, which nothing else in a pool has.

State of the process, like the umask: `trust` is called where a pool is opened, and nowhere else.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from typing import Final

from fsqueue.errors import PoolError

TOLD: Final = "FSQUEUE_TRUST_GROUP"
OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
NOBODY: Final = 65534

_groups: set[int] = set()
_shared: set[int] = set()


def told() -> bool:
    """Say whether this process was told to trust groups."""
    return os.environ.get(TOLD, "").lower() in ("1", "true", "t", "yes", "y", "on")


def trust(root: os.stat_result) -> None:
    """Trust the group of a pool's directory, if this process was told to."""
    if told():
        _groups.add(root.st_gid)
        if root.st_mode & stat.S_IWGRP:
            _shared.add(root.st_gid)


def distrust() -> None:
    """Trust nobody again, as a process does that has just begun."""
    _groups.clear()
    _shared.clear()


# ---- reading ----


def refuse(path: str, facts: os.stat_result, me: int) -> None:
    """Raise PoolError unless `me` may work with the file or directory that `facts` tell of."""
    if facts.st_uid == me and not facts.st_mode & OTHERS_WRITE:
        return
    in_group = facts.st_gid in _groups
    if facts.st_uid not in (me, 0) and not (in_group and _is_member(facts.st_uid, facts.st_gid)):
        raise _stranger(path, facts, me)
    by_group = in_group and stat.S_ISDIR(facts.st_mode)
    if facts.st_mode & (stat.S_IWOTH if by_group else OTHERS_WRITE):
        raise _open_to_others(path, facts)


def is_by_us(facts: os.stat_result, me: int) -> bool:
    """Say whether a personal claim was written by `me`, and put where it is by nobody else."""
    if facts.st_uid != me or not _shared:
        return facts.st_uid == me
    return facts.st_nlink == 1 and not facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


@cache
def _is_member(uid: int, gid: int) -> bool:
    import pwd

    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False  # this machine does not know who that is
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def _stranger(path: str, facts: os.stat_result, me: int) -> PoolError:
    if facts.st_uid == NOBODY:
        cause = (
            "that is nobody, as whom NFS shows root (root_squash) and users whom it cannot map, "
            "and a container those outside of it"
        )
        advice = "See ls -ln; work as the user who planned"
    elif _groups:
        groups = ", ".join(map(str, sorted(_groups)))
        cause = f"it is in group {facts.st_gid}, and its owner is no member of a trusted one"
        advice = f"Trusted: {groups}. Let its owner join, or remove it"
    else:
        cause = "a pool's claims say what to run, and so it is worked by the user who planned it"
        advice = "chown it, make a pool of your own, or trust its group: --trust-group"
    return PoolError(
        f"{path} belongs to user {facts.st_uid}, not to you ({me}); {cause}. {advice}."
    )


def _open_to_others(path: str, facts: os.stat_result) -> PoolError:
    shell = "chmod -R go-w" if stat.S_ISDIR(facts.st_mode) else "chmod go-w"
    if facts.st_mode & stat.S_IWOTH:
        who = "everybody"
        advice = f"{shell} it. If that changes nothing, mount the file system with umask=022"
    else:
        who = f"its group, {facts.st_gid}"
        advice = f"{shell} it, or, if all of that group may give you work: --trust-group"
    mode = stat.S_IMODE(facts.st_mode)
    return PoolError(
        f"{path} can be written by {who} (mode {mode:04o}), who could give you work or change "
        f"it. It is left alone: {advice}."
    )


def capability() -> str:
    """Return what a worker must have for this user's personal claims in a pool of a group.

    It stands in their kind, so that workers of others do not even take them.
    """
    return f"uid{os.geteuid()}"


# ---- making ----


def file_mode(*, personal: bool = False) -> int:
    """Return the mode of a file that we make; the umask may take from it (see `settle`)."""
    return 0o600 if personal else 0o640 if _shared else 0o644


def directory_mode(*, sticky: bool = False) -> int:
    """Return the mode of a directory that we make."""
    return (0o3770 if sticky else 0o2770) if _shared else 0o755


def lock_mode() -> int:
    """Return the mode of a lock file: to lock it over NFS, it must be opened for writing."""
    return 0o660 if _shared else 0o644


def shared() -> bool:
    """Say whether what we make is made for a group; then no umask has a say in it."""
    return bool(_shared)


def narrowed(mode: int) -> int:
    """Return the mode that a handler's finished file is to have, which has `mode`."""
    return file_mode() if _shared else mode & ~OTHERS_WRITE
