"""Know what waits, and take the next claim: from our own spool, else from somebody else's.

Listings are read once and used up; the cost of a claim does not grow with the number of claims
waiting. A listing is a hint: whether a claim was there to take, only the rename tells.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

from fsqueue import claims
from fsqueue.choose import Patience, Taste, View, in_order, speeds, victims, worth_stealing
from fsqueue.errors import PoolError
from fsqueue.heartbeat import Heartbeat
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


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many claims wait, and how many of them this worker could take."""

    all: int
    could_take: int


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
        self._views: dict[str, View] = {}
        self._viewed = -1e9
        self._patience = Patience()
        self._impatient: set[str] = set()
        self._refused_spools: set[str] = set()
        self._speed = beat.status.weight
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
        return self._steal() if self._stealing else None

    def any_spool(self) -> str:
        """Return a spool to put a claim back into when its own is not known."""
        return self._spool or spool_names(self._pool)[0]

    def count_waiting(self) -> Waiting:
        """Count over listings no older than a second."""
        total = could = 0
        for spool in spool_names(self._pool):
            at, names = self._listed.get(spool, (-1e9, None))
            if time.monotonic() - at > 1.0:
                names = self._list(spool)
            total += len(names or ()) if names is not None else 1
            if names and (self._stealing or spool == self._spool):
                could += sum(name.kind not in self._taste.unable for name in names)
        return Waiting(total, could)

    # ---- our own spool ----

    def _next_own(self, spool: str) -> ClaimName | None:
        for _ in range(LISTINGS_MAX):
            misses = 0
            while self._own and misses < MISSES_MAX:
                name = self._own.pop()
                taken = claims.take(self._pool, spool, name, self._me)
                if taken is not None:
                    self._journal.write("took", id=name.id, cost=name.cost, spool=spool)
                    return taken
                misses += 1
            self._own = in_order(self._list(spool) or (), self._taste)
            if not self._own:
                return None
        return None  # a mount whose listings lag keeps showing us what is gone: wait a poll

    # ---- other people's ----

    def _steal(self) -> tuple[ClaimName, str] | None:
        if time.monotonic() - self._viewed > VIEW_AGE_S or not any(
            view.waiting for view in self._views.values()
        ):
            self._look_around()
        refused: set[str] = set()
        for spool in victims(self._views):
            view = self._views[spool]
            if not self._trim(view):
                refused.update(name.id for name in view.waiting[-1:])
                continue
            with try_lock(self._pool.spool_lock(spool)) as free:
                if not free:
                    self._beat.status.lock_skips += 1
                    continue
                if (taken := self._take_from(spool, view)) is not None:
                    return taken, spool
        self._impatient = self._patience.left_alone(refused)
        return None

    def _trim(self, view: View) -> bool:
        """Bring a claim worth stealing to the end of the view; False if there is none."""
        for index in range(len(view.waiting) - 1, -1, -1):
            name = view.waiting[index]
            if name.id in self._impatient or worth_stealing(view, name, self._speed):
                view.waiting.append(view.waiting.pop(index))
                return True
        return False

    def _take_from(self, spool: str, view: View) -> ClaimName | None:
        for _ in range(MISSES_MAX):
            if not self._trim(view):
                return None
            name = view.pop()
            taken = claims.take(self._pool, spool, name, self._me)
            if taken is not None:
                log.info("%s stole work from %s: %s", self._me, spool, name.id)
                self._journal.write(
                    "stole", id=name.id, cost=name.cost, to=self._spool, **{"from": spool}
                )
                self._beat.status.steals_in += 1
                return taken
        self._viewed = -1e9  # what we knew of this spool is stale
        return None

    def _look_around(self) -> None:
        """List the other spools, and who works them how fast (hints: I8)."""
        begun = time.monotonic()
        self._views = {}
        for spool in spool_names(self._pool):
            if spool != self._spool and (names := self._list(spool)):
                ordered = in_order(names, self._taste)
                self._views[spool] = View(ordered, sum(name.cost for name in ordered))
        if self._views:
            self._estimate()
        took_s = time.monotonic() - begun
        self._viewed = begun + max(0.0, 20 * took_s - VIEW_AGE_S)  # listing stays under 5 %

    def _estimate(self) -> None:
        living = {name.worker for name in lease_names(self._pool) if name.living} - {self._me}
        others = {w: s for w in living if (s := read_status(self._pool, w)) is not None}
        statuses = {**others, self._me: self._beat.status}
        weights = {worker: max(status.weight, 1e-6) for worker, status in statuses.items()}
        rates = {worker: status.rates for worker, status in statuses.items()}
        kinds = [view.waiting[-1].kind for view in self._views.values() if view.waiting]
        speed = speeds(weights, rates, kinds[0] if kinds else "")
        self._speed = speed[self._me]
        for worker, status in others.items():
            if status.spool in self._views:
                view = self._views[status.spool]
                view.speed += speed[worker]
                view.running += _left_of_current(status)

    def _list(self, spool: str) -> list[ClaimName] | None:
        """List a spool; None, said once, if it is not fit to be worked."""
        try:
            names = claims.waiting(self._pool, spool)
            self._listed[spool] = time.monotonic(), names
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


def _left_of_current(status: Status) -> float:
    current = status.current
    if current is None:
        return 0.0
    done = min(current.done / current.total, 1.0) if current.total > 0 else 0.0
    return current.cost * (1.0 - done)
