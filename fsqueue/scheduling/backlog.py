"""How much work is ahead of a new claim in each spool, when claims are added to a live pool.

What waits in a spool and what its workers still have to run is ahead of a new claim. So is what its
workers lack: having to load a model first counts like LOAD_S of work. The scores of `score` give
the difference between spools, 100 points to a load. Where no worker is alive, only what waits
counts.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from fsqueue.pool.names import id_and_cost
from fsqueue.pool.requirements import base_of, lacks
from fsqueue.pool.settings import PoolDirectory, Spool, spool_names
from fsqueue.pool.status import LEAVING, Status, heartbeat
from fsqueue.scheduling.choose import LOAD_S, Preferences
from fsqueue.scheduling.peers import living, peers
from fsqueue.scheduling.score import MODEL_LOADED, SPECIALISED, Candidate, Need, explain, score
from fsqueue.storage import atomic

log = logging.getLogger(__name__)

NO_UNIT: Final = 1e-9
"""Cost per second where none is known: scores then decide only among equals."""
NEVER: Final = 1e30
"""The load of a spool whose workers may not do the work, while those of another spool may."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The work to route: its handler, its kind, and how much cost weight 1.0 does in a second."""

    service: str
    kind: str
    cost_per_second: float | None = None


def loads(pool: PoolDirectory, spools: Sequence[Spool], wanted: Wanted) -> list[float]:
    """Return the cost that is ahead of a new claim in each spool."""
    known = set(spool_names(pool))
    before = {
        spool.name: atomic.gather(pool.spool(spool.name), _cost)
        for spool in spools
        if spool.name in known
    }
    statuses = [status for status in living(pool) if status.state not in LEAVING]
    for peer in peers(pool, statuses):
        if peer.spool in before:
            before[peer.spool] += peer.left
    points = _points(statuses, wanted)
    best = max(points.values(), default=0.0)
    unit = wanted.cost_per_second or _unit(statuses)
    return [
        before.get(spool.name, 0.0) + _behind(spool, points, best) * unit * spool.weight
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
