"""The simulated disk: what is true on the server, and what a power loss would leave of it.

Names are absolute paths. A directory is a dictionary of names; a file is an `Inode` with any number
of names. Operations are those of POSIX, atomic and in one order; `Mount` adds stale caches.

A power loss keeps what was synced. Every change of names is a transaction, done whole or not at
all, and depends on those before it that touched the same name or the directory itself. Of what was
not synced it keeps the transactions up to some moment: a journal is written in order. What fsync of
a directory makes safe is either all that came before (ext4, XFS) or only that directory's own
transactions and those they depend on (btrfs, and all that POSIX promises): `selective`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

COMMIT_S: Final = 30.0
"""How long the disk keeps a change of names in memory if it is not synced."""

Change = tuple[str, str, "Inode | None"]
"""A directory, a name in it, and what the name means now."""


class Inode:
    """A file, or a directory if `entries` is not None."""

    __slots__ = ("number", "data", "links", "entries", "synced", "safe", "known")

    def __init__(self, number: int, *, directory: bool = False) -> None:
        self.number = number
        self.data = b""
        self.links = 0
        self.entries: dict[str, Inode] | None = {} if directory else None
        self.synced = False
        self.safe = b""
        self.known: tuple[str, int, int] | None = None
        """Of a directory that no longer changes: its path, and its two summaries."""


def failure(number: int, path: str) -> OSError:
    """Return the error that the kernel would give."""
    return OSError(number, os.strerror(number), path)


class Disk:
    """All files of one simulated world."""

    def __init__(self, clock: Callable[[], float], *, selective: bool = False) -> None:
        self._clock = clock
        self._count = 1
        self.directories: dict[str, Inode] = {"": Inode(0, directory=True)}
        self.selective = selective
        self.watch: Callable[[str, str, str, Inode], None] = lambda *_: None
        """Called after every change: what, from where, to where, which file."""
        self.journal: Journal | None = None
        self.touched: dict[str, float] = {}
        """When the names of each directory changed last."""
        self.lost_bytes = 0
        """How many bytes power losses took from files whose names they kept."""
        self._shared: set[str] = set()
        """Directories that copies of this disk have in common: copied before they change."""

    # ---- looking ----

    def find(self, path: str) -> Inode | None:
        """Return what a path names now."""
        if (found := self.directories.get(path)) is not None:
            return found
        directory, _, name = path.rpartition("/")
        parent = self.directories.get(directory)
        return parent.entries.get(name) if parent is not None and parent.entries else None

    def parent(self, path: str) -> tuple[dict[str, Inode], str]:
        """Return the entries of the directory that holds `path`, to change, and its name in it."""
        directory, _, name = path.rpartition("/")
        if directory in self._shared:
            self._own(directory)
        found = self.directories.get(directory)
        if found is None or found.entries is None:
            raise failure(errno.ENOENT, path)
        return found.entries, name

    def below(self, path: str) -> Iterator[tuple[str, Inode]]:
        """Yield every file below a directory, with its path."""
        directory = self.directories.get(path)
        for name, inode in sorted((directory and directory.entries or {}).items()):
            if inode.entries is None:
                yield f"{path}/{name}", inode
            else:
                yield from self.below(f"{path}/{name}")

    # ---- changing ----

    def create(self, path: str) -> Inode:
        """Make an empty file, exclusively."""
        entries, name = self.parent(path)
        if name in entries:
            raise failure(errno.EEXIST, path)
        inode = self._new(path, directory=False)
        inode.links = 1
        entries[name] = inode
        self._changed("create", "", path, inode)
        return inode

    def write(self, inode: Inode, data: bytes, path: str) -> None:
        """Append to a file that was opened as `path`."""
        if self._shared:
            inode = self._own_file(inode, path)
        inode.data += data
        inode.synced = False
        self.watch("write", path, "", inode)

    def link(self, source: str, target: str) -> None:
        """Give a file one more name, never replacing."""
        old, was = self.parent(source)
        new, name = self.parent(target)
        if (inode := old.get(was)) is None:
            raise failure(errno.ENOENT, source)
        if name in new:
            raise failure(errno.EEXIST, target)
        inode.links += 1
        new[name] = inode
        self._changed("link", source, target, inode)

    def rename(self, source: str, target: str) -> None:
        """Move a name; whatever had the target's name is gone."""
        if source in self._shared:
            self._own(source)
        old, was = self.parent(source)
        new, name = self.parent(target)
        if (inode := old.get(was)) is None:
            raise failure(errno.ENOENT, source)
        if inode.entries is not None:
            assert name.startswith("."), "no directory is renamed but to a private name"
            if (there := new.get(name)) is not None and (there.entries is None or there.entries):
                raise failure(errno.ENOTEMPTY, target)
            new.pop(name, None)
            self.directories[target] = self.directories.pop(source)
        if (gone := new.get(name)) is not None:
            if gone is inode:
                return  # POSIX: two names of one file, and nothing happens
            if gone.entries is not None:
                raise failure(errno.EISDIR, target)
            gone.links -= 1
            self.watch("replace", source, target, gone)
        del old[was]
        new[name] = inode
        self._changed("rename", source, target, inode)

    def unlink(self, path: str) -> None:
        """Remove a name of a file."""
        entries, name = self.parent(path)
        if (inode := entries.get(name)) is None:
            raise failure(errno.ENOENT, path)
        if inode.entries is not None:
            raise failure(errno.EISDIR, path)
        inode.links -= 1
        del entries[name]
        self._changed("unlink", path, "", inode)

    def mkdir(self, path: str) -> None:
        """Make an empty directory."""
        entries, name = self.parent(path)
        if name in entries:
            raise failure(errno.EEXIST, path)
        inode = self._new(path, directory=True)
        inode.links = 1
        entries[name] = self.directories[path] = inode
        self._changed("mkdir", "", path, inode)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        if path in self._shared:
            self._own(path)
        entries, name = self.parent(path)
        if (inode := entries.get(name)) is None:
            raise failure(errno.ENOENT, path)
        if inode.entries is None:
            raise failure(errno.ENOTDIR, path)
        if inode.entries:
            raise failure(errno.ENOTEMPTY, path)
        inode.links = 0
        del entries[name], self.directories[path]
        self._changed("rmdir", path, "", inode)

    def sync(self, inode: Inode, path: str) -> None:
        """Make a file's bytes, or a directory's names, survive a power loss."""
        if inode.entries is None:
            inode.synced, inode.safe = True, inode.data
        if self.journal is not None and (inode.entries is not None or not self.selective):
            self.journal.sync(path if self.selective else None)

    def _new(self, path: str, *, directory: bool) -> Inode:
        self._count += 1
        return Inode(self._count, directory=directory)

    def _changed(self, what: str, source: str, target: str, inode: Inode) -> None:
        now = self._clock()
        for path in (source, target):
            self.touched[path.rpartition("/")[0]] = now
        if self.journal is not None:
            self.journal.note(now, what, source, target, inode)
        self.watch(what, source, target, inode)

    # ---- comparing, for explorations ----

    def copy(self) -> Disk:
        """Return a disk with the same files, of which changes do not show on this one."""
        new = Disk(self._clock)
        new._count = self._count
        new.directories = dict(self.directories)
        self._shared = set(self.directories)
        new._shared = set(self._shared)
        return new

    def _own(self, path: str) -> None:
        """Make a directory, and those above it, this disk's alone, with all files in it."""
        above, _, name = path.rpartition("/")
        if above in self._shared and path:
            self._own(above)
        shared = self.directories[path]
        self._shared.discard(path)
        own = self.directories[path] = Inode(shared.number, directory=True)
        own.links = shared.links
        assert shared.entries is not None
        own.entries = dict(shared.entries)
        if path:
            (self.directories[above].entries or {})[name] = own
        for each, inode in shared.entries.items():
            if inode.entries is None:
                self._copy_file(path, each, inode)

    def _copy_file(self, path: str, name: str, inode: Inode) -> None:
        entries = self.directories[path].entries
        assert entries is not None
        if entries[name] is not inode:
            return  # copied already, under another of its names
        file = Inode(inode.number)
        file.data, file.links = inode.data, inode.links
        entries[name] = file
        if inode.links == 1:
            return
        for other in [at for at, there in self.directories.items() if there.entries]:
            names = [n for n, i in (self.directories[other].entries or {}).items() if i is inode]
            if names and other in self._shared:
                self._own(other)
            for each in names:
                (self.directories[other].entries or {})[each] = file

    def _own_file(self, inode: Inode, path: str) -> Inode:
        """Return this disk's own copy of a file, which may have another name by now."""
        for at in (path.rpartition("/")[0], *self.directories):
            there = self.directories.get(at)
            for name, found in (there.entries or {}).items() if there else ():
                if found.number == inode.number:
                    entries, _ = self.parent(f"{at}/{name}")
                    return entries[name]
        return inode  # it has no name left

    def summary(self, *, shown: bool = False) -> int:
        """Return a number that identifies the disk's content; with `shown`, of its public part."""
        facts = []
        for path, directory in self.directories.items():
            known = directory.known
            if known is None or known[0] != path:
                known = path, _summary(path, directory), _summary(path, directory, shown=True)
                if path in self._shared:
                    directory.known = known
            facts.append(known[1 + shown])
        return hash(frozenset(facts))

    # ---- power loss ----

    def arm(self) -> None:
        """Take what is there as safe, and keep account of what is not from now on."""
        for directory in self.directories.values():
            for inode in (directory.entries or {}).values():
                inode.synced, inode.safe = True, inode.data
        self.journal = Journal(self.directories)

    def lose_power(self, rng: Random) -> int:
        """Forget what was not safe; return how many changes of names that were."""
        assert self.journal is not None, "arm() first"
        lost = self.journal.cut(self._clock(), rng)
        self.directories = self.journal.restore(rng)
        self.lost_bytes += self.journal.lost_bytes
        self.journal = Journal(self.directories)
        return lost


def _summary(path: str, directory: Inode, *, shown: bool = False) -> int:
    if path.endswith(("/status", "/events")) or shown and "/." in path:
        return 0
    facts: list[Any] = [path]
    for name, inode in (directory.entries or {}).items():
        if inode.entries is None and not (shown and name.startswith(".")):
            facts.append((name, inode.data, inode.links))
    return hash(frozenset(facts))


class Journal:
    """The changes of names that a power loss might undo, in order."""

    def __init__(self, directories: dict[str, Inode]) -> None:
        self._safe = {path: dict(inode.entries or {}) for path, inode in directories.items()}
        self._inodes = {inode.number: inode for inode in directories.values()}
        self._pending: list[tuple[float, list[Change], str, str]] = []
        self.lost_bytes = 0

    def note(self, now: float, what: str, source: str, target: str, inode: Inode) -> None:
        """Add a transaction; what is old is safe by now."""
        self._commit(now)
        changes: list[Change] = []
        if source and what != "link":
            changes.append((*source.rpartition("/")[::2], None))
        if target:
            changes.append((*target.rpartition("/")[::2], inode))
        moved = what == "rename" and inode.entries is not None  # litter: what it holds may be lost
        made = target if moved or what == "mkdir" else ""
        removed = source if moved or what == "rmdir" else ""
        self._pending.append((now, changes, made, removed))

    def _commit(self, now: float) -> None:
        while self._pending and self._pending[0][0] < now - COMMIT_S:
            self._apply(self._pending.pop(0))

    def sync(self, directory: str | None) -> None:
        """Make safe what touched `directory` and what that depends on, or everything."""
        if directory is None:
            for entry in self._pending:
                self._apply(entry)
            self._pending.clear()
            return
        needed = self._touching(directory)
        for index in sorted(needed):
            self._apply(self._pending[index])
        self._pending = [e for index, e in enumerate(self._pending) if index not in needed]

    def _touching(self, directory: str) -> set[int]:
        needed: set[int] = set()
        wanted: set[tuple[str, str]] = set()
        whole = {directory}
        for index in range(len(self._pending) - 1, -1, -1):
            _, changes, made, removed = self._pending[index]
            touched = {(where, name) for where, name, _ in changes}
            if touched & wanted or {where for where, _ in touched} & whole:
                needed.add(index)
                wanted |= touched
                whole |= {removed} - {""}  # it was empty: all that was in it went before
                parents = {where for where, _ in touched}
                wanted |= {parent.rpartition("/")[::2] for parent in parents}
        return needed

    def cut(self, now: float, rng: Random) -> int:
        """Keep the transactions up to some moment, and drop the rest."""
        self._commit(now)
        kept = rng.randint(0, len(self._pending))
        for entry in self._pending[:kept]:
            self._apply(entry)
        lost = len(self._pending) - kept
        self._pending.clear()
        return lost

    def _apply(self, entry: tuple[float, list[Change], str, str]) -> None:
        _, changes, made, removed = entry
        if removed:
            self._safe.pop(removed, None)
        for directory, name, inode in changes:
            entries = self._safe.setdefault(directory, {})
            if inode is None:
                entries.pop(name, None)
            else:
                entries[name] = inode
        if made:
            self._safe.setdefault(made, {})

    def restore(self, rng: Random) -> dict[str, Inode]:
        """Return the directories as they are found when the power is back."""
        directories: dict[str, Inode] = {}
        files: dict[int, Inode] = {}
        count = 0
        for path in sorted(self._safe):
            parent, _, name = path.rpartition("/")
            if path and (parent not in directories or name not in self._safe[parent]):
                continue  # a directory whose own name was lost takes all with it
            directory = Inode(count := count - 1, directory=True)
            directories[path] = directory
            for name, inode in self._safe[path].items():
                if inode.entries is None and directory.entries is not None:
                    directory.entries[name] = files.setdefault(inode.number, inode)
        for path, inode in directories.items():
            if path:
                parent, _, name = path.rpartition("/")
                above = directories[parent].entries
                assert above is not None
                above[name] = inode
        for inode in files.values():
            inode.links = 0
            if not inode.synced:
                remains = _remains(inode, rng)
                self.lost_bytes += len(inode.data) - len(remains)
                inode.data = remains
                inode.synced, inode.safe = True, inode.data
        for directory in directories.values():
            for inode in (directory.entries or {}).values():
                inode.links += 1
        return directories


def _remains(inode: Inode, rng: Random) -> bytes:
    """Return what is left of bytes that were not synced: any first part of them."""
    if inode.data == inode.safe:
        return inode.data
    return inode.data[: rng.randint(len(inode.safe), len(inode.data))]
