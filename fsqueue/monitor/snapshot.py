"""A pool at one moment: what is known about its claims, and what its workers report.

Two kinds of facts, kept apart. What is known comes from names in directories (`counts`, workers/):
how many claims wait, run, are done and failed, and which workers are alive. What is reported comes
from status/ and events/ and is a hint (I8): speed, ETA, GPU use, steals. A hint that is missing is
None or zero, never a guess. The reader writes nothing and moves nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fsqueue.errors import PoolError
from fsqueue.monitor import format
from fsqueue.monitor.alerts import Alert, AlertKind, alerts
from fsqueue.monitor.counts import ClaimCounter, Count
from fsqueue.monitor.forecast import Forecast
from fsqueue.monitor.spools import SpoolRow, ahead, cost_rates, spool_rows, total, total_rates
from fsqueue.monitor.time_use import TimeUse, time_use
from fsqueue.monitor.workers import STALL_S, WorkerReader, WorkerRow
from fsqueue.pool.layout import ORDER, Order
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, Spool, read_spool
from fsqueue.records.journal import Event, Journals, Steal
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import printable, read_json


@dataclass(frozen=True, slots=True)
class Failure:
    """A claim in failed/, and the error of its last attempt."""

    id: str
    attempts: int
    worker: str
    error: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool at one moment."""

    pool: str
    taken_at: float
    took_s: float
    count: Count
    spools: tuple[SpoolRow, ...]
    workers: tuple[WorkerRow, ...]
    steals: tuple[Steal, ...]
    """The last 50, newest last."""
    events: tuple[Event, ...]
    events_seen: int
    failures: tuple[Failure, ...]
    warnings: tuple[Alert, ...]
    orders: frozenset[str]
    unit: str
    """What `items_per_s` counts, abbreviated: claims, or a measure of the plans."""
    items_per_s: float | None
    rates: Mapping[str, float]
    """Per second, by counter that the handlers report while they run."""
    counters: Mapping[str, int]
    """Totals that are known only after the run, by counter, as the workers report them."""
    cost_per_s: float | None
    eta_s: float | None
    """In how many seconds all is done, as likely sooner as later (`monitor.forecast`)."""
    eta_low_s: float | None = None
    eta_high_s: float | None = None
    """Nine times in ten the end is between the low and the high one."""
    time_use: TimeUse = TimeUse()
    """What became of the time in which the handlers of all workers computed."""

    @property
    def forecast(self) -> Forecast:
        """The three numbers of the ETA together."""
        return Forecast(self.eta_s, self.eta_low_s, self.eta_high_s)

    @property
    def finished(self) -> bool:
        """Whether it is certain that nothing waits and nothing runs."""
        return self.count.finished

    @property
    def exit_status(self) -> int:
        """0 all done, 1 claims are missing, 3 all finished but some failed, 5 work remains."""
        return self.count.exit_status

    @property
    def progress(self) -> float:
        """The share of the planned cost that is done or otherwise ended, 0 to 1."""
        whole = self.count.planned.cost
        return self.count.ended.cost / whole if whole else 1.0


class Reader:
    """Reads a pool repeatedly; each look reads little more than what changed."""

    def __init__(
        self,
        pool: PoolDirectory,
        *,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.journals = Journals(pool)
        self.workers = WorkerReader(pool, clock=clock)
        self._stall_s = stall_s
        self.on_snapshot: list[Callable[[Snapshot], object]] = []
        """Called with each snapshot: a metrics file, say."""
        self._census = ClaimCounter(pool)
        self._spools: dict[str, Spool] = {}
        self._errors: dict[tuple[str, int], str] = {}

    def snapshot(self, *, stall_s: float | None = None) -> Snapshot:
        """Look now; `stall_s` replaces the threshold of the constructor for once."""
        snapshot = self._look(self._stall_s if stall_s is None else stall_s)
        for call in self.on_snapshot:
            call(snapshot)
        return snapshot

    def _look(self, stall_s: float) -> Snapshot:
        begun = time.monotonic()
        count = self._census.take_verified()
        damage = [*count.damage, self.workers.look(count.held)]
        damage.append(count.trouble)
        self.journals.look(self.workers.ended)
        orders = self._orders()
        paused = bool(orders & set(Order))
        workers = tuple(self.workers.rows(count, self.journals, stall_s=stall_s, paused=paused))
        spools = tuple(spool_rows(count, workers, self._spool))
        rates = cost_rates(workers)
        forecast = ahead(count, workers, self.journals)
        warnings = [Alert(AlertKind.DAMAGE, text, text) for text in damage if text]
        warnings += alerts(self.pool, count, workers, orders)
        return Snapshot(
            pool=printable(self.pool.root),
            taken_at=time.time(),
            took_s=time.monotonic() - begun,
            count=count,
            spools=spools,
            workers=workers,
            steals=tuple(self.journals.steals),
            events=tuple(self.journals.events),
            events_seen=self.journals.count,
            failures=tuple(map(self._failure, count.lost)),
            warnings=tuple(replace(alert, text=printable(alert.text)) for alert in warnings),
            orders=orders,
            unit=format.abbreviated(count.item or "claims"),
            items_per_s=total(row.items_per_s for row in workers),
            rates=total_rates(row.rates for row in workers),
            counters=_counters(count, workers),
            cost_per_s=math.fsum(rates.values()) if rates else None,
            eta_s=forecast.seconds,
            eta_low_s=forecast.low_s,
            eta_high_s=forecast.high_s,
            time_use=time_use(row.status.computing for row in workers),
        )

    def _orders(self) -> frozenset[str]:
        try:
            found = atomic.names(self.pool.directory("control"))
        except (OSError, PoolError):
            return frozenset()
        return frozenset(filter(ORDER.fullmatch, found))

    def _failure(self, name: ClaimName) -> Failure:
        key = name.id, name.attempt
        if key not in self._errors:
            try:
                record = read_json(self.pool.error(*key), patience_s=0.0)
                self._errors[key] = printable(record.get("error") or "no reason was given")
            except (OSError, PoolError):
                return Failure(name.id, name.attempt + 1, name.owner or "", "no record in errors/")
        return Failure(name.id, name.attempt + 1, name.owner or "", self._errors[key])

    def _spool(self, name: str) -> Spool:
        if name not in self._spools:
            try:
                self._spools[name] = read_spool(self.pool, name)
            except (OSError, PoolError):
                return Spool(name, "", 0.0)
        return self._spools[name]


def _counters(count: Count, workers: Sequence[WorkerRow]) -> dict[str, int]:
    """Add up what the workers counted, except what the plans say already."""
    totals: Counter[str] = Counter()
    for row in workers:
        totals.update({name: int(n) for name, n in row.status.measures_done.items()})
    return {name: totals[name] for name in sorted(totals.keys() - count.measures.keys())}
