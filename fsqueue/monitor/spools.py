"""One row per spool: the spool, its workers together, and when its work will be done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fsqueue.monitor.counts import Amount, Count
from fsqueue.monitor.forecast import ETA_MAX_S, Busy, Forecast, forecast
from fsqueue.monitor.time_use import TimeUse, time_use
from fsqueue.monitor.workers import RowState, Use, WorkerRow
from fsqueue.pool.settings import Spool
from fsqueue.records.journal import Journals
from fsqueue.records.status import WorkerState
from fsqueue.storage.untrusted import printable

IDLE: Final = WorkerState.IDLE
STATES: Final = (
    RowState.STALLED,
    RowState.SUSPECT,
    WorkerState.RUNNING,
    WorkerState.LOADING,
    WorkerState.STARTING,
    WorkerState.DRAINING,
    WorkerState.IDLE,
    RowState.UNKNOWN,
)
"""Of several workers' states, the first of these stands for all."""


@dataclass(frozen=True, slots=True)
class SpoolRow:
    """One spool and its own workers. `name` is "" for workers without a spool."""

    name: str
    model: str
    weight: float
    planned: Amount
    waiting: Amount
    share_left: float
    """Of all cost that waits, the fraction that waits here."""
    workers: int
    """The living ones."""
    state: str
    running: int
    done: int
    """What its workers report as done, stolen claims included."""
    errors: int
    """Attempts that failed on its workers."""
    stolen_in: int
    stolen_out: int
    items_per_s: float | None
    rates: Mapping[str, float]
    cost_per_s: float | None
    eta_s: float | None
    use: Use
    stale: bool
    stalled: bool
    host: str
    gpu: str
    last_activity: float
    time_use: TimeUse = TimeUse()


def spool_rows(
    count: Count, workers: Sequence[WorkerRow], read: Callable[[str], Spool]
) -> Iterator[SpoolRow]:
    """Yield a row per spool, and one for living workers without a spool if there are any."""
    own_workers: dict[str, list[WorkerRow]] = {name: [] for name in count.spools}
    stolen_out: dict[str, int] = {}
    for row in workers:
        spool = row.status.spool
        own_workers.setdefault(spool if spool in count.spools else "", []).append(row)
        for victim, claims in row.status.stolen_from.items():
            stolen_out[victim] = stolen_out.get(victim, 0) + max(0, int(claims))
    everything = sum(waiting.cost for _, waiting in count.spools.values())
    for name, own in own_workers.items():
        if name or any(row.living for row in own):
            planned, waiting = count.spools.get(name, (Amount(), Amount()))
            share = waiting.cost / everything if everything else 0.0
            facts = read(name) if name else Spool("", "", 0.0)
            yield _row(facts, own, planned, waiting, share=share, lost=stolen_out.get(name, 0))


def _row(
    spool: Spool,
    workers: list[WorkerRow],
    planned: Amount,
    waiting: Amount,
    *,
    share: float,
    lost: int,
) -> SpoolRow:
    living = [row for row in workers if row.living]
    cost_per_s = total(row.cost_per_s for row in living)
    left = waiting.cost + sum(row.cost_left for row in living)
    first = living[0].status if living else None
    return SpoolRow(
        name=spool.name,
        model=printable(spool.model or (first.model if first else ""), 40),
        weight=spool.weight,
        planned=planned,
        waiting=waiting,
        share_left=share,
        workers=len(living),
        state=_state(living, waiting),
        running=sum(len(row.holds) for row in workers),
        done=sum(max(0, row.status.claims_done) for row in workers),
        errors=sum(max(0, row.status.claims_failed) for row in workers),
        stolen_in=sum(max(0, row.status.steals_in) for row in workers),
        stolen_out=lost,
        items_per_s=total(row.items_per_s for row in living),
        rates=total_rates(row.rates for row in living),
        cost_per_s=cost_per_s,
        eta_s=_sensible(left / cost_per_s) if cost_per_s and left else None,
        use=_use([row.use for row in living]),
        stale=bool(living) and all(row.stale for row in living),
        stalled=any(row.stalled for row in living),
        host=first.host if first else "",
        gpu=printable(first.gpu.get("uuid", ""), 60) if first else "",
        last_activity=max((row.status.last_activity for row in workers), default=0.0),
        time_use=time_use(row.status.computing for row in living),
    )


def _state(living: list[WorkerRow], waiting: Amount) -> str:
    found = {row.state for row in living}
    for state in STATES:
        if state in found:
            return state
    return RowState.NO_WORKER if waiting.claims else "-"


def _use(uses: list[Use]) -> Use:
    """Return the mean of what is known: a spool's workers may be on several GPUs."""
    return Use(
        mean(use.compute_percent for use in uses),
        mean(use.memory_percent for use in uses),
        mean(use.temperature for use in uses),
        mean(use.power_watts for use in uses),
    )


# ---- arithmetic ----


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum of what is known, None if nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def total_rates(rates: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of rates by counter."""
    totals: dict[str, float] = {}
    for each in rates:
        for name, rate in each.items():
            totals[name] = totals.get(name, 0.0) + rate
    return totals


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known, None if nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def at_work(workers: Iterable[WorkerRow]) -> list[WorkerRow]:
    """Return the workers that do something now."""
    return [row for row in workers if row.living and not row.stalled and row.state != IDLE]


def cost_rates(workers: Iterable[WorkerRow]) -> dict[str, float]:
    """Return the cost per second of each worker at work; new ones are estimated by their weight."""
    busy = at_work(workers)
    known = [(row.cost_per_s, row.status.weight) for row in busy if row.cost_per_s]
    if not known:
        return {}
    rate = math.fsum(cost_per_s for cost_per_s, _ in known)
    weight = math.fsum(max(0.0, weight) for _, weight in known)
    each = rate / weight if weight else 0.0
    return {row.id: row.cost_per_s or max(0.0, row.status.weight) * each for row in busy}


def ahead(count: Count, workers: Sequence[WorkerRow], journals: Journals) -> Forecast:
    """Return when all will be done, and how sure that is."""
    if count.finished:
        return Forecast(0.0, 0.0, 0.0)
    rates = cost_rates(workers)
    busy = [_busy(row, rates[row.id]) for row in workers if rates.get(row.id)]
    # What others hold (a dead worker, say) has to be done by those at work.
    left = [row.cost_left for row in workers if row.holds and not rates.get(row.id)]
    measured = [journals.measured(id) for id in rates]
    return forecast(
        count.waiting.claims + len(left),
        count.waiting.cost + math.fsum(left),
        busy,
        [each for each in measured if each],
    )


def _busy(row: WorkerRow, rate: float) -> Busy:
    current = row.status.current
    if not row.holds or row.cost_left <= 0:
        return Busy(rate)
    if row.progress is not None:
        return Busy(rate, row.cost_left / (1 - row.progress), left=row.cost_left)
    ran_s = row.status.written_at - current.started + (row.age_s or 0.0) if current else 0.0
    return Busy(rate, row.cost_left, max(0.0, ran_s))


def _sensible(seconds: float) -> float | None:
    return seconds if 0 <= seconds < ETA_MAX_S else None
