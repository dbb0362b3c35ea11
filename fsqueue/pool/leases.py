"""Tell a dead worker from a slow one: a lease is a file whose name carries its beat.

A worker renews its lease every quarter of `lease_s` by renaming `workers/ID.b000412` to
`ID.b000413`. A process that has seen the same beat for `lease_s` on its own clock may end the lease
by renaming that very beat to `ID.dead@ENDER` (I9). Both renames are the same compare-and-swap, so
exactly one of them happens: either the worker lives on, or its next renewal fails and it knows.

Beats are read by listing, never by stat: on NFS a listing is fresh to milliseconds, while
attributes lag by half a minute. No clock but the observer's own monotonic one is ever read.

    [b000000] -- renew --> [b000001] -- ... -- retire --> [left]
                                        '---- end ------> [dead@ENDER]
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final

from fsqueue.errors import LeaseLost, PoolError
from fsqueue.pool.names import LeaseName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.pool.untrusted import FACTS_MAX, read_json
from fsqueue.storage import atomic

BEATS_PER_LEASE: Final = 4


class Lease:
    """This worker's own lease. Enlist before taking anything, retire after holding nothing."""

    def __init__(self, pool: PoolDirectory, worker: str) -> None:
        self._pool = pool
        self.name = LeaseName(worker, beat=0)

    def enlist(self, facts: dict[str, Any] | None = None) -> None:
        """Make the lease visible, with what lets processes of this host prove our death."""
        data = json.dumps((facts or {}) | proof_of_life(), indent=1).encode() + b"\n"
        if not atomic.publish(self._pool.lease(self.name), data):
            raise PoolError(
                f"{self._pool.lease(self.name)} exists already: two workers have the same id."
            )

    def renew(self) -> None:
        """Move to the next beat. Raises LeaseLost if the lease was ended, OSError otherwise."""
        following = replace(self.name, beat=(self.name.beat or 0) + 1)
        try:
            atomic.rename(self._pool.lease(self.name), self._pool.lease(following))
        except OSError as error:
            if error.errno not in atomic.GONE:
                raise
            # RACE: an observer ended it; or it was renewed, and the reply was lost.
            mine = [name for name in lease_names(self._pool) if name.worker == self.name.worker]
            if self.name in mine:
                raise  # still ours: a passing error of the mount; the next beat tries again
            if following not in mine:
                raise LeaseLost(_why_lost(self.name.worker, mine)) from error
        self.name = following

    def retire(self) -> None:
        """End our own lease, now that we hold nothing."""
        left = LeaseName(self.name.worker)
        for name in (self.name, replace(self.name, beat=(self.name.beat or 0) + 1)):
            try:
                return atomic.rename(self._pool.lease(name), self._pool.lease(left))
            except OSError as error:
                if error.errno not in atomic.GONE:
                    raise
                # RACE: the last renewal took effect, its reply was lost; or another process ended
                # the lease first.


def _why_lost(worker: str, names: Iterable[LeaseName]) -> str:
    enders = [name.ended_by for name in names if name.ended_by]
    if enders:
        return (
            f"{worker} was declared dead by {enders[0]}, as it did not renew its lease. Was it "
            f"stopped, suspended, or cut off from the file system? Its claims were put back."
        )
    return (
        f"the lease of {worker} is gone from workers/: something removed the file. Do not touch "
        f"workers/ while workers run."
    )


def lease_names(pool: PoolDirectory) -> list[LeaseName]:
    """List every lease's name."""
    texts = atomic.names(pool.directory("workers"))
    return [name for text in texts if (name := LeaseName.parse(text)) is not None]


# ---- observing ----


class Standing(Enum):
    """What an observer knows about a worker."""

    LIVING = auto()  # its beat moved lately, or it was first seen a moment ago
    SUSPECT = auto()  # its beat has not moved for half a lease
    EXPIRED = auto()  # for a whole lease its beat has not moved, or it had no lease
    ENDED = auto()  # its lease has ended: it left, or it was declared dead


@dataclass(slots=True)
class _Sighting:
    name: LeaseName | None
    since: float
    moved: bool = False
    """Whether its beat moved between two looks less than half a lease apart."""


class Observer:
    """Watch all workers' beats by listing workers/. One instance per observing process.

    Between two looks at most half a lease is counted, however much later the second came. So an
    observer that was itself stopped or suspended, perhaps with all the workers it watches, gives
    them time to beat again; and two listings are never enough to call a lease absent.
    """

    def __init__(self, pool: PoolDirectory, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._looked = self._after = clock()
        self._seen: dict[str, _Sighting] = {}
        self._ended: dict[str, LeaseName] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def look(self, owners: Iterable[str] = ()) -> None:
        """List workers/ once. `owners` are also watched if they have no lease."""
        before = self._clock()
        unseen_s = max(0.0, before - self._after - self._pool.lease_s / 2)
        found: dict[str, LeaseName | None] = dict.fromkeys(owners)
        self._ended.clear()
        for name in lease_names(self._pool):
            if not name.living:
                self._ended[name.worker] = name
            elif (other := found.get(name.worker)) is None or (other.beat or 0) < (name.beat or 0):
                found[name.worker] = name
        self._after = after = self._clock()
        seen = {}
        for worker, current in found.items():
            last = self._seen.get(worker)
            if last is not None and last.name == current:
                # Unchanged from the end of an earlier listing to the beginning of this one.
                since, moved = min(last.since + unseen_s, before), last.moved and not unseen_s
                seen[worker] = _Sighting(current, since, moved)
            else:
                # RACE: a renewal can hide a lease from one listing; if it reappears, it has moved.
                moved = last is not None and current is not None and not unseen_s
                seen[worker] = _Sighting(current, after, moved)
        self._seen, self._looked = seen, before

    def standing(self, worker: str) -> Standing:
        """Return what the looks so far show about a worker."""
        if worker in self._ended:
            return Standing.ENDED
        sighting = self._seen.get(worker)
        if sighting is None:
            return Standing.LIVING  # not watched yet
        age_s = self._looked - sighting.since
        if age_s >= self._pool.lease_s:
            return Standing.EXPIRED
        return Standing.SUSPECT if age_s >= self._pool.lease_s / 2 else Standing.LIVING

    def beating(self, worker: str) -> bool:
        """Return whether this observer itself has seen the worker's beat move lately."""
        sighting = self._seen.get(worker)
        return sighting is not None and sighting.moved and self.standing(worker) is Standing.LIVING

    def sees_alive(self, worker: str) -> bool:
        """Return whether it is surely alive: it runs on this host, or its beat moved lately."""
        return self.process(worker) is Process.RUNNING or self.beating(worker)

    @property
    def ended(self) -> set[str]:
        """The workers whose lease had ended at the last look."""
        return set(self._ended)

    def workers(self) -> list[str]:
        """Return the workers that had a living lease at the last look."""
        return [worker for worker, sighting in self._seen.items() if sighting.name is not None]

    def end(self, worker: str, ender: str) -> bool:
        """End an expired worker's lease from the very beat last seen (I9); True if it ended."""
        sighting = self._seen.get(worker)
        if sighting is None or sighting.name is None:
            return True  # there is no lease to end: its absence expired
        dead = LeaseName(worker, ended_by=ender)
        try:
            atomic.rename(self._pool.lease(sighting.name), self._pool.lease(dead))
            return True
        except OSError as error:
            if error.errno not in atomic.GONE:
                raise
            # RACE: it renewed after all, or left; or another observer ended it; or this rename took
            # effect, and the reply was lost.
            mine = [name for name in lease_names(self._pool) if name.worker == worker]
            return any(not name.living for name in mine)

    def process(self, worker: str) -> Process:
        """Return what this host knows about a worker's process, if it is of this host."""
        return look_at_process(self.facts(worker))

    def facts(self, worker: str) -> Mapping[str, Any]:
        """Return what a worker wrote into its lease when it enlisted; {} if it was never read."""
        sighting = self._seen.get(worker)
        name = self._ended.get(worker) or (sighting.name if sighting else None)
        if worker not in self._facts and name is not None:
            try:
                path = self._pool.lease(name)
                self._facts[worker] = read_json(path, patience_s=0.0, limit=FACTS_MAX)
            except (OSError, PoolError):
                pass  # RACE: it has just renewed; the next look may read it
        return self._facts.get(worker, {})


# ---- proof, on one host ----


def proof_of_life() -> dict[str, Any]:
    """Return what lets another process of this host find out whether this one still runs."""
    return {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "boot": _boot_id(),
        "pid_namespace": _pid_namespace(),
        "time_namespace": _time_namespace(),
        "started": _stat(os.getpid())[1],
    }


class Process(Enum):
    """What a host knows about a process."""

    RUNNING = auto()
    STOPPED = auto()  # by a signal or a debugger
    GONE = auto()  # it has ended
    UNKNOWN = auto()  # it is not of this host, or nothing can be proved here


def look_at_process(facts: Mapping[str, Any]) -> Process:
    """Return what became of the process that these facts (see `proof_of_life`) describe.

    Boot, PID namespace and start time must all match: containers on one host share the boot, a pid
    is soon reused, and in another time namespace a process shows another start time.
    """
    pid, started = facts.get("pid"), facts.get("started")
    boot, namespace = _boot_id(), _pid_namespace()
    if not (isinstance(pid, int) and pid > 0 and isinstance(started, str) and started):
        return Process.UNKNOWN
    if not (boot and namespace and facts.get("boot") == boot):
        return Process.UNKNOWN
    if (facts.get("pid_namespace"), facts.get("time_namespace")) != (namespace, _time_namespace()):
        return Process.UNKNOWN
    state, now_started = _stat(pid)
    if not state:
        return Process.UNKNOWN
    if now_started != started or state in "ZX":
        return Process.GONE
    return Process.STOPPED if state in "Tt" else Process.RUNNING


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""  # not Linux: nothing can be proved, and leases expire by time alone


def _pid_namespace() -> str:
    return _namespace("pid")


def _time_namespace() -> str:
    return _namespace("time")


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return ""  # a kernel without time namespaces: all processes share one


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state, and its start time in clock ticks since boot.

    ("X", "") if there is no such process; ("", "") if that cannot be found out.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", ""
    except OSError:
        return "", ""  # for example no descriptors left, which proves no death
    return fields[0], fields[19]
