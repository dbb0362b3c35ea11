"""Spare the file server: when an idle worker looks again, and how much any worker may ask of it.

An idle worker looks often while something changes, and ever less often while nothing does. Once
nothing has changed for a while it stops listing every spool at each look, so that its cost does not
grow with the number of spools. New work for it shows in plans/ and running/; claims also come back
by hand or by `fsqueue retry`, so it lists one spool at each look, its own every other time.

The rate limit is a bucket of operations that fills at so many a second. Work that can wait, waits
until the bucket is no longer empty: listing, sweeping, taking. Renewing a lease and publishing an
output never wait, but they are counted (see `storage.operation_count`), so that the next look waits
longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from fsqueue.errors import PoolError
from fsqueue.pool.names import is_waiting
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.storage import atomic
from fsqueue.storage.name_sets import Fingerprints, mark
from fsqueue.storage.operation_count import operations

WAIT_INTERVALS: Final = (1.0, 1.0, 2.0, 4.0, 7.0)
"""How many intervals pass between two looks, by how often in a row nothing was new. The last wait
is 21 seconds by default: with it and its beats, a quiet worker costs less than two operations a
second."""
WAIT_LEASES: Final = 0.7
"""No wait is longer than this part of a lease, unless one interval is: a worker that looks less
often notices the dead late."""
SINGLE_LOOKS: Final = 10
"""After this many looks at one spool each, plus one per spool, it lists all of them again."""
SLEEP_MIN_S: Final = 0.02
"""The rate limit sleeps at least this long: sleeping after every small claim halved the rate."""
OPERATIONS_MAX: Final = 20_000.0
"""More than a process manages on a local disk: by default there is no limit."""


class Backoff:
    """When one idle worker looks for work, and at how many spools."""

    def __init__(
        self, pool: PoolDirectory, interval_s: float, spool: str | None, *, stealing: bool
    ) -> None:
        self._pool = pool
        self._interval_s = interval_s
        self._spool = spool
        self._stealing = stealing
        self._view: object = None
        self._unchanged = 0
        self._single_looks = 0
        self._round: list[str] = []
        """The spools to look at one by one, in reverse order."""
        self._round_left: list[str] = []
        self._seen: dict[str, Fingerprints] = {}

    def reset(self) -> None:
        """Look everywhere, and soon."""
        self._unchanged = self._single_looks = 0

    def observe(self, view: object) -> None:
        """Compare what this look showed with what the last one showed."""
        if view != self._view:
            self._view = view
            self.reset()
        else:
            self._unchanged = min(self._unchanged + 1, len(WAIT_INTERVALS) - 1)

    @property
    def quiet(self) -> bool:
        """Whether nothing has changed for so long that a look need not go everywhere."""
        return self._unchanged == len(WAIT_INTERVALS) - 1

    @property
    def wait_s(self) -> float:
        """How long to wait for the next look."""
        longest_s = max(self._interval_s, WAIT_LEASES * self._pool.lease_s)
        return min(self._interval_s * WAIT_INTERVALS[self._unchanged], longest_s)

    def should_look_everywhere(self) -> bool:
        """Return whether to list every spool now; if not, list one, which may change the answer.

        Raises OSError, as every look does.
        """
        if self.quiet and self._single_looks < SINGLE_LOOKS + len(self._seen):
            self._single_looks += 1
            return self._next_spool_has_news()
        self._single_looks = 0
        self._round.clear()
        return True

    def _next_spool_has_news(self) -> bool:
        """List one spool; reset and return True if a claim is there that was not there before."""
        self._round = self._round or self._spool_round()
        self._round_left = self._round_left or self._round.copy()
        if not self._round_left:
            return True
        spool = self._round_left.pop()
        try:
            names = atomic.gather(self._pool.spool(spool), _waiting)
        except PoolError:
            return True  # looking everywhere reports what is wrong with it
        known = self._seen.get(spool, Fingerprints())
        self._seen[spool] = names
        if names <= known:
            return False
        self.reset()
        return True

    def _spool_round(self) -> list[str]:
        own = [self._spool] if self._spool is not None else []
        if not self._stealing and own:
            return own
        others = [spool for spool in spool_names(self._pool) if spool != self._spool]
        return [spool for other in others for spool in (other, *own)] or own


def _waiting(texts: Iterator[str]) -> Fingerprints:
    return Fingerprints(map(mark, filter(is_waiting, texts)))


class RateLimit:
    """How many metadata operations this process may do in a second."""

    def __init__(
        self, per_s: float = OPERATIONS_MAX, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_s = per_s
        self.waited_s = 0.0
        """How long, in all, it made its worker wait."""
        self._clock = clock
        self._updated = clock()
        self._allowance = per_s
        self._counted = operations.total

    def wait(self, sleep: Callable[[float], object]) -> None:
        """Return at once if any allowance is left, else `sleep` until there is some.

        Operations since the last call count as spread evenly: a claim that took a minute, and saved
        a hundred checkpoints in it, is no burst.
        """
        now, count = self._clock(), operations.total
        allowance = self._allowance + (now - self._updated) * self.per_s - (count - self._counted)
        self._allowance, self._updated, self._counted = min(self.per_s, allowance), now, count
        if allowance < -SLEEP_MIN_S * self.per_s:
            sleep(-allowance / self.per_s)
            self.waited_s += self._clock() - now
