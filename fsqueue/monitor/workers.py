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
from typing import Final, NamedTuple

from fsqueue.errors import PoolError
from fsqueue.monitor.counts import Count
from fsqueue.pool.journal import Journals
from fsqueue.pool.leases import Observer, Process, Standing, lease_names
from fsqueue.pool.names import WORKER, ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.pool.status import Current, Status, read_status
from fsqueue.pool.untrusted import number, printable
from fsqueue.storage import atomic

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


class WorkerReader:
    """One observer's sight of the workers."""

    def __init__(self, pool: PoolDirectory, *, clock: Callable[[], float] = time.monotonic) -> None:
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


# ---- what a worker's status says ----
#
# A status is a hint (I8), written by another process on another host: its texts are made fit for
# any terminal, its numbers are believed only where they make sense, and its times are compared
# with each other, never with a clock of ours.

PAUSE_S: Final = 10.0
ACTIVE: Final = frozenset("loading running draining".split())


@dataclass(frozen=True, slots=True)
class Use:
    """What a GPU was doing when its worker last looked. None: nobody could tell."""

    compute_percent: float | None = None
    memory_percent: float | None = None
    temperature: float | None = None
    power_watts: float | None = None


def blank(id: str) -> Status:
    """Return what is known of a worker without a usable status: nothing."""
    return Status(id, state="", weight=0.0, started=0.0, last_activity=0.0)


def make_printable(status: Status) -> None:
    """Make every text in a status fit for any terminal, and not too long."""
    for name in ("host", "spool", "model", "specialization", "message"):
        if (text := getattr(status, name)) is not None:
            setattr(status, name, printable(text))
    status.loaded = [printable(kind, 60) for kind in status.loaded[:20]]
    status.slurm = {printable(k, 40): printable(v, 60) for k, v in list(status.slurm.items())[:20]}
    if (current := status.current) is not None:
        for name in ("id", "kind", "spool", "unit"):
            setattr(current, name, printable(getattr(current, name), 120))


def use(status: Status) -> Use:
    """Return what the worker's GPU was doing, as far as the numbers can be true."""

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
    """Return how much of its claim a worker has done, 0 to 1; None if it does not say."""
    if current is None or current.total <= 0:
        return None
    return min(max(current.done / current.total, 0.0), 1.0)


class Speeds(NamedTuple):
    """What a worker does per second; None where there is nothing to go by."""

    items: float | None = None
    """Sequences, or claims."""
    tokens: float | None = None
    cost: float | None = None


def speeds(status: Status, journals: Journals, sequences: bool) -> Speeds:
    """Return what a worker does per second.

    By its last claims; else by all of its claims; else by its first claim's progress.
    """
    if status.state and status.state not in ACTIVE:
        return Speeds()
    speed = journals.speed(status.worker_id)
    if speed is not None:
        silence_s = status.written_at - speed.finished_at
        if silence_s <= max(2 * speed.longest_s, PAUSE_S):
            items = speed.measures.get("sequences") if sequences else speed.claims
            return Speeds(items, speed.measures.get("tokens"), speed.cost)
    elif status.claims_done > 0 and status.busy_s > 0:
        done = status.measures_done.get("sequences") if sequences else status.claims_done
        return _over(status.busy_s, done, status.measures_done.get("tokens"), status.cost_done)
    current, part = status.current, progress(status.current)
    if current is None or part is None or status.written_at <= current.started:
        return Speeds()
    items = current.measures.get("sequences", _sequences(current)) if sequences else part
    elapsed_s = status.written_at - current.started
    return _over(elapsed_s, items, current.measures.get("tokens"), current.cost * part)


def _sequences(current: Current) -> int | None:
    return current.done if current.unit == "sequences" else None


def _over(seconds: float, *amounts: float | None) -> Speeds:
    return Speeds(*(None if amount is None else amount / seconds for amount in amounts))
