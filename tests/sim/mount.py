"""What one host sees of the disk: names, listings and attributes that may be a while old.

The rules are those measured on real mounts. A lookup (open to read, stat) may be answered from what
this host looked up before, both ways: a name that is gone is still found, one that is new is not.
A listing is fresher, but not always fresh. What creates, links, renames or removes is decided by
the server; yet a name that this host believes to be absent it does not even ask for, and a rename
between two names that it believes to be one file it answers by itself, with success.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.sim.disk import Disk, Inode, failure

BUSY_S = 1.0
"""For how long a directory counts as busy after a change of its names."""


BUSY_S = 1.0
"""For how long a directory counts as busy after a change of its names."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How a kind of file system misleads its users: for how long, in seconds, and about what."""

    name: str
    entries_s: float = 0.0
    listings_s: float = 0.0
    attributes_s: float = 0.0
    opening_refreshes: bool = False
    """Whether opening a directory makes forget which names were not in it."""
    false_renames: bool = False
    omits: float = 0.0
    """With which chance a listing of a directory that changes misses each of its names."""
    locks: str = "global"
    """global: they exclude everywhere; host: only on one host; none: there are none."""


LOCAL = Traits("local disk")
NFS = Traits("NFS", 30.0, 0.05, 3.0, opening_refreshes=True)
LAGGING_NFS = Traits("NFS without locks", 30.0, 1.0, 30.0, locks="none")
KINDS = (
    LOCAL,
    NFS,
    LAGGING_NFS,
    Traits("gluster", entries_s=1.0, attributes_s=1.0, false_renames=True),
    Traits("sshfs", entries_s=1.0, listings_s=20.0, attributes_s=20.0, locks="host"),
)


class Mount:
    """The disk as one host sees it."""

    def __init__(self, disk: Disk, traits: Traits, clock: Callable[[], float], rng: Random) -> None:
        self.disk = disk
        self.traits = traits
        self._clock = clock
        self._rng = rng
        self._entries: dict[str, tuple[float, Inode | None]] = {}
        self._listings: dict[str, tuple[float, list[str]]] = {}
        self._links: dict[int, tuple[float, int]] = {}
        self.misled: Counter[str] = Counter()
        """How often what was seen was not, or no longer, so."""

    # ---- what may be old ----

    def lookup(self, path: str) -> Inode | None:
        """Return what this host believes `path` to be."""
        if not self.traits.entries_s:
            return self.disk.find(path)
        known = self._known(path)
        if known is None:
            known = (self.disk.find(path),)
            self._learn(path, known[0])
        elif known[0] is not self.disk.find(path):
            self.misled["stale lookup"] += 1
        return known[0]

    def open(self, path: str) -> Inode:
        """Return the file that `path` names, or named."""
        inode = self.lookup(path)
        if inode is None:
            raise failure(errno.ENOENT, path)
        if not inode.links:  # the server has forgotten it
            self._entries.pop(path, None)
            raise failure(errno.ESTALE, path)
        if self.traits.opening_refreshes and inode.entries is not None:
            inside = [p for p, known in self._entries.items() if known[1] is None]
            for name in inside:
                if name.rpartition("/")[0] == path:
                    del self._entries[name]
        return inode

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory, in any order."""
        if self.traits.listings_s and (old := self._listings.get(path)) is not None:
            if self._clock() < old[0]:
                return self._old_listing(path, old[1])
        directory = self.disk.directories.get(path)
        if directory is None or directory.entries is None:
            raise failure(errno.ENOENT, path)
        names = list(directory.entries)
        if self.traits.omits and self._clock() - self.disk.touched.get(path, -9.0) < BUSY_S:
            every = len(names)
            names = [name for name in names if self._rng.random() >= self.traits.omits]
            self.misled["missed name"] += every - len(names)
        if self.traits.listings_s:
            until = self._clock() + self._rng.uniform(0, self.traits.listings_s)
            self._listings[path] = until, names
            return list(names)
        return names

    def _old_listing(self, path: str, names: list[str]) -> list[str]:
        directory = self.disk.directories.get(path)
        if directory is None or set(names) != set(directory.entries or ()):
            self.misled["stale listing"] += 1
        return list(names)

    def links(self, inode: Inode) -> int:
        """Return how many names a file has, or had."""
        if not self.traits.attributes_s:
            return inode.links
        old = self._links.get(inode.number)
        if old is not None and self._clock() < old[0]:
            self.misled["stale attribute"] += old[1] != inode.links
            return old[1]
        until = self._clock() + self._rng.uniform(0, self.traits.attributes_s)
        self._links[inode.number] = until, inode.links
        return inode.links

    # ---- what the server decides ----

    def create(self, path: str) -> Inode:
        """Make a file, exclusively."""
        inode = self.disk.create(path)
        self._did(path, inode)
        self.links(inode)
        return inode

    def link(self, source: str, target: str) -> None:
        """Give a file one more name."""
        try:
            self.disk.link(source, target)
        finally:
            self._did(target, self.disk.find(target))

    def rename(self, source: str, target: str) -> None:
        """Move a name, or believe so."""
        if self.traits.entries_s:
            old, new = self._known(source), self._known(target)
            if old is not None and old[0] is None:
                raise failure(errno.ENOENT, source)
            if self.traits.false_renames and old is not None and new is not None:
                if old[0] is new[0]:
                    self.misled["false rename"] += self.disk.find(source) is not None
                    self._learn(source, None)
                    return
        inode = self.disk.find(source)
        try:
            self.disk.rename(source, target)
        except OSError as error:
            if error.errno == errno.ENOENT:
                self._learn(source, None)
                self._learn(target, self.disk.find(target))
            raise
        self._did(source, None)
        self._did(target, inode)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        if self.traits.entries_s and (known := self._known(path)) is not None and known[0] is None:
            raise failure(errno.ENOENT, path)
        self.disk.unlink(path)
        self._did(path, None)

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        try:
            self.disk.mkdir(path)
        finally:
            self._did(path, self.disk.find(path))

    def rmdir(self, path: str) -> None:
        """Remove a directory."""
        self.disk.rmdir(path)
        self._did(path, None)

    def lose_reply(self, what: str, *paths: str) -> None:
        """Let the server do what it was asked, and this host not hear that it did."""
        if what in ("rename", "unlink") and self.traits.entries_s:
            known = self._known(paths[0])
            if known is not None and known[0] is None:
                raise failure(errno.ENOENT, paths[0])
        self._entries.pop(paths[-1], None)
        getattr(self.disk, what)(*paths)
        if what == "rename":
            self._learn(paths[-1], None)

    # ---- parts ----

    def _known(self, path: str) -> tuple[Inode | None] | None:
        found = self._entries.get(path)
        return (found[1],) if found is not None and self._clock() < found[0] else None

    def _learn(self, path: str, inode: Inode | None) -> None:
        if self.traits.entries_s:
            until = self._clock() + self._rng.uniform(0, self.traits.entries_s)
            self._entries[path] = until, inode
            parent = path.rpartition("/")[0]
            if inode is not None and parent in self._entries:
                del self._entries[parent]  # on the way there it was seen

    def _did(self, path: str, inode: Inode | None) -> None:
        """Know what we did ourselves."""
        if self.traits.entries_s:
            self._learn(path, inode)
        if self.traits.listings_s:
            self._listings.pop(path.rpartition("/")[0], None)
        if inode is not None:
            self._links.pop(inode.number, None)
