"""What may go wrong in a simulated world, and how often: all of it chosen by the seed."""

from __future__ import annotations

import errno
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from random import Random
from typing import Any, Final

from tests.sim.fake_os import LOST_REPLY, SIM, Fault, _once_more
from tests.sim.planned_faults import BEFORE, SIGNAL, PlannedFault
from tests.sim.world import Actor, ActorEnded, Process, World

ASKING: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2)
"""What asks a process to leave."""
DEBRIS: Final = ("/outputs/.", "/partial/")
"""Where runs leave files behind."""
ROOMY: Final = ("create", "write", "fsync", "link", "mkdir")
"""The operations that a full disk refuses."""


_RANGES: Final = {
    "crash": (-3.0, -2.0),
    "ghost": (-3.0, -2.0),
    "signal": (-3.2, -2.2),
    "pause": (-2.2, -1.4),
}
"""Decimal logarithms of rates; low, because a process killed at once meets no other fault."""

HEAT: Final = 4.0
"""How much likelier a fault is at the operations that decide something."""


def _hot(paths: tuple[str, ...]) -> bool:
    return "/running/" in paths[0] or "/outputs/" in paths[0] or len(paths) > 1


@dataclass(frozen=True, slots=True)
class FaultRates:
    """The probability of each kind of fault, per file operation.

    Lost and repeated replies occur only with operations that have a reply to lose or repeat.
    """

    crash: float = 0.0
    """The process ends before the operation."""
    ghost: float = 0.0
    """The process ends, and the server does its request later."""
    pause: float = 0.0
    """The process is stopped for up to three leases, then continues."""
    hang: float = 0.0
    """The operation is done, and its reply comes up to two leases later."""
    signal: float = 0.0
    """The process gets SIGTERM or SIGUSR1."""
    lost: float = 0.0
    """The operation is done, and its caller gets an error as if it were not."""
    again: float = 0.0
    """The operation is done and answered, and the server does it once more, later."""
    stale: float = 0.0
    """ESTALE, not done."""
    error: float = 0.0
    """EIO, done or not."""
    full: float = 0.0
    """ENOSPC, not done."""
    timed_out: float = 0.0
    """ETIMEDOUT, done or not, after a while."""
    debris: float = 0.0
    """Of what a run left behind, a file or a directory cannot be removed."""
    stuck: float = 0.0
    """The operation of a main thread is done, and its reply comes three leases later or more."""

    @classmethod
    def random(cls, rng: Random) -> FaultRates:
        """Choose which faults occur, and how often: few kinds at a time, but several of those."""
        known = [kind.name for kind in fields(cls) if kind.name not in cls.nuisances()]
        kinds = rng.sample(known, rng.choice((0, 1, 1, 2, 2, 3, 5)))
        return cls(**{kind: 10 ** rng.uniform(*_RANGES.get(kind, (-2.7, -1.4))) for kind in kinds})

    @staticmethod
    def nuisances() -> tuple[str, ...]:
        """Return the kinds that `Nuisances` chooses."""
        return "timed_out", "debris", "stuck"


class FaultInjector:
    """Cause planned and random faults, while active."""

    def __init__(
        self,
        world: World,
        fault_rates: FaultRates,
        lease_s: float,
        planned_faults: Iterable[PlannedFault] = (),
    ) -> None:
        self.world = world
        self.fault_rates = fault_rates
        self.lease_s = lease_s
        self.active = True
        self.count: Counter[str] = Counter()
        self.cut_power: Callable[[], None] = lambda: None
        before = (*BEFORE, SIGNAL)
        self._before_it = [planned for planned in planned_faults if planned.kind in before]
        self._during_it = [planned for planned in planned_faults if planned.kind not in before]
        w = fault_rates
        self._before = w.crash + w.ghost + w.pause + w.signal
        self._kinds = ("timed out", "debris", "stuck", "hang", "stale", "error", "full")
        self._kinds += ("lost", "again")
        self._chances = (w.timed_out, 4 * w.debris, w.stuck, w.hang, w.stale, w.error, w.full)
        self._chances += (3 * w.lost, 3 * w.again)
        world.before = self.before
        SIM.fault = self.fault

    def before(self, actor: Actor) -> None:
        """Perhaps do something to the process that is about to do an operation."""
        if not self.active:
            return
        assert actor.doing is not None
        for kind in self._due_faults(self._before_it, *actor.doing):
            self._cause(actor, kind)
        heat = HEAT if _hot(actor.doing[1]) else 1.0
        heat *= 1.0 if actor.process.name.startswith("work") else 0.3
        if self.world.rng.random() >= heat * self._before:
            return
        w, rng = self.fault_rates, self.world.rng
        kind = rng.choices(
            ("crash", "ghost", "pause", "signal"), (w.crash, w.ghost, w.pause, w.signal)
        )[0]
        asleep = any(other.until > self.world.now for other in self.world.processes if other.alive)
        if kind == "pause" and asleep and rng.random() < 0.8:
            return  # one process must be awake to see that others are not
        self._cause(actor, kind)

    def _due_faults(
        self, planned_faults: list[PlannedFault], what: str, paths: tuple[Any, ...]
    ) -> list[str]:
        if not planned_faults:
            return []
        overdue = lambda: self._hasty(paths[0]) and bool(self._overdue())  # noqa: E731
        due = [planned for planned in planned_faults if planned.is_due(what, paths, overdue)]
        for planned in due:
            planned_faults.remove(planned)
        return [planned.kind for planned in due]

    def _hasty(self, path: str) -> bool:
        """Return whether this process has just listed the directory."""
        return self.world.now - self.world.me.looked.get(path, -9.0) < 2.0

    def _overdue(self) -> list[Process]:
        """Return the processes that have slept for longer than a lease."""
        now = self.world.now
        sleepers = (process for process in self.world.processes if process.alive)
        return [p for p in sleepers if p.until > now and now - p.asleep_since >= self.lease_s]

    def _cause(self, actor: Actor, kind: str) -> None:
        rng, process = self.world.rng, actor.process
        self.count["pause" if kind in ("long pause", "coma") else kind] += 1
        if kind == "pause":
            self._pause(process, self._long())
        elif kind == "long pause":
            self._pause(process, rng.uniform(1.05, 2.0) * self.lease_s)
        elif kind == "coma":
            self._pause(process, rng.uniform(2.0, 3.0) * self.lease_s)
        elif kind == "overtaken":
            for other in self._overdue():
                other.until = self.world.now
            self._pause(process, 0.3 * self.lease_s)
        elif kind == "power cut":
            self.world.at(self.world.now, self.cut_power)
            self.world.sleep(0.0)
        elif kind == "signal":
            number = rng.choice(ASKING)
            self.world.log(f"FAULT gets {number.name}", "")
            process.signals.append(number)
        else:
            self._crash(actor, ghost=kind == "ghost")

    def fault(self, what: str, paths: tuple[str, ...]) -> Fault | None:
        """Return the fault of one operation, if any."""
        if not self.active:
            return None
        for kind in self._due_faults(self._during_it, what, paths):
            return self._noted(kind, what, paths)
        rng, count = self.world.rng, 9 if what in LOST_REPLY else 7
        chances = self._chances[:count]
        if rng.random() >= (HEAT if _hot(paths) else 1.0) * sum(chances):
            return None
        return self._noted(rng.choices(self._kinds[:count], chances)[0], what, paths)

    def _noted(self, kind: str, what: str, paths: tuple[str, ...]) -> Fault | None:
        me = self.world.me
        if kind == "debris":
            return self._debris(what, paths[-1])
        fault = self._fault(kind, what, self.world.rng)
        if fault is not None:
            self.count[kind if kind != "error" else "error, done" if fault.done else kind] += 1
            if kind in ("stale", "error", "full", "timed out"):
                me.excuses.add("fault")
                me.troubles.append((what, paths[-1]))
            elif kind == "lost":
                me.excuses.add("lost")
        return fault

    def _fault(self, kind: str, what: str, rng: Random) -> Fault | None:
        if kind == "hang":
            return Fault(delay_s=self._long())
        if kind in ("interrupt", "error and asked"):
            self.world.me.signals += [signal.SIGTERM] * 2
        if kind == "interrupt":
            return Fault(delay_s=0.01)
        if kind == "error and asked":
            return Fault(errno.EIO, done=True, delay_s=0.01)
        if kind == "timed out":
            delay_s = rng.choice((0.5, 5.0))
            return Fault(errno.ETIMEDOUT, done=rng.random() < 0.5, delay_s=delay_s)
        if kind == "stuck" and self.world.current is self.world.me.actors[0]:
            return Fault(delay_s=rng.uniform(3.2, 5.0) * self.lease_s)
        if kind == "lost" and what in LOST_REPLY:
            # A reply is lost where a request is sent again, and that takes a while.
            return Fault(LOST_REPLY[what], done=True, delay_s=rng.choice((0.2, self._long())))
        if kind == "again" and what in LOST_REPLY:
            return Fault(again_s=self._long())
        if kind == "stale" and what not in ("create", "write", "mkdir"):
            return Fault(errno.ESTALE)
        if kind == "error":
            return Fault(errno.EIO, done=rng.random() < 0.5)
        if kind == "full" and what in ROOMY:
            return Fault(errno.ENOSPC)
        return None

    def _debris(self, what: str, path: str) -> Fault | None:
        """Return why what a run left behind cannot be removed; its process is not to blame."""
        if what not in ("unlink", "rmdir") or not any(part in path for part in DEBRIS):
            return None
        number = self.world.rng.choice((errno.EACCES, errno.EBUSY, errno.ENOTEMPTY))
        self.count["debris"] += 1
        return Fault(errno.EACCES if what == "unlink" else number)

    def _long(self) -> float:
        """Return a duration: any, or about as long as a lease."""
        share = self.world.rng.choice(((0.0, 3.0), (0.0, 0.3), (0.9, 1.6), (1.0, 2.5)))
        return self.world.rng.uniform(*share) * self.lease_s

    def _pause(self, process: Process, seconds: float) -> None:
        process.paused = True
        if seconds > self.lease_s:
            self.world.at(self.world.now + seconds, lambda: self._resumed(process))
        process.stopped = self.world.rng.random() < 0.5
        process.asleep_since = self.world.now
        process.until = self.world.now + seconds
        self.world.log("FAULT is stopped", f"for {seconds:.1f} s")
        self.world.sleep(0.0)

    def _crash(self, actor: Actor, *, ghost: bool) -> None:
        process, doing = actor.process, actor.doing
        process.excuses.add("dead")
        note = ""
        if ghost and doing is not None and doing[0] in LOST_REPLY:
            after = self._long()
            note = f"and its {doing[0]} comes {after:.1f} s late"
            what, paths = doing
            self.world.at(self.world.now + after, lambda: _once_more(what, paths, process))
        self.world.log("FAULT is killed", note)
        self.world.end(process)
        raise ActorEnded

    def _resumed(self, process: Process) -> None:
        self.count["resumed after a lease"] += process.alive
