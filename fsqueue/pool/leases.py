"""Tell a dead worker from a slow one: a lease is a file whose name carries its beat.

A worker renews its lease every quarter of `lease_s` by renaming `workers/ID.b000412` to
`ID.b000413`. A process that has seen the same beat for `lease_s` on its own clock may end the lease
by renaming that very beat to `ended/ID.dead@ENDER` (I9). Both renames are the same
compare-and-swap, so exactly one of them happens: either the worker lives on, or its next renewal
fails and it knows.

Beats are read by listing, never by stat: on NFS a listing is fresh to milliseconds, while
attributes lag by half a minute. No clock but the observer's own monotonic one is ever read.

    [b000000] -- renew --> [b000001] -- ... ---------- retire --> [left]
                              |  ' ------------------- end -----> [dead@ENDER]
                              '-- renew, once it leaves --> [leaving-b000002] --> ...
                                                              '-- end --> [leaving-dead@ENDER]

R12  A process that this host sees run is not dead because it is silent: an observer on the same
     host waits three leases for its beat, instead of one.
R13  An absence is believed only after ABSENT_LOOKS more listings right before acting on it, each of
     which misses the name, too: a listing of a busy directory misses names. Where there is a lease,
     the rename decides, and no number of listings.
R15  A worker that leaves says so in its lease's name. One that left, or was leaving, is not to
     blame for what it still holds: that goes back without an attempt being charged.
R19  A lease that has ended moves to workers/ended/ by the rename that ends it, so that workers/
     holds no more than the living. Only a process that misses a worker looks there.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from fsqueue.errors import LeaseLost, PoolError
from fsqueue.pool.names import LeaseName, is_of_this_host, pid_of
from fsqueue.pool.proof_of_life import Process as Process
from fsqueue.pool.proof_of_life import look_at_process as look_at_process
from fsqueue.pool.proof_of_life import proof_of_life as proof_of_life
from fsqueue.pool.proof_of_life import seems_to_run
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories
from fsqueue.storage.untrusted import FACTS_MAX, read_json

BEATS_PER_LEASE: Final = 4
SILENCE_LEASES: Final = 3
"""How long a process that is seen to run may be silent (R12)."""
ABSENT_LOOKS: Final = 5
"""How often a name that a listing missed is looked for again (R13). docs/decisions.md has how often
listings of a busy directory miss one."""


class Lease:
    """This worker's own lease. Enlist before taking anything, retire after holding nothing."""

    def __init__(self, pool: PoolDirectory, worker: str) -> None:
        self._pool = pool
        self.name = LeaseName(worker, beat=0)
        self._made: bytes | None = None
        """What `enlist` tried to publish, and may have published, when it met an error."""

    def enlist(self, facts: dict[str, Any] | None = None) -> None:
        """Make the lease visible, with what lets processes of this host prove our death.

        Can be repeated after an error. Raises LeaseLost if another worker has ended it already.
        """
        path = self._pool.lease(self.name)
        made = self._made
        data = made or json.dumps((facts or {}) | proof_of_life(), indent=1).encode() + b"\n"
        try:
            published = atomic.publish(path, data)
        except OSError:
            self._made = data
            raise
        if published:
            return
        try:
            found = atomic.read(path, patience_s=0.0)
        except FileNotFoundError as error:
            # RACE: it was there for longer than a lease before we got to know, and was ended.
            lost = _why_lost(self.name.worker, _names_of(self._pool, self.name.worker))
            raise LeaseLost(lost) from error
        if found != made:  # RACE: else it became visible although an error was reported
            raise PoolError(f"{path} exists already: two workers have the same id.")

    def renew(self, *, leaving: bool = False) -> None:
        """Move to the next beat, which may say that this worker is leaving (R15).

        Raises LeaseLost if the lease was ended, OSError otherwise.
        """
        following = self.name.following(leaving=leaving)
        try:
            atomic.rename(self._pool.lease(self.name), self._pool.lease(following))
        except OSError as error:
            if error.errno not in atomic.GONE:
                raise
            # RACE: an observer ended it; or it was renewed, and the reply was lost, or the process
            # that renewed it for us was killed before it could tell.
            mine = _names_of(self._pool, self.name.worker)
            if self.name in mine:
                raise  # still ours: a passing error of the mount; the next beat tries again
            renewed = [name for name in mine if name.beat == following.beat]
            if not renewed:
                raise LeaseLost(_why_lost(self.name.worker, mine)) from error
            following = renewed[0]
        self.name = following

    def retire(self) -> None:
        """End our own lease, now that we hold nothing."""
        self._end(LeaseName(self.name.worker))

    def give_up(self, *, leaving: bool) -> str:
        """End our own lease although we may still hold claims, as an observer would.

        Returns why it is lost. Raises OSError if it lives on: a mount can answer ESTALE to every
        try. To learn that from a renewal would renew it.
        """
        me = self.name.worker
        self._end(LeaseName(me, ended_by=me, leaving=leaving or self.name.leaving))
        mine = _names_of(self._pool, me)
        if living := [name for name in mine if name.living]:
            path = self._pool.lease(living[0])
            raise OSError(errno.ESTALE, "it could not be renamed", path)
        return _why_lost(me, mine)

    def _end(self, ended: LeaseName) -> None:
        if _end(self._pool, self.name, ended):
            return
        # RACE: the last renewal took effect, its reply was lost; or another process ended the
        # lease first.
        for name in _names_of(self._pool, self.name.worker):
            if name.living and _end(self._pool, name, ended):
                return


def _end(pool: PoolDirectory, name: LeaseName, ended: LeaseName) -> bool:
    """End a lease from this very beat (I9); False if the beat is not there. Raises OSError."""
    for _ in range(2):
        try:
            atomic.rename(pool.lease(name), pool.lease(ended))
            return True
        except OSError as error:
            if error.errno not in atomic.GONE:
                raise
            if not directories.make(pool.ended_leases):
                break  # this was there, so the beat is not
    return False


def _why_lost(worker: str, names: Iterable[LeaseName]) -> str:
    enders = [name.ended_by for name in names if name.ended_by]
    if worker in enders:
        return (
            f"{worker} gave up its lease, as it made no progress for two leases, with no handler "
            f"running. Is its terminal or its file system stuck? Its claims were put back."
        )
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
    """List the leases in workers/: all that live, and those that ended under earlier versions."""
    return _parsed(atomic.names(pool.directory("workers")))


def ended_lease_names(pool: PoolDirectory) -> list[LeaseName]:
    """List the leases that have ended, but for those that ended under earlier versions."""
    try:
        return _parsed(atomic.names(pool.ended_leases))
    except PoolError:
        return []  # none has ended yet


def _parsed(texts: Iterable[str]) -> list[LeaseName]:
    return [name for text in texts if (name := LeaseName.parse(text)) is not None]


def _names_of(pool: PoolDirectory, worker: str) -> list[LeaseName]:
    """Return the names of a worker's lease. None only if several listings miss it (R13)."""
    for _ in range(ABSENT_LOOKS):
        # The living first: a lease that ends meanwhile is seen where it arrives.
        names = [*lease_names(pool), *ended_lease_names(pool)]
        if mine := [name for name in names if name.worker == worker]:
            return mine
    return []


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
        self._find_ended({worker for worker, name in found.items() if name is None})
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

    def _find_ended(self, missing: set[str]) -> None:
        """Look whether the lease of a worker that is watched, but has none, has ended. R19."""
        if missing - self._ended.keys():
            names = ended_lease_names(self._pool)
            self._ended |= {name.worker: name for name in names if name.worker in missing}

    def standing(self, worker: str) -> Standing:
        """Return what the looks so far show about a worker."""
        if worker in self._ended:
            return Standing.ENDED
        sighting = self._seen.get(worker)
        if sighting is None:
            return Standing.LIVING  # not watched yet
        age_s = self._looked - sighting.since
        if age_s >= self._pool.lease_s:
            patient = age_s < SILENCE_LEASES * self._pool.lease_s
            if patient and self.process(worker) is Process.RUNNING:
                return Standing.SUSPECT  # R12
            return Standing.EXPIRED
        return Standing.SUSPECT if age_s >= self._pool.lease_s / 2 else Standing.LIVING

    def beating(self, worker: str) -> bool:
        """Return whether this observer itself has seen the worker's beat move lately."""
        sighting = self._seen.get(worker)
        return sighting is not None and sighting.moved and self.standing(worker) is Standing.LIVING

    def sees_alive(self, worker: str) -> bool:
        """Return whether it is surely alive: its beat moved lately, or it runs on this host."""
        return self.beating(worker) or self.process(worker) is Process.RUNNING

    def excuses(self, worker: str) -> bool:
        """Return whether a worker left, or was leaving, when its lease was seen last (R15)."""
        sighting = self._seen.get(worker)
        name = self._ended.get(worker) or (sighting.name if sighting else None)
        return name is not None and name.excuses

    def workers(self) -> list[str]:
        """Return the workers that had a living lease at the last look."""
        return [worker for worker, sighting in self._seen.items() if sighting.name is not None]

    def end(self, worker: str, ender: str) -> bool:
        """End an expired worker's lease from the very beat last seen (I9); True if it ended.

        If it had no lease, look again whether it has none (R13).
        """
        sighting = self._seen.get(worker)
        if sighting is not None and sighting.name is not None:
            dead = sighting.name.dead(ender)
            if _end(self._pool, sighting.name, dead):
                self._ended[worker] = dead
                return True
            # RACE: it renewed after all, or left; or another observer ended it; or this rename took
            # effect, and the reply was lost.
        mine = _names_of(self._pool, worker)
        if any(name.living for name in mine):
            return False
        if mine:
            self._ended[worker] = mine[0]
        return bool(mine) or sighting is None or sighting.name is None

    def is_gone(self, worker: str) -> bool:
        """Return whether a worker's process was of this host and is gone.

        No lease is opened while a process has the pid that the worker's id shows: so this costs the
        file server nothing as long as all is well. A pid that another process has by now is found
        out once the worker is suspect.
        """
        if not is_of_this_host(worker):
            return False
        pid = pid_of(worker)
        if pid is not None and self.standing(worker) is Standing.LIVING and seems_to_run(pid):
            return False
        return self.process(worker) is Process.GONE

    def process(self, worker: str) -> Process:
        """Return what this host knows about a worker's process, if it is of this host."""
        if not is_of_this_host(worker):
            return Process.UNKNOWN
        return look_at_process(self.facts(worker))

    def facts(self, worker: str) -> Mapping[str, Any]:
        """Return what a worker wrote into its lease when it enlisted; {} if it was never read."""
        sighting = self._seen.get(worker)
        name = self._ended.get(worker) or (sighting.name if sighting else None)
        if worker not in self._facts and name is not None:
            paths = [self._pool.lease(name)]
            if not name.living:
                paths.append(f"{self._pool.directory('workers')}/{name}")  # an earlier version's
            for path in paths:
                try:
                    self._facts[worker] = read_json(path, patience_s=0.0, limit=FACTS_MAX)
                    break
                except (OSError, PoolError):
                    pass  # RACE: it has just renewed; the next look may read it
        return self._facts.get(worker, {})
