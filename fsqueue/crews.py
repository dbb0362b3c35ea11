"""Put a spool and all workers that call it their own into one row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final

from fsqueue.census import Amount
from fsqueue.pool import Spool
from fsqueue.reported import Use
from fsqueue.roster import WorkerRow
from fsqueue.status import printable

ETA_MAX_S: Final = 100 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class SpoolRow:
    """One spool, and all workers that call it their own. `name` is "" for those without one."""

    name: str
    model: str
    weight: float
    planned: Amount
    waiting: Amount
    share_left: float
    """Of all cost that waits, the fraction that waits here."""
    workers: int
    """Those that live."""
    state: str
    running: int
    done: int
    failed: int
    """What its workers report to have done, stolen claims included."""
    stolen_in: int
    stolen_out: int
    items_per_s: float | None
    cost_per_s: float | None
    eta_s: float | None
    use: Use
    stale: bool
    stalled: bool
    host: str
    gpu: str
    last_activity: float


def _spool_row(
    spool: Spool,
    amounts: tuple[Amount, Amount],
    crew: list[WorkerRow],
    *,
    share_left: float,
    stolen_out: int,
) -> SpoolRow:
    planned, waiting = amounts
    living = [row for row in crew if row.living]
    cost_per_s = _total(row.cost_per_s for row in living)
    left = waiting.cost + sum(row.cost_left for row in living)
    first = living[0].status if living else None
    return SpoolRow(
        name=spool.name,
        model=printable(spool.model or (first.model if first else ""), 60),
        weight=spool.weight,
        planned=planned,
        waiting=waiting,
        share_left=share_left,
        workers=len(living),
        state=_crew_state(crew, waiting),
        running=sum(len(row.holds) for row in crew),
        done=sum(max(0, row.status.claims_done) for row in crew),
        failed=sum(max(0, row.status.claims_failed) for row in crew),
        stolen_in=sum(max(0, row.status.steals_in) for row in crew),
        stolen_out=stolen_out,
        items_per_s=_total(row.items_per_s for row in living),
        cost_per_s=cost_per_s,
        eta_s=_bounded(left / cost_per_s) if cost_per_s and left else None,
        use=Use(*(_mean(getattr(row.use, field) for row in living) for field in Use.__slots__)),
        stale=bool(living) and all(row.stale for row in living),
        stalled=any(row.stalled for row in living),
        host=first.host if first else "",
        gpu=printable(first.gpu.get("uuid", ""), 60) if first else "",
        last_activity=max((row.status.last_activity for row in crew), default=0.0),
    )


_STATES = "stalled suspect running loading starting draining idle unknown".split()


def _crew_state(crew: list[WorkerRow], waiting: Amount) -> str:
    """Return the word for a spool: the worst of its living workers' states."""
    states = {row.state for row in crew if row.living}
    for state in _STATES:
        if state in states:
            return state
    return "no worker" if waiting.claims or not crew else "left"


def _stolen_from(workers: Iterable[WorkerRow]) -> dict[str, int]:
    lost: dict[str, int] = {}
    for row in workers:
        for spool, claims in row.status.stolen_from.items():
            lost[spool] = lost.get(spool, 0) + max(0, int(claims))
    return lost


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


