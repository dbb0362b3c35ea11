"""Decide which files this process may trust, and the modes of the files it makes.

A pool's claims say what to run, so anyone who can write to a pool can give work to its workers. The
file system knows who that is: the owner of a file, and who else may write to it. A file or
directory is trusted if it is

    owned by        this user or root; or, with --trust-group, a member of the pool's group
    writable by     its owner alone; with --trust-group, a directory also by that group

--trust-group (FSQUEUE_TRUST_GROUP) is a decision of the process, never of the pool: a pool cannot
vouch for itself. With it, the process trusts the group of each pool directory it opens. What it
makes in a pool that the group may write to is made for the group: directories 2770, files 0640,
locks 0660, whatever the umask. Files are never group-writable: members add, move and remove names,
but a claim's content stays as its owner wrote it. The pool directory, spools/ and outputs/ are
sticky, so that only its maker can replace one of their directories by a symbolic link.

Group members can still move each other's files, for example an output to where a claim is expected.
So a *personal* claim, one that says which program to run, is marked by its mode, which no rename
can change: 0600, which nothing else in a pool has.

The trusted groups are state of the process, like the umask. Only opening a pool adds to them.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from typing import Final

from fsqueue.errors import PoolError

TRUST_GROUP_VARIABLE: Final = "FSQUEUE_TRUST_GROUP"
OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
NOBODY_UID: Final = 65534

_trusted_groups: set[int] = set()
_shared_groups: set[int] = set()
"""Those trusted groups that may also write to the directory of their pool."""


def trusts_groups() -> bool:
    """Return whether --trust-group is in force."""
    return os.environ.get(TRUST_GROUP_VARIABLE, "").lower() in ("1", "true", "t", "yes", "y", "on")


def trust_group_of(pool_directory: os.stat_result) -> None:
    """Trust the group of a pool's directory, if --trust-group is in force."""
    if trusts_groups():
        _trusted_groups.add(pool_directory.st_gid)
        if pool_directory.st_mode & stat.S_IWGRP:
            _shared_groups.add(pool_directory.st_gid)


# ---- reading ----


def require_trusted(path: str, facts: os.stat_result, uid: int) -> None:
    """Raise PoolError unless user `uid` may trust the file or directory described by `facts`."""
    if facts.st_uid == uid and not facts.st_mode & OTHERS_WRITE:
        return
    in_group = facts.st_gid in _trusted_groups
    if facts.st_uid not in (uid, 0) and not (in_group and _is_member(facts.st_uid, facts.st_gid)):
        raise _foreign_owner_error(path, facts, uid)
    group_may_write = in_group and stat.S_ISDIR(facts.st_mode)
    if facts.st_mode & (stat.S_IWOTH if group_may_write else OTHERS_WRITE):
        raise _writable_by_others_error(path, facts)


def is_written_by(facts: os.stat_result, uid: int) -> bool:
    """Return whether user `uid` wrote a personal claim and no other user put it where it is."""
    if facts.st_uid != uid or not _shared_groups:
        return facts.st_uid == uid
    return facts.st_nlink == 1 and not facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


@cache
def _is_member(uid: int, gid: int) -> bool:
    import pwd

    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False  # this machine does not know the user
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def _foreign_owner_error(path: str, facts: os.stat_result, uid: int) -> PoolError:
    if facts.st_uid == NOBODY_UID:
        cause = (
            "that is the user nobody: how NFS shows root (root_squash) and users it cannot map, "
            "and how a container shows users outside of it"
        )
        advice = "See ls -ln; work as the user who planned"
    elif _trusted_groups:
        groups = ", ".join(map(str, sorted(_trusted_groups)))
        cause = f"it is in group {facts.st_gid}, and its owner is not a member of a trusted group"
        advice = f"Trusted: {groups}. Add its owner to that group, or remove it"
    else:
        cause = "a pool's claims say what to run, so only the user who planned a pool works it"
        advice = "chown it, make your own pool, or trust its group: --trust-group"
    return PoolError(
        f"{path} belongs to user {facts.st_uid}, not to you ({uid}); {cause}. {advice}."
    )


def _writable_by_others_error(path: str, facts: os.stat_result) -> PoolError:
    shell = "chmod -R go-w" if stat.S_ISDIR(facts.st_mode) else "chmod go-w"
    if facts.st_mode & stat.S_IWOTH:
        writers = "everybody"
        advice = f"{shell} it. If that changes nothing, mount the file system with umask=022"
    else:
        writers = f"its group, {facts.st_gid}"
        advice = f"{shell} it, or, if that whole group may give you work: --trust-group"
    mode = stat.S_IMODE(facts.st_mode)
    return PoolError(
        f"{path} can be written by {writers} (mode {mode:04o}), who could give you work or change "
        f"it, so it is not used: {advice}."
    )


def user_capability() -> str:
    """Return the capability that this user's personal claims require in a group's pool.

    It is part of their kind, so that other users' workers do not even take them.
    """
    return f"uid{os.geteuid()}"


# ---- making ----


def file_mode(*, personal: bool = False) -> int:
    """Return the mode of a new file. Unless `is_shared`, the umask may take bits from it."""
    return 0o600 if personal else 0o640 if _shared_groups else 0o644


def directory_mode(*, sticky: bool = False) -> int:
    """Return the mode of a new directory."""
    return (0o3770 if sticky else 0o2770) if _shared_groups else 0o755


def lock_mode() -> int:
    """Return the mode of a lock file: locking over NFS needs it opened for writing."""
    return 0o660 if _shared_groups else 0o644


def is_shared() -> bool:
    """Return whether new files are made for a group; then the umask must not change their mode."""
    return bool(_shared_groups)


def output_mode(mode: int) -> int:
    """Return the mode for a handler's finished file, which now has `mode`."""
    return file_mode() if _shared_groups else mode & ~OTHERS_WRITE
