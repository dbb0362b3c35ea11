"""Say which file system a directory is on: its type, its mount options, what is free on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

ONE_HOST: Final = frozenset(
    "btrfs ecryptfs ext2 ext3 ext4 f2fs jfs overlay ramfs reiserfs tmpfs vfat xfs zfs".split()
)
"""File systems that only one host sees, as a rule (any can be exported from it)."""

SILENCE_S: Final = {"ceph": 60.0, "fuse.ceph-fuse": 60.0}
"""How long, as it comes, a server and all its clients wait for a client that has fallen silent."""


@dataclass(frozen=True, slots=True)
class Mount:
    """What the mount table and statvfs(3) say of a directory."""

    type: str
    """As in the mount table: nfs4, lustre, ceph, fuse.glusterfs; "" where there is no table."""
    source: str
    options: str
    free_bytes: int | None
    """None where the file system does not tell its size: one whose data servers are not all up."""
    free_inodes: int | None
    """None where the file system has no fixed number of them; CephFS says -1."""
    name_bytes_max: int

    @property
    def one_host(self) -> bool:
        return self.type in ONE_HOST

    @property
    def silence_s(self) -> float:
        return SILENCE_S.get(self.type, 0.0)


def mount_of(directory: str) -> Mount:
    """Look a directory up. Raises OSError if it is not there."""
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
def unpromised(directory: str) -> int:
    """Return the flag with which to open a file there for reading, so that others can move it.

    A server of NFS 4 promises whoever reads a file to ask him before it changes (a delegation): a
    rename by another host waits until he has given it back, and where he is dead, until the
    server's lease is over, 90 s as a rule; the other's host can do little else meanwhile. A client
    asks for no promise by O_DIRECT. Elsewhere that flag is not wanted, and this is 0.
    """
    device = os.stat(directory).st_dev
    number = f" {os.major(device)}:{os.minor(device)} "
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as table:
            promising = any(number in line and _parse(line)[1][0] == "nfs4" for line in table)
    except OSError:
        return 0  # not Linux
    return os.O_DIRECT if promising else 0


def _entry(path: str) -> tuple[str, str, str]:
    """Return type, source and options of the last mount that `path` is under."""
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
    """Take a line of mountinfo apart; see proc(5). Spaces in it are written as \\040."""
    before, _, after = line.partition(" - ")
    fields, tail = before.split(" "), after.split()
    if len(fields) < 6 or len(tail) < 3:
        return "", ("", "", "")
    plain = [re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text) for text in
             (fields[4], tail[0], tail[1])]  # fmt: skip
    options = dict.fromkeys([*fields[5].split(","), *tail[2].split(",")])
    return plain[0], (plain[1], plain[2], ",".join(options))
