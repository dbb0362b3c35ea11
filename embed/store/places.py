"""Name the shards of a space, and say which of those that are listed count.

A shard has a number, given by the one link(2) that published it: `00000007.safetensors`. What a
compaction made of shards 1 to 6 is `00000001-00000006.safetensors`; once that is listed, shards
within its range are superseded, whether they are still there or not. Every number from 1 to the
highest is covered, always: what is not was lost, or is just out of sight.

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
class Place:
    """The numbers that a shard stands for."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Return the shard's file name."""
        last = f"-{self.last:08}" if self.last > self.first else ""
        return f"{self.first:08}{last}{SUFFIX}"

    def within(self, other: Place) -> bool:
        """Say whether `other` stands for all of it, and more."""
        return self != other and other.first <= self.first and self.last <= other.last


def parse(name: str) -> Place | None:
    """Return the place that a file name tells, None if it is no shard's."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    place = Place(int(found[1]), int(found[2] or found[1]))
    return place if 1 <= place.first <= place.last and place.name == name else None


def listed(directory: str) -> list[Place]:
    """List the shards of a space, those that are superseded too, in order.

    Raises PoolError if the directory is not there.
    """
    return sorted(place for name in atomic.names(directory) if (place := parse(name)) is not None)


def counting(places: Iterable[Place]) -> list[Place]:
    """Return those that are not superseded, in order."""
    kept: list[Place] = []
    for place in sorted(places, key=lambda one: (one.first, -one.last)):
        # Those kept begin no later, and the last of them reaches furthest.
        if not kept or place.last > kept[-1].last:
            kept.append(place)
    return kept


def superseded(places: Iterable[Place]) -> list[Place]:
    """Return those whose numbers another stands for."""
    found = list(places)
    return sorted(set(found) - set(counting(found)))


def gaps(places: Iterable[Place]) -> Iterator[tuple[int, int]]:
    """Yield the runs of numbers, (first, last), that no shard stands for."""
    reached = 0
    for place in sorted(places):
        if place.first > reached + 1:
            yield reached + 1, place.first - 1
        reached = max(reached, place.last)
