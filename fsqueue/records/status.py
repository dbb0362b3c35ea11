"""Write and read a worker's status file: what it is, what it does, and how fast it is.

A status is for display and routing, and never a reason to move a claim (I8). Its one writer
replaces it whole. Readers must expect it to be missing, empty, half-written or hostile, and go on
without it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from fsqueue.errors import PoolError
from fsqueue.pool.names import WORKER, ClaimName
from fsqueue.pool.requirements import Tier
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import FACTS_MAX, number, read_json

RATE_MIN: Final = 1e-12
PEAK: Final = "peak_gib"
SUMS: Final = ("measures", "measures_done", "stolen_from", "computing")


class WorkerState(StrEnum):
    """What a worker is doing, as in its status file."""

    STARTING = "starting"
    LOADING = "loading"
    IDLE = "idle"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


LEAVING: Final = frozenset({WorkerState.DRAINING, WorkerState.STOPPED, WorkerState.FAILED})
"""States of a worker that takes nothing more."""


class Health(StrEnum):
    """How a worker is, or one of its services."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    LOST = "lost"
    """Dead, or about to be declared dead."""
    LEFT = "left"


class LeaveReason(StrEnum):
    """Why a worker left, as in its status file."""

    ALL_DONE = "all done"
    SOME_FAILED = "some failed"  # everything ended, but some claims failed
    CLAIMS_MISSING = "claims missing"  # planned claims are in no state directory
    WORK_REMAINS = "work remains"  # claims wait that this worker cannot or may not take
    OTHERS_RUN = "others run"  # nothing is left to take, but other workers still run claims
    OUT_OF_TIME = "out of time"  # claims wait that would not end in the time it has left
    ORDER = "order"
    TIME_LIMIT = "time limit"
    ALLOCATION_ENDS = "allocation ends"
    CLAIMS_MAX = "claims max"
    SIGNAL = "signal"
    LEASE_LOST = "lease lost"
    BROKEN = "broken"  # its process could not run another claim
    FAILURES = "failures"  # several claims in a row failed there


@dataclass(slots=True)
class Current:
    """The claim a worker is running, and its progress."""

    id: str
    kind: str
    cost: int
    attempt: int
    spool: str
    started: float
    done: int = 0
    total: int = 0
    unit: str = "items"
    measures: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Status:
    """A worker's heartbeat. Times are this worker's wall clock, in seconds since 1970."""

    worker_id: str
    host: str = ""
    pid: int = 0
    state: str = WorkerState.STARTING
    spool: str | None = None
    model: str = ""
    weight: float = 1.0
    tier: int = Tier.CPU
    specialization: str = ""
    """The kinds this worker prefers, separated by commas."""
    capabilities: list[str] = field(default_factory=list)
    stealing: bool = True
    started: float = field(default_factory=time.time)
    written_at: float = 0.0
    last_activity: float = field(default_factory=time.time)
    current: Current | None = None
    claims_done: int = 0
    claims_failed: int = 0
    claims_released: int = 0
    steals_in: int = 0
    stolen_from: dict[str, int] = field(default_factory=dict)
    """How many claims this worker stole, by the spool that lost them."""
    lock_skips: int = 0
    metadata_ops: int = 0
    """Metadata operations (see `storage.operation_count`)."""
    metadata_ops_per_s: float = 0.0
    """Since the previous status."""
    metadata_ops_max: float = 0.0
    held_back: float = 0.0
    """The share of that time spent waiting because of the maximum, 0 to 1."""
    cost_done: int = 0
    busy_s: float = 0.0
    measures_done: dict[str, int] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    """Cost per second by kind, over the claims finished so far."""
    loaded: list[str] = field(default_factory=list)
    unable: list[str] = field(default_factory=list)
    """Kinds of which a claim showed that this worker cannot do them."""
    services_status: dict[str, str] = field(default_factory=dict)
    """By handler: healthy if the last claim that this worker ran for it succeeded."""
    current_load: float = 0.0
    """CPU load of this host, 0 to 1."""
    gpu: dict[str, Any] = field(default_factory=dict)
    computing: dict[str, float] = field(default_factory=dict)
    """The sums of what handlers reported as `handler.Computing`; of the peak, the largest."""
    energy_wh: float = 0.0
    """What its GPU used since it started, from its power at each beat; 0 if that is not known."""
    slurm: dict[str, str] = field(default_factory=dict)
    message: str = ""
    left_because: str = ""
    """A `LeaveReason` once it left."""

    def become(self, state: WorkerState) -> None:
        """Note what the worker does now, other than running a claim."""
        self.state = state
        if state is not WorkerState.LOADING:
            self.current = None

    def stop(self, message: str, left_because: str) -> None:
        """Note that the worker leaves."""
        self.become(WorkerState.STOPPED)
        self.message, self.left_because = message, left_because

    def start_claim(self, current: Current) -> None:
        """Note that the worker runs a claim now."""
        self.current, self.state, self.last_activity = current, WorkerState.RUNNING, time.time()

    def note_progress(self, done: int, total: int, measures: Mapping[str, int]) -> None:
        """Note progress in the current claim, and what was counted since the last report."""
        self.last_activity = time.time()
        if self.current is not None:
            self.current.done, self.current.total = done, total
            _add(self.current.measures, measures)

    def finish_claim(
        self,
        name: ClaimName,
        handler: str,
        seconds: float,
        measures: Mapping[str, int],
        *,
        measure_rate: bool,
    ) -> None:
        """Note that a claim was done; `measure_rate`: its time was all work, without loading."""
        self.claims_done += 1
        self.cost_done += name.cost
        self.busy_s += seconds
        self.last_activity = time.time()
        _add(self.measures_done, measures)
        if measure_rate:
            rate = name.cost / max(seconds, 1e-6)
            old = self.rates.get(name.kind)
            self.rates[name.kind] = rate if old is None else 0.7 * old + 0.3 * rate
        self.services_status[handler] = Health.HEALTHY
        self.current = None

    def note_computing(self, spent: Mapping[str, float]) -> None:
        """Add what became of some time in which a handler computed."""
        peak = max(self.computing.get(PEAK, 0.0), spent[PEAK])
        for name, amount in spent.items():
            self.computing[name] = self.computing.get(name, 0.0) + amount
        self.computing[PEAK] = round(peak, 3)

    def fail_claim(self, handler: str | None) -> None:
        """Note that a claim failed; `handler`: the one to blame for it, if any."""
        self.claims_failed += 1
        if handler:
            self.services_status[handler] = Health.UNHEALTHY

    def release_claim(self) -> None:
        """Note that a claim was put back."""
        self.claims_released += 1

    def note_lock_held(self) -> None:
        """Note that a spool was skipped because another thief held its lock."""
        self.lock_skips += 1

    def note_loaded(self, loaded: list[str], unable: list[str]) -> None:
        """Note which kinds are loaded, and which ones this worker cannot do."""
        self.loaded, self.unable = loaded, unable

    def note_steal(self, spool: str) -> None:
        """Note that a claim was stolen from a spool."""
        self.steals_in += 1
        self.stolen_from[spool] = self.stolen_from.get(spool, 0) + 1


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        if isinstance(count, int):
            counts[name] = counts.get(name, 0) + count


def write_status(pool: PoolDirectory, status: Status) -> None:
    """Replace this worker's status file."""
    status.written_at = time.time()
    status.current_load = _cpu_load()
    data = json.dumps(asdict(status) | heartbeat(status), indent=1).encode() + b"\n"
    atomic.replace(pool.status(status.worker_id), data)


def heartbeat(status: Status) -> dict[str, Any]:
    """Return a status under the names of a load balancer's heartbeat.

    Memory is that of this host, not of the GPU.
    """
    memory = memory_available()
    unhealthy = Health.UNHEALTHY in status.services_status.values()
    return {
        "status": Health.DEGRADED if unhealthy else Health.HEALTHY,
        "available_memory": None if memory is None else f"{memory / 2**30:.1f}GB",
        "available_memory_bytes": memory,
        "gpu_utilization": number(status.gpu.get("compute_percent")),
        "active_requests": int(status.current is not None),
        "loaded_models": status.loaded,
    }


def _cpu_load() -> float:
    return round(min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 3)


def memory_available() -> int | None:
    """Return the available memory of this host in bytes, None if it is unknown."""
    try:
        with open("/proc/meminfo") as file:
            found = re.search(r"^MemAvailable: +(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None  # not Linux
    return int(found[1]) * 1024 if found else None


def read_status(pool: PoolDirectory, worker: str) -> Status | None:
    """Return a worker's status, or None if there is no usable one."""
    try:
        facts = read_json(pool.status(worker), patience_s=0.0, limit=FACTS_MAX)
    except (OSError, PoolError):
        return None
    return parse_status(worker, facts)


def read_statuses(pool: PoolDirectory) -> dict[str, Status]:
    """Return every usable status, by worker."""
    found = (name[:-5] for name in atomic.names(pool.directory("status")) if name[-5:] == ".json")
    statuses = {worker: read_status(pool, worker) for worker in found if WORKER.fullmatch(worker)}
    return {worker: status for worker, status in statuses.items() if status is not None}


def parse_status(worker: str, facts: dict[str, Any]) -> Status | None:
    """Return the status that `facts` describe; invalid fields keep their defaults."""
    if facts.get("worker_id") != worker:
        return None
    status = Status(worker, started=0.0, last_activity=0.0)
    for name, default in asdict(status).items():
        value = facts.get(name)
        if name not in ("worker_id", "current", "state") and _alike(value, default, name):
            setattr(status, name, value)
    status.state = _state(facts.get("state"))
    current = facts.get("current")
    if isinstance(current, dict):
        blank = Current("?", "?", 0, 0, "?", 0.0)
        for name, default in asdict(blank).items():
            if _alike(current.get(name), default, name):
                setattr(blank, name, current[name])
        status.current = blank
    return status


def _state(value: Any) -> WorkerState:
    if not isinstance(value, str):
        return WorkerState.STARTING
    try:
        return WorkerState(value)
    except ValueError:
        return WorkerState.FAILED


def _alike(value: Any, default: Any, name: str) -> bool:
    if name == "spool" and default is None:
        return value is None or isinstance(value, str)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int | float):
        return number(value) is not None and not (isinstance(default, int) and value % 1)
    if name == "rates":
        rates = value.values() if isinstance(value, dict) else [None]
        return all((number(rate) or 0.0) > RATE_MIN for rate in rates)
    if name in SUMS and isinstance(value, dict):
        return all(number(count) is not None for count in value.values())
    if name in ("services_status", "slurm") and isinstance(value, dict):
        return all(isinstance(text, str) for text in value.values())
    if isinstance(value, list):
        return isinstance(default, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, type(default))
