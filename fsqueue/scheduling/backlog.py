"""How much work is ahead of a new claim in each spool, when claims are added to a live pool.

What waits in a spool and what its workers still have to run is ahead of a new claim. So is what its
workers lack: having to load a model first counts like LOAD_S of work. The scores of `score` give
the difference between spools, 100 points to a load. Where no worker is alive, only what waits
counts.

How fast a spool is, is what its workers measured with claims of the kind, where they did; else its
weight (R76). A weight may be wrong by any factor, and says nothing of how many workers there are.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from fsqueue.pool.names import WORKER, id_and_cost
from fsqueue.pool.requirements import base_of, lacks
from fsqueue.pool.settings import PoolDirectory, Spool, spool_names
from fsqueue.records.status import LEAVING, Status, heartbeat, read_status
from fsqueue.scheduling.choose import LOAD_S, Preferences
from fsqueue.scheduling.peers import living, peers
from fsqueue.scheduling.score import MODEL_LOADED, SPECIALISED, Candidate, Need, explain, score
from fsqueue.storage import atomic

log = logging.getLogger(__name__)

NO_UNIT: Final = 1e-9
"""Cost per second where none is known: scores then decide only among equals."""
EARLIER_MAX: Final = 64
"""How many statuses of workers that left are read for their speeds."""
NEVER: Final = 1e30
"""The load of a spool whose workers may not do the work, while those of another spool may."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The work to route: its handler, its kind, and how much cost weight 1.0 does in a second."""

    service: str
    kind: str
    cost_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast each spool is, in units of weight, and what that is in cost per second."""

    by_spool: tuple[float, ...]
    measured: frozenset[str]
    """The spools whose workers measured it."""
    unit: float | None
    """Cost per second of weight 1.0; None if nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Live:
    """One look at a live pool: what waits, and what its workers have to run and say of themselves.

    Each spool and each status is read once per plan, however much is asked of them.
    """

    waiting: Mapping[str, float]
    """The cost of what waits, by spool."""
    statuses: tuple[Status, ...]
    left: float
    """The cost that is left of what runs."""
    left_in: Mapping[str, float]
    """The same of workers that stay, by their spool."""


def look(pool: PoolDirectory) -> Live:
    """Look at a pool before claims are added to it."""
    waiting = {spool: atomic.gather(pool.spool(spool), _cost) for spool in spool_names(pool)}
    every = living(pool)
    staying = tuple(status for status in every if status.state not in LEAVING)
    left_in: dict[str, float] = {}
    for peer in peers(pool, staying):
        if peer.spool is not None:
            left_in[peer.spool] = left_in.get(peer.spool, 0.0) + peer.left
    return Live(waiting, staying, sum(peer.left for peer in peers(pool, every)), left_in)


def spool_speeds(
    pool: PoolDirectory, live: Live, spools: Sequence[Spool], wanted: Wanted
) -> Speeds:
    """Return how fast the spools are for a kind, as far as it was measured (R76)."""
    alive = live.statuses
    rates: dict[str, float] = {}
    for status in alive:
        rate = status.rates.get(wanted.kind, 0.0)
        if status.spool is not None and rate > 0:
            rates[status.spool] = rates.get(status.spool, 0.0) + rate
    unit = _unit_of(alive, wanted.kind) or _unit_of(_earlier(pool), wanted.kind)
    by_spool = tuple(
        rates[spool.name] / unit if unit and spool.name in rates else spool.weight
        for spool in spools
    )
    measured = frozenset(rates) & {spool.name for spool in spools}
    return Speeds(by_spool, measured, unit or wanted.cost_per_second)


def _unit_of(statuses: Iterable[Status], kind: str) -> float | None:
    found = [s.rates[kind] / s.weight for s in statuses if s.rates.get(kind) and s.weight > 0]
    return statistics.median(found) if found else None


def _earlier(pool: PoolDirectory) -> Iterator[Status]:
    """Yield what some workers last reported that have left."""
    names = sorted(atomic.names(pool.directory("status")))[-EARLIER_MAX:]
    workers = (name.removesuffix(".json") for name in names)
    found = (read_status(pool, each) for each in workers if WORKER.fullmatch(each))
    return (status for status in found if status is not None)


def ahead(live: Live) -> float:
    """Return the cost of all that waits and of what is left of what runs."""
    return sum(live.waiting.values()) + live.left


def loads(live: Live, spools: Sequence[Spool], wanted: Wanted) -> list[float]:
    """Return the cost that is ahead of a new claim in each spool."""
    points = _points(live.statuses, wanted)
    best = max(points.values(), default=0.0)
    unit = wanted.cost_per_second or _unit(live.statuses)
    return [
        live.waiting.get(spool.name, 0.0)
        + live.left_in.get(spool.name, 0.0)
        + _behind(spool, points, best) * unit * spool.weight
        for spool in spools
    ]


def _cost(texts: Iterator[str]) -> float:
    found = (id_and_cost(text, owned=False) for text in texts)
    return float(sum(facts[1] for facts in found if facts is not None))


def _behind(spool: Spool, points: Mapping[str, float], best: float) -> float:
    """Return by how many seconds a spool's workers are behind the best, judged by scores."""
    if points.get(spool.name) == -NEVER and best > -NEVER:
        return NEVER
    missing = best - points.get(spool.name, 0.0)
    return max(0.0, missing) / MODEL_LOADED * LOAD_S if points and best > -NEVER else 0.0


def _points(statuses: Sequence[Status], wanted: Wanted) -> dict[str, float]:
    """Return the score of each spool's best worker; -NEVER if none of its workers may do it."""
    points: dict[str, float] = {}
    for status in statuses:
        if status.spool is None:
            continue
        mine = -NEVER
        if not lacks(wanted.kind, status.tier, status.capabilities) and (
            wanted.kind not in status.unable
        ):
            mine = _score(status, wanted)
        points[status.spool] = max(points.get(status.spool, -NEVER), mine)
    return points


def _score(status: Status, wanted: Wanted) -> float:
    candidate = Candidate.read(asdict(status) | heartbeat(status))
    special = frozenset(word for word in status.specialization.lower().split(",") if word)
    if Preferences(special=special).affinity(wanted.kind) >= SPECIALISED:
        candidate = replace(candidate, specialization=special | {wanted.service.lower()})
    need = Need(wanted.service, base_of(wanted.kind))
    if log.isEnabledFor(logging.DEBUG):
        terms = ", ".join(f"{t.term} {t.points:+g} ({t.why})" for t in explain(candidate, need))
        log.debug("%s of spool %s: %s", status.worker_id, status.spool, terms)
    return score(candidate, need)


def _unit(statuses: Sequence[Status]) -> float:
    """Return the cost that weight 1.0 does in a second, as the workers measured it."""
    found = [rate / max(s.weight, 1e-6) for s in statuses for rate in s.rates.values()]
    return statistics.median(found) if found else NO_UNIT
