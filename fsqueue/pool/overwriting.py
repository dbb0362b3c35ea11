"""Decide whether a file that a person named may be written. One rule for every command.

R36 What a plan of the pool, or this command, reads is never replaced, under whatever name: paths
    are compared as they are, resolved, and by device and inode, so links are seen through.
R37 Nothing that fsqueue did not write is ever replaced. `--force` does not change that.
R38 What the same command wrote earlier from the same source is replaced, as a compiler replaces its
    output; another earlier output of fsqueue only with `--force`.

It is decided before the work, and costs nothing but a look at the target where that does not exist.

What this module does not know: how to recognise a file; each writer knows its own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto

from fsqueue.errors import UsageError
from fsqueue.pool import plans
from fsqueue.pool.layout import DIRECTORIES
from fsqueue.pool.settings import PoolDirectory


class Earlier(Enum):
    """What a file is that is in the way."""

    SAME = auto()
    """What this command wrote before, from the same source."""
    OTHER = auto()
    """Another output of fsqueue."""
    FOREIGN = auto()
    """Not an output of fsqueue."""


def refuse_overwriting(
    target: str | os.PathLike[str],
    *,
    inputs: Iterable[str] = (),
    recognise: Callable[[str], Earlier],
    force: bool = False,
    option: str = "",
) -> None:
    """Raise UsageError if `target` must not be written, or cannot be.

    `inputs` are the paths that must stay; `recognise` is called if the target is a regular file.
    `option` is how the target is named on the command line, for the message: `-o `.
    """
    target = os.fspath(target)
    path = os.path.abspath(target)
    _refuse_unwritable(target, path)
    try:
        facts = os.stat(path)
    except OSError:
        facts = None
    names = {path, os.path.realpath(path)}
    for each in inputs:
        if each in names or facts is not None and _is_same(each, facts):
            raise UsageError(
                f"{option}{target}: is the input {each}, and would destroy it. Name another file."
            )
    if facts is None and not os.path.lexists(path):
        return
    if facts is None or not stat.S_ISREG(facts.st_mode):
        raise UsageError(f"{option}{target}: exists, and is not a file. Name another file.")
    earlier = recognise(path)
    if earlier is Earlier.FOREIGN:
        raise UsageError(
            f"{option}{target}: exists, and was not written by this command, which never replaces "
            f"such a file. Name another file, or move that one away."
        )
    if earlier is Earlier.OTHER and not force:
        raise UsageError(
            f"{option}{target}: exists, and holds another result of fsqueue. Name another file, or "
            f"replace it: --force"
        )


def _refuse_unwritable(target: str, path: str) -> None:
    """Raise UsageError if a file cannot be made in the target's directory, as far as can be told.

    Of directories that do not exist yet, the nearest one that does decides.
    """
    parent = os.path.dirname(path)
    if target.endswith("/") or os.path.isdir(path):
        raise UsageError(f"{target}: is a directory. Name a file in it.")
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UsageError(f"{target}: {parent} is not a directory. Name another file.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{target}: you cannot write into {parent}. Name a file elsewhere, or ask its owner."
        )


def _is_same(path: str, facts: os.stat_result) -> bool:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False  # an input that is gone, or whose name no file can have
    return (found.st_dev, found.st_ino) == (facts.st_dev, facts.st_ino)


def planned_inputs(pool: PoolDirectory) -> Iterator[str]:
    """Yield every input of every plan."""
    for number in plans.numbers(pool):
        yield from plans.read_inputs(pool, number)


def refuse_inside(pool: PoolDirectory, target: str) -> None:
    """Raise UsageError if a target is inside one of the pool's own directories."""
    path = os.path.realpath(target)
    root = os.path.realpath(pool.root)
    inside = os.path.relpath(path, root).split(os.sep)[0]
    if inside in DIRECTORIES or inside in ("pool.json", "inbox", "checksums", "set-aside"):
        raise UsageError(
            f"{target}: is inside the pool, whose directories hold only what fsqueue keeps there. "
            f"Name a file elsewhere."
        )
