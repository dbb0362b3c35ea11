"""A pool's workers: which are alive by their leases, and what each reports about itself.

Whether a worker is alive is read from workers/ alone. Everything else about it is a hint from
status/ and events/ (I8). No clock of another host is compared with the local one: how long a worker
has been idle is the difference of two times of its own clock, and from then on of the local clock.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from fsqueue.errors import PoolError
from fsqueue.monitor.counts import Count
from fsqueue.monitor.time_use import TimeUse, time_use
from fsqueue.pool.leases import (
    Observer,
    Process,
    Standing,
    ended_lease_names,
    lease_names,
)
from fsqueue.pool.names import WORKER, ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.journal import Journals
from fsqueue.records.status import Current, Health, Status, WorkerState, read_status
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import number, printable

STALL_S: Final = 300.0
LOADING_STALL_S: Final = 900.0
"""A 3B model takes 2-5 minutes to load from a cold network mount."""
HUNGRY_S: Final = 30.0
"""An idle worker beside a full spool is stalled only after this long: a plan may have been made a
moment ago."""
STALE_S: Final = 90.0

LIVING: Final = frozenset({Health.HEALTHY, Health.DEGRADED})


class RowState(StrEnum):
    """What is shown as a state where it is not the one that a worker reports, nor its health."""

    STALLED = "stalled"
    SUSPECT = "suspect"
    UNKNOWN = "unknown"
    NO_WORKER = "no worker"


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker: what is known about it, and what it reports."""

    id: str
    health: Health
    """DEGRADED: suspect, stopped or stalled."""
    trouble: str
    """Why it is not healthy, in words."""
    stalled: bool
    holds: tuple[str, ...]
    """The claims in running/ under its name, whatever its status says."""
    status: Status
    """As last written, made printable; blank if there is none. Read only."""
    state: str
    """The one it reports (see `WorkerState`), or a `RowState`, or Health.LOST or LEFT."""
    progress: float | None
    cost_left: float
    """The cost of what it holds and has not done yet."""
    items_per_s: float | None
    rates: Mapping[str, float]
    """Per second, by counter that its handler reports while it runs (see `Work.progress`)."""
    cost_per_s: float | None
    idle_s: float | None
    age_s: float | None
    """How old its status is."""
    use: Use
    time_use: TimeUse = TimeUse()
    """What became of the time in which its handlers computed."""

    @property
    def living(self) -> bool:
        """Whether it may still do something."""
        return self.health in LIVING

    @property
    def stale(self) -> bool:
        """Whether its report is too old to rely on."""
        return self.age_s is None or self.age_s > STALE_S


@dataclass(slots=True)
class _Sight:
    """When this status of a worker was first seen, on the local clock."""

    written_at: float
    since: float
    moved: bool


class WorkerReader:
    """One observer's view of the workers."""

    def __init__(self, pool: PoolDirectory, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._observer = Observer(pool, clock)
        self._host = socket.gethostname()
        self._statuses: dict[str, Status] = {}
        self._ended_by: dict[str, str | None] = {}
        self._leaving: set[str] = set()
        self._sights: dict[str, _Sight] = {}
        self._hungry: dict[str, float] = {}
        self._leased: dict[str, float] = {}
        self._past: dict[str, WorkerRow] = {}
        self._counters: set[str] = set()
        """Every counter seen in the progress of a running claim."""

    @property
    def ended(self) -> set[str]:
        """The workers whose lease had ended at the last look: they write nothing any more."""
        return set(self._ended_by)

    def look(self, held: tuple[ClaimName, ...]) -> str:
        """List workers/ and read status/ once; return what is wrong with workers/, or ""."""
        final, damage = self.ended, ""
        try:
            # The living first: a lease that ends meanwhile is seen where it arrives.
            names = [*lease_names(self._pool), *ended_lease_names(self._pool)]
            self._ended_by = {name.worker: name.ended_by for name in names if not name.living}
            self._leaving = {name.worker for name in names if name.living and name.leaving}
            self._observer.look({name.owner for name in held if name.owner})
            now = self._clock()
            # RACE: a renewal can hide a lease from a listing; it counts as seen for another lease.
            recent = {w: t for w, t in self._leased.items() if now - t < self._pool.lease_s}
            self._leased = recent | dict.fromkeys(self._observer.workers(), now)
        except (OSError, PoolError) as error:
            damage = str(error)
        try:
            listed = atomic.names(self._pool.directory("status"))
        except (OSError, PoolError):
            listed = []  # I8: status/ was removed; the leases are still shown
        workers = {name[:-5] for name in listed if name.endswith(".json")}
        self._statuses = {
            worker: status
            for worker in filter(WORKER.fullmatch, workers)
            if (status := self._read(worker, worker in final)) is not None
        }
        for status in self._statuses.values():
            self._counters.update(status.measures_done)
            if status.current is not None:
                self._counters.update(status.current.measures)
        return damage

    def _read(self, worker: str, final: bool) -> Status | None:
        known = self._statuses.get(worker)
        if known is not None and final:
            return known
        status = read_status(self._pool, worker)
        if status is not None:
            sight = self._sights.get(worker)
            if sight is None or sight.written_at != status.written_at:
                self._sights[worker] = _Sight(status.written_at, self._clock(), sight is not None)
            make_printable(status)
        return status

    # ---- rows ----

    def rows(
        self, count: Count, journals: Journals, *, stall_s: float = STALL_S, paused: bool = False
    ) -> list[WorkerRow]:
        """Return every worker that has a lease, a status or a claim."""
        holds: dict[str, list[ClaimName]] = {}
        for name in count.held:
            holds.setdefault(name.owner or "", []).append(name)
        workers = {*self._leased, *self._ended_by, *self._statuses, *holds}
        past = {worker: row for worker, row in self._past.items() if worker not in holds}
        self._past = {worker: past[worker] for worker in past.keys() & self._ended_by.keys()}
        rows = []
        for worker in sorted(workers):
            row = self._past.get(worker)
            if row is None:
                row = self._row(worker, holds.get(worker, []), count, journals, stall_s, paused)
                if worker in self._ended_by and worker in self._statuses and not row.holds:
                    self._past[worker] = row
            rows.append(row)
        return rows

    def _row(
        self,
        id: str,
        held: list[ClaimName],
        count: Count,
        journals: Journals,
        stall_s: float,
        paused: bool,
    ) -> WorkerRow:
        status = self._statuses.get(id) or blank(id)
        health, trouble = self._health(id, status, bool(held))
        living = health in LIVING
        idle_s, age_s = self._ages(id, status)
        idle_s = idle_s if living else None
        stalled = living and self._stalled(status, bool(held), count, idle_s, stall_s, paused)
        if stalled and not trouble:
            health, trouble = Health.DEGRADED, f"stalled - no activity for {idle_s:.0f}s"
        part = progress(status.current) if held else None
        speed = Speeds()
        if living:
            speed = speeds(status, journals, count.item, self._counters - count.measures.keys())
        return WorkerRow(
            id=id,
            health=health,
            trouble=trouble,
            stalled=stalled,
            holds=tuple(name.id for name in held),
            status=status,
            state=_state(status, health, stalled, bool(held), id in self._leaving),
            progress=part,
            cost_left=sum(name.cost for name in held) * (1.0 - (part or 0.0)),
            items_per_s=speed.items,
            rates=speed.rates,
            cost_per_s=speed.cost,
            idle_s=idle_s,
            age_s=age_s,
            use=use(status) if living else Use(),
            time_use=time_use([status.computing]),
        )

    def _health(self, id: str, status: Status, holding: bool) -> tuple[Health, str]:
        """Return a worker's health by its lease, and by its process if that is on this host."""
        if id in self._ended_by:
            by = self._ended_by[id]
            if by == id:
                return Health.LOST, "it died, or made no progress: it ended its own lease"
            if by:
                return Health.LOST, f"declared dead by {by}"
            return Health.LEFT, status.message
        process = Process.UNKNOWN
        if status.host in ("", self._host):
            process = self._observer.process(id)
        if process is Process.GONE:
            return Health.LOST, f"its process ({status.pid or '?'}) is gone"
        expired = self._observer.standing(id) is Standing.EXPIRED
        if process is Process.STOPPED:
            health = Health.LOST if expired else Health.DEGRADED
            return health, f"its process is stopped: kill -CONT {status.pid or 'PID'}"
        if expired:
            return Health.LOST, f"no beat for {self._pool.lease_s:g} s: it is dead or cut off"
        if id not in self._leased:
            return (Health.DEGRADED if holding else Health.LEFT), "has no lease in workers/"
        if self._observer.standing(id) is Standing.SUSPECT:
            return Health.DEGRADED, f"suspect: no beat for {self._pool.lease_s / 2:g} s"
        return Health.HEALTHY, ""

    def _ages(self, id: str, status: Status) -> tuple[float | None, float | None]:
        """Return how long it has been idle, and how old its status is."""
        sight = self._sights.get(id)
        if sight is None or not status.written_at:
            return None, None
        seen_s = self._clock() - sight.since
        idle_s = max(0.0, status.written_at - status.last_activity) + seen_s
        # Until it was seen to change, only the wall clocks can tell: good enough to dim a number.
        age_s = seen_s if sight.moved else max(seen_s, time.time() - status.written_at)
        return (idle_s if status.last_activity else None), age_s

    def _stalled(
        self,
        status: Status,
        holding: bool,
        count: Count,
        idle_s: float | None,
        stall_s: float,
        paused: bool,
    ) -> bool:
        """Return whether a living worker holds or could take work, and makes no progress."""
        spool, now = status.spool or "", self._clock()
        _, waiting = count.spools.get(spool, (None, None))
        queued = bool(waiting and waiting.claims) and not paused
        if holding or not queued or status.state != WorkerState.IDLE:
            self._hungry.pop(status.worker_id, None)
        hungry_s = now - self._hungry.setdefault(status.worker_id, now)
        if idle_s is None or not (holding or queued):
            return False
        if status.state in (WorkerState.STARTING, WorkerState.LOADING):
            return idle_s > max(stall_s, LOADING_STALL_S)
        if status.state == WorkerState.IDLE and not holding:
            return idle_s > stall_s and hungry_s >= HUNGRY_S
        return status.state != WorkerState.DRAINING and idle_s > stall_s


def _state(status: Status, health: Health, stalled: bool, holding: bool, leaving: bool) -> str:
    """Return the word for a worker's state; what is known wins over what it reports."""
    if health not in LIVING:
        return health
    if stalled:
        return RowState.STALLED
    if health == Health.DEGRADED:
        return RowState.SUSPECT
    if leaving:
        return WorkerState.DRAINING  # its lease says so (R15), perhaps before its status does
    return status.state or (WorkerState.RUNNING if holding else RowState.UNKNOWN)


# ---- what a worker's status says ----
#
# A status is a hint (I8), written by another process on another host: its texts are made printable,
# its numbers are believed only where they make sense, and its times are compared with each other,
# never with the local clock.

PAUSE_S: Final = 10.0
ACTIVE: Final = frozenset({WorkerState.LOADING, WorkerState.RUNNING, WorkerState.DRAINING})


@dataclass(frozen=True, slots=True)
class Use:
    """What a GPU was doing when its worker last looked. None: unknown."""

    compute_percent: float | None = None
    memory_percent: float | None = None
    temperature: float | None = None
    power_watts: float | None = None


def blank(id: str) -> Status:
    """Return the status of a worker without a usable one: nothing is known."""
    return Status(id, state="", weight=0.0, started=0.0, last_activity=0.0)


def make_printable(status: Status) -> None:
    """Make every text in a status printable, and not too long."""
    for name in ("host", "spool", "model", "specialization", "message"):
        if (text := getattr(status, name)) is not None:
            setattr(status, name, printable(text))
    status.loaded = [printable(kind, 60) for kind in status.loaded[:20]]
    status.slurm = {printable(k, 40): printable(v, 60) for k, v in list(status.slurm.items())[:20]}
    if (current := status.current) is not None:
        for name in ("id", "kind", "spool", "unit"):
            setattr(current, name, printable(getattr(current, name), 120))


def use(status: Status) -> Use:
    """Return what the worker's GPU was doing; numbers that cannot be true are left out."""

    def within(name: str, low: float, high: float) -> float | None:
        value = number(status.gpu.get(name))
        return float(value) if value is not None and low <= value <= high else None

    return Use(
        within("compute_percent", 0, 100),
        within("memory_percent", 0, 100),
        within("temperature", -60, 200),
        within("power_watts", 0, 10_000),
    )


def progress(current: Current | None) -> float | None:
    """Return how much of its claim a worker has done, 0 to 1; None if it does not report that."""
    if current is None or current.total <= 0:
        return None
    return min(max(current.done / current.total, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a worker does per second; None or missing where there is nothing to go by."""

    items: float | None = None
    """In the unit of the pool: a measure of its plans, or claims."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """By counter."""
    cost: float | None = None


def speeds(
    status: Status, journals: Journals, item: str | None, counters: Collection[str]
) -> Speeds:
    """Return what a worker does per second.

    By its last claims; else by all of its claims; else by its first claim's progress. `item` is the
    measure that is counted as items, None for claims; `counters` are the other ones wanted.
    """
    if status.state and status.state not in ACTIVE:
        return Speeds()
    speed = journals.speed(status.worker_id)
    if speed is not None:
        silence_s = status.written_at - speed.finished_at
        if silence_s <= max(2 * speed.longest_s, PAUSE_S):
            items = speed.claims if item is None else speed.measures.get(item)
            return Speeds(items, _chosen(speed.measures, counters), speed.cost)
    elif status.claims_done > 0 and status.busy_s > 0:
        done = status.claims_done if item is None else status.measures_done.get(item)
        return _over(status.busy_s, done, _chosen(status.measures_done, counters), status.cost_done)
    current, part = status.current, progress(status.current)
    if current is None or part is None or status.written_at <= current.started:
        return Speeds()
    items = part
    if item is not None:
        items = current.measures.get(item, current.done if current.unit == item else None)
    elapsed_s = status.written_at - current.started
    return _over(elapsed_s, items, _chosen(current.measures, counters), current.cost * part)


def _chosen(amounts: Mapping[str, float], counters: Collection[str]) -> dict[str, float]:
    return {name: amount for name, amount in amounts.items() if name in counters}


def _over(seconds: float, items: float | None, counted: Mapping[str, float], cost: float) -> Speeds:
    return Speeds(
        None if items is None else items / seconds,
        {name: amount / seconds for name, amount in counted.items()},
        cost / seconds,
    )
