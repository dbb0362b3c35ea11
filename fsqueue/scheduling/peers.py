"""Which other workers are alive, and what each has to do.

Everything here is a hint (I8): statuses may be missing, old or hostile. What decides is the rename.
"""

from __future__ import annotations

import statistics
from bisect import bisect
from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Final

from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import LEAVING, Status, heartbeat, read_status
from fsqueue.scheduling.choose import Peer
from fsqueue.scheduling.score import Candidate
from fsqueue.storage.untrusted import printable


def living(pool: PoolDirectory, *, but: str = "") -> list[Status]:
    """Return the statuses of all living workers, `but` one."""
    workers = {name.worker for name in lease_names(pool) if name.living} - {but}
    found = (read_status(pool, worker) for worker in sorted(workers))
    return [status for status in found if status is not None]


STATUSES_PER_LOOK: Final = 24
"""How many statuses one look reads at most: with more workers than that, the policy does not become
better by knowing what each of them does at this moment."""


class PeerStatuses:
    """The statuses of the other living workers, as one worker knows them.

    Each look reads a few, in turn; so it costs as much beside a thousand workers as beside thirty.
    The turn begins with those whose ids follow this worker's, so that not all read the same ones.
    """

    def __init__(self, pool: PoolDirectory, me: str) -> None:
        self._pool = pool
        self._me = me
        self._known: dict[str, Status | None] = {}
        """By worker, those read longest ago first."""

    def look(self) -> list[Status]:
        """Return the statuses known so far of those workers that live now."""
        workers = sorted({name.worker for name in lease_names(self._pool) if name.living})
        begin = bisect(workers, self._me)
        turn = [each for each in workers[begin:] + workers[:begin] if each != self._me]
        unread = [each for each in turn if each not in self._known]
        alive = set(turn)
        self._known = {each: known for each, known in self._known.items() if each in alive}
        for worker in (unread + list(self._known))[:STATUSES_PER_LOOK]:
            self._known.pop(worker, None)
            self._known[worker] = read_status(self._pool, worker)
        return [status for status in self._known.values() if status is not None]


def peers(pool: PoolDirectory, statuses: Iterable[Status]) -> list[Peer]:
    """Return what the policy needs to know about these workers, without those that are leaving."""
    held = {name.owner: name for name in claims.owned(pool, State.RUNNING)}
    return [peer_of(s, held.get(s.worker_id)) for s in statuses if s.state not in LEAVING]


def peer_of(status: Status, name: ClaimName | None) -> Peer:
    """Return what the policy needs to know about a worker that runs `name`."""
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


def rates_of_likes(statuses: Collection[Status], model: str) -> dict[str, float]:
    """Return the median rate for each kind among workers on GPUs of a model."""
    likes = [status.rates for status in statuses if status.model == model]
    kinds = {kind for rates in likes for kind in rates}
    return {kind: statistics.median(r[kind] for r in likes if kind in r) for kind in kinds}


def candidates(pool: PoolDirectory) -> list[Candidate]:
    """Return the living workers as the score sees them."""
    return [Candidate.read(asdict(status) | heartbeat(status)) for status in living(pool)]


CAPABILITIES_MAX: Final = 100
"""A status is not believed to list more."""


def workers_by_capability(pool: PoolDirectory) -> dict[str, list[str]]:
    """Return the living workers that offer each capability, both sorted; texts are printable."""
    found: dict[str, list[str]] = {}
    for status in living(pool):
        for capability in status.capabilities[:CAPABILITIES_MAX]:
            found.setdefault(printable(capability, 60), []).append(status.worker_id)
    return dict(sorted(found.items()))


def held_by(peers: Iterable[Peer]) -> frozenset[str]:
    """Return the kinds that a worker has loaded, or is loading because it runs one."""
    kinds = (kind for peer in peers for kind in (*peer.loaded, peer.kind))
    return frozenset(base_of(kind) for kind in kinds if isinstance(kind, str) and kind)
