"""See a pool as it is at one moment: what is true of its claims, what its workers report.

Two kinds of facts, kept apart. What is true comes from names in directories (`census.py`,
workers/): how many claims wait, run, are done and failed, and who lives. What is reported comes
from status/ and events/ and is a hint (I8): speed, ETA, GPU use, who stole what. A hint that is
missing is None or zero, never a guess. The reader writes nothing and moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fsqueue.errors import PoolError
from fsqueue.monitor.alerts import Alert, alerts
from fsqueue.monitor.counts import ClaimCounter, Count
from fsqueue.monitor.spools import SpoolRow, eta, pace, spool_rows, total
from fsqueue.monitor.workers import WorkerReader, WorkerRow
from fsqueue.pool.journal import Event, Journals, Steal
from fsqueue.pool.layout import ORDER
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, Spool, read_spool
from fsqueue.pool.untrusted import printable, read_json
from fsqueue.storage import atomic


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
    """The last 50 seen, the newest last."""
    events: tuple[Event, ...]
    events_seen: int
    failures: tuple[Failure, ...]
    warnings: tuple[Alert, ...]
    orders: frozenset[str]
    unit: str
    """What `items_per_s` counts: seq or claims."""
    items_per_s: float | None
    tokens_per_s: float | None
    cost_per_s: float | None
    eta_s: float | None

    @property
    def finished(self) -> bool:
        """Say whether nothing waits and nothing runs, for sure."""
        return self.count.finished

    @property
    def store_hits(self) -> int:
        """Return how many vectors the workers took from a store, by their own reports."""
        return int(sum(row.status.measures_done.get("store_hits", 0) for row in self.workers))

    @property
    def exit_status(self) -> int:
        """Return 0 all done, 3 all finished but some failed, 5 work remains."""
        return self.count.exit_status

    @property
    def progress(self) -> float:
        """Return the share of the planned cost that is done or failed, 0 to 1."""
        whole = self.count.planned.cost
        return (self.count.done.cost + self.count.failed.cost) / whole if whole else 1.0


class Reader:
    """Look at a pool again and again; each look reads little more than what changed."""

    def __init__(self, pool: PoolDirectory, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.pool = pool
        self.journals = Journals(pool)
        self.roster = WorkerReader(pool, clock=clock)
        self.tell: list[Callable[[Snapshot], object]] = []
        """Who else wants each snapshot: a file of metrics, say."""
        self._census = ClaimCounter(pool)
        self._spools: dict[str, Spool] = {}
        self._errors: dict[tuple[str, int], str] = {}

    def snapshot(self) -> Snapshot:
        """Look now."""
        snapshot = self._look()
        for tell in self.tell:
            tell(snapshot)
        return snapshot

    def _look(self) -> Snapshot:
        begun = time.monotonic()
        count = self._census.take()
        damage = [*count.damage, self.roster.look(count.held)]
        self.journals.look(self.roster.ended)
        orders = self._orders()
        paused = bool(orders & {"pause", "drain", "stop"})
        workers = tuple(self.roster.rows(count, self.journals, paused=paused))
        spools = tuple(spool_rows(count, workers, self._spool))
        cost_per_s = pace(workers)
        warnings = [Alert("damage", text, text) for text in damage if text]
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
            unit="seq" if "sequences" in count.measures else "claims",
            items_per_s=total(row.items_per_s for row in workers),
            tokens_per_s=total(row.tokens_per_s for row in workers),
            cost_per_s=cost_per_s,
            eta_s=eta(count, workers, cost_per_s),
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
