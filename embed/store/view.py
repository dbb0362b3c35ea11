"""See the shards of one space as they are now, and look keys up in them.

A view is refreshed by listing the directory; shards that it knows already stay open. Whatever finds
a shard gone lists again and starts over, for then another stands for it. Where a mount shows old
listings, that one is out of sight for as long as they are kept: so whoever looks waits between.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed.store import places
from embed.store.keys import Keys, Space
from embed.store.places import Place
from embed.store.shards import Shard, StoreError, Vanished
from fsqueue.storage import atomic, directories

log = logging.getLogger(__name__)

PAUSES_S: Final = (*(0.01 * 2**n for n in range(7)), *(1.0 for _ in range(60)))
"""Between looks: at once good where listings are fresh, and longer in all than mounts keep them."""
T = TypeVar("T")


def patiently(directory: str) -> Iterator[None]:
    """Yield for each look, and wait between them. Raises StoreError when it has been enough."""
    for pause_s in PAUSES_S:
        yield
        time.sleep(pause_s)
    raise StoreError(
        f"{directory}: names files that are not there, for {sum(PAUSES_S):.0f} s now. Either they "
        f"vanish faster than they can be read, or this mount shows listings that are older still; "
        f"try again, or on another host."
    )


class View:
    """The shards of one space."""

    def __init__(self, directory: str, space: Space) -> None:
        """Look at a directory that need not exist yet; nothing is read until `refresh`."""
        self.directory, self.space = directory, space
        self.shards: list[Shard] = []
        """Those that count, in the order in which they are asked."""
        self.top = 0
        """The highest number given so far."""
        self._open: dict[Place, Shard] = {}
        self._missed: list[tuple[int, int]] = []

    def make(self) -> None:
        """Make the directory, and write down what space it is."""
        directories.make(self.directory.rpartition("/")[0])
        directories.make(self.directory)
        facts = json.dumps(asdict(self.space), indent=1).encode() + b"\n"
        atomic.publish(f"{self.directory}/space.json", facts)

    def refresh(self, given: int = 0) -> None:
        """List the directory, and open what is new. Raises StoreError, OSError.

        With the number that we were `given`, wait until the listing stands for it and for all that
        were given since the last look: they are there, though a mount may not show them yet.
        """
        for _ in patiently(self.directory):
            found = self._listed()
            if given and self._is_late(found, given):
                continue
            try:
                wanted = places.counting(found)
                self._open = {
                    place: self._open.get(place) or Shard(self.directory, place) for place in wanted
                }
            except Vanished:
                # RACE: a compaction removed it; what stands for it is listed now, or will be soon.
                continue
            self.shards = [self._open[place] for place in wanted]
            self.top = max((place.last for place in wanted), default=0)
            self._check()
            return

    def _is_late(self, found: list[Place], given: int) -> bool:
        beyond = Place(given + 1, given + 1)
        return any(last > self.top for _, last in places.gaps([*found, beyond]))

    def _check(self) -> None:
        for shard in self.shards:
            if (shard.width, shard.number) != (self.space.width, self.space.number):
                raise StoreError(
                    f"{shard.path}: holds vectors of {shard.width} numbers as {shard.number}, not "
                    f"{self.space.width} as {self.space.number}; put here by hand. Remove it."
                )

    def _listed(self) -> list[Place]:
        """List the shards; look again if a number is missing that the last look did not miss."""
        missing: list[tuple[int, int]] = []
        for _ in range(3):
            found = places.listed(self.directory)
            missing = list(places.gaps(found))
            if missing == self._missed:
                return found
            # RACE: while a directory changes, one listing may show neither an old name nor the new.
            time.sleep(0.02)
        if missing:
            log.warning("%s: shard %d is missing; see: store verify", self.directory, missing[0][0])
        self._missed = missing
        return found

    def steadily(self, look: Callable[[], T]) -> T:
        """Return what `look` returns; while shards vanish under it, refresh and look again."""
        for _ in patiently(self.directory):
            try:
                return look()
            except Vanished:
                self.refresh()
        raise AssertionError("patience ends in an error")

    def lookup(
        self, keys: Keys, *, before: int | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Return which keys are stored, and the vectors of those, one below the other.

        With `before`, only shards with a lower number are asked.
        """
        return self.steadily(lambda: self._lookup(keys, before))

    def _lookup(self, keys: Keys, before: int | None) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        found = np.zeros(len(keys), np.bool_)
        vectors = np.empty((len(keys), self.space.width), self.space.number)
        for shard in self.shards:
            if before is not None and shard.place.first >= before:
                break
            open_ = np.flatnonzero(~found)
            if not len(open_):
                break
            rows = shard.find(keys[open_])
            here = np.flatnonzero(rows >= 0)
            if len(here):
                vectors[open_[here]] = shard.vectors(rows[here])
                found[open_[here]] = True
        return found, vectors[found]
