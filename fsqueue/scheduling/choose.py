"""Choose the next claim: pure functions over names, weights and rates. No file is touched here.

R4  A claim whose last run came to nothing (`vain`) is taken after all claims of which that is not
    so, and one that failed here after those. Among those put back in vain as often, the cheapest is
    taken first: a small one most likely met a worker that had to leave, a large one may be too long
    for any. So one claim that is too long, or hangs, or cannot be read, delays no other claim.
R75 Of the others, those of the highest priority are taken first, wherever they wait: before any
    other claim of the worker's own spool, and even if something has to be loaded for them. Which
    worker takes which is decided among them as ever. Once a run came to nothing, priority no longer
    counts: an urgent claim that is too long for every worker would delay all small ones that were
    put back with it.
R51 A claim whose last attempt failed on this host is left to workers of other hosts for a while, if
    there are any: the tasks of one bad node must not spend all attempts of the same claims.

The rule among the others: *take the largest claim that no other worker is expected to finish
sooner.* `choose` deals out the waiting claims, largest first, each to the worker that would finish
it first, given what that worker has to do before. What falls to this worker it may take, its own
spool's claims first.

What each part is worth was simulated with these very functions (docs/benchmarks.md). In order of
value: claims so small that every spool has eight or more; stealing at all; largest first; leaving a
claim, even one of this worker's last ones, to a worker that finishes it sooner; measured speeds
instead of weights. Second copies of claims that still run at the end gain nothing once claims are
small, so there are none.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Reversible
from dataclasses import dataclass, field
from typing import Final

from fsqueue.pool.names import ClaimName, host_of
from fsqueue.pool.requirements import Tier, base_of, lacks
from fsqueue.scheduling.score import HEALTHY, MODEL_LOADED, SPECIALISED

PLENTY: Final = 3
"""While more claims than this wait in its own spool, a worker takes the largest and looks no
further: leaving one to others would gain nothing yet, and listing their spools costs time."""
LOAD_S: Final = 30.0
"""What a worker loses by taking a claim whose model others have loaded and it has not."""
POLLS_MAX: Final = 20
"""For how many polls a claim is left to a busy worker that is expected to finish it sooner."""
POLLS_FOR_IDLE: Final = 2
"""The same for an idle worker that has the model loaded: it takes the claim within a poll."""
STEPS_MAX: Final = 100_000
"""Limit of the computation for one choice, some 20 ms: past it, every worker has plenty to do."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What one worker prefers: kinds that it has loaded first, claims that failed here last."""

    loaded: frozenset[str] = frozenset()
    healthy: frozenset[str] = frozenset()
    """Kinds whose last claim succeeded here."""
    held: frozenset[str] = frozenset()
    """Kinds that others have loaded, or are loading."""
    unable: frozenset[str] = frozenset()
    failed_here: frozenset[str] = frozenset()
    """Claims, by id, whose last attempt failed on this host."""
    left: frozenset[str] = frozenset()
    """Claims, by id, that this worker could not read or run and leaves to others."""
    special: frozenset[str] = frozenset()
    """Kinds in lower case, or their first words: `esm2` is the first of `esm2_t6_8m`."""
    tier: int = Tier.GPU
    capabilities: frozenset[str] = frozenset()

    def allows(self, kind: str) -> bool:
        """Return whether this worker may and can do claims of a kind."""
        return kind not in self.unable and not lacks(kind, self.tier, self.capabilities)

    def standing(self, id: str, vain: int, priority: int) -> ClaimStanding:
        """Return how a claim's own history and priority order it, before its kind and cost do."""
        return id not in self.left, id not in self.failed_here, -vain, precedence(vain, priority)

    def affinity(self, kind: str) -> float:
        """Return the points of `score` that differ from claim to claim for one worker."""
        base = base_of(kind)
        special = bool(self.special) and not self.special.isdisjoint(_families(base))
        return (
            MODEL_LOADED * (base in self.loaded)
            + SPECIALISED * special
            + HEALTHY * (base in self.healthy)
        )

    def rank(self, kind: str) -> tuple[float, bool]:
        """Return a sort key of kinds: affinity, then whether no other worker has it loaded."""
        base = base_of(kind)
        return self.affinity(kind), base in self.loaded or base not in self.held

    def must_load(self, kind: str) -> bool:
        """Return whether a claim of this kind would load another model beside the loaded ones."""
        return bool(self.loaded) and base_of(kind) not in self.loaded


@dataclass(frozen=True, slots=True)
class Peer:
    """What is known about another living worker.

    `rates` is measured cost per second by kind; `left` is the remaining cost of the claim that it
    runs, whose kind is `kind`; claims of the kinds in `loaded` it can begin at once.
    """

    worker: str
    weight: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)
    spool: str | None = None
    stealing: bool = True
    tier: int = Tier.GPU
    capabilities: Collection[str] = ()
    loaded: Collection[str] = ()
    kind: str = ""
    left: float = 0.0


def precedence(vain: int, priority: int) -> int:
    """Return the priority of a claim, as far as it counts (R75)."""
    return 0 if vain else priority


def in_order(names: Iterable[ClaimName], preferences: Preferences) -> list[ClaimName]:
    """Return the claims that this worker can do, best last (so that `pop` takes it).

    Claims that failed here are worst: another worker may succeed. Then come those that were put
    back in vain (R4). The others are ordered by priority (R75), then by their kind's affinity, so
    that little has to be loaded, and by whether no other worker has it; then by cost, the largest
    best, but the smallest of those put back in vain.
    """
    able = (
        name for name in names if preferences.allows(name.kind) and name.id not in preferences.left
    )
    return sorted(able, key=lambda name: (*_sort_key(name, preferences), name.id))


def choose(
    listings: Mapping[str, Reversible[ClaimName]],
    peers: Collection[Peer],
    me: Peer,
    preferences: Preferences,
    *,
    waited: Collection[str] = (),
    time_left_s: float = math.inf,
    is_hopeless: Callable[[ClaimName], bool] = lambda name: False,
) -> tuple[str, ClaimName] | None:
    """Return the claim to take now, with its spool; None to leave all of them to others.

    `listings` has the waiting claims of every spool that may be taken from, `in_order` of these
    preferences; `peers` are all other workers. The ids in `waited` were left to others often
    enough. A claim that would, at this worker's measured rate, not finish within `time_left_s` is
    not begun, nor is one that `is_hopeless` (asked only about claims put back in vain).
    """
    race = Race(peers, me)
    own = next(reversed(listings.get(me.spool or "", ())), None)
    found = None
    for spool, name in _best_first(listings, me.spool, preferences):
        if takes_too_long(name, me.rates, time_left_s) or name.vain and is_hopeless(name):
            continue
        if name.id in preferences.failed_here and name.id not in waited:
            if any(_is_elsewhere(peer, me) and not _lacks(peer, name.kind) for peer in peers):
                continue
        if name.id in waited or race.falls_to_me(spool, name):
            if spool == me.spool or own is None or _is_worth_leaving_home(name, own, preferences):
                return spool, name
            found = found or (spool, name)
    return found


def takes_too_long(name: ClaimName, rates: Mapping[str, float], time_left_s: float) -> bool:
    """Return whether a claim would, at measured rates, not finish in time."""
    return name.cost > rates.get(name.kind, math.inf) * time_left_s


class Race:
    """Deals claims out in turn, each to the worker that would finish it first. Ties go to `me`."""

    def __init__(self, peers: Collection[Peer], me: Peer) -> None:
        self._runners = [me, *peers]
        self._times: dict[str, list[tuple[float, float]]] = {}
        self._free = [
            peer.left * self._time_of(peer.kind)[index][0] if peer.left else 0.0
            for index, peer in enumerate(self._runners)
        ]
        self._steps = 0

    def falls_to_me(self, spool: str, name: ClaimName) -> bool:
        """Deal out the next claim; return whether it falls to this worker."""
        return self.deal(spool, name)[0] is self._runners[0] or self._steps > STEPS_MAX

    def deal(self, spool: str, name: ClaimName) -> tuple[Peer, float]:
        """Deal out the next claim; return which worker gets it, and when it would be done.

        That is in seconds from now once any rate is measured, and has no unit before.
        """
        winner, soonest = 0, math.inf
        for index, (per_cost, load) in enumerate(self._time_of(name.kind)):
            end = self._free[index] + load + name.cost * per_cost
            if end < soonest and self._may(index, spool, name.kind):
                winner, soonest = index, end
        self._free[winner] = soonest
        self._steps += len(self._runners)
        return self._runners[winner], soonest

    def _may(self, index: int, spool: str, kind: str) -> bool:
        runner = self._runners[index]
        if _lacks(runner, kind):
            return False
        return runner.stealing or runner.spool == spool

    def _time_of(self, kind: str) -> list[tuple[float, float]]:
        """Return the time of each runner for a unit of cost, and to load what the kind needs."""
        if kind not in self._times:
            weights = {peer.worker: peer.weight for peer in self._runners}
            rates = {peer.worker: peer.rates for peer in self._runners}
            speed = speeds(weights, rates, kind)
            ready = self._ready(kind)
            self._times[kind] = [
                (1 / speed[peer.worker], LOAD_S if any(ready) and not at_once else 0.0)
                for peer, at_once in zip(self._runners, ready, strict=True)
            ]
        return self._times[kind]

    def _ready(self, kind: str) -> list[bool]:
        """Return for each runner whether it has what a kind needs, or is loading it.

        Kinds that some worker has done and none has loaded need no loading, or are equally far from
        all. Without any rate it is not known what a load is worth in cost.
        """
        loaded = [base_of(kind) in peer.loaded for peer in self._runners]
        if any(loaded) or not any(kind in peer.rates for peer in self._runners):
            loaded = [
                has or base_of(kind) == base_of(peer.kind)
                for has, peer in zip(loaded, self._runners, strict=True)
            ]
        return loaded if any(peer.rates for peer in self._runners) else [True] * len(loaded)


def speeds(
    weights: Mapping[str, float], rates: Mapping[str, Mapping[str, float]], kind: str
) -> dict[str, float]:
    """Return each worker's speed for a kind: measured where it has finished some, else by weight.

    A weight has no unit and a rate is cost per second; workers that have both show what one unit of
    weight is worth, for this kind or else for any.
    """
    known = {w: rates.get(w, {}).get(kind, 0.0) for w in weights}
    measured = {worker: rate for worker, rate in known.items() if rate > 0}
    units = [rate / weights[worker] for worker, rate in measured.items()] or [
        rate / weight
        for worker, weight in weights.items()
        for rate in rates.get(worker, {}).values()
        if rate > 0
    ]
    if not units:
        return dict(weights)
    unit = statistics.median(units)
    return {worker: measured.get(worker, weight * unit) for worker, weight in weights.items()}


def polls_for(name: ClaimName, peers: Iterable[Peer], preferences: Preferences) -> int:
    """Return for how many polls a claim may be left to others."""
    if base_of(name.kind) not in preferences.loaded:
        for peer in peers:
            has = base_of(name.kind) in peer.loaded
            if has and not peer.kind and not _lacks(peer, name.kind):
                return POLLS_FOR_IDLE
    return POLLS_MAX


@dataclass(slots=True)
class Patience:
    """How often each claim was left to another worker, so that none is left for ever.

    The other worker may hang while its lease is renewed; after enough idle polls this one takes the
    claim after all.
    """

    _left: dict[str, int] = field(default_factory=dict)

    def left_alone(self, refused: Mapping[str, int]) -> set[str]:
        """Count one more poll for these ids; return those left more often than their limit."""
        self._left = {id: self._left.get(id, 0) + 1 for id in refused}
        return {id for id, count in self._left.items() if count > refused[id]}


ClaimStanding = tuple[bool, bool, int, int]
ClaimRank = tuple[ClaimStanding, float, bool]


def _rank(name: ClaimName, preferences: Preferences) -> ClaimRank:
    """Return what makes one claim better than another for a worker, apart from its cost."""
    return preferences.standing(name.id, name.vain, name.priority), *preferences.rank(name.kind)


def _sort_key(name: ClaimName, preferences: Preferences) -> tuple[ClaimStanding, float, bool, int]:
    return (*_rank(name, preferences), merit(name))


def merit(name: ClaimName) -> int:
    """Return what orders claims that are equal in all else: the best has the most."""
    return -name.cost if name.vain else name.cost


def _is_worth_leaving_home(name: ClaimName, own: ClaimName, preferences: Preferences) -> bool:
    """Return whether another spool's claim comes before the best of this worker's own.

    Only if it saves loading a model, or if what waits at home came to nothing before, and is more
    likely to do so again (R4).
    """
    if own.vain:
        return _sort_key(name, preferences) > _sort_key(own, preferences)
    return _rank(name, preferences) > _rank(own, preferences)


def _is_elsewhere(peer: Peer, me: Peer) -> bool:
    return peer.stealing and host_of(peer.worker) != host_of(me.worker)


def _lacks(peer: Peer, kind: str) -> str:
    return lacks(kind, peer.tier, peer.capabilities)


def _best_first(
    listings: Mapping[str, Reversible[ClaimName]], home: str | None, preferences: Preferences
) -> Iterator[tuple[str, ClaimName]]:
    """Merge listings that are `in_order`, lazily; among equals the own spool's come first."""

    def descending(spool: str) -> Iterator[tuple[tuple[object, ...], str, ClaimName]]:
        for name in reversed(listings[spool]):
            yield (*_sort_key(name, preferences), spool == home, name.id), spool, name

    streams = map(descending, listings)
    merged = heapq.merge(*streams, key=lambda entry: entry[0], reverse=True)
    return ((spool, name) for _, spool, name in merged)


def _families(base: str) -> tuple[str, str]:
    base = base.lower()
    return base, base.partition("_")[0].partition("-")[0]
