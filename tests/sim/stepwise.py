"""Workers that do one step at a time, on order.

A stepping worker is the real one but for its loop: it waits for an order, obeys, and waits again.
So does its handler while a claim runs. Nothing else happens meanwhile, unless the worker is stopped
in the middle of a step; then it continues when it is woken, perhaps as a zombie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from fsqueue.errors import ClaimFailed, ClaimImpossible, Interrupted, WorkerBroken
from fsqueue.handler import Work
from fsqueue.pool import claims
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import open_pool
from fsqueue.records.status import LeaveReason
from fsqueue.worker.shutdown import Departure
from fsqueue.worker.worker import Worker, WorkerSettings
from tests.sim.actors import ROOT, Simulated
from tests.sim.fake_os import SIM, Fault
from tests.sim.scenario import Scenario, Simulation
from tests.sim.world import Host, Process

FOREVER: Final = 1e12
STEP_S: Final = 0.001
ERRORS: Final[dict[str, Exception]] = {
    "fail": ClaimFailed("it did not go well"),
    "err": ZeroDivisionError("a handler's mistake"),
    "give up": ClaimImpossible("Impossible: it never will"),
    "break": WorkerBroken("this process is beyond repair"),
    "stop": Interrupted("asked to stop"),
}

Order = Callable[["SteppingWorker"], Departure | None]


class SteppingWorker(Worker):
    """A worker whose every step is an order."""

    stepped: SteppedWorker

    def _loop(self) -> Departure:
        while True:
            order: Order = self.stepped.next_order()
            if (departure := order(self)) is not None:
                return departure

    def beat_once(self) -> None:
        """Beat, which also reads the orders."""
        if self.beat.lost is None:
            self.beat._beat()


class SteppingHandler(Simulated):
    """A handler whose every step is an order."""

    def __init__(self, stepped: SteppedWorker) -> None:
        self._stepped = stepped

    def run(self, work: Work) -> None:
        self._stepped.work = work
        try:
            while (order := self._stepped.next_order()) != "finish":
                if order in ERRORS:
                    self._excuse(work, order)
                    raise ERRORS[order]
                order(self._stepped.worker)
            self._write(work)
        finally:
            self._stepped.work = None

    @staticmethod
    def _excuse(work: Work, order: str) -> None:
        if order != "stop":
            SIM.world.me.excuses.add(f"{work.id}.a{work.attempt}")
        if order == "break":
            SIM.world.me.excuses.add("broken")
        if order == "give up":
            SIM.world.me.excuses.add(f"{work.id}.a{work.attempt} for good")


class SteppedWorker:
    """A stepping worker, seen from outside."""

    def __init__(self, simulation: StepwiseSimulation, host: Host, spool: str | None) -> None:
        self.spool, self.boot = spool, host.boot
        self.waits = False
        """Whether it waits for an order; if not, it is in the middle of one."""
        self.work: Work | None = None
        """What its handler runs."""
        self.name: ClaimName | None = None
        """What it took last."""
        self._orders: list[Any] = []
        self.process = simulation.start("work", self._body, host)
        self.id = f"{host.name}-{self.process.name}"
        simulation.checker.workers[self.id] = self.process

    def __repr__(self) -> str:
        return self.id

    def _body(self, process: Process) -> int:
        self.worker = SteppingWorker(open_pool(ROOT), WorkerSettings(spool=self.spool), id=self.id)
        self.worker.stepped = self
        self.worker.beat.start = lambda: None  # type: ignore[method-assign]
        self.worker.handler_cache.handlers[Simulated.name] = SteppingHandler(self)
        return self.worker.run()

    def next_order(self) -> Any:
        """Wait for an order."""
        self.waits = True
        SIM.world.sleep(FOREVER, lambda: bool(self._orders))
        self.waits = False
        return self._orders.pop(0)

    def give_order(self, order: Any) -> None:
        """Give it an order; `StepwiseSimulation.advance` lets it obey."""
        assert self.waits
        self._orders.append(order)

    @property
    def is_waiting(self) -> bool:
        """Whether it would go on."""
        return self.waits and not self._orders


class StepwiseSimulation(Simulation):
    """A simulation in which nothing happens by itself until its end."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.hosts = [self._host() for _ in range(scenario.hosts)]
        self.stepped_workers: list[SteppedWorker] = []
        self.late: list[str] = []
        """Paths at which a late request may make something appear or go."""
        self.world.disk.arm()
        self.restarts = 0
        SIM.fault = self._fault

    def start(self, name: str, body: Any, host: Host) -> Process:
        """Start a process; it does nothing before `advance`."""
        return self._start(name, body, host)

    def enlist(self, host: Host, spool: str | None) -> SteppedWorker:
        """Start a worker."""
        stepped = SteppedWorker(self, host, spool)
        self.stepped_workers.append(stepped)
        return stepped

    def advance(self, process: Process, stepped: SteppedWorker | None = None) -> None:
        """Run a process until it ends, waits for an order, or is stopped."""
        world = self.world
        while process.alive and process.until <= world.now:
            if stepped is not None and stepped.is_waiting:
                return
            actor = process.actors[0]
            if actor.ready(world.now):
                world.now += STEP_S
                doing = actor.pending
                world.resume(actor)
                if not process.alive and doing is not None:
                    self._ghost(*doing)
            else:
                following = [entry[0] for entry in world.later[:1]]
                world.now = max(world.now, min([actor.wake, *following]))
            world.due()
        if not process.alive and process.error is not None:
            self._explain(process, process.error)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and let happen what is due."""
        world = self.world
        until = world.now + seconds
        while world.later and world.later[0][0] <= until:
            world.now = max(world.now, world.later[0][0])
            world.due()
        world.now = until

    def by_hand(self, source: str, target: str) -> None:
        """Rename a claim's file by hand, without any check."""
        disk, checker = self.world.disk, self.checker
        old, new = checker._place(source.split("/")), checker._place(target.split("/"))
        assert old is not None and new is not None
        watch, disk.watch = disk.watch, lambda *_: None
        disk.rename(f"{ROOT}/{source}", f"{ROOT}/{target}")
        disk.watch = watch
        known = checker.claims[new.name.id]
        known.places = [place for place in known.places if place.text != old.text] + [new]
        known.waited.add(str(new.name))
        known.since = self.world.now
        self.world.log("mv by hand", "", source, target)

    def fault_count(self) -> int:
        """Return how many faults have occurred."""
        count = self.injector.count
        return sum(count.values()) - count["resumed after a lease"] + self.cuts

    def end_all(self) -> None:
        """Kill every process."""
        for process in self.world.processes:
            if process.alive:
                process.excuses.add("dead")
                self.world.end(process)

    def settle(self, inputs: tuple[str, ...]) -> None:
        """Let fresh processes finish the pool, and check what they leave; raises Violation."""
        self.scenario = replace(self.scenario, inputs=inputs)
        self.end_all()
        self._run_to_the_end()
        self._judge()

    # ---- parts ----

    def _fault(self, what: str, paths: tuple[str, ...]) -> Fault | None:
        fault = self.injector.fault(what, paths)
        if fault is not None and fault.again_s and "/control/" in paths[0]:
            self.late.append(paths[-1])  # orders have no unique names: it may be another's
        return fault

    def _ghost(self, what: str, paths: tuple[str, ...]) -> None:
        if self.world.later:
            self.late.append(paths[-1])

    def _lose_power(self) -> None:
        self._cut_power()
        self.late.clear()


# ---- orders ----


def taking(stepped: SteppedWorker, spool: str, name: ClaimName) -> Order:
    """Take a claim, and begin it."""

    def order(me: SteppingWorker) -> Departure | None:
        stepped.name = claims.take(me.pool, spool, name, me.id)
        return me._run(stepped.name, spool) if stepped.name is not None else None

    return order


def choosing(stepped: SteppedWorker) -> Order:
    """Take what the policy chooses, from its own spool or another."""

    def order(me: SteppingWorker) -> Departure | None:
        found = me.claim_source.next()
        if found is None:
            return None
        stepped.name = found[0]
        return me._run(*found)

    return order


def saving(stepped: SteppedWorker, part: str) -> Order:
    """Save a part of the work, unless it was saved before."""

    def order(me: SteppingWorker) -> None:
        work = stepped.work
        assert work is not None
        data = f"{work.id} {part}".encode()
        there = work.checkpoints()
        assert there.get(part, data) == data
        if part not in there:
            work.checkpoint(part, data)

    return order


def beating(me: SteppingWorker) -> Departure | None:
    """Beat; leave if there is a reason, and no claim to end before."""
    me.beat_once()
    departure = me.shutdown.departure(me.taken)
    return departure if me.stepped.work is None else None


def sweeping(me: SteppingWorker) -> None:
    """Look for dead workers, and put back what they held."""
    me.recovery.sweep()


def idling(me: SteppingWorker) -> Departure | None:
    """Do what an idle worker does; leave if nothing is left."""
    return me._idle(100.0)


def shutdown(me: SteppingWorker) -> Departure:
    """Leave."""
    return Departure(LeaveReason.ALL_DONE)
