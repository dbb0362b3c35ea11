"""Describe the file system that a directory is on: its type, mount options and free space.

What this module does not know: what the answers mean for a pool; `maintenance.doctor` judges them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

ONE_HOST: Final = frozenset(
    "btrfs ecryptfs ext2 ext3 ext4 f2fs jfs overlay ramfs reiserfs tmpfs vfat xfs zfs".split()
)
"""File systems that usually only one host sees, though any of them can be exported."""

FRESH: Final = ONE_HOST | {"nfs4", "ceph", "lustre", "gpfs", "beegfs"}
"""File systems on which no host goes on showing an old listing once a directory has changed."""

SILENCE_S: Final = {"ceph": 60.0, "fuse.ceph-fuse": 60.0}
"""Default time for which a server and all its clients wait for a client that fell silent."""


@dataclass(frozen=True, slots=True)
class Mount:
    """What the mount table and statvfs(3) report about a directory."""

    type: str
    """As in the mount table: nfs4, lustre, ceph, fuse.glusterfs; "" where there is no table."""
    source: str
    options: str
    free_bytes: int | None
    """None where the file system does not report its size: not all of its data servers are up."""
    free_inodes: int | None
    """None where the file system has no fixed number of them; CephFS reports -1."""
    name_bytes_max: int

    @property
    def one_host(self) -> bool:
        return self.type in ONE_HOST

    @property
    def silence_s(self) -> float:
        return SILENCE_S.get(self.type, 0.0)


def mount_of(directory: str) -> Mount:
    """Return the mount of a directory. Raises OSError if it is not there."""
    facts = os.statvfs(directory)
    type, source, options = _entry(os.path.realpath(directory))
    return Mount(
        type,
        source,
        options,
        facts.f_bavail * facts.f_frsize if facts.f_blocks else None,
        facts.f_favail if facts.f_files and facts.f_favail >= 0 else None,
        facts.f_namemax,
    )


@lru_cache(maxsize=256)
def listings_may_be_old(directory: str) -> bool:
    """Return whether a host may show an old listing of a directory there until it changes again.

    So does NFS 3, which compares timestamps, and perhaps a file system in user space. Raises
    OSError if it is not there.
    """
    return _entry(os.path.realpath(directory))[0] not in FRESH


@lru_cache(maxsize=256)
def no_delegation_flag(directory: str) -> int:
    """Return the flag for opening files there to read, so that other hosts can still move them.

    An NFS 4 server may give a reader a delegation: the promise to ask it before the file changes. A
    rename by another host then waits until the reader has returned the delegation or, if its host
    died, until the server's lease has expired, usually 90 s. Meanwhile the renaming host can do
    little else. Files opened with O_DIRECT get no delegation. On other file systems this is 0.
    """
    device = os.stat(directory).st_dev
    number = f" {os.major(device)}:{os.minor(device)} "
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as table:
            delegates = any(number in line and _parse(line)[1][0] == "nfs4" for line in table)
    except OSError:
        return 0  # not Linux
    return os.O_DIRECT if delegates else 0


def _entry(path: str) -> tuple[str, str, str]:
    """Return type, source and options of the innermost mount that holds `path`."""
    best, found = "", ("", "", "")
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as table:
            for line in table:
                point, parsed = _parse(line)
                if point and f"{path}/".startswith(f"{point.rstrip('/')}/") and point >= best:
                    best, found = point, parsed
    except OSError:
        pass  # not Linux
    return found


def _parse(line: str) -> tuple[str, tuple[str, str, str]]:
    """Parse a line of mountinfo, see proc(5): mount point, (type, source, options).

    Spaces are written as \\040.
    """
    before, _, after = line.partition(" - ")
    fields, tail = before.split(" "), after.split()
    if len(fields) < 6 or len(tail) < 3:
        return "", ("", "", "")
    plain = [re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text) for text in
             (fields[4], tail[0], tail[1])]  # fmt: skip
    options = dict.fromkeys([*fields[5].split(","), *tail[2].split(",")])
    return plain[0], (plain[1], plain[2], ",".join(options))
