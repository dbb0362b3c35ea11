"""Find out whether this worker or its claims are bad, when several claims in a row failed here.

R7  A worker stops for failures only on proof: a claim that is known to work fails here as well.
    Known to work is a claim that is done, by this worker or any other; it is run once more, and
    what it writes is thrown away. If it works, the claims are bad and the worker goes on. If no
    claim of the kind is done and its handler has no self-test, nothing is proved, and it goes on.
    Claims that were cancelled, are impossible or were put back say nothing about a worker.

What this module does not know: how a claim is run; the worker does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from typing import Final

from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic

FAILURES_MAX: Final = 3
"""After so many different claims in a row failed, a worker examines itself."""
DONE_LOOKED_AT: Final = 20_000
"""How many names in done/ are looked at to find a cheap claim that is known to work."""
CANDIDATES: Final = 3


@dataclass(slots=True)
class Suspicion:
    """How the last claims went, and which claims are known to work."""

    pool: PoolDirectory
    in_a_row: list[str] = field(default_factory=list)
    """The different claims that failed here since one was done, or since the last examination."""
    _limit: int = FAILURES_MAX
    _done_here: dict[str, ClaimName] = field(default_factory=dict)
    """The cheapest claim of each kind that was done here."""

    def note_done(self, name: ClaimName) -> None:
        """Note that a claim was done here, which clears this worker of every suspicion."""
        self.in_a_row.clear()
        self._limit = FAILURES_MAX
        known = self._done_here.get(base_of(name.kind))
        if known is None or name.cost < known.cost:
            self._done_here[base_of(name.kind)] = name

    def note_failed(self, name: ClaimName) -> None:
        """Note that a claim failed here, for whatever reason it gave."""
        if name.id not in self.in_a_row:
            self.in_a_row.append(name.id)

    @property
    def is_due(self) -> bool:
        """Whether this worker should examine itself now."""
        return len(self.in_a_row) >= self._limit

    def acquit(self) -> None:
        """Note that the claims are to blame: the next examination waits for twice as many."""
        self.in_a_row.clear()
        self._limit = min(2 * self._limit, 1000)

    def known_to_work(self, kind: str) -> Iterator[ClaimName]:
        """Yield a few claims of a kind in done/ that are cheap to run once more.

        Those done here come first. Only names are read. Raises OSError, PoolError.
        """
        here = self._done_here.get(base_of(kind))
        if here is not None:
            yield here
        found = atomic.gather(
            self.pool.state(State.DONE),
            lambda texts: nsmallest(
                CANDIDATES,
                (
                    name
                    for text in islice(texts, DONE_LOOKED_AT)
                    if (name := ClaimName.parse(text)) is not None
                    and name.owner is not None
                    and base_of(name.kind) == base_of(kind)
                ),
                key=lambda name: (name.cost, name.id),
            ),
        )
        yield from (name for name in found if here is None or name.id != here.id)
