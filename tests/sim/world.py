"""A world in which one actor runs at a time, chosen before each file operation.

An actor is a thread of a process: a greenlet that runs the real code. It stops before every
operation on the shared file system and whenever it sleeps or waits; then the next actor is chosen.
Time is simulated and passes only between operations. Processes live on hosts; a host has its
own clocks and its own sight of the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from signal import SIGALRM
from typing import Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

from tests.sim.disk import Disk
from tests.sim.mount import LOCAL, Mount, Traits

TRACE_MAX: Final = 20_000


def DEFAULT(number: int, frame: Any) -> None:
    """Stand for the default action of a signal: end the process."""


class Table(Enum):
    """What /proc shows to the processes of a host."""

    OPEN = auto()
    HIDDEN = auto()  # hidepid=2: its own family of processes, and of others not even a number
    OUTER = auto()  # that of another PID namespace, in which numbers mean other processes


class Violation(AssertionError):
    """Something happened that must never happen."""


class ActorEnded(GreenletExit):
    """Raised inside an actor whose process has ended."""


@dataclass(slots=True, eq=False)
class Host:
    """A machine: its view of the disk, its clocks, and its processes."""

    name: str
    mount: Mount
    boot: str
    monotonic: float
    wall: float
    rate: float = 1.0
    pids: dict[int, Process] = field(default_factory=dict)
    table: Table = Table.OPEN
    """What its processes see of each other."""
    sick: bool = False
    """Whether every handler fails on it."""


@dataclass(slots=True, eq=False)
class Process:
    """A process: what it was started for, and what became of it."""

    name: str
    host: Host
    pid: int
    started: str
    alive: bool = True
    until: float = 0.0
    """Stopped until then."""
    asleep_since: float = 0.0
    stopped: bool = False
    """Stopped by a signal or a suspended host, and not by a slow disk."""
    ended_at: float = 0.0
    looked: dict[str, float] = field(default_factory=dict)
    """When it last listed a directory."""
    exit: int | None = None
    error: BaseException | None = None
    excuses: set[str] = field(default_factory=set)
    """What was done to it that explains how it ended."""
    troubles: list[tuple[str, str]] = field(default_factory=list)
    """Which operations of it met an error: what was to be done, to which path."""
    released: tuple[str, float, float] = ("", 0.0, 0.0)
    """Which claim it put back last without a failure, when, and for how long it had held it."""
    paused: bool = False
    """Whether it was ever stopped, or its disk was slow: then it may be late with everything."""
    alarm: float = math.inf
    """When SIGALRM is due."""
    deaf: bool = False
    """Whether its handler holds the interpreter, so that no signal reaches it."""
    stuck_since: float = math.inf
    """Since when its main thread waits for the disk outside a handler."""
    slow_beat: bool = False
    """Whether the disk was ever slow for its second thread."""
    renewed_at: float = math.inf
    """When its lease was renewed last."""
    late_at: float = -math.inf
    """When a renewal last came so late that what watches its main thread cannot have looked."""
    busy_since: float = math.inf
    """Since when a handler runs in it."""
    operations: int = 0
    """How many operations it has counted (`fsqueue.storage.operation_count`)."""
    guards: Process | None = None
    """The worker that it guards, if it is a guardian."""
    guardian: Process | None = None
    """The process that guards it."""
    children: list[Process] = field(default_factory=list)
    """What its handlers started and left behind."""
    worker: Any = None
    """The `fsqueue.worker.worker.Worker` that runs in it."""
    handlers: dict[int, Callable[[int, Any], None]] = field(default_factory=dict)
    signals: list[int] = field(default_factory=list)
    files: dict[int, Any] = field(default_factory=dict)
    actors: list[Actor] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.name

    def family(self) -> set[Process]:
        """Return it, its guardian or worker, and what those started: all of one user."""
        head = self.guards or self
        return {head, *head.children} | ({head.guardian} if head.guardian else set())


class Actor:
    """One thread of a process."""

    __slots__ = ("process", "name", "green", "wake", "ready_if", "pending", "doing")

    def __init__(
        self, process: Process, name: str, body: Callable[[], None], hub: greenlet
    ) -> None:
        self.process = process
        self.name = name
        self.green = greenlet(body, hub)
        self.wake = 0.0
        self.ready_if: Callable[[], bool] | None = None
        self.pending: tuple[str, tuple[Any, ...]] | None = None
        """The operation it stopped before."""
        self.doing: tuple[str, tuple[Any, ...]] | None = None

    def ready(self, now: float) -> bool:
        """Return whether it can continue now."""
        process = self.process
        if process.until > now:
            return False
        if process.signals and not process.deaf and self is process.actors[0]:
            return True
        return self.wake <= now or (self.ready_if is not None and self.ready_if())

    def __repr__(self) -> str:
        return f"{self.process.name}/{self.name}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the trace."""

    step: int
    now: float
    who: str
    what: str
    paths: tuple[str, ...]
    outcome: str


class World:
    """Disk, hosts, processes and time."""

    def __init__(self, seed: int, traits: Traits = LOCAL, *, selective: bool = False) -> None:
        self.hub = getcurrent()
        self.rng = Random(seed)
        self.now = 0.0
        self.steps = 0
        self.traits = traits
        self.disk = Disk(lambda: self.now, selective=selective)
        self.hosts: list[Host] = []
        self.processes: list[Process] = []
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.violation: Violation | None = None
        self.on_behalf_of: Process | None = None
        """Whose request the server does now, if it comes late."""
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self.locks: dict[str, Process] = {}
        self.trace: list[Line] = []
        self.before: Callable[[Actor], None] = lambda _: None
        """Called whenever an actor is about to do its next operation: the place for accidents."""
        self.alarmed: list[Process] = []
        """Processes that have asked for SIGALRM."""
        self._count = 0

    # ---- making ----

    def add_host(self, *, skew_s: float = 0.0, rate: float = 1.0) -> Host:
        """Add a machine whose clocks are wrong by so much."""
        clock = lambda: self.now  # noqa: E731
        mount = Mount(self.disk, self.traits, clock, self.rng)
        name = f"host{len(self.hosts)}"
        begun = self.rng.uniform(0, 1e6)
        host = Host(name, mount, self.token(), begun, 1.79e9 + skew_s, rate)
        self.hosts.append(host)
        return host

    def start(self, host: Host, name: str, body: Callable[[Process], int | None]) -> Process:
        """Start a process that runs `body`."""
        self._count += 1
        pid = self.rng.choice([pid for pid in range(100, 140) if pid not in host.pids])
        process = Process(f"{name}-{self._count}", host, pid, f"{self._count}")
        host.pids[pid] = process
        self.processes.append(process)

        def main() -> None:
            try:
                process.exit = body(process)
            except ActorEnded:
                return
            except BaseException as error:
                process.error = error
            self.log("ends", f"{process.error!r}" if process.error else f"{process.exit}")
            self.end(process)

        self.thread(process, "main", main)
        return process

    def thread(self, process: Process, name: str, body: Callable[[], None]) -> Actor:
        """Start another thread of a process."""

        def run() -> None:
            try:
                body()
            except ActorEnded:
                return

        actor = Actor(process, name, run, self.hub)
        process.actors.append(actor)
        self.actors.append(actor)
        return actor

    def token(self, length: int = 12) -> str:
        """Return random hexadecimal digits, the same for the same seed."""
        return f"{self.rng.getrandbits(4 * length):0{length}x}"

    # ---- ending ----

    def end(self, process: Process) -> None:
        """Let a process be no more; what it was doing is left as it is."""
        process.alive = False
        process.ended_at = self.now
        process.files.clear()
        process.host.pids.pop(process.pid, None)
        if process in self.alarmed:
            self.alarmed.remove(process)
        for path in [path for path, holder in self.locks.items() if holder is process]:
            del self.locks[path]
        for actor in process.actors:
            if actor in self.actors:
                self.actors.remove(actor)
            if actor.green is not getcurrent() and not actor.green.dead:
                outer, self.current = self.current, actor
                actor.green.parent = getcurrent()  # where it goes when it has ended
                actor.green.throw(ActorEnded)
                self.current = outer

    def stop(self) -> None:
        """End every process."""
        for process in self.processes:
            if process.alive:
                self.end(process)

    # ---- what an actor calls ----

    @property
    def me(self) -> Process:
        """The process that runs now."""
        assert self.current is not None
        return self.current.process

    def turn(self, what: str, paths: tuple[Any, ...]) -> None:
        """Stop before an operation, until it is our turn to do it."""
        actor = self.current
        assert actor is not None
        if not actor.process.alive:
            raise ActorEnded
        actor.pending = what, paths
        actor.wake, actor.ready_if = self.now, None
        self._park(actor)
        actor.doing, actor.pending = actor.pending, None
        self.steps += 1
        self.before(actor)

    def sleep(self, seconds: float, ready_if: Callable[[], bool] | None = None) -> None:
        """Let so much time pass, or less if `ready_if` comes true before."""
        actor = self.current
        assert actor is not None
        if not actor.process.alive:
            raise ActorEnded
        until = self.now + seconds
        while True:
            actor.wake, actor.ready_if = until, ready_if
            self._park(actor)
            if self.now >= until or (ready_if is not None and ready_if()):
                return  # otherwise a signal woke it

    def _park(self, actor: Actor) -> None:
        self.hub.switch()
        if not actor.process.alive:
            raise ActorEnded
        process = actor.process
        while process.signals and not process.deaf and actor is process.actors[0]:
            number = process.signals.pop(0)
            handler = process.handlers.get(number, DEFAULT)
            if handler is DEFAULT:
                if process.worker is not None and process.worker.shutdown._previous:
                    self.violation = self.violation or Violation(
                        f"R6: {process} was killed by the signal {number}"
                    )
                process.excuses.add("dead")
                self.log("is killed by the signal", "")
                self.end(process)
                raise ActorEnded
            handler(number, None)

    def inode(self, file: Any) -> Any:
        """Return the file that a descriptor stands for."""
        return file.inode

    def log(self, what: str, outcome: str, *paths: str) -> None:
        """Add a line to the trace."""
        who = repr(self.current) if self.current else "world"
        self.trace.append(Line(self.steps, self.now, who, what, paths, outcome))
        if len(self.trace) > TRACE_MAX:
            del self.trace[: TRACE_MAX // 2]

    # ---- running ----

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at a moment to come."""
        self._count += 1
        self.later.append((when, self._count, what))
        self.later.sort(key=lambda entry: entry[:2])

    def ready(self) -> list[Actor]:
        """Return the actors that can continue now."""
        now = self.now
        return [actor for actor in self.actors if actor.ready(now)]

    def next_event(self) -> float | None:
        """Return when the next actor wakes or the next event is due, if ever."""
        times = [max(actor.wake, actor.process.until) for actor in self.actors]
        times += [self.later[0][0]] if self.later else []
        times += [max(process.alarm, process.until) for process in self.alarmed]
        return min(times, default=None)

    def resume(self, actor: Actor) -> None:
        """Let an actor go on until it stops again."""
        self.current = actor
        actor.green.switch()
        self.current = None
        if self.violation is not None:
            raise self.violation
        if actor.green.dead and actor in self.actors:
            self.actors.remove(actor)

    def due(self) -> None:
        """Do what is due."""
        while self.later and self.later[0][0] <= self.now:
            self.later.pop(0)[2]()
        for process in [each for each in self.alarmed if each.alarm <= self.now]:
            self.alarmed.remove(process)
            process.alarm = math.inf
            process.signals.append(SIGALRM)
