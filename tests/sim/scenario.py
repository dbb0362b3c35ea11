"""One seed, one scenario: a pool, its processes, the faults, and how it must end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from signal import SIGTERM
from typing import Any, Final

from fsqueue.errors import ExitStatus, LeaseLost, UsageError
from fsqueue.maintenance.audit import audit_pool
from fsqueue.maintenance.restore import repair_pool
from fsqueue.pool.completeness import Completeness, look_for_all
from fsqueue.pool.names import Role, role_of
from fsqueue.pool.settings import open_pool
from fsqueue.records.status import LeaveReason
from fsqueue.worker.attempts.verdicts import PASSING
from fsqueue.worker.worker import WorkerSettings
from tests.sim.actors import (
    ROOT,
    Simulated,
    command,
    on_command_line,
    output_of,
    planner,
    status_deleter,
)
from tests.sim.actors import worker as worker_body
from tests.sim.fake_os import SIM, no_fault, simulated_modules
from tests.sim.faults import FaultInjector, FaultRates
from tests.sim.invariants import InvariantChecker, Known, Place
from tests.sim.mount import KINDS, LOCAL, Mount, Traits
from tests.sim.nuisances import TIMEOUT_S, Nuisances, bad_inputs
from tests.sim.planned_faults import SCENES, PlannedFault
from tests.sim.world import Host, Process, Violation, World

MANNERS: Final = "ok ok ok ok slow saves stumbles halves fails errs impossible kills breaks".split()
STEPS_MAX: Final = 60_000
ROUNDS_MAX: Final = 15


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed decides before anything happens."""

    seed: int
    traits: Traits
    fault_rates: FaultRates
    inputs: tuple[str, ...]
    spools: tuple[str, ...]
    lease_s: float
    attempts_max: int
    hosts: int
    workers: int
    planners: int
    faults_from_start: bool
    """Whether faults occur before there is a pool."""
    operation_s: float
    """The mean time that an operation takes."""
    same_actor_chance: float
    """The chance that the actor of the last operation does the next one, too."""
    faulty_s: float
    selective: bool
    power_cuts: int
    with_commands: bool
    status_deleter: bool
    planned_faults: tuple[PlannedFault, ...] = ()
    planner_returns: bool = True
    """Whether the inputs are planned once more afterwards, which completes unfinished plans."""
    time_limit: float | None = None
    """After how many leases workers leave, if not chosen for each."""
    linger: float | None = None
    """For how many leases workers wait for more work, if not chosen for each."""
    scene: str = ""
    nuisances: Nuisances = Nuisances()

    @classmethod
    def random(cls, seed: int) -> Scenario:
        """Choose a scenario."""
        plain, rng = cls._without_nuisances(seed), Random(f"nuisances {seed}")
        nuisances = Nuisances.random(rng)
        kinds = FaultRates.nuisances()
        rates = {kind: 10 ** rng.uniform(-2.7, -1.4) for kind in kinds if rng.random() < 0.12}
        return replace(
            plain,
            nuisances=nuisances,
            # A listing that is kept for seconds would go on missing what it misses.
            traits=replace(plain.traits, omits=nuisances.omits * (not plain.traits.listings_s)),
            fault_rates=replace(plain.fault_rates, **rates),
            inputs=plain.inputs + bad_inputs(rng),
        )

    @classmethod
    def _without_nuisances(cls, seed: int) -> Scenario:
        rng = Random(seed)
        lease_s = rng.choice((8.0, 30.0))
        return cls(
            seed=seed,
            traits=rng.choice(KINDS) if rng.random() < 0.6 else LOCAL,
            fault_rates=FaultRates.random(rng),
            inputs=tuple(
                f"{'abcdefgh'[index]}.{rng.choice((1, 5, 20, 80, 160))}.{rng.choice(MANNERS)}"
                for index in range(rng.randint(1, 6))
            ),
            spools=tuple(f"gpu{index}" for index in range(rng.randint(1, 2))),
            lease_s=lease_s,
            attempts_max=rng.randint(1, 3),
            hosts=rng.randint(1, 3),
            workers=rng.randint(2, 4),
            planners=rng.choice((1, 1, 2, 3)),
            faults_from_start=rng.random() < 0.25,
            operation_s=rng.choice((0.001, 0.02, 0.1, 0.4)),
            same_actor_chance=rng.choice((0.0, 0.3, 0.8)),
            faulty_s=rng.uniform(2.0, 6.0) * lease_s,
            selective=rng.random() < 0.5,
            power_cuts=rng.choice((0, 0, 0, 0, 1, 2)),
            with_commands=rng.random() < 0.3,
            status_deleter=rng.random() < 0.2,
            planned_faults=tuple(
                PlannedFault.random(rng) for _ in range(rng.choice((0, 0, 0, 1, 2, 3)))
            ),
        )

    @classmethod
    def around_scene(cls, scene: str, seed: int) -> Scenario:
        """Choose a scenario around a scene."""
        calm = replace(
            cls.random(seed),
            fault_rates=FaultRates(),
            power_cuts=0,
            with_commands=False,
            scene=scene,
            nuisances=Nuisances(),
        )
        return replace(calm, **SCENES[scene])


class Simulation:
    """A world that is run through a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = World(scenario.seed, scenario.traits, selective=scenario.selective)
        self.rng = self.world.rng
        self.checker = InvariantChecker(self.world, ROOT, output_of)
        self.checker.lease_s, self.checker.attempts_max = scenario.lease_s, scenario.attempts_max
        planned_faults = [planned.numbered(self.rng) for planned in scenario.planned_faults]
        self.injector = FaultInjector(
            self.world, scenario.fault_rates, scenario.lease_s, planned_faults
        )
        self.injector.cut_power = self._lose_power
        self.cuts = self.lost_names = 0
        self.hosts: list[Host] = []
        self.operation_s = scenario.operation_s
        self.restarts = 10
        self.last_worker: Process | None = None

    def run(self) -> None:
        """Run to the end; raises Violation."""
        try:
            self._run_with_faults()
            self._run_to_the_end()
            self._judge()
        finally:
            self.injector.active = False
            self.world.stop()

    # ---- while faults occur ----

    def _run_with_faults(self) -> None:
        scenario, rng, world = self.scenario, self.rng, self.world
        self.hosts = [self._faulty_host(index) for index in range(scenario.hosts)]
        for _ in range(scenario.nuisances.purges):
            world.at(rng.uniform(0.1, 0.8) * scenario.faulty_s, self._purge)
        if scenario.power_cuts or any(
            planned.kind == "power cut" for planned in scenario.planned_faults
        ):
            world.disk.arm()
            for _ in range(scenario.power_cuts):
                world.at(rng.uniform(0, scenario.faulty_s), self._lose_power)
        if not scenario.faults_from_start:
            self.injector.active = False
            first = self._plan(scenario.inputs[: rng.randint(1, len(scenario.inputs))])
            self._run(lambda: not first.alive)
            self.injector.active = True
        for _ in range(scenario.planners):
            some = rng.sample(scenario.inputs, rng.randint(1, len(scenario.inputs)))
            late_s = rng.choice((10.0, scenario.faulty_s / 2))
            self._soon(late_s, lambda some=tuple(some): self._plan(some))
        for _ in range(scenario.workers):
            self._soon(20.0 if scenario.faults_from_start else 2.0, self._work)
        if scenario.status_deleter:
            self._soon(
                5.0, lambda: self._start("status deleter", status_deleter(rng, scenario.faulty_s))
            )
        if scenario.with_commands:
            for _ in range(rng.randint(1, 4)):
                self._soon(scenario.faulty_s, self._run_commands)
        self._run(lambda: world.now >= scenario.faulty_s)

    def _host(self) -> Host:
        rng = self.rng
        return self.world.add_host(skew_s=rng.gauss(0, 300), rate=rng.uniform(0.995, 1.005))

    def _faulty_host(self, index: int) -> Host:
        nuisances, host = self.scenario.nuisances, self._host()
        host.table = nuisances.tables[index % len(nuisances.tables)]
        host.sick = nuisances.sick and index == 0
        if nuisances.cloned and index:
            host.boot = self.world.hosts[0].boot
        return host

    def _soon(self, within_s: float, what: Callable[[], Any]) -> None:
        self.world.at(self.world.now + self.rng.uniform(0, within_s), what)

    def _start(self, name: str, body: Any, host: Host | None = None) -> Process:
        process = self.world.start(host or self.rng.choice(self.hosts), name, body)
        self.world.log("starts", process.name)
        return process

    def _plan(self, inputs: tuple[str, ...]) -> Process:
        scenario = self.scenario
        endless = any(text.endswith((".hangs", ".deaf")) for text in inputs)
        timeout_s = TIMEOUT_S if endless else 0.0
        body = planner(inputs, scenario.spools, scenario.lease_s, scenario.attempts_max, timeout_s)
        return self._start("plan", body)

    def _work(self) -> Process:
        rng, spools = self.rng, self.scenario.spools
        settings = WorkerSettings(
            spool=rng.choice((*spools, None)),
            weight=rng.choice((0.5, 1.0, 4.0)),
            steal_interval_s=rng.choice((1.0, 3.0)),
            linger_s=(self.scenario.linger or rng.choice((0.0, 1.0, 2.0, 4.0)))
            * self.scenario.lease_s,
            claims_max=rng.choice((None, None, None, 1)),
            time_limit_s=self._time_limit_s(),
        )
        guarded = self.scenario.nuisances.guarded
        return self._start("work", worker_body(self.checker.workers, settings, guarded=guarded))

    def _time_limit_s(self) -> float | None:
        scenario = self.scenario
        if scenario.time_limit is not None:
            return scenario.time_limit * scenario.lease_s
        return self.rng.choice((None, None, None, scenario.lease_s))

    def _run_commands(self) -> None:
        workers = self.checker.workers
        what = self.rng.choice(("retry", "cancel", "drain", "undo", "recover", "some"))
        if what == "some":
            ids = [id for id, known in self.checker.claims.items() if known.plan]
            what, body = (
                "cancel",
                command(workers, "cancel", *self.rng.sample(ids, min(len(ids), 1))),
            )
        elif what == "drain":
            order = self.rng.choice(({}, {"now": True}, {"pause": True}))
            body = command(workers, "drain", **order)
        elif what == "undo":
            body = command(workers, "drain", undo=True)
        else:
            body = command(workers, what)
        self._start(what, body)

    def _purge(self) -> None:
        """Remove the file of a waiting claim, as a purge of old files does."""
        waiting = [place for known in self.checker.claims.values() if known.plan
                   for place in known.places if place.area == "spools"]  # fmt: skip
        if waiting:
            place = self.rng.choice(waiting)
            self.checker.purge(place)
            self.world.log("NUISANCE a purge removes", "", place.text)

    def _lose_power(self) -> None:
        self._cut_power()
        self._soon(5.0, lambda: self._plan(self.scenario.inputs))
        for _ in range(self.scenario.workers):
            self._soon(20.0, self._work)

    def _cut_power(self) -> None:
        """Stop everything at once, and boot every host again."""
        world = self.world
        for process in world.processes:
            process.excuses.add("dead")  # even if it had left: that may not have lasted
            if process.alive:
                world.end(process)
        world.later.clear()
        lost = world.disk.lose_power(self.rng)
        self.cuts += 1
        self.lost_names += lost
        world.log("FAULT power loss", f"{lost} changes of names are lost")
        for host in self.hosts:
            host.boot = world.token()
            misled = host.mount.misled
            host.mount = Mount(world.disk, world.traits, host.mount._clock, self.rng)
            host.mount.misled = misled
        self.checker.look_again()

    # ---- afterwards ----

    def _run_to_the_end(self) -> None:
        world = self.world
        self.injector.active = False
        world.log("CALM", "no faults from here on")
        world.later.clear()
        self.operation_s = min(self.operation_s, 0.02)
        self.restarts = 0
        host = self._host()
        commands = [p for p in self.world.processes if not p.name.startswith(("work", "guard"))]
        self._run(lambda: not any(process.alive for process in commands))
        undo = self._start("undo", command(self.checker.workers, "drain", undo=True), host)
        self._run(lambda: not undo.alive)
        if self.scenario.planner_returns:
            plan = self._plan(self.scenario.inputs)
            self._run(lambda: not plan.alive)
        for process in world.processes:
            if process.alive and process.guards is None and self.rng.random() < 0.5:
                self._soon(2 * self.scenario.lease_s, lambda p=process: p.signals.append(SIGTERM))
        self._finish()
        if self.checker.purged:
            self._repair()
            self._finish()
        if self.checker.purged:
            raise Violation(f"R30: {sorted(self.checker.purged)} are nowhere after a repair")

    def _finish(self) -> None:
        """Let healthy workers do what is left."""
        for _ in range(ROUNDS_MAX):
            body = worker_body(self.checker.workers, WorkerSettings(spool=self.scenario.spools[0]))
            self._start("work", body, self._host())
            self._run(lambda: False)
            if not self._unfinished():
                return
            assert self.last_worker is not None
            self._nothing_overlooked(self.last_worker)
        left = [place.text for _, place in self._unfinished()]
        raise Violation(f"{ROUNDS_MAX} healthy workers could not finish {left}")

    def _repair(self) -> None:
        """Ask whether all is done, which it is not; then ask `fsqueue check --repair`."""
        wanted = set(self.checker.purged)
        found: list[Completeness] = []

        def body(process: Process) -> int:
            pool = open_pool(ROOT)
            found.append(look_for_all(pool))
            repair_pool(pool, audit_pool(pool), handler_named=lambda _: Simulated())
            return 0

        process = self._start("repair", body, self._host())
        self._run(lambda: False)
        if process.error:
            raise Violation(f"the repair ended by {process.error!r}") from process.error
        if set(found[0].missing) != wanted or found[0].exit_status is not ExitStatus.ERROR:
            raise Violation(f"R30: {sorted(wanted)} are nowhere, and {found[0]} was found")

    def _nothing_overlooked(self, worker: Process) -> None:
        """Check that the last worker did not leave while it could see work."""
        if worker.exit not in (0, 3) or self.scenario.traits.listings_s > 0.3:
            return
        looked = worker.looked.get(f"{ROOT}/workers", 0.0)  # in its last sweep
        for known, place in self._unfinished():
            owner = self.checker.workers.get(place.name.owner or "")
            if place.area == "running" and owner is not None:
                overlooked = looked - owner.ended_at > 1.5 * self.scenario.lease_s
            else:
                overlooked = known.since < looked
            if overlooked:
                raise Violation(f"{worker} left as if nothing was left, and {place.text} was")

    def _unfinished(self) -> list[tuple[Known, Place]]:
        """Return every planned claim that is neither done nor failed."""
        return [
            (known, place)
            for known in self.checker.claims.values()
            for place in known.places
            if known.plan
            and place.area in ("spools", "running")
            or place.area == "staged"
            and place.where == known.plan
        ]

    # ---- running ----

    def _run(self, over: Callable[[], bool]) -> None:
        world, rng, same_actor_chance = self.world, self.rng, self.scenario.same_actor_chance
        last = None
        while not over():
            ready = world.ready()
            if not ready:
                following = world.next_event()
                if following is None:
                    return
                world.now = max(world.now, following)
            else:
                if last not in ready or rng.random() >= same_actor_chance:
                    last = ready[int(rng.random() * len(ready))]
                if last.pending is not None:
                    world.now += rng.expovariate(1 / self.operation_s)
                process = last.process
                world.resume(last)
                if not process.alive:
                    self._ended(process)
            world.due()
            if world.steps > STEPS_MAX:
                raise Violation(f"no end after {STEPS_MAX} steps")

    def _ended(self, process: Process) -> None:
        error = process.error
        if error is not None:
            if isinstance(error, Violation):
                raise error
            self._explain(process, error)
        if process.name.startswith("work"):
            self.last_worker = process
            self._left_with_reason(process)
            self._left_for_a_cause(process)
        if self.restarts and process.name.startswith("work"):
            self.restarts -= 1
            self._soon(self.scenario.lease_s / 2, self._work)

    def _left_with_reason(self, worker: Process) -> None:
        """A worker that leaves because nothing remains has put nothing back just now."""
        text, at, held_s = worker.released
        looked = [when for path, when in worker.looked.items() if "/spools/" in path]
        lag_s = self.scenario.traits.listings_s
        knew = lag_s <= 1.0 and held_s > 3.0 + 3 * lag_s
        takes = all("/running/" in path for _, path in worker.troubles)
        exits = (0, 3, 5) if takes and not lag_s else (0, 3)
        if worker.exit in exits and text and knew and at >= max(looked, default=0.0):
            raise Violation(f"{worker} put back {text}, and left as if nothing was left")

    def _left_for_a_cause(self, process: Process) -> None:
        """A worker blames itself, or says that claims are missing, only if that is so."""
        departure = process.worker.departure if process.worker is not None else None
        if departure is None:
            return
        reason, checker = departure.reason, self.checker
        if reason is LeaveReason.FAILURES and not process.host.sick:
            raise Violation(f"R7: {process} stopped for failures, and works: {departure.message}")
        if reason is LeaveReason.BROKEN and not process.excuses & {"broken", "fault"}:
            raise Violation(f"R2: {process} is not broken, and stopped: {departure.message}")
        fresh = self.scenario.traits.listings_s <= 0.3 and not (checker.purged or self.cuts)
        if reason is LeaveReason.CLAIMS_MISSING and fresh and not checker.repaired:
            raise Violation(f"R31: nothing is missing, and {process} says: {departure.message}")
        lease, _ = checker.leases.get(process.worker.id, (None, 0.0))
        lost = reason is LeaveReason.LEASE_LOST and not self.cuts
        if lost and lease is not None and lease.ended_by is None:
            if not self.scenario.traits.listings_s and "again" not in process.excuses:
                raise Violation(f"R13: {process} believes that it lost its lease, which is {lease}")
        # Not what it lists to the very end: its second thread running/ and control/, it its inbox.
        places = (f"{ROOT}/spools", f"{ROOT}/plans", f"{ROOT}/failed", f"{ROOT}/done")
        found = (at for path, at in process.looked.items() if path.startswith(places))
        looked = max(found, default=0.0)
        lost = [id for id, when in checker.purged.items() if when < looked - 25.0]
        if self.scenario.traits.listings_s <= 0.3:
            lost = [id for id, when in checker.purged.items() if when < looked - 0.5]
        if process.exit in (0, 3) and lost:
            raise Violation(f"R30: {process} ended with {process.exit}, and {lost} are nowhere")

    def _endured(self, process: Process, error: OSError) -> bool:
        """Return whether a worker that ended by an error of the mount tried again for a lease."""
        worker, frame = process.worker, error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_name != "_loop":
            frame = frame.tb_next
        if frame is None or worker is None or error.errno not in PASSING:
            return True  # before or after its work
        since, host = worker.in_trouble_since, process.host
        now = host.monotonic + self.world.now * host.rate
        return since is not None and now - since >= 0.99 * self.scenario.lease_s

    def _explain(self, process: Process, error: BaseException) -> None:
        """An error that ends a process must have been caused."""
        if isinstance(error, OSError) and not self._endured(process, error):
            raise Violation(f"R8: {process} did not try again after {error!r}") from error
        if isinstance(error, UsageError) and not process.name.startswith("plan"):
            return  # there was no pool yet, or nothing of that name
        if isinstance(error, LeaseLost) and process.worker is not None:
            lease, _ = self.checker.leases.get(process.worker.id, (None, 0.0))
            if lease is not None and lease.ended_by is not None:
                return  # it was paused for longer than its lease while it made that
        if isinstance(error, OSError | UsageError) or type(error).__module__ == "fsqueue.errors":
            if "fault" in process.excuses:
                return
        raise Violation(f"{process} ended by {error!r}") from error

    def count_events(self) -> Counter[str]:
        """Return how often each step was done and each fault occurred."""
        happened = self.injector.count + self.checker.count
        for host in self.hosts:
            happened += host.mount.misled
            happened["host with a wrong clock"] += 1
        happened["power cut"] = self.cuts
        happened["name lost with the power"] = self.lost_names
        happened["byte lost with the power"] = self.world.disk.lost_bytes
        return happened

    # ---- the end ----

    def _judge(self) -> None:
        checker = self.checker
        ids = {id.partition("-")[0] for id, known in checker.claims.items() if known.plan}
        stems = {text.partition(".")[0] for text in self.scenario.inputs}
        if not ids <= stems or self.scenario.planner_returns and ids != stems:
            raise Violation(f"planned are {sorted(ids)}, and given were {sorted(stems)}")
        for id, known in checker.claims.items():
            (place,) = [p for p in known.places if p.area != "staged"]
            record = f"{ROOT}/errors/{id}.a{place.name.attempt}.json"
            cancelled = role_of(place.name.owner or "") is Role.CANCEL
            if place.area == "failed" and not cancelled and not self.world.disk.find(record):
                raise Violation(f"{place.text}: what went wrong is not kept")
        self._check()

    def _check(self) -> None:
        """Ask `fsqueue check`."""
        found: list[str] = []

        def body(process: Process) -> int:
            found.extend(audit_pool(open_pool(ROOT)).problems)
            return 0

        process = self._start("check", body, self._host())
        self._run(lambda: False)
        if process.error or found:
            raise Violation(f"fsqueue check says {found} {process.error!r}")


@contextmanager
def simulated_fsqueue() -> Iterator[None]:
    """Run fsqueue on the simulation until the block ends."""
    with simulated_modules(lambda _: Simulated()), on_command_line():
        try:
            yield
        finally:
            SIM.fault = no_fault
            SIM.looked_into = lambda path: None


def run_scenario(seed: int, scenario: Scenario | None = None) -> Simulation:
    """Run one scenario; raises Violation, with the end of the trace in its notes."""
    simulation = Simulation(scenario or Scenario.random(seed))
    SIM.world = simulation.world
    SIM.looked_into = simulation.checker.opened
    try:
        simulation.run()
    except Violation as error:
        error.add_note(format_trace(simulation))
        raise
    return simulation


def format_trace(simulation: Simulation, lines: int = 200) -> str:
    """Return the command that replays a scenario, its parameters, and the end of its trace."""
    scenario = simulation.scenario
    variables = f"SIM_SEEDS={scenario.seed}"
    if scenario.scene:
        variables = f"SIM_SCENE='{scenario.scene}' {variables}"
    head = [f"replay with: {variables} python -m pytest tests/sim/test_scenarios.py -k every", ""]
    head += [f"{name} = {getattr(scenario, name)}" for name in scenario.__slots__]
    body = []
    for line in simulation.world.trace[-lines:]:
        paths = " -> ".join(path.removeprefix(f"{ROOT}/") for path in line.paths)
        outcome = f"   {line.outcome}" if line.outcome else ""
        body.append(f"{line.step:6} {line.now:9.3f} s  {line.who:16} {line.what} {paths}{outcome}")
    return "\n".join([*head, "", *body])
