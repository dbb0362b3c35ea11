"""A state machine: the real protocol, one step at a time, against a model.

Each rule lets a process do one thing (plan, take, finish, fail, renew, sweep, retry, ...) with the
real code on the simulated disk, or plans a fault for the next such moment. The invariants I1-I9 are
checked after every file operation; after every step the whole content of the pool is compared with
what `Model` predicted. At the end every process is killed, and a fresh worker must finish the pool.

A rule chooses by number among the processes that can do a thing at that moment, not from a bundle:
a process in a bundle may run a claim, be stopped in the middle of a step, or be dead by now. There
are few rules, of many steps each, because hypothesis leaves some rules out of every example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from fsqueue.handler import claim_id
from fsqueue.pool.names import ClaimName
from tests.sim import stepwise
from tests.sim.actors import ROOT, Simulated, command, planner
from tests.sim.fake_os import SIM
from tests.sim.faults import FaultRates
from tests.sim.model import PARTS, SPOOLS, At, Model, Prediction, facts_of
from tests.sim.mount import KINDS, LOCAL, Traits
from tests.sim.planned_faults import BEFORE, DURING, MOMENTS, PlannedFault
from tests.sim.scenario import Scenario, format_trace
from tests.sim.stepwise import Order, SteppedWorker, StepwiseSimulation
from tests.sim.world import Process, Violation

INPUTS = tuple(f"{stem}.5.ok" for stem in "abcd")
LEASE_S = 8.0
WORKERS_MAX = 3
PLANNED_FAULTS_MAX = 8
CALM_STEPS = 12
"""The number of steps between two power losses, so that there is something to lose."""
TROUBLES = ("pause", *(kind for kind in (*BEFORE, *DURING) if kind not in ("overtaken", "coma")))
LIKELY_MOMENTS = "take finish renew".split() + ["publish an output", "put back", "record an error"]
LIKELY_MOMENTS += ["end a lease", "list the leases", "write an output"]
WHICH = st.integers(0, 7)
IDLE = "take choose take renew sweep idle leave".split()
BUSY = "finish renew checkpoint finish fail sweep release give_up break".split()
"""What workers do; repeated words are done more often."""
EVENTS = "enlist plan_fault pass_time kill wake lose_power".split()
COMMANDS = "plan retry cancel move_by_hand recover undo_drain drain".split()
STEPS = {*IDLE, *BUSY, *EVENTS, *COMMANDS}
Interrupted = tuple[Process, SteppedWorker | None, Callable[[], Prediction], Prediction, bool]
"""A process stopped in the middle of a step, its predictions, and whether more went wrong."""


def id_of(text: str) -> str:
    """Return the ID of the claim that an input becomes."""
    handler = Simulated()
    (item,) = handler.cut([handler.survey(text, {})], {}, 100)
    return claim_id(handler, {}, item)


IDS = {text: id_of(text) for text in INPUTS}
KINDS_OF = {id: text.split(".")[2] for text, id in IDS.items()}


ORDERS = st.lists(st.integers(0, 63), min_size=1, max_size=5)
SOME = st.lists(st.sampled_from(INPUTS), min_size=1, unique=True)


class PoolMachine(RuleBasedStateMachine):
    """A pool, its processes, and the model of what becomes of it."""

    count: Counter[str] = Counter()

    # ---- the beginning ----

    @initialize(
        seed=st.integers(0, 3),
        traits=st.one_of(st.just(LOCAL), st.just(LOCAL), st.sampled_from(KINDS)),
        attempts_max=st.integers(1, 3),
        selective=st.booleans(),
        inputs=SOME,
    )
    def begin(
        self, seed: int, traits: Traits, attempts_max: int, selective: bool, inputs: list[str]
    ) -> None:
        scenario = Scenario.random(seed)
        self.simulation = StepwiseSimulation(
            replace(
                scenario,
                traits=traits,
                fault_rates=FaultRates(),
                inputs=INPUTS,
                spools=SPOOLS,
                lease_s=LEASE_S,
                attempts_max=attempts_max,
                hosts=2,
                selective=selective,
                planned_faults=(),
                planner_returns=True,
            )  # fmt: skip
        )
        self.world = SIM.world = self.simulation.world
        self.model = Model(attempts_max)
        self.middle: list[Interrupted] = []
        self.waited: list[tuple[str, ClaimName]] = []
        """Every name under which a claim was seen to wait, and where."""
        self.steps = 0
        """How many there were since the power failed last."""
        self._do("plan", 0, inputs)
        self._enlist_two()

    # ---- commands ----

    @rule(what=st.integers(0, 31), which=WHICH, inputs=SOME)
    def run_command(self, what: int, which: int, inputs: list[str]) -> None:
        """Run one of the commands that make sense just now."""
        of, format_trace = self.model.of, self.model.orders()
        sense = (True, of("failed"), of("spools", "running"), of("running", "failed"),
                 of("running", "staged"), format_trace, not format_trace)  # fmt: skip
        names = [name for name, sensible in zip(COMMANDS, sense, strict=True) if sensible]
        self._do(names[what % len(names)], which, inputs)

    def _plan(self, which: int, inputs: list[str]) -> None:
        body = planner(inputs, SPOOLS, LEASE_S, self.simulation.scenario.attempts_max)
        ids = [IDS[text] for text in inputs]
        self._run("plan", body, lambda: self.model.plan(ids), which)

    def _retry(self, which: int, inputs: list[str]) -> None:
        ids = [] if len(inputs) == len(INPUTS) else [IDS[inputs[0]]]
        self._command("retry", which, ids, lambda: self.model.retry(ids or IDS.values()))

    def _cancel(self, which: int, inputs: list[str]) -> None:
        ids = [] if len(inputs) == len(INPUTS) else [IDS[inputs[0]]]
        self._command("cancel", which, ids, lambda: self.model.cancel(ids or IDS.values()))

    def _recover(self, which: int, inputs: list[str]) -> None:
        self._command("recover", which, [], self.model.recover)

    def _drain(self, which: int, inputs: list[str]) -> None:
        order = ("drain", "stop", "pause")[which % 3]
        how = {"now": order == "stop", "pause": order == "pause"}
        self._command("drain", which, [], lambda: self.model.order(order, given=True), **how)

    def _undo_drain(self, which: int, inputs: list[str]) -> None:
        def predict() -> Prediction:
            seen = Prediction()
            for order in ("drain", "stop", "pause"):
                seen.add(self.model.order(order, given=False))
            return seen

        self._command("drain", which, [], predict, undo=True)

    def _move_by_hand(self, which: int, inputs: list[str]) -> None:
        """Put a claim back with mv, as the README shows: a running one is charged."""
        claims = sorted(self.model.of("running", "failed"), key=str)
        id, at = claims[which % len(claims)]
        place = next(p for p in self.simulation.checker.claims[id].places if p.area == at.area)
        back = place.name.returned(failed=at.area == "running")
        home = self.model.homes[id]
        self.simulation.by_hand(place.text, f"spools/{home}/{back}")
        moved = At("spools", home, back.attempt, back.returns)
        self._judge(self.model.by_hand(id, moved), calm=True)

    # ---- workers ----

    @precondition(lambda self: len(self._alive()) < WORKERS_MAX)
    @rule(which=WHICH, spool=st.sampled_from((*SPOOLS, None)))
    def start_worker(self, which: int, spool: str | None) -> None:
        self._do("enlist", which, spool)

    def _enlist(self, which: int, spool: str | None) -> None:
        stepped = self.simulation.enlist(self._host(which), spool)
        self._advance(stepped.process, lambda: self.model.enlist(stepped.id), stepped)

    @precondition(lambda self: self._awake())
    @rule(which=WHICH, orders=ORDERS)
    def work(self, which: int, orders: list[int]) -> None:
        """Let a worker do some of what makes sense, one after the other."""
        stepped = self._pick(self._awake(), which)
        for order in orders:
            self._order(stepped, order)

    @precondition(lambda self: self._awake())
    @rule(orders=ORDERS)
    def work_in_turns(self, orders: list[int]) -> None:
        """Let all workers do that, in turns."""
        for order in orders:
            for stepped in self._awake():
                self._order(stepped, order)

    @precondition(lambda self: any(stepped.work for stepped in self._awake()))
    @rule(which=WHICH, order=st.integers(0, 63))
    def continue_claim(self, which: int, order: int) -> None:
        """Let a worker go on with the claim that it runs."""
        self._order(self._pick([p for p in self._awake() if p.work], which), order)

    def _order(self, stepped: SteppedWorker, order: int) -> None:
        if stepped in self._awake():
            sensible = IDLE if stepped.work is None else BUSY
            self._do(sensible[order % len(sensible)], stepped, order // len(sensible))

    def _take(self, stepped: SteppedWorker, number: int) -> None:
        """Take what waits, or waited once: a listing may be arbitrarily old."""
        if not self.waited:
            return
        spool, name = self.waited[-1 - number % len(self.waited)]
        at = At("spools", spool, name.attempt, name.returns)
        predict = lambda: self.model.take(stepped.id, spool, name.id, at)  # noqa: E731
        self._give_order(stepped, stepwise.taking(stepped, spool, name), predict)

    def _choose(self, stepped: SteppedWorker, _: int) -> None:
        """Take what the policy chooses."""

        def predict() -> Prediction:
            seen = Prediction()
            for id, at in self.model.of("spools"):
                seen.add(self.model.take(stepped.id, at.where, id, at))
            for key, values in seen.sure.items():
                values.add(self.model.facts.get(key))  # it takes at most one of them
            return seen

        self._give_order(stepped, stepwise.choosing(stepped), predict)

    def _finish(self, stepped: SteppedWorker, _: int) -> None:
        mine = self._mine(stepped)
        self._give_order(stepped, "finish", lambda: self.model.finish(*mine))

    def _fail(self, stepped: SteppedWorker, number: int) -> None:
        mine, how = self._mine(stepped), ("fail", "err")[number % 2]
        predict = lambda: self.model.fail(*mine, final=False, leaves=False)  # noqa: E731
        self._give_order(stepped, how, predict)

    def _give_up(self, stepped: SteppedWorker, _: int) -> None:
        mine = self._mine(stepped)
        predict = lambda: self.model.fail(*mine, final=True, leaves=False)  # noqa: E731
        self._give_order(stepped, "give up", predict)

    def _break(self, stepped: SteppedWorker, _: int) -> None:
        mine = self._mine(stepped)
        predict = lambda: self.model.fail(  # noqa: E731
            *mine, final=False, leaves=self.model.claim(mine[1]) == mine[2]
        )
        self._give_order(stepped, "break", predict)

    def _release(self, stepped: SteppedWorker, _: int) -> None:
        mine = self._mine(stepped)
        self._give_order(stepped, "stop", lambda: self.model.stop(*mine))

    def _checkpoint(self, stepped: SteppedWorker, number: int) -> None:
        (me, id, _), part = self._mine(stepped), PARTS[number % len(PARTS)]
        self._give_order(
            stepped, stepwise.saving(stepped, part), lambda: self.model.save(me, id, part)
        )

    def _renew(self, stepped: SteppedWorker, _: int) -> None:
        """Beat, and read the orders: an idle worker may leave."""

        def predict() -> Prediction:
            seen = self.model.renew(stepped.id, stepped.worker.lease.name.beat or 0)
            format_trace = {"drain", "stop"} & self.model.orders()
            if stepped.work is None and (format_trace or not self.model.lives(stepped.id)):
                gone = self.model.leave(stepped.id, stepped.spool or SPOOLS[0])
                seen.sure.clear()
                return seen.add(gone)
            return seen

        self._give_order(stepped, stepwise.beating, predict)

    def _sweep(self, stepped: SteppedWorker, _: int) -> None:
        self._give_order(stepped, stepwise.sweeping, lambda: self._swept(stepped))

    def _idle(self, stepped: SteppedWorker, _: int) -> None:
        predict = lambda: self.model.idle(stepped.id, self._swept(stepped))  # noqa: E731
        calm = self._give_order(stepped, stepwise.idling, predict)
        if calm and stepped.process.exit in (0, 3) and self.model.of("spools"):
            raise Violation(f"{stepped} left as if nothing was left")

    def _leave(self, stepped: SteppedWorker, _: int) -> None:
        predict = lambda: self.model.leave(stepped.id, stepped.spool or SPOOLS[0])  # noqa: E731
        self._give_order(stepped, stepwise.shutdown, predict)

    # ---- accidents ----

    @rule(what=st.integers(0, 31), which=WHICH)
    def let_something_happen(self, what: int, which: int) -> None:
        """Let time pass, or cause or end a fault."""
        dark = self.steps >= CALM_STEPS
        names = ["pass_time", *["wake"] * bool(self.middle), *["kill"] * bool(self._alive())]
        names += ["lose_power"] * dark
        self._do(names[what % len(names)], which)

    def _wake(self, which: int) -> None:
        """Let a process continue that was stopped in the middle of a step, however long ago."""
        process, stepped, predict, old, harmed = self.middle.pop(which % len(self.middle))
        if process.alive:
            process.until = self.world.now
            again = lambda: self.model.merged(predict(), old, command=stepped is None)  # noqa: E731
            self._advance(process, again, stepped, harmed=harmed)

    def _kill(self, which: int) -> None:
        process = self._pick(self._alive(), which).process
        process.excuses.add("dead")
        self.world.end(process)
        self._judge(Prediction(), calm=True)

    def _pass_time(self, which: int) -> None:
        self.simulation.pass_time((0.5, 3.0, 9.0, 40.0)[which % 4])
        self._judge(Prediction(), calm=True)

    def _lose_power(self, which: int) -> None:
        self.simulation._lose_power()
        self._after_power_loss(Prediction())
        self._enlist_two()

    @precondition(lambda self: len(self._planned_faults()) < PLANNED_FAULTS_MAX)
    @rule(moment=st.sampled_from((*LIKELY_MOMENTS, *MOMENTS)), kind=st.sampled_from(TROUBLES))
    def plan_fault(self, moment: str, kind: str) -> None:
        """Plan a fault for the next process at this moment: a lost reply, an error, ..."""
        self.count["plan_fault"] += 1
        injector = self.simulation.injector
        planned_faults = injector._before_it if kind in BEFORE else injector._during_it
        planned_faults.append(PlannedFault(moment, kind))

    # ---- the end ----

    @invariant()
    def everything_is_where_the_model_has_it(self) -> None:
        if hasattr(self, "model"):
            assert self._facts() == self.model.facts
            for id, _ in self.model.of("done"):
                assert ("output", id) in self.model.facts, f"I6: {id} is done without an output"

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        try:
            self.count["example"] += 1
            self.count["accident"] += self.simulation.fault_count()
            if self.world.violation is None:
                self.simulation.settle(INPUTS)
        except Violation as error:
            error.add_note(format_trace(self.simulation, 60))
            raise
        finally:
            self.simulation.injector.active = False
            self.world.stop()

    # ---- parts ----

    def _do(self, name: str, *how: Any) -> None:
        self.count[name] += 1
        self.steps += 1
        self.world.log(f"STEP {name}", " ".join(map(str, how)))
        getattr(self, f"_{name}")(*how)

    def _enlist_two(self) -> None:
        for which, spool in enumerate(SPOOLS):
            self._do("enlist", which, spool)

    def _host(self, which: int) -> Any:
        return self.simulation.hosts[which % len(self.simulation.hosts)]

    @staticmethod
    def _pick(stepped_workers: list[SteppedWorker], which: int) -> SteppedWorker:
        return stepped_workers[which % len(stepped_workers)]

    def _alive(self) -> list[SteppedWorker]:
        return [stepped for stepped in self.simulation.stepped_workers if stepped.process.alive]

    def _awake(self) -> list[SteppedWorker]:
        return [stepped for stepped in self._alive() if stepped.is_waiting]

    @staticmethod
    def _mine(stepped: SteppedWorker) -> tuple[str, str, At]:
        name = stepped.name
        assert name is not None
        return stepped.id, name.id, At("running", stepped.id, name.attempt, name.returns)

    def _planned_faults(self) -> list[PlannedFault]:
        return self.simulation.injector._before_it + self.simulation.injector._during_it

    def _swept(self, me: SteppedWorker) -> Prediction:
        now, lives = self.world.now + 0.5, self.model.lives
        here = me.process.host
        gone = [p.id for p in self.simulation.stepped_workers if lives(p.id) and not p.process.alive
                and p.process.host is here and p.boot == here.boot]  # fmt: skip
        old = [key[1] for key, at in self.model.changed.items() if key[0] == "lease"
               and lives(key[1]) and now - at >= 0.98 * LEASE_S and key[1] != me.id]  # fmt: skip
        return self.model.sweep(me.id, old, gone)

    def _run(self, name: str, body: Any, predict: Callable[[], Prediction], which: int) -> None:
        self._advance(self.simulation.start(name, body, self._host(which)), predict)

    def _command(
        self, name: str, which: int, ids: list[str], predict: Callable[[], Prediction], **how: Any
    ) -> None:
        body = command(self.simulation.checker.workers, name, *ids, **how)
        self._run(name, body, predict, which)

    def _give_order(
        self, stepped: SteppedWorker, order: str | Order, predict: Callable[[], Prediction]
    ) -> bool:
        stepped.give_order(order)
        return self._advance(stepped.process, predict, stepped)

    def _advance(
        self,
        process: Process,
        predict: Callable[[], Prediction],
        stepped: SteppedWorker | None = None,
        *,
        harmed: bool = False,
    ) -> bool:
        """Let a process go on, and judge what came of it; return whether nothing went wrong.

        `harmed`: something has gone wrong in the part of this step that is done already.
        """
        simulation, world = self.simulation, self.world
        for each in self._alive():
            if hasattr(each, "worker"):
                self.model.seen[each.id] = each.worker.beat.orders
        seen, fault_count, cuts = predict(), simulation.fault_count(), simulation.cuts
        try:
            simulation.advance(process, stepped)
            amid = process.alive and not (stepped is not None and stepped.is_waiting)
            if amid:
                harmed |= simulation.fault_count() - fault_count > 1
                self.middle.append((process, stepped, predict, seen, harmed))
            if simulation.cuts > cuts:
                self._after_power_loss(seen)
                return False
            calm = (
                simulation.fault_count() == fault_count
                and not (amid or harmed)
                and world.traits is LOCAL
            )
            self._judge(seen, calm=calm)
            return calm
        except Violation as error:
            error.add_note(format_trace(simulation, 60))
            raise

    def _facts(self) -> dict[Any, Any]:
        return facts_of(self.world.disk, ROOT, self.simulation.checker.plans.values())

    def _judge(self, seen: Prediction, *, calm: bool) -> None:
        self.model.allow_late(
            [path[len(ROOT) + 1 :] for path in self.simulation.late], seen, IDS.values()
        )
        self.model.judge(self.world.now, self._facts(), seen, calm=calm)
        self._look_what_waits()

    def _after_power_loss(self, seen: Prediction) -> None:
        self.middle.clear()
        self.steps = 0
        self.model.lose_power(self.world.now, self._facts(), seen)
        self._look_what_waits()

    def _look_what_waits(self) -> None:
        for id, at in self.model.of("spools"):
            entry = at.where, ClaimName(id, KINDS_OF[id], 5, at.attempt, at.returns, vain=at.vain)
            if entry not in self.waited:
                self.waited.append(entry)
