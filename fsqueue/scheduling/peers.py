"""Know who else lives and what each has to do, for whoever deals out claims.

Everything here is a hint (I8): statuses may be missing, old or hostile. What decides is the rename.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable
from typing import Final

from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory
from fsqueue.pool.status import Status, read_status
from fsqueue.scheduling.choose import Peer

GONE: Final = frozenset({"draining", "stopped", "failed"})


def living(pool: PoolDirectory, *, but: str = "") -> list[Status]:
    """Return the statuses of all who live, `but` one."""
    workers = {name.worker for name in lease_names(pool) if name.living} - {but}
    found = (read_status(pool, worker) for worker in sorted(workers))
    return [status for status in found if status is not None]


def peers(pool: PoolDirectory, statuses: Iterable[Status]) -> list[Peer]:
    """Return what the policy should know of these workers, without those who are leaving."""
    held = {name.owner: name for name in claims.owned(pool, State.RUNNING)}
    return [peer_of(s, held.get(s.worker_id)) for s in statuses if s.state not in GONE]


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


def rates_of_likes(statuses: Collection[Status], model: str) -> dict[str, float]:
    """Return the median rate for each kind among workers on GPUs of a model."""
    likes = [status.rates for status in statuses if status.model == model]
    kinds = {kind for rates in likes for kind in rates}
    return {kind: statistics.median(r[kind] for r in likes if kind in r) for kind in kinds}


def held_by(crew: Iterable[Peer]) -> frozenset[str]:
    """Return the kinds that somebody has loaded, or is loading because he runs one."""
    kinds = (kind for peer in crew for kind in (*peer.loaded, peer.kind))
    return frozenset(base_of(kind) for kind in kinds if isinstance(kind, str) and kind)
