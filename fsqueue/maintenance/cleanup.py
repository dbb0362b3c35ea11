"""Find and remove what killed processes left behind and nothing needs any more.

What is removed                                    when
    private files (.NAME.PID-RANDOM)               they existed for a whole lease, and no living
                                                   worker has that PID
    running/.renew.WORKER/, spools/S/.renew...     the same, and that worker is not alive
    plans/UID.staged/, plans/.UID.json             the plan got no number, and did not grow, for a
                                                   whole lease
    outputs/.WORKER/ or .WORKER.dead/,
    control/ORDER@WORKER                           that worker is gone
    partial/ID/                                    ID is done
    a worker's status, journal and ended lease     it left or died long enough ago, on request

Which workers are alive is read from leases; how long ago a worker left, from the age of a file,
because there is no better clock; all that is at stake is a line in a report.

Workers, planners and other cleaners may be at work meanwhile, and any of them may be killed at any
operation. A planner that was only slow finds that its plan can get no number any more (`_abandon`),
so no plan is ever left without its claims.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fsqueue.errors import PoolError
from fsqueue.pool import claims, plans
from fsqueue.pool.inbox import PARTS, inbox_of
from fsqueue.pool.layout import DIRECTORIES, ORDER, State
from fsqueue.pool.leases import (
    Observer,
    Process,
    Standing,
    ended_lease_names,
    lease_names,
)
from fsqueue.pool.names import ID, WORKER
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.storage import atomic, directories

_PRIVATE: Final = re.compile(r"\..+\.(\d+)-[0-9a-f]{12}", re.ASCII)
_RENEW: Final = re.compile(rf"\.renew\.({WORKER.pattern})", re.ASCII)
_SCRATCH: Final = re.compile(rf"\.({WORKER.pattern})(?:\.dead)?", re.ASCII)
_PRIVATE_PLAN: Final = re.compile(r"\.([0-9a-f]+)\.json", re.ASCII)
_PID: Final = re.compile(r"-(\d+)-[^-]*$", re.ASCII)


class LeftoverKind(StrEnum):
    """What was left behind."""

    UNFINISHED = "unfinished"
    """A file that was being written."""
    PLAN = "plan"
    """A staged plan that never got a number."""
    SCRATCH = "scratch"
    """The private directory of a dead worker in outputs/."""
    ORDER = "order"
    CHECKPOINTS = "checkpoints"
    STATUS = "status"
    JOURNAL = "journal"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is not needed any more: what it is, where, and which process left it."""

    kind: LeftoverKind
    path: str
    whose: str

    @property
    def size(self) -> int:
        """Its size in bytes; 0 if it is gone."""
        within = (f"{at}/{name}" for at, _, files in os.walk(self.path) for name in files)
        return sum(map(_size, within)) if os.path.isdir(self.path) else _size(self.path)


LOOKS_PER_LEASE: Final = 8


def clean_pool(
    pool: PoolDirectory,
    *,
    older_than_s: float | None = None,
    dry_run: bool = False,
    on_wait: Callable[[float], object] | None = None,
) -> list[tuple[Leftover, int]]:
    """Remove what killed processes left behind; return it with the bytes that it held.

    Workers that left or died more than `older_than_s` ago are forgotten, too. Looks until nothing
    is doubtful any more, which takes up to a lease; `on_wait` is called with the seconds left.
    """
    cleaner = Cleaner(pool, older_than_s=older_than_s)
    until = time.monotonic() + pool.lease_s * (1 + 2 / LOOKS_PER_LEASE)
    while True:
        found = cleaner.look()
        left_s = until - time.monotonic()
        if not cleaner.doubtful or left_s <= 0:
            break
        if on_wait is not None:
            on_wait(left_s)
        time.sleep(pool.lease_s / LOOKS_PER_LEASE)
    removed = []
    for leftover in found:
        size = leftover.size
        if dry_run or remove(pool, leftover):
            removed.append((leftover, size))
    return removed


class Cleaner:
    """Looks at a pool repeatedly to find what is not needed."""

    def __init__(
        self,
        pool: PoolDirectory,
        *,
        older_than_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pools = pool, inbox_of(pool)
        self._pool = pool
        self._older_than_s = older_than_s
        self._clock = clock
        self._observer = Observer(pool, clock)
        self._since: dict[object, float] = {}
        self.doubtful = False
        """Whether more looks, for up to a lease, may find more."""

    def look(self) -> list[Leftover]:
        """Return what is certainly not needed, by this look and those before it."""
        pool, now, self.doubtful = self._pool, self._clock(), False
        holders = {name.owner for name in claims.owned(pool, State.RUNNING) if name.owner}
        owners, orders = set(self._scratch_owners()), dict(self._orders())
        self._observer.look(holders | owners | orders.keys())
        living = holders.union(filter(self._lives, self._observer.workers()))
        ripe: list[Leftover] = []
        seen: dict[object, float] = {}
        for key, leftover in (*self._unfinished(living), *self._unnumbered()):
            since = seen[key] = self._since.get(key, now)
            if now - since >= pool.lease_s:
                ripe.append(leftover)
        self._since = seen
        self.doubtful = len(ripe) < len(seen)
        for worker in sorted((owners | orders.keys()) - living):
            if self._is_gone(worker):
                paths = [each.scratch(worker) for each in self._pools]
                # .dead: its worker or a recoverer was killed while it removed it
                paths += [f"{path}.dead" for path in paths]
                ripe += [Leftover(LeftoverKind.SCRATCH, path, worker) for path in paths]
                ripe += [
                    Leftover(LeftoverKind.ORDER, path, worker) for path in orders.get(worker, ())
                ]
            else:
                self.doubtful = True  # no lease is listed, but a renewal can hide one for a moment
        ripe += [*self._checkpoints(), *self._records(living)]
        return [each for each in ripe if os.path.lexists(each.path)]

    def _lives(self, worker: str) -> bool:
        """Return whether a worker with a lease may be alive: only proof of death counts."""
        return self._observer.process(worker) is not Process.GONE

    def _is_gone(self, worker: str) -> bool:
        ended = self._observer.standing(worker) in (Standing.ENDED, Standing.EXPIRED)
        return ended or not self._lives(worker)

    def _scratch_owners(self) -> Iterator[str]:
        for pool in self._pools:
            names = atomic.private_names(pool.directory("outputs"))
            yield from (match[1] for name in names if (match := _SCRATCH.fullmatch(name)))

    def _orders(self) -> dict[str, list[str]]:
        """Return the orders that are for a single worker, by worker."""
        root = self._pool.directory("control")
        found: dict[str, list[str]] = {}
        for match in map(ORDER.fullmatch, atomic.names(root)):
            if match is not None and match[2] and match[1] != "cancel":
                found.setdefault(match[2], []).append(f"{root}/{match[0]}")
        return found

    def _unfinished(self, living: set[str]) -> Iterator[tuple[object, Leftover]]:
        """Yield files that were being written by a process that is not a living worker."""
        pids = {match[1] for worker in living if (match := _PID.search(worker))}
        pool, inbox = self._pools
        directories = [*(pool.directory(name) for name in DIRECTORIES), pool.code()]
        directories += [pool.root, inbox.root, *map(inbox.directory, PARTS)]
        directories += [pool.spool(spool) for spool in spool_names(pool)]
        for root in (pool.directory("partial"), inbox.directory("spools")):
            directories += [f"{root}/{name}" for name in _listed(root)]
        for directory in directories:
            for name in atomic.private_names(directory):
                path = f"{directory}/{name}"
                if (match := _PRIVATE.fullmatch(name)) and match[1] not in pids:
                    yield path, Leftover(LeftoverKind.UNFINISHED, path, f"process {match[1]}")
                elif (match := _RENEW.fullmatch(name)) and match[1] not in living:
                    yield path, Leftover(LeftoverKind.UNFINISHED, path, match[1])

    def _unnumbered(self) -> Iterator[tuple[object, Leftover]]:
        """Yield what is left of plans without a number, with their progress."""
        pool, root = self._pool, self._pool.directory("plans")
        staged = {name[:-7] for name in atomic.names(root) if name.endswith(".staged")}
        numbered = {plan.uid for plan in plans.read_plans(pool)}
        for uid in sorted(filter(ID.fullmatch, staged - numbered)):
            parts = sorted(_listed(pool.staged(uid)))
            far = tuple((part, len(_listed(f"{pool.staged(uid)}/{part}"))) for part in parts)
            yield (uid, far), Leftover(LeftoverKind.PLAN, pool.staged(uid), uid)
        for match in map(_PRIVATE_PLAN.fullmatch, atomic.private_names(root)):
            if match is not None and match[1] not in staged:
                path = f"{root}/{match[0]}"
                if not os.path.isdir(path):  # see `_abandon`
                    yield path, Leftover(LeftoverKind.UNFINISHED, path, f"plan {match[1]}")

    def _checkpoints(self) -> Iterator[Leftover]:
        partial = set(filter(ID.fullmatch, _listed(self._pool.directory("partial"))))
        done = claims.owned(self._pool, State.DONE) if partial else ()  # a long listing
        for id in sorted(partial & {name.id for name in done}):
            yield Leftover(LeftoverKind.CHECKPOINTS, self._pool.partial(id), id)

    def _records(self, living: set[str]) -> Iterator[Leftover]:
        """Yield the records of workers that left or died longer ago than `older_than_s`."""
        pool = self._pool
        if self._older_than_s is None:
            return
        ended = {f"{pool.directory('workers')}/{name}": name for name in lease_names(pool)}
        ended |= {pool.lease(name): name for name in ended_lease_names(pool)}
        for path, name in sorted(ended.items()):
            worker = name.worker
            if name.living or worker in living or _age_s(path) < self._older_than_s:
                continue
            yield Leftover(LeftoverKind.STATUS, pool.status(worker), worker)
            yield Leftover(LeftoverKind.JOURNAL, pool.events(worker), worker)
            yield Leftover(
                LeftoverKind.LEASE, path, worker
            )  # last: if killed before, the next run finds it


def remove(pool: PoolDirectory, leftover: Leftover) -> bool:
    """Remove a leftover; return False if it is needed after all."""
    if leftover.kind == LeftoverKind.PLAN:
        return _abandon(pool, leftover.whose)
    if os.path.isdir(leftover.path):
        directories.discard(leftover.path)
    else:
        atomic.discard(leftover.path)
    return True


def _abandon(pool: PoolDirectory, uid: str) -> bool:
    """Remove a staged plan, and make sure that it never gets a number if its planner is alive.

    A plan is written under a private name, and gets its number by a link from there. So an empty
    directory takes that name and stays: no file can be written in its place or linked from it.
    """
    plans.forbid(pool, uid)
    if uid in {plan.uid for plan in plans.read_plans(pool)}:
        # RACE: its planner had just linked it.
        return False
    directories.discard(pool.staged(uid))
    return True


def _listed(directory: str) -> list[str]:
    try:
        return atomic.names(directory)
    except PoolError:
        return []  # RACE: completed or cleaned meanwhile; most pools have no inbox


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0  # RACE: removed meanwhile


def _age_s(path: str) -> float:
    try:
        return time.time() - os.lstat(path).st_mtime
    except OSError:
        return 0.0  # RACE: as above
