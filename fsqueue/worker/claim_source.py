"""Know what waits, and take the next claim: from this worker's own spool, else from another.

Listings are read once and used up, so the cost of a claim does not grow with the number of claims
waiting. A listing is a hint: only the rename decides whether a claim was there to take.

What this module does not know: which claim is best for which worker; `scheduling.choose` does.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fsqueue.errors import PoolError
from fsqueue.pool import claims
from fsqueue.pool.names import PRIORITY_MAX, VAIN_RUNS_MAX, ClaimName, host_of
from fsqueue.pool.reckoning import Reckoning
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.journal import EventKind, Journal
from fsqueue.records.status import Status
from fsqueue.scheduling.choose import (
    PLENTY,
    Patience,
    Peer,
    Preferences,
    choose,
    polls_for,
    precedence,
    takes_too_long,
)
from fsqueue.scheduling.peers import PeerStatuses, held_by, peers, rates_of_likes
from fsqueue.scheduling.waiting import WaitingClaims
from fsqueue.storage import atomic
from fsqueue.storage.locks import try_lock
from fsqueue.storage.untrusted import number, read_json
from fsqueue.worker.liveness.heartbeat import Heartbeat

log = logging.getLogger(__name__)

MISSES_MAX: Final = 8
"""Listing again after this many lost renames in a row: with W workers on one spool a listing used
to its end costs W-1 lost renames a claim, and this keeps it under one."""
LISTINGS_MAX: Final = 5
CLEARLY_MORE: Final = 1.5
VIEW_AGE_S: Final = 2.0
PLANS_AGE_S: Final = 15.0
"""How often a worker with plenty in its own spool looks whether something urgent was planned."""
SPOOLS_LISTED: Final = 24
"""In a pool with more spools than this, they are listed only if something seems to wait there."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many claims wait, and how many of them this worker could take."""

    all: int
    could_take: int
    too_long: int = 0
    """How many more it could take if it had more time left."""
    hopeless: int = 0
    """How many more were put back in vain, after longer runs than it has time for."""


class ClaimSource:
    """One worker's view of the spools."""

    def __init__(
        self,
        pool: PoolDirectory,
        beat: Heartbeat,
        journal: Journal,
        *,
        spool: str | None,
        stealing: bool,
        steal_threshold: int = 1,
        time_left_s: Callable[[], float] = lambda: math.inf,
        lifetime_s: Callable[[], float] = lambda: math.inf,
        before_listing: Callable[[], None] = lambda: None,
    ) -> None:
        """`before_listing` is called before each listing of a spool, and may wait.

        `lifetime_s` returns how long this worker may still run, even if it is fresh.
        """
        self.left_claims = False
        """Whether `next` left claims that this worker might take, to others or for another poll."""
        self._pool = pool
        self._beat = beat
        self._journal = journal
        self._spool = spool
        self._stealing = stealing
        self._steal_threshold = steal_threshold
        self._time_left_s = time_left_s
        self._lifetime_s = lifetime_s
        self._before_listing = before_listing
        self._failed_on_host: dict[str, bool] = {}
        """By id and attempt: whether the attempt before failed on this host."""
        self._vain_runs_s: dict[str, float] = {}
        """By id and number of returns: how long the longest run in vain of a claim was."""
        self._worker_preferences = self._preferences = Preferences()
        """As the worker set them last; and these, with what other workers hold."""
        self._plans: tuple[float, frozenset[str]] = time.monotonic(), frozenset()
        """When plans/ was listed last, and what was there."""
        self._highest = 0
        """The highest priority that may wait in another spool; claims below it are not taken from
        our own before the others were looked at (R75)."""
        self._own = WaitingClaims()
        self._others: dict[str, WaitingClaims] = {}
        self._statuses = PeerStatuses(pool, beat.status.worker_id)
        self._reckoning = Reckoning(pool)
        self._peers: list[Peer] = []
        self._peer_rates: dict[str, float] = {}
        """Cost per second by kind, as measured by workers with a GPU like ours."""
        self._others_listed_at = -1e9
        self._unlocked: set[str] = set()
        """Spools whose lock was free since we listed them: one try a listing, not one a claim."""
        self._patience = Patience()
        self._waited: set[str] = set()
        self._unusable: set[str] = set()
        self._listed: dict[str, tuple[float, WaitingClaims]] = {}
        self._dry: set[str] = set()
        """Spools where nothing waited when they were listed last."""

    def set_preferences(self, preferences: Preferences) -> None:
        """Reorder what is known, if the worker's preferences changed."""
        if preferences is not self._worker_preferences:
            self._worker_preferences = preferences
            self._reorder(self._with_failed_on_host(self._preferences.held))

    def _reorder(self, preferences: Preferences) -> None:
        if preferences != self._preferences:
            self._preferences = preferences
            for waiting in (self._own, *self._others.values()):
                waiting.apply(preferences)

    def next(self) -> tuple[ClaimName, str] | None:
        """Take a claim; return it with the spool it came from, or None if there is none to take."""
        if self._spool is not None and (name := self._next_own(self._spool)) is not None:
            return name, self._spool
        return self._next_of_all()

    def any_spool(self) -> str:
        """Return a spool to put a claim back into when its own is not known."""
        return self._spool or spool_names(self._pool)[0]

    def count_waiting(self, since: float = -math.inf) -> Waiting:
        """Count over listings no older than a second, nor than `since`."""
        total = could = too_long = hopeless = 0
        spools = spool_names(self._pool)
        if self._nothing_waits_outside(spools):
            spools = [spool for spool in spools if spool == self._spool]
        for spool in spools:
            at, names = self._listed.get(spool, (-1e9, None))
            if time.monotonic() - at > 1.0 or at < since:
                names = self._list(spool)
                if names is not None and spool in self._others:
                    self._others[spool] = names  # one listing in memory is enough
            total += names.all if names is not None else 1
            if names and (self._stealing or spool == self._spool):
                names.apply(self._preferences)
                late = self._count_too_long(names)
                in_vain = sum(map(self._is_hopeless, names.put_back_in_vain()))
                could, too_long = could + len(names) - late - in_vain, too_long + late
                hopeless += in_vain
        return Waiting(total, could, too_long, hopeless)

    # ---- this worker's own spool ----

    def _next_own(self, spool: str) -> ClaimName | None:
        """Take the best of our own spool while there is plenty in it.

        The last few are left to `_next_of_all`, as are claims for which we would have to load
        something: other spools may have claims for which we need not.
        """
        few = PLENTY if self._stealing else 0
        if self._own and self._was_planned_since():
            # It may hold claims that come before those we know of, here and in other spools.
            self._own = self._list(spool) or self._own
            self._others_listed_at, self._highest = -1e9, PRIORITY_MAX
        for _ in range(LISTINGS_MAX):
            misses, misses_max = 0, _misses_max(len(self._own))
            while len(self._own) > few and misses < misses_max:
                if self._best_is_unsuitable(self._own):
                    return None
                taken = self._take(spool, self._own.pop())
                if taken is not None:
                    return taken
                misses += 1
            if self._was_dry_lately(spool):
                return None
            self._own = WaitingClaims()  # free the used listing before the next one is read
            self._own = self._list(spool) or self._own
            if self._would_load(self._own):
                self._refresh_peers()
            if len(self._own) <= few:
                return None
        return None  # a mount whose listings lag keeps showing claims that are gone: wait a poll

    def _best_is_unsuitable(self, own: WaitingClaims) -> bool:
        """Return whether our best claim is one to take only if no other spool has a better one.

        It needs something not loaded, or more time than is left; or it came to nothing before (R4,
        R51).
        """
        left_s, best = self._time_left_s(), own.best()
        if self._stealing and _precedence(own) < self._highest:
            return True
        if self._stealing and (best.vain or best.id in self._preferences.failed_here):
            return True
        if best.vain and self._is_hopeless(best):
            return True
        preferences = self._preferences
        if self._stealing and preferences.loaded and preferences.must_load(best.kind):
            return True
        return left_s < math.inf and takes_too_long(best, self._rates(), left_s)

    def _was_planned_since(self) -> bool:
        """Return whether a plan was made since we last asked, which is not often."""
        at, known = self._plans
        if time.monotonic() - at < PLANS_AGE_S:
            return False
        self._before_listing()
        try:
            names = frozenset(atomic.names(self._pool.directory("plans")))
        except (OSError, PoolError):
            names = known  # a passing error; or it is gone, which others report
        self._plans = time.monotonic(), names
        return names != known

    def _was_dry_lately(self, spool: str) -> bool:
        """Return whether listing our own spool again can wait: not every time while we steal."""
        lately = time.monotonic() - VIEW_AGE_S
        stealing = any(self._others.values())
        known = spool in self._dry and spool in self._listed
        return stealing and known and self._listed[spool][0] > lately

    def _would_load(self, names: WaitingClaims) -> bool:
        """Return whether we are about to load something, and could choose what."""
        return len(names.bases()) > 1 and base_of(names.best().kind) not in self._preferences.loaded

    def _refresh_peers(self) -> None:
        """See which workers live and do what (hints: I8), to avoid loading what others have."""
        self._peers = self._read_peers()
        self._reorder(self._with_failed_on_host(held_by(self._peers)))

    def _with_failed_on_host(self, held: frozenset[str]) -> Preferences:
        on_host = {key.partition(".")[0] for key, here in self._failed_on_host.items() if here}
        mine = self._worker_preferences
        return replace(mine, held=held, failed_here=mine.failed_here | on_host)

    def _learn_of_failures(self, retried: Iterable[str]) -> bool:
        """Read where claims failed that wait for another attempt; return whether any did here.

        Their error records say so: one is read once for each attempt (R51).
        """
        here, found = host_of(self._worker), False
        for text in retried:
            name = ClaimName.parse(text)
            if name is None or (key := f"{name.id}.a{name.attempt}") in self._failed_on_host:
                continue
            try:
                path = self._pool.error(name.id, name.attempt - 1)
                record = read_json(path, patience_s=0.0)
            except (OSError, PoolError):
                record = {}  # of a claim that `retry` put back, or cleaned up
            self._failed_on_host[key] = host_of(str(record.get("worker"))) == here
            found |= self._failed_on_host[key]
        return found

    # ---- all spools ----

    def _next_of_all(self) -> tuple[ClaimName, str] | None:
        """Take the claim that the policy gives us, of our own last claims or of other spools."""
        age_s = time.monotonic() - self._others_listed_at
        if self._stealing and (age_s > VIEW_AGE_S or not any(self._others.values())):
            self._list_others()
        worked = {peer.spool for peer in self._peers} if self._steal_threshold > 1 else set()
        offered = {
            spool: names
            for spool, names in self._others.items()
            if len(names) >= self._steal_threshold or spool not in worked
        }
        if self._spool is not None:
            offered[self._spool] = self._own
        misses, misses_max = 0, _misses_max(sum(map(len, offered.values())))
        while misses < misses_max and (pick := self._choose(offered)) is not None:
            spool, name = pick
            if spool == self._spool or spool in self._unlocked:
                offered[spool].remove(name)
                taken = self._take(spool, name)
            else:
                with try_lock(self._pool.spool_lock(spool)) as free:
                    if not free:
                        self._beat.change(Status.note_lock_held)
                        del offered[spool]
                        continue
                    self._unlocked.add(spool)
                    offered[spool].remove(name)
                    taken = self._take(spool, name)
            if taken is not None:
                return taken, spool
            misses += 1
        if misses == misses_max:
            self._others_listed_at = -1e9  # the listings are out of date
        best = (names.best() for names in offered.values() if names)
        refused = {name.id: polls_for(name, self._peers, self._preferences) for name in best}
        self._waited = self._patience.left_alone(refused)
        self.left_claims = any(
            len(names)
            - self._count_too_long(names)
            - sum(map(self._is_hopeless, names.put_back_in_vain()))
            for names in offered.values()
        )
        return None

    def _choose(self, offered: dict[str, WaitingClaims]) -> tuple[str, ClaimName] | None:
        status = self._beat.status
        me = Peer(
            self._worker,
            status.weight,
            self._rates(),
            self._spool,
            stealing=self._stealing,
            tier=self._preferences.tier,
            capabilities=self._preferences.capabilities,
            loaded=self._preferences.loaded,
        )
        return choose(
            offered,
            self._peers,
            me,
            self._preferences,
            waited=self._waited,
            time_left_s=self._time_left_s(),
            is_hopeless=self._is_hopeless,
        )

    def _take(self, spool: str, name: ClaimName) -> ClaimName | None:
        taken = claims.take(self._pool, spool, name, self._worker)
        if taken is None:
            return None
        if spool == self._spool:
            self._journal.claim(EventKind.TOOK, name, spool=spool)
            return taken
        log.info("%s stole work from %s: %s", self._worker, spool, name.id)
        self._journal.claim(EventKind.STOLE, name, **{"from": spool}, to=self._spool)
        self._beat.change(lambda status: status.note_steal(spool))
        return taken

    def _list_others(self) -> None:
        """List the other spools, and see which other workers live and do what."""
        started = time.monotonic()
        self._unlocked.clear()
        self._others.clear()
        spools = spool_names(self._pool)
        if self._nothing_waits_outside(spools):
            spools = []
        self._others = {
            spool: names
            for spool in spools
            if spool != self._spool and (names := self._list(spool))
        }
        self._highest = max((_precedence(n) for n in self._others.values() if n), default=0)
        if self._own or self._others:
            self._refresh_peers()
        took_s = time.monotonic() - started
        # The longer it took, the longer the listings are used: it stays under 5 % of the time.
        self._others_listed_at = started + max(0.0, 20 * took_s - VIEW_AGE_S)

    def _nothing_waits_outside(self, spools: Sequence[str]) -> bool:
        """Return whether nothing can wait in these spools but what we know of our own.

        Only asked where it costs less than listing them: then a worker's looks cost the same in a
        pool of a thousand spools as in one of thirty.
        """
        if len(spools) <= SPOOLS_LISTED:
            return False
        self._before_listing()
        waiting = self._reckoning.waiting()
        return waiting is not None and waiting <= len(self._own)

    def _read_peers(self) -> list[Peer]:
        statuses = self._statuses.look()
        self._peer_rates = rates_of_likes(statuses, self._beat.status.model)
        return peers(self._pool, statuses)

    def _count_too_long(self, names: WaitingClaims) -> int:
        """Count the claims that would not end in time, apart from those that are hopeless."""
        left_s = self._time_left_s()
        if left_s == math.inf:
            return 0
        return names.count_too_long(self._rates(), left_s) - sum(
            takes_too_long(name, self._rates(), left_s) and self._is_hopeless(name)
            for name in names.put_back_in_vain()
        )

    def _is_hopeless(self, name: ClaimName) -> bool:
        """Return whether a claim that was put back in vain would be put back by this worker, too.

        After VAIN_RUNS_MAX such runs a worker must have clearly more time than the longest of them
        took. A worker without a limit finds no claim hopeless (R4).
        """
        left_s = self._lifetime_s()
        if left_s == math.inf or name.vain < VAIN_RUNS_MAX:
            return False
        key = f"{name.id}.r{name.returns}"
        if key not in self._vain_runs_s:
            runs = claims.vain_runs(self._pool, name)
            self._vain_runs_s[key] = max(
                (number(run.get("ran_s")) or 0.0 for run in runs), default=0.0
            )
        return left_s <= CLEARLY_MORE * self._vain_runs_s[key]

    def _rates(self) -> dict[str, float]:
        """Return our rate for each kind: our own measurement, else that of a GPU like ours."""
        return self._peer_rates | self._beat.status.rates

    def _list(self, spool: str) -> WaitingClaims | None:
        """List a spool; None, with one warning, if it cannot be used."""
        self._before_listing()
        try:
            started = time.monotonic()
            self._listed.pop(spool, None)
            names = self._gather(spool)
            if self._learn_of_failures(names.retried):
                self._reorder(self._with_failed_on_host(self._preferences.held))
                names = self._gather(spool)
            self._listed[spool] = started, names
            if names:
                self._highest = max(self._highest, _precedence(names))
            if names.all:
                self._dry.discard(spool)
            else:
                self._dry.add(spool)
            return names
        except PoolError as error:
            if spool not in self._unusable:
                log.warning("%s", error)
                self._journal.write(EventKind.WARNING, text=str(error))
                self._unusable.add(spool)
            return None

    def _gather(self, spool: str) -> WaitingClaims:
        directory = self._pool.spool(spool)
        return atomic.gather(directory, lambda texts: WaitingClaims(texts, self._preferences))

    @property
    def _worker(self) -> str:
        return self._beat.status.worker_id


def _misses_max(names: int) -> int:
    """Return after how many misses to list again: a long listing costs ten times a 64th of it."""
    return max(MISSES_MAX, names // 64)


def _precedence(names: WaitingClaims) -> int:
    best = names.best()
    return precedence(best.vain, best.priority)
