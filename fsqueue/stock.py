"""Know what waits, and take the next claim: from our own spool, else from somebody else's.

Listings are read once and used up; the cost of a claim does not grow with the number of claims
waiting. A listing is a hint: whether a claim was there to take, only the rename tells.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fsqueue import claims
from fsqueue.choose import PLENTY, Patience, Peer, Taste, choose, in_order, takes_too_long
from fsqueue.errors import PoolError
from fsqueue.heartbeat import Heartbeat
from fsqueue.layout import State
from fsqueue.leases import lease_names
from fsqueue.locks import try_lock
from fsqueue.names import ClaimName
from fsqueue.pool import Pool, spool_names
from fsqueue.status import Journal, Status, read_status

log = logging.getLogger(__name__)

MISSES_MAX: Final = 8
"""Listing again after this many lost renames in a row: with W workers on one spool a listing used
to its end costs W-1 lost renames a claim, and this keeps it under one."""
LISTINGS_MAX: Final = 5
VIEW_AGE_S: Final = 2.0
GONE: Final = frozenset({"draining", "stopped", "failed"})


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many claims wait, and how many of them this worker could take."""

    all: int
    could_take: int
    too_long: int = 0
    """How many it could take if it had more time left."""


class Stock:
    """One worker's sight of the spools."""

    def __init__(
        self, pool: Pool, beat: Heartbeat, journal: Journal, *, spool: str | None, stealing: bool
    ) -> None:
        self._pool = pool
        self._beat = beat
        self._journal = journal
        self._spool = spool
        self._stealing = stealing
        self._taste = Taste()
        self._own: list[ClaimName] = []
        self._others: dict[str, list[ClaimName]] = {}
        self._crew: list[Peer] = []
        self._viewed = -1e9
        self._admitted: set[str] = set()
        """Spools whose lock was free since we listed them: one try a listing, not one a claim."""
        self._patience = Patience()
        self._waited: set[str] = set()
        self._refused_spools: set[str] = set()
        self._learned: dict[str, float] = {}
        self.time_left_s: Callable[[], float] = lambda: math.inf
        self._listed: dict[str, tuple[float, list[ClaimName] | None]] = {}

    def taste_changed(self, taste: Taste) -> None:
        """Order what is known anew, if the worker's taste is another now."""
        if taste != self._taste:
            self._taste = taste
            self._own = in_order(self._own, taste)
            self._viewed = -1e9

    def next(self) -> tuple[ClaimName, str] | None:
        """Take a claim; return it with the spool it came from, or None if there is none to take."""
        if self._spool is not None and (name := self._next_own(self._spool)) is not None:
            return name, self._spool
        return self._contend()

    def any_spool(self) -> str:
        """Return a spool to put a claim back into when its own is not known."""
        return self._spool or spool_names(self._pool)[0]

    def count_waiting(self, since: float = -math.inf) -> Waiting:
        """Count over listings no older than a second, nor than `since`."""
        total = could = too_long = 0
        for spool in spool_names(self._pool):
            at, names = self._listed.get(spool, (-1e9, None))
            if time.monotonic() - at > 1.0 or at < since:
                names = self._list(spool)
            total += len(names or ()) if names is not None else 1
            if names and (self._stealing or spool == self._spool):
                able = [name for name in names if self._taste.allows(name.kind)]
                late = self._count_too_long(able)
                could, too_long = could + len(able) - late, too_long + late
        return Waiting(total, could, too_long)

    # ---- our own spool ----

    def _next_own(self, spool: str) -> ClaimName | None:
        """Take the best of our own while there is plenty; the last few are contended for."""
        few = PLENTY if self._stealing else 0
        for _ in range(LISTINGS_MAX):
            misses = 0
            while len(self._own) > few and misses < MISSES_MAX:
                if self._count_too_long(self._own[-1:]):
                    return None
                taken = self._take(spool, self._own.pop())
                if taken is not None:
                    return taken
                misses += 1
            if self._dry_lately(spool):
                return None
            self._own = in_order(self._list(spool) or (), self._taste)
            if len(self._own) <= few:
                return None
        return None  # a mount whose listings lag keeps showing us what is gone: wait a poll

    def _dry_lately(self, spool: str) -> bool:
        """Say whether listing our own spool again can wait: not every time while we steal."""
        at, names = self._listed.get(spool, (-1e9, None))
        stealing = any(self._others.values())
        return stealing and names == [] and time.monotonic() - at < VIEW_AGE_S

    # ---- everybody's ----

    def _contend(self) -> tuple[ClaimName, str] | None:
        """Take what falls to us: of our own last claims, or of other people's."""
        stale = time.monotonic() - self._viewed > VIEW_AGE_S or not any(self._others.values())
        if self._stealing and stale:
            self._look_around()
        offered = dict(self._others)
        if self._spool is not None:
            offered[self._spool] = self._own
        misses = 0
        while misses < MISSES_MAX and (pick := self._choose(offered)) is not None:
            spool, name = pick
            if spool == self._spool or spool in self._admitted:
                taken = self._take(spool, _struck(offered[spool], name))
            else:
                with try_lock(self._pool.spool_lock(spool)) as free:
                    if not free:
                        self._beat.status.lock_skips += 1
                        del offered[spool]
                        continue
                    self._admitted.add(spool)
                    taken = self._take(spool, _struck(offered[spool], name))
            if taken is not None:
                return taken, spool
            misses += 1
        if misses == MISSES_MAX:
            self._viewed = -1e9  # what we knew is stale
        refused = {names[-1].id for names in offered.values() if names}
        self._waited = self._patience.left_alone(refused)
        return None

    def _choose(self, offered: dict[str, list[ClaimName]]) -> tuple[str, ClaimName] | None:
        status = self._beat.status
        me = Peer(
            self._me,
            status.weight,
            self._rates(),
            self._spool,
            stealing=self._stealing,
            tier=self._taste.tier,
            capabilities=self._taste.capabilities,
            loaded=self._taste.loaded,
        )
        left_s = self.time_left_s()
        return choose(offered, self._crew, me, self._taste, waited=self._waited, time_left_s=left_s)

    def _take(self, spool: str, name: ClaimName) -> ClaimName | None:
        taken = claims.take(self._pool, spool, name, self._me)
        if taken is None:
            return None
        facts = {"id": name.id, "kind": name.kind, "cost": name.cost, "attempt": name.attempt}
        if spool == self._spool:
            self._journal.write("took", **facts, spool=spool)
            return taken
        log.info("%s stole work from %s: %s", self._me, spool, name.id)
        self._journal.write("stole", **facts, **{"from": spool}, to=self._spool)
        status = self._beat.status
        with self._beat.lock:
            status.steals_in += 1
            status.stolen_from[spool] = status.stolen_from.get(spool, 0) + 1
        return taken

    def _look_around(self) -> None:
        """List the other spools, and who else lives and does what (hints: I8)."""
        begun = time.monotonic()
        self._admitted.clear()
        self._others = {
            spool: in_order(names, self._taste)
            for spool in spool_names(self._pool)
            if spool != self._spool and (names := self._list(spool))
        }
        if self._own or self._others:
            self._crew = self._peers()
        took_s = time.monotonic() - begun
        self._viewed = begun + max(0.0, 20 * took_s - VIEW_AGE_S)  # listing stays under 5 %

    def _peers(self) -> list[Peer]:
        living = {name.worker for name in lease_names(self._pool) if name.living} - {self._me}
        held = {name.owner: name for name in claims.owned(self._pool, State.RUNNING)}
        found = (read_status(self._pool, worker) for worker in sorted(living))
        statuses = [status for status in found if status is not None]
        self._learned = _rates_of_likes(statuses, self._beat.status.model)
        return [
            peer_of(status, held.get(status.worker_id))
            for status in statuses
            if status.state not in GONE
        ]

    def _count_too_long(self, names: list[ClaimName]) -> int:
        left_s = self.time_left_s()
        if left_s == math.inf:
            return 0
        rates = self._rates()
        return sum(takes_too_long(name, rates, left_s) for name in names)

    def _rates(self) -> dict[str, float]:
        """Return our rate for each kind: as we measured it, else as others with our GPU did."""
        return self._learned | self._beat.status.rates

    def _list(self, spool: str) -> list[ClaimName] | None:
        """List a spool; None, said once, if it is not fit to be worked."""
        try:
            begun = time.monotonic()
            names = claims.waiting(self._pool, spool)
            self._listed[spool] = begun, names
            return names
        except PoolError as error:
            if spool not in self._refused_spools:
                log.warning("%s", error)
                self._journal.write("warning", text=str(error))
                self._refused_spools.add(spool)
            return None

    @property
    def _me(self) -> str:
        return self._beat.status.worker_id


def _rates_of_likes(statuses: list[Status], model: str) -> dict[str, float]:
    """Return the median rate for each kind among workers on GPUs of a model."""
    likes = [status.rates for status in statuses if status.model == model]
    kinds = {kind for rates in likes for kind in rates}
    return {kind: statistics.median(r[kind] for r in likes if kind in r) for kind in kinds}


def _struck(names: list[ClaimName], name: ClaimName) -> ClaimName:
    """Take one name, most likely the last, off a list."""
    index = len(names) - 1
    while names[index] != name:
        index -= 1
    return names.pop(index)


def peer_of(status: Status, name: ClaimName | None) -> Peer:
    """Return what the policy should know of a worker that runs `name`."""
    return Peer(
        status.worker_id,
        max(status.weight, 1e-6),
        status.rates,
        status.spool,
        stealing=status.stealing,
        tier=status.tier,
        capabilities=status.capabilities,
        loaded=status.loaded,
        kind=name.kind if name else "",
        left=_left(name, status) if name else 0.0,
    )


def _left(name: ClaimName, status: Status) -> float:
    """Return what is left of a claim's cost: by its progress, else by the time it has run."""
    current = status.current
    if current is None or current.id != name.id:
        return name.cost  # just taken; the status has not caught up
    if current.total > 0:
        return name.cost * (1.0 - min(current.done / current.total, 1.0))
    ran_s = max(0.0, status.written_at - current.started)
    return max(0.0, name.cost - ran_s * status.rates.get(name.kind, 0.0))
