"""Know what waits, and take the next claim: from our own spool, else from somebody else's.

Listings are read once and used up; the cost of a claim does not grow with the number of claims
waiting. A listing is a hint: whether a claim was there to take, only the rename tells.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from fsqueue.errors import PoolError
from fsqueue.pool import claims
from fsqueue.pool.journal import Journal
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.scheduling.choose import (
    PLENTY,
    Patience,
    Peer,
    Preferences,
    choose,
    polls_for,
    takes_too_long,
)
from fsqueue.scheduling.peers import held_by, living, peers, rates_of_likes
from fsqueue.scheduling.waiting import WaitingClaims
from fsqueue.storage import atomic
from fsqueue.storage.locks import try_lock
from fsqueue.worker.heartbeat import Heartbeat

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
    too_long: int = 0
    """How many it could take if it had more time left."""


class ClaimSource:
    """One worker's sight of the spools."""

    def __init__(
        self,
        pool: PoolDirectory,
        beat: Heartbeat,
        journal: Journal,
        *,
        spool: str | None,
        stealing: bool,
        steal_threshold: int = 1,
    ) -> None:
        self._pool = pool
        self._beat = beat
        self._journal = journal
        self._spool = spool
        self._stealing = stealing
        self._threshold = steal_threshold
        self._told = self._taste = Preferences()
        self._own = WaitingClaims()
        self._others: dict[str, WaitingClaims] = {}
        self._crew: list[Peer] = []
        self._viewed = -1e9
        self._admitted: set[str] = set()
        """Spools whose lock was free since we listed them: one try a listing, not one a claim."""
        self._patience = Patience()
        self._waited: set[str] = set()
        self._refused_spools: set[str] = set()
        self._learned: dict[str, float] = {}
        self.time_left_s: Callable[[], float] = lambda: math.inf
        self.before_listing: Callable[[], None] = lambda: None
        self.left_over = False
        """Whether `next` left claims that we might take, to others or for another poll."""
        self._listed: dict[str, tuple[float, WaitingClaims]] = {}
        self._dry: set[str] = set()
        """Spools where nothing waited when they were listed last."""

    def set_preferences(self, preferences: Preferences) -> None:
        """Order what is known anew, if the worker's taste is another now."""
        if preferences is not self._told:
            self._told = preferences
            self._suit(replace(preferences, held=self._taste.held))

    def _suit(self, preferences: Preferences) -> None:
        if preferences != self._taste:
            self._taste = preferences
            for waitlist in (self._own, *self._others.values()):
                waitlist.apply(preferences)

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
                if names is not None and spool in self._others:
                    self._others[spool] = names  # one listing in memory is enough
            total += names.all if names is not None else 1
            if names and (self._stealing or spool == self._spool):
                names.apply(self._taste)
                late = self._count_too_long(names)
                could, too_long = could + len(names) - late, too_long + late
        return Waiting(total, could, too_long)

    # ---- our own spool ----

    def _next_own(self, spool: str) -> ClaimName | None:
        """Take the best of our own while there is plenty; the last few are contended for.

        So is what we would have to load something for: others may have claims that we need not.
        """
        few = PLENTY if self._stealing else 0
        for _ in range(LISTINGS_MAX):
            misses, bearable = 0, _bearable(len(self._own))
            while len(self._own) > few and misses < bearable:
                if self._hesitates(self._own):
                    return None
                taken = self._take(spool, self._own.pop())
                if taken is not None:
                    return taken
                misses += 1
            if self._dry_lately(spool):
                return None
            self._own = WaitingClaims()  # what is used up need not be held while the next is read
            self._own = self._list(spool) or self._own
            if self._nothing_loaded_for(self._own):
                self._meet()
            if len(self._own) <= few:
                return None
        return None  # a mount whose listings lag keeps showing us what is gone: wait a poll

    def _hesitates(self, own: WaitingClaims) -> bool:
        """Say whether the best of our own needs what we have not loaded, or more time than left."""
        if self._stealing and self._taste.loaded and self._taste.must_load(own.best().kind):
            return True
        left_s = self.time_left_s()
        return left_s < math.inf and takes_too_long(own.best(), self._rates(), left_s)

    def _dry_lately(self, spool: str) -> bool:
        """Say whether listing our own spool again can wait: not every time while we steal."""
        lately = time.monotonic() - VIEW_AGE_S
        stealing = any(self._others.values())
        known = spool in self._dry and spool in self._listed
        return stealing and known and self._listed[spool][0] > lately

    def _nothing_loaded_for(self, names: WaitingClaims) -> bool:
        """Say whether we are about to load something, and could choose what."""
        return len(names.bases()) > 1 and base_of(names.best().kind) not in self._taste.loaded

    def _meet(self) -> None:
        """See who lives and does what (hints: I8), so that we need not load what others have."""
        self._crew = self._peers()
        self._suit(replace(self._taste, held=held_by(self._crew)))

    # ---- everybody's ----

    def _contend(self) -> tuple[ClaimName, str] | None:
        """Take what falls to us: of our own last claims, or of other people's."""
        stale = time.monotonic() - self._viewed > VIEW_AGE_S or not any(self._others.values())
        if self._stealing and stale:
            self._look_around()
        tended = {peer.spool for peer in self._crew} if self._threshold > 1 else set()
        offered = {
            spool: names
            for spool, names in self._others.items()
            if len(names) >= self._threshold or spool not in tended
        }
        if self._spool is not None:
            offered[self._spool] = self._own
        misses, bearable = 0, _bearable(sum(map(len, offered.values())))
        while misses < bearable and (pick := self._choose(offered)) is not None:
            spool, name = pick
            if spool == self._spool or spool in self._admitted:
                offered[spool].remove(name)
                taken = self._take(spool, name)
            else:
                with try_lock(self._pool.spool_lock(spool)) as free:
                    if not free:
                        self._beat.status.lock_skips += 1
                        del offered[spool]
                        continue
                    self._admitted.add(spool)
                    offered[spool].remove(name)
                    taken = self._take(spool, name)
            if taken is not None:
                return taken, spool
            misses += 1
        if misses == bearable:
            self._viewed = -1e9  # what we knew is stale
        best = (names.best() for names in offered.values() if names)
        refused = {name.id: polls_for(name, self._crew, self._taste) for name in best}
        self._waited = self._patience.left_alone(refused)
        left = (len(names) - self._count_too_long(names) for names in offered.values())
        self.left_over = any(left)
        return None

    def _choose(self, offered: dict[str, WaitingClaims]) -> tuple[str, ClaimName] | None:
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
        if spool == self._spool:
            self._journal.claim("took", name, spool=spool)
            return taken
        log.info("%s stole work from %s: %s", self._me, spool, name.id)
        self._journal.claim("stole", name, **{"from": spool}, to=self._spool)
        status = self._beat.status
        with self._beat.lock:
            status.steals_in += 1
            status.stolen_from[spool] = status.stolen_from.get(spool, 0) + 1
        return taken

    def _look_around(self) -> None:
        """List the other spools, and see who else lives and does what."""
        begun = time.monotonic()
        self._admitted.clear()
        self._others.clear()
        self._others = {
            spool: names
            for spool in spool_names(self._pool)
            if spool != self._spool and (names := self._list(spool))
        }
        if self._own or self._others:
            self._meet()
        took_s = time.monotonic() - begun
        self._viewed = begun + max(0.0, 20 * took_s - VIEW_AGE_S)  # listing stays under 5 %

    def _peers(self) -> list[Peer]:
        statuses = living(self._pool, but=self._me)
        self._learned = rates_of_likes(statuses, self._beat.status.model)
        return peers(self._pool, statuses)

    def _count_too_long(self, names: WaitingClaims) -> int:
        left_s = self.time_left_s()
        return names.count_too_long(self._rates(), left_s) if left_s < math.inf else 0

    def _rates(self) -> dict[str, float]:
        """Return our rate for each kind: as we measured it, else as others with our GPU did."""
        return self._learned | self._beat.status.rates

    def _list(self, spool: str) -> WaitingClaims | None:
        """List a spool; None, said once, if it is not fit to be worked."""
        self.before_listing()
        try:
            begun = time.monotonic()
            self._listed.pop(spool, None)
            names = atomic.gather(self._pool.spool(spool), lambda t: WaitingClaims(t, self._taste))
            self._listed[spool] = begun, names
            (self._dry.discard if names.all else self._dry.add)(spool)
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


def _bearable(names: int) -> int:
    """Return after how many misses to list again: a long listing costs ten times a 64th of it."""
    return max(MISSES_MAX, names // 64)
