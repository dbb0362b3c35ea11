"""The current shards of one space, and the vectors of keys in them.

A view is refreshed by listing the directory; shards that it already has stay open. When a shard
turns out to have been removed, the directory is listed again and the read repeated, because another
shard replaces it. A mount that shows old listings hides that one until its cache expires, so there
are pauses between the attempts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed.store import shard_names
from embed.store.keys import Keys, Space
from embed.store.shard_names import ShardName
from embed.store.shards import Shard, StoreError, Vanished
from fsqueue.storage import atomic, directories

log = logging.getLogger(__name__)

PAUSES_S: Final = (*(0.01 * 2**n for n in range(7)), *(1.0 for _ in range(60)))
"""Between attempts: short at first, and longer in total than mounts cache their listings."""
T = TypeVar("T")


def attempts(directory: str) -> Iterator[None]:
    """Yield for each attempt, and pause between them. Raises StoreError after the last."""
    for pause_s in PAUSES_S:
        yield
        time.sleep(pause_s)
    raise StoreError(
        f"{directory}: has listed files that do not exist for {sum(PAUSES_S):.0f} s. Either they "
        f"are removed faster than they can be read, or this mount shows even older listings; try "
        f"again, or on another host."
    )


class View:
    """The shards of one space."""

    def __init__(self, directory: str, space: Space) -> None:
        """The directory need not exist yet; nothing is read until `refresh`."""
        self.directory, self.space = directory, space
        self.shards: list[Shard] = []
        """Those in use, in the order in which they are searched."""
        self.top = 0
        """The highest number assigned so far."""
        self._open: dict[ShardName, Shard] = {}
        self._known_gaps: list[tuple[int, int]] = []

    def make(self) -> None:
        """Create the directory and its space.json."""
        directories.make(self.directory.rpartition("/")[0])
        directories.make(self.directory)
        facts = json.dumps(self.space.encode(), indent=1).encode() + b"\n"
        atomic.publish(f"{self.directory}/space.json", facts)

    def refresh(self, published: int = 0) -> None:
        """List the directory, and open new shards. Raises StoreError, OSError.

        With the number that this process `published`, wait until the listing covers it and all that
        were assigned since the last refresh: they exist, though a mount may not show them yet.
        """
        for _ in attempts(self.directory):
            found = self._list()
            if published and self._is_late(found, published):
                continue
            try:
                names = shard_names.in_use(found)
                self._open = {
                    name: self._open.get(name) or Shard(self.directory, name) for name in names
                }
            except Vanished:
                # RACE: a compaction removed it; what replaces it is listed now, or will be soon.
                continue
            self.shards = [self._open[name] for name in names]
            self.top = max((name.last for name in names), default=0)
            self._check()
            return

    def _is_late(self, found: list[ShardName], published: int) -> bool:
        next_name = ShardName(published + 1, published + 1)
        return any(last > self.top for _, last in shard_names.gaps([*found, next_name]))

    def _check(self) -> None:
        for shard in self.shards:
            if (shard.width, shard.dtype) != (self.space.width, self.space.stored_dtype):
                raise StoreError(
                    f"{shard.path}: holds vectors of {shard.width} numbers as {shard.dtype}, not "
                    f"{self.space.width} as {self.space.stored_dtype}; it was put here by hand. "
                    f"Remove it."
                )

    def _list(self) -> list[ShardName]:
        """List the shards; repeat if a number is missing that was not missing before."""
        gaps: list[tuple[int, int]] = []
        for _ in range(3):
            found = shard_names.list_shards(self.directory)
            gaps = list(shard_names.gaps(found))
            if gaps == self._known_gaps:
                return found
            # RACE: while a directory changes, one listing may show neither an old name nor the new.
            time.sleep(0.02)
        if gaps:
            log.warning(
                "%s: shard %d is missing; see: fsqueue embed store verify",
                self.directory,
                gaps[0][0],
            )
        self._known_gaps = gaps
        return found

    def retrying(self, read: Callable[[], T]) -> T:
        """Return the result of `read`; if it finds a shard removed, refresh and repeat it."""
        for _ in attempts(self.directory):
            try:
                return read()
            except Vanished:
                self.refresh()
        raise AssertionError("attempts() ends in an error")

    def lookup(
        self, keys: Keys, *, before: int | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Return which keys are stored, and the vectors of those, in order.

        With `before`, only shards with a lower number are searched.
        """
        return self.retrying(lambda: self._lookup(keys, before))

    def _lookup(self, keys: Keys, before: int | None) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        found = np.zeros(len(keys), np.bool_)
        vectors = np.empty((len(keys), self.space.width), self.space.stored_dtype)
        for shard in self.shards:
            if before is not None and shard.name.first >= before:
                break
            missing = np.flatnonzero(~found)
            if not len(missing):
                break
            rows = shard.find(keys[missing])
            here = np.flatnonzero(rows >= 0)
            if len(here):
                vectors[missing[here]] = shard.vectors(rows[here])
                found[missing[here]] = True
        return found, vectors[found]
