"""Name the shards of a space, and decide which of those that are listed are in use.

A shard has a number, assigned by the one link(2) that published it: `00000007.safetensors`. A
compaction of shards 1 to 6 makes `00000001-00000006.safetensors`; once that is listed, shards
within its range are superseded, whether they still exist or not. Every number from 1 to the highest
is always covered; one that is not was lost, or is not listed for a moment.

Shards are read in the order of their first numbers. The first that holds a key holds its vector as
it was first stored, whatever compactions overlap: one that covers that number has it, one that ends
before it cannot have the key at all, and one that begins later comes later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fsqueue.storage import atomic

SUFFIX: Final = ".safetensors"
_NAME: Final = re.compile(r"([0-9]{8,})(?:-([0-9]{8,}))?\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ShardName:
    """The range of numbers that a shard covers."""

    first: int
    last: int

    @property
    def filename(self) -> str:
        """Return the name of the shard's file."""
        last = f"-{self.last:08}" if self.last > self.first else ""
        return f"{self.first:08}{last}{SUFFIX}"

    def is_superseded_by(self, other: ShardName) -> bool:
        """Return whether `other` covers all of its numbers, and more."""
        return self != other and other.first <= self.first and self.last <= other.last


def parse(filename: str) -> ShardName | None:
    """Return the name of a shard's file, parsed, or None if it is another file."""
    match = _NAME.fullmatch(filename)
    if match is None:
        return None
    name = ShardName(int(match[1]), int(match[2] or match[1]))
    return name if 1 <= name.first <= name.last and name.filename == filename else None


def list_shards(directory: str) -> list[ShardName]:
    """List the shards of a space, including superseded ones, in order.

    Raises PoolError if the directory does not exist.
    """
    return sorted(name for file in atomic.names(directory) if (name := parse(file)) is not None)


def in_use(names: Iterable[ShardName]) -> list[ShardName]:
    """Return those that are not superseded, in order."""
    kept: list[ShardName] = []
    for name in sorted(names, key=lambda one: (one.first, -one.last)):
        # Those kept do not begin later, and the last of them ends latest.
        if not kept or name.last > kept[-1].last:
            kept.append(name)
    return kept


def superseded(names: Iterable[ShardName]) -> list[ShardName]:
    """Return those whose numbers another one covers."""
    found = list(names)
    return sorted(set(found) - set(in_use(found)))


def gaps(names: Iterable[ShardName]) -> Iterator[tuple[int, int]]:
    """Yield the runs of numbers, (first, last), that no shard covers."""
    reached = 0
    for name in sorted(names):
        if name.first > reached + 1:
            yield reached + 1, name.first - 1
        reached = max(reached, name.last)
