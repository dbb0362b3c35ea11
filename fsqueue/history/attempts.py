"""Every attempt at every claim, from the workers' journals, in the order in which they ended.

All of it is a hint (I8): a journal may be missing, cut or hostile, and what makes no sense in it is
left out. A million attempts need no more memory than a few: each journal is read piece by piece,
and only one attempt per worker is kept, and the claims that were recovered from dead workers.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fsqueue.errors import FsqueueError
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ID, KIND, SPOOL, WORKER
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.journal import EventKind, JournalReader, event_time
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import number, printable


class Ending(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    FAILED = "failed"
    RELEASED = "released"
    """Put back by a worker that left."""
    LOST = "lost"
    """Its worker was declared dead while it ran, and noticed."""
    KILLED = "killed"
    """Its worker died, and the claim was recovered."""
    RUNNING = "running"
    UNKNOWN = "unknown"
    """The journal ends, the worker is gone, and the claim was not recovered."""


BEGINNINGS: Final = frozenset({EventKind.TOOK, EventKind.STOLE})
ENDINGS: Final[dict[str, Ending]] = {
    EventKind.FINISHED: Ending.DONE,
    EventKind.FAILED: Ending.FAILED,
    EventKind.RELEASED: Ending.RELEASED,
    EventKind.LOST: Ending.LOST,
}
"""How each event ends an attempt."""


@dataclass(frozen=True, slots=True)
class Attempted:
    """One attempt at a claim. Times are by its worker's clock; None where none was recorded."""

    id: str
    worker: str
    host: str
    ending: Ending
    started: float | None = None
    seconds: float | None = None
    attempt: int | None = None
    kind: str | None = None
    cost: float | None = None
    spool: str | None = None
    """The spool it was taken from."""
    stolen: bool = False
    returncode: int | None = None
    """Of the program that failed; negative for a signal."""
    error: str = ""

    @property
    def ended(self) -> float:
        """When it ended, for sorting."""
        return (self.started or 0.0) + (self.seconds or 0.0)


def attempts(pool: PoolDirectory) -> Iterator[Attempted]:
    """Yield every attempt in the order in which they ended, including those that still run."""
    try:
        listed = sorted(atomic.names(pool.directory("events")))
    except (OSError, FsqueueError):
        return  # events/ was removed: the history is lost
    workers = [name[:-6] for name in listed if name.endswith(".jsonl")]
    paths = {worker: pool.events(worker) for worker in workers if WORKER.fullmatch(worker)}
    sizes = {worker: _size(path) for worker, path in paths.items()}
    recovered = _recovered(paths, sizes)
    alive = _alive(pool)  # after the sizes: attempts that are open in a journal began before
    streams = (
        _WorkerAttempts(worker, recovered, alive).read(
            JournalReader(paths[worker]).events(sizes[worker])
        )
        for worker in paths
    )
    yield from heapq.merge(*streams, key=lambda attempt: attempt.ended)


def _recovered(paths: dict[str, str], sizes: dict[str, int]) -> dict[tuple[str, str], float]:
    """Return when each claim was recovered from each dead worker."""
    found: dict[tuple[str, str], float] = {}
    for worker, path in paths.items():
        having = EventKind.RECOVERED.encode()
        for facts in JournalReader(path).events(sizes[worker], having=having):
            if facts["event"] == EventKind.RECOVERED:
                found[str(facts.get("id")), str(facts.get("of"))] = event_time(facts)
    return found


def _alive(pool: PoolDirectory) -> set[str]:
    """Return the workers with a living lease, or with a claim that was not recovered yet."""
    try:
        living = {name.worker for name in lease_names(pool) if name.living}
        return living | {name.owner for name in claims.owned(pool, State.RUNNING) if name.owner}
    except (OSError, FsqueueError):
        return set()


@dataclass(slots=True)
class _WorkerAttempts:
    """The attempts of one worker, which has one claim at a time and records begin and end."""

    worker: str
    recovered: dict[tuple[str, str], float]
    alive: set[str]
    host: str = ""
    begun: dict[str, Any] | None = None
    names: dict[str, str] = field(default_factory=dict)

    def read(self, events: Iterator[dict[str, Any]]) -> Iterator[Attempted]:
        self.host = self.worker.rsplit("-", 2)[0]
        for facts in events:
            kind = facts["event"]
            if kind == EventKind.JOINED:
                self.host = printable(facts.get("host", self.host), 80).replace(" ", "_")
            elif kind in BEGINNINGS and _text(ID, facts.get("id")):
                if self.begun is not None:
                    yield self._ended(self.begun, None, Ending.UNKNOWN)
                self.begun = facts
            elif kind in ENDINGS and _text(ID, facts.get("id")):
                if self.begun is not None and self.begun["id"] != facts["id"]:
                    yield self._ended(self.begun, None, Ending.UNKNOWN)
                    self.begun = None
                yield self._ended(self.begun or {"id": facts["id"]}, facts, ENDINGS[kind])
                self.begun = None
        if self.begun is not None:
            yield self._open(self.begun)

    def _open(self, begun: dict[str, Any]) -> Attempted:
        """Return the attempt that the journal does not end."""
        taken_back = self.recovered.get((begun["id"], self.worker))
        if taken_back is not None:
            return self._ended(begun, {"t": taken_back}, Ending.KILLED)
        alive = self.worker in self.alive
        return self._ended(begun, None, Ending.RUNNING if alive else Ending.UNKNOWN)

    def _ended(
        self, begun: dict[str, Any], end: dict[str, Any] | None, ending: Ending
    ) -> Attempted:
        facts = begun | (end or {})
        started = event_time(begun) if "t" in begun else None
        seconds = number(facts.get("seconds"))
        if end is not None and started is not None and seconds is None:
            seconds = event_time(end) - started
        if end is not None and started is None and seconds is not None:
            started = event_time(end) - seconds
        stolen = begun.get("event") == EventKind.STOLE
        code, attempt = number(facts.get("returncode")), number(facts.get("attempt"))
        return Attempted(
            id=begun["id"],
            worker=self.worker,
            host=self.host,
            ending=ending,
            started=started,
            seconds=None if seconds is None else max(0.0, seconds),
            attempt=None if attempt is None else int(attempt),
            kind=_text(KIND, facts.get("kind")),
            cost=number(facts.get("cost")),
            spool=_text(SPOOL, begun.get("from" if stolen else "spool")),
            stolen=stolen,
            returncode=None if code is None else int(code),
            error=printable(facts.get("error", "")),
        )


def _text(pattern: re.Pattern[str], value: object) -> str | None:
    """Return what an event gives as a name, if it is one."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0  # as above
