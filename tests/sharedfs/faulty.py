"""A file system that fails on order: `faulty.py BACKING MOUNT RULES [--stale S]`.

It passes every operation on to a directory of a working file system. RULES is a JSON file, read
again when it was replaced: a list of objects, of which the first that fits an operation applies.

    {"op": "rename", "only": "/running/", "error": "ENOENT", "done": true, "times": 1}

    op      the operation, or "*"
    only    a regular expression that one of its paths must hold; all do where it is not given
    error   the error that the caller gets; none if left out
    done    whether the operation is done all the same: its reply is lost, and its repetition fails
    delay_s how long the operation takes
    times   how often this applies;  chance: with which probability, else always
    skew_s  (op "stat") how far the clock that stamps files is ahead
    lag_s   (op "list") how old a listing may be

`--stale` is for how long a client's kernel believes what it knows of names and attributes. Two
mounts of one backing directory are two hosts.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import mfusepy

MINE = os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
"""Flags that the kernel has dealt with already."""
FACTS = "mode ino nlink uid gid size blocks blksize".split()


class Rules:
    """What goes wrong, as the file said when it was last replaced."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = -1
        self._rules: list[dict[str, Any]] = []

    def find(self, op: str, *paths: str) -> dict[str, Any]:
        """Return the first rule that fits and applies this time."""
        version = os.stat(self._path).st_ino
        if version != self._read:
            with open(self._path) as file:
                self._rules, self._read = json.load(file), version
        for rule in self._rules:
            fits = rule["op"] in (op, "*") and any(
                re.search(rule.get("only", ""), path) for path in paths
            )
            if fits and rule.get("times", 1) > 0 and random.random() < rule.get("chance", 1.0):
                if "times" in rule:
                    rule["times"] -= 1
                return rule
        return {}


class Faulty(mfusepy.Operations):  # type: ignore[misc]
    """The operations, as libfuse wants them."""

    use_ns = True

    def __init__(self, backing: str, rules: Rules) -> None:
        self._backing = backing
        self._rules = rules
        self._listings: dict[str, tuple[float, dict[str, int]]] = {}

    def _at(self, path: str) -> str:
        return self._backing + path

    def _do(self, op: str, act: Callable[[], Any], *paths: str) -> Any:
        rule = self._rules.find(op, *paths)
        time.sleep(rule.get("delay_s", 0.0))
        result = act() if "error" not in rule or rule.get("done") else 0
        if "error" in rule:
            raise OSError(getattr(errno, rule["error"]), "as ordered")
        return result or 0

    # ---- names ----

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        facts = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        skew_ns = int(1e9 * self._rules.find("stat", path).get("skew_s", 0.0))
        found = {f"st_{name}": getattr(facts, f"st_{name}") for name in FACTS}
        for name in ("atime", "mtime", "ctime"):
            found[f"st_{name}"] = getattr(facts, f"st_{name}_ns") + skew_ns
        return found

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        lag_s = self._rules.find("list", path).get("lag_s", 0.0)
        listed, entries = self._listings.get(path, (-1e9, {}))
        if time.monotonic() - listed >= lag_s:
            with os.scandir(self._at(path)) as found:
                entries = {each.name: each.inode() for each in found}
            self._listings[path] = time.monotonic(), entries
        for name, inode in {".": 1, "..": 1, **entries}.items():  # without a number it is not shown
            yield name, {"st_ino": inode}, 0

    def rename(self, old: str, new: str) -> Any:
        return self._do("rename", lambda: os.rename(self._at(old), self._at(new)), old, new)

    def link(self, target: str, source: str) -> Any:
        paths = source, target
        return self._do("link", lambda: os.link(*map(self._at, paths)), *paths)

    def unlink(self, path: str) -> Any:
        return self._do("unlink", lambda: os.unlink(self._at(path)), path)

    def mkdir(self, path: str, mode: int) -> Any:
        return self._do("mkdir", lambda: os.mkdir(self._at(path), mode), path)

    def rmdir(self, path: str) -> Any:
        return self._do("rmdir", lambda: os.rmdir(self._at(path)), path)

    def chmod(self, path: str, mode: int) -> Any:
        return os.chmod(self._at(path), mode)

    def utimens(self, path: str, times: Any = None) -> Any:
        return os.utime(self._at(path))

    def truncate(self, path: str, length: int, fh: int | None = None) -> Any:
        return os.truncate(self._at(path) if fh is None else fh, length)

    def statfs(self, path: str) -> dict[str, int]:
        facts = os.statvfs(self._backing)
        return {name: getattr(facts, name) for name in dir(facts) if name.startswith("f_")}

    # ---- files ----

    def create(self, path: str, mode: int, fi: Any = None) -> Any:
        flags = os.O_RDWR | os.O_CREAT
        return self._do("create", lambda: os.open(self._at(path), flags, mode), path)

    def open(self, path: str, flags: int) -> Any:
        return self._do("open", lambda: os.open(self._at(path), flags & ~MINE), path)

    def read(self, path: str, size: int, offset: int, fh: int) -> Any:
        return self._do("read", lambda: os.pread(fh, size, offset), path)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> Any:
        return self._do("write", lambda: os.pwrite(fh, data, offset), path)

    def flush(self, path: str, fh: int) -> Any:
        """Answer close(2)."""
        return self._do("close", lambda: 0, path)

    def fsync(self, path: str, datasync: int, fh: int) -> Any:
        return self._do("fsync", lambda: os.fsync(fh), path)

    def release(self, path: str, fh: int) -> Any:
        return os.close(fh)

    def flock(self, path: str, fh: int, op: int) -> Any:
        return self._do("flock", lambda: fcntl.flock(fh, op), path)


def main() -> None:
    """Mount it, until it is unmounted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("backing")
    parser.add_argument("mount")
    parser.add_argument("rules")
    parser.add_argument("--stale", type=float, default=0.0)
    given = parser.parse_args()
    caches = dict.fromkeys(("attr_timeout", "entry_timeout", "negative_timeout"), given.stale)
    files = Faulty(given.backing, Rules(given.rules))
    options = {"default_permissions": True, "allow_other": True, "use_ino": True, **caches}
    mfusepy.FUSE(files, given.mount, foreground=True, fsname="faulty", **options)


if __name__ == "__main__":
    main()
