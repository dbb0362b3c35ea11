"""Know a pool's workers: who lives by their leases, and what each reports of itself.

Whether a worker lives is read from workers/ alone. Everything else about it is a hint from status/
and events/ (I8). No clock of another host is compared with ours: how long a worker did nothing is
the difference of two times of its own clock, and from then on ours.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fsqueue import atomic
from fsqueue.census import Count
from fsqueue.errors import PoolError
from fsqueue.journals import Journals
from fsqueue.leases import Observer, Process, Standing, lease_names
from fsqueue.names import WORKER, ClaimName
from fsqueue.pool import Pool
from fsqueue.reported import Speeds, Use, blank, make_printable, progress, speeds, use
from fsqueue.status import Status, read_status

STALL_S: Final = 300.0
LOADING_STALL_S: Final = 900.0
"""A 3B model takes 2-5 minutes to load from a cold network mount."""
HUNGRY_S: Final = 30.0
"""An idle worker beside a full spool is stalled only after we saw that for so long: a plan may have
come a moment ago."""
STALE_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker: what is true of it, and what it reports."""

    id: str
    health: str
    """healthy; degraded (suspect, stopped or stalled); lost (dead, or surely so); left."""
    trouble: str
    """Why it is not healthy, in words."""
    stalled: bool
    holds: tuple[str, ...]
    """The claims in running/ under its name: true, whatever its status says."""
    status: Status
    """As last written, made fit to be shown; blank if there is none. Nobody changes it."""
    state: str
    progress: float | None
    cost_left: float
    """What is left of what it holds."""
    items_per_s: float | None
    tokens_per_s: float | None
    cost_per_s: float | None
    idle_s: float | None
    age_s: float | None
    """How old its status is."""
    use: Use

    @property
    def living(self) -> bool:
        """Say whether it may still do something."""
        return self.health in ("healthy", "degraded")

    @property
    def stale(self) -> bool:
        """Say whether what it reports is too old to go by."""
        return self.age_s is None or self.age_s > STALE_S


@dataclass(slots=True)
class _Sight:
    """When we first saw this status of a worker, on our clock."""

    written_at: float
    since: float
    moved: bool


class Roster:
    """One observer's sight of the workers."""

    def __init__(self, pool: Pool, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.stall_s = STALL_S
        self._pool = pool
        self._clock = clock
        self._observer = Observer(pool, clock)
        self._host = socket.gethostname()
        self._statuses: dict[str, Status] = {}
        self._ended_by: dict[str, str | None] = {}
        self._sights: dict[str, _Sight] = {}
        self._hungry: dict[str, float] = {}
        self._leased: dict[str, float] = {}
        self._past: dict[str, WorkerRow] = {}

    @property
    def ended(self) -> set[str]:
        """Those whose lease had ended at the last look: they write nothing any more."""
        return set(self._ended_by)

    def look(self, held: tuple[ClaimName, ...]) -> str:
        """List workers/ and read status/ once; return what is wrong with workers/, if anything."""
        final, damage = self.ended, ""
        try:
            names = lease_names(self._pool)
            self._ended_by = {name.worker: name.ended_by for name in names if not name.living}
            self._observer.look({name.owner for name in held if name.owner})
            now = self._clock()
            # RACE: a renewal can hide a lease from a listing; it counts as seen for a lease more.
            recent = {w: t for w, t in self._leased.items() if now - t < self._pool.lease_s}
            self._leased = recent | dict.fromkeys(self._observer.workers(), now)
        except (OSError, PoolError) as error:
            damage = str(error)
        try:
            listed = atomic.names(self._pool.directory("status"))
        except (OSError, PoolError):
            listed = []  # I8: removed; what is left to show are the leases
        workers = {name[:-5] for name in listed if name.endswith(".json")}
        self._statuses = {
            worker: status
            for worker in filter(WORKER.fullmatch, workers)
            if (status := self._read(worker, worker in final)) is not None
        }
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

    def rows(self, count: Count, journals: Journals, *, paused: bool = False) -> list[WorkerRow]:
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
                row = self._row(worker, holds.get(worker, []), count, journals, paused)
                if worker in self._ended_by and worker in self._statuses and not row.holds:
                    self._past[worker] = row
            rows.append(row)
        return rows

    def _row(
        self, id: str, held: list[ClaimName], count: Count, journals: Journals, paused: bool
    ) -> WorkerRow:
        status = self._statuses.get(id) or blank(id)
        health, trouble = self._health(id, status, bool(held))
        living = health in ("healthy", "degraded")
        idle_s, age_s = self._ages(id, status)
        idle_s = idle_s if living else None
        stalled = living and self._stalled(status, bool(held), count, idle_s, paused)
        if stalled and not trouble:
            health, trouble = "degraded", f"stalled - no activity for {idle_s:.0f}s"
        part = progress(status.current) if held else None
        speed = speeds(status, journals, "sequences" in count.measures) if living else Speeds()
        return WorkerRow(
            id=id,
            health=health,
            trouble=trouble,
            stalled=stalled,
            holds=tuple(name.id for name in held),
            status=status,
            state=_state(status, health, stalled, bool(held)),
            progress=part,
            cost_left=sum(name.cost for name in held) * (1.0 - (part or 0.0)),
            items_per_s=speed.items,
            tokens_per_s=speed.tokens,
            cost_per_s=speed.cost,
            idle_s=idle_s,
            age_s=age_s,
            use=use(status) if living else Use(),
        )

    def _health(self, id: str, status: Status, holding: bool) -> tuple[str, str]:
        """Say how a worker is by its lease, and by its process if that is of this host."""
        if id in self._ended_by:
            by = self._ended_by[id]
            return ("lost", f"declared dead by {by}") if by else ("left", status.message)
        process = Process.UNKNOWN
        if status.host in ("", self._host):
            process = self._observer.process(id)
        if process is Process.GONE:
            return "lost", f"its process ({status.pid or '?'}) is gone"
        expired = self._observer.standing(id) is Standing.EXPIRED
        if process is Process.STOPPED:
            health = "lost" if expired else "degraded"
            return health, f"its process is stopped: kill -CONT {status.pid or 'PID'}"
        if expired:
            return "lost", f"shows no beat for {self._pool.lease_s:g} s: it is dead or cut off"
        if id not in self._leased:
            return ("degraded" if holding else "left"), "has no lease in workers/"
        if self._observer.standing(id) is Standing.SUSPECT:
            return "degraded", f"suspect: no beat for {self._pool.lease_s / 2:g} s"
        return "healthy", ""

    def _ages(self, id: str, status: Status) -> tuple[float | None, float | None]:
        """Return for how long it did nothing, and how old its status is."""
        sight = self._sights.get(id)
        if sight is None or not status.written_at:
            return None, None
        seen_s = self._clock() - sight.since
        idle_s = max(0.0, status.written_at - status.last_activity) + seen_s
        # Until we saw it change, only the wall clocks can tell: good enough to dim a number.
        age_s = seen_s if sight.moved else max(seen_s, time.time() - status.written_at)
        return (idle_s if status.last_activity else None), age_s

    def _stalled(
        self, status: Status, holding: bool, count: Count, idle_s: float | None, paused: bool
    ) -> bool:
        """Say whether a living worker holds or could take work, and makes no progress."""
        spool, now = status.spool or "", self._clock()
        _, waiting = count.spools.get(spool, (None, None))
        queued = bool(waiting and waiting.claims) and not paused
        if holding or not queued or status.state != "idle":
            self._hungry.pop(status.worker_id, None)
        hungry_s = now - self._hungry.setdefault(status.worker_id, now)
        if idle_s is None or not (holding or queued):
            return False
        if status.state in ("starting", "loading"):
            return idle_s > max(self.stall_s, LOADING_STALL_S)
        if status.state == "idle" and not holding:
            return idle_s > self.stall_s and hungry_s >= HUNGRY_S
        return status.state != "draining" and idle_s > self.stall_s


def _state(status: Status, health: str, stalled: bool, holding: bool) -> str:
    """Return the word for a worker's state: what is known beats what it reports."""
    if health in ("lost", "left"):
        return health
    if stalled:
        return "stalled"
    if health == "degraded":
        return "suspect"
    return status.state or ("running" if holding else "unknown")
