"""Reckon how many planned claims wait, without listing any spool.

What was planned, less what ended and what runs, waits: four listings and the heads of the plans,
however many spools there are. That is good enough to decide whether to look into the spools. It is
no answer to whether all is done: that needs each claim to be seen (`completeness`).
"""

from __future__ import annotations

from collections.abc import Iterator

from fsqueue.errors import PoolError
from fsqueue.pool import plans
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic


class Reckoning:
    """One process's view of how many claims are planned."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._planned: dict[int, int] = {}
        """The claims of each plan, whose head never changes."""

    def waiting(self) -> int | None:
        """Return how many planned claims wait; None if that cannot be reckoned.

        Rather too many than too few: what moves on meanwhile is seen where it leaves, not where it
        arrives, and what a listing misses is taken to wait.
        """
        ended = self._count(State.DONE) + self._count(State.FAILED)
        running = self._count(State.RUNNING)
        try:
            for number in plans.numbers(self._pool):
                if number not in self._planned:
                    self._planned[number] = plans.read_plan(self._pool, number).total.claims
        except PoolError:
            return None  # a damaged plan, which `check` reports
        planned = sum(self._planned.values())
        # More than was planned: then there are claims that no plan holds, put there by hand.
        return planned - ended - running if ended + running <= planned else None

    def _count(self, state: State) -> int:
        return atomic.gather(self._pool.state(state), _count_owned)


def _count_owned(texts: Iterator[str]) -> int:
    return sum("@" in text for text in texts)
