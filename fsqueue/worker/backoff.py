"""Spare the file server: when an idle worker looks again, and how much any worker may ask of it.

An idle worker looks often while something changes, and ever more seldom while nothing does. Once it
is quiet it no longer looks everywhere, so that what it costs does not grow with the number of
spools: what may become claims for it shows in plans/ and running/, and of the spools, where claims
also come back by hand or by `fsqueue retry`, it lists one a look, its own every other time.

The budget is a bucket of operations that fills at so many a second. What may wait, waits until it
is no longer empty: looking around, sweeping, taking. Nothing else asks, for a lease must be renewed
and an output published whatever was spent; but it is counted (see
`storage.operation_count`), so that the next look waits longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from fsqueue.errors import PoolError
from fsqueue.pool.name_sets import Fingerprints, mark
from fsqueue.pool.names import is_waiting
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.storage import atomic
from fsqueue.storage.operation_count import operations

WAITS: Final = (1.0, 1.0, 2.0, 4.0, 7.0)
"""How many intervals pass between two looks, by how often nothing was new in a row. The last are 21
seconds by default: with them, and its beats, a quiet worker costs less than two operations a
second."""
WAIT_LEASES: Final = 0.7
"""No wait is longer than this part of a lease, unless one interval is: whoever looks more seldom
notices the dead late."""
GLANCES: Final = 10
"""After so many looks at one spool, and one more for every spool, it looks everywhere again."""
NAP_S: Final = 0.02
"""What is owed is slept off in naps of at least this: one after every small claim cost half of it.
"""
OPERATIONS_MAX: Final = 20_000.0
"""More than a process manages on a local disk: no limit, unless somebody sets one."""


class Backoff:
    """When one idle worker looks, and how far."""

    def __init__(
        self, pool: PoolDirectory, interval_s: float, spool: str | None, *, stealing: bool
    ) -> None:
        self._pool = pool
        self._interval_s = interval_s
        self._spool = spool
        self._stealing = stealing
        self._view: object = None
        self._unchanged = 0
        self._glances = 0
        self._round: list[str] = []
        self._left: list[str] = []
        """What of the round is still to be glanced at."""
        self._seen: dict[str, Fingerprints] = {}

    def hurry(self) -> None:
        """Look everywhere, and soon."""
        self._unchanged = self._glances = 0

    def saw(self, view: object) -> None:
        """Compare what a look showed with what the look before it showed."""
        if view != self._view:
            self._view = view
            self.hurry()
        else:
            self._unchanged = min(self._unchanged + 1, len(WAITS) - 1)

    @property
    def quiet(self) -> bool:
        """Whether nothing has changed for so long that a look need not go everywhere."""
        return self._unchanged == len(WAITS) - 1

    @property
    def wait_s(self) -> float:
        """For how long to wait for the next look."""
        longest_s = max(self._interval_s, WAIT_LEASES * self._pool.lease_s)
        return min(self._interval_s * WAITS[self._unchanged], longest_s)

    def is_due_everywhere(self) -> bool:
        """Say whether to look everywhere now; if not, glance at one spool, which may change that.

        Raises OSError, as every look does.
        """
        if self.quiet and self._glances < GLANCES + len(self._seen):
            self._glances += 1
            return self._glance()
        self._glances = 0
        self._round.clear()
        return True

    def _glance(self) -> bool:
        """List one spool; say, and hurry, if there is something that was not there last time."""
        self._round = self._round or self._whole_round()
        self._left = self._left or self._round.copy()
        if not self._left:
            return True
        spool = self._left.pop()
        try:
            names = atomic.gather(self._pool.spool(spool), _waiting)
        except PoolError:
            return True  # whoever looks everywhere says what is wrong with it
        known = self._seen.get(spool, Fingerprints())
        self._seen[spool] = names
        if names <= known:
            return False
        self.hurry()
        return True

    def _whole_round(self) -> list[str]:
        own = [self._spool] if self._spool is not None else []
        if not self._stealing and own:
            return own
        others = [spool for spool in spool_names(self._pool) if spool != self._spool]
        return [spool for other in others for spool in (other, *own)] or own


def _waiting(texts: Iterator[str]) -> Fingerprints:
    return Fingerprints(map(mark, filter(is_waiting, texts)))


class RateLimit:
    """How many metadata operations a second this process may spend."""

    def __init__(
        self,
        per_s: float = OPERATIONS_MAX,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.per_s = per_s
        self.held_s = 0.0
        """For how long, in all, it held its worker back."""
        self._clock = clock
        self._sleep = sleep
        self._at = clock()
        self._left = per_s
        self._counted = operations.total

    def wait(self) -> None:
        """Return at once if anything is left to spend, else once enough time has passed.

        What was spent since the last call counts as spent evenly: a claim that took a minute, and a
        hundred checkpoints in it, is no burst.
        """
        now, count = self._clock(), operations.total
        left = self._left + (now - self._at) * self.per_s - (count - self._counted)
        self._left, self._at, self._counted = min(self.per_s, left), now, count
        if left < -NAP_S * self.per_s:
            self._sleep(-left / self.per_s)
            self.held_s += self._clock() - now
