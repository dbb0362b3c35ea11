"""A state machine: the real protocol, one step at a time, against a model.

Each rule lets somebody do one thing (plan, take, finish, fail, renew, sweep, retry, ...) with the
real code on the simulated disk, or arranges that something goes wrong at the next such moment. The
laws I1-I9 are held after every file operation; after every step all that the pool holds is compared
with what `Model` foresaw. At the end everybody is killed, and fresh people must end it well.

A rule chooses among those who can do a thing at that moment, by number, and not from a bundle:
whoever was put into one may run a claim, be stopped in the middle of something, or be dead by now.
There are few rules, of many steps each, for hypothesis leaves some rules out of every example.
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
from tests.sim import driven
from tests.sim.ambush import BEFORE, DURING, MOMENTS, Ambush
from tests.sim.calls import STAGE
from tests.sim.cast import ROOT, Simulated, command, planner
from tests.sim.driven import BroadcastRequest, Puppet, Table
from tests.sim.model import PARTS, SPOOLS, At, Foresight, Model, facts_of
from tests.sim.mount import KINDS, LOCAL, Traits
from tests.sim.story import Plot, told
from tests.sim.weather import Weather
from tests.sim.world import Process, Violation

INPUTS = tuple(f"{stem}.5.ok" for stem in "abcd")
LEASE_S = 8.0
WORKERS_MAX = 3
AMBUSHES_MAX = 8
CALM_STEPS = 12
"""Between two power losses: whatever is lost so, others do not get to."""
TROUBLES = ("pause", *(kind for kind in (*BEFORE, *DURING) if kind not in ("overtaken", "coma")))
LIKELY = "take finish renew".split() + ["publish an output", "put back", "record an error"]
LIKELY += ["end a lease", "list the leases", "write an output"]
WHICH = st.integers(0, 7)
IDLE = "take choose take renew sweep idle leave".split()
BUSY = "finish renew checkpoint finish fail sweep release give_up break".split()
"""What workers do, some of it more often."""
BEFALLING = "enlist lie_in_wait pass_time kill wake lose_power".split()
MEDDLING = "plan retry cancel move_by_hand recover undo_drain drain".split()
STEPS = {*IDLE, *BUSY, *BEFALLING, *MEDDLING}
Ahead = tuple[Process, Puppet | None, Callable[[], Foresight], Foresight, bool]
"""Who stopped in the middle of a step, what was foreseen, and whether more than that went wrong."""


def id_of(text: str) -> str:
    """Return the ID of the claim that an input becomes."""
    handler = Simulated()
    (item,) = handler.cut([handler.survey(text, {})], {}, 100)
    return claim_id(handler, {}, item)


IDS = {text: id_of(text) for text in INPUTS}
KINDS_OF = {id: text.split(".")[2] for text, id in IDS.items()}


ORDERS = st.lists(st.integers(0, 63), min_size=1, max_size=5)
SOME = st.lists(st.sampled_from(INPUTS), min_size=1, unique=True)


class PoolDirectory(RuleBasedStateMachine):
    """A pool, those who work it, and what should become of it."""

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
        plot = Plot.drawn(seed)
        self.table = Table(
            replace(
                plot,
                traits=traits,
                weather=Weather(),
                inputs=INPUTS,
                spools=SPOOLS,
                lease_s=LEASE_S,
                attempts_max=attempts_max,
                hosts=2,
                selective=selective,
                ambushes=(),
                planner_returns=True,
            )  # fmt: skip
        )
        self.world = STAGE.world = self.table.world
        self.model = Model(attempts_max)
        self.middle: list[Ahead] = []
        self.waited: list[tuple[str, ClaimName]] = []
        """Every name under which a claim was seen to wait, and where."""
        self.steps = 0
        """How many there were since the power failed last."""
        self._do("plan", 0, inputs)
        self._enlist_two()

    # ---- planners and other people ----

    @rule(what=st.integers(0, 31), which=WHICH, inputs=SOME)
    def meddle(self, what: int, which: int, inputs: list[str]) -> None:
        """Let a person do one of the things that make sense just now."""
        of, told = self.model.of, self.model.orders()
        sense = (True, of("failed"), of("spools", "running"), of("running", "failed"),
                 of("running", "staged"), told, not told)  # fmt: skip
        names = [name for name, sensible in zip(MEDDLING, sense, strict=True) if sensible]
        self._do(names[what % len(names)], which, inputs)

    def _plan(self, which: int, inputs: list[str]) -> None:
        body = planner(inputs, SPOOLS, LEASE_S, self.table.plot.attempts_max)
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
        def foresee() -> Foresight:
            seen = Foresight()
            for order in ("drain", "stop", "pause"):
                seen.add(self.model.order(order, given=False))
            return seen

        self._command("drain", which, [], foresee, undo=True)

    def _move_by_hand(self, which: int, inputs: list[str]) -> None:
        """Put a claim back as README says: a running one charged, a failed one as it is."""
        claims = sorted(self.model.of("running", "failed"), key=str)
        id, at = claims[which % len(claims)]
        place = next(p for p in self.table.laws.claims[id].places if p.area == at.area)
        back = place.name.returned(failed=at.area == "running")
        home = self.model.homes[id]
        self.table.by_hand(place.text, f"spools/{home}/{back}")
        moved = At("spools", home, back.attempt, back.returns)
        self._judge(self.model.by_hand(id, moved), calm=True)

    # ---- workers ----

    @precondition(lambda self: len(self._alive()) < WORKERS_MAX)
    @rule(which=WHICH, spool=st.sampled_from((*SPOOLS, None)))
    def come(self, which: int, spool: str | None) -> None:
        self._do("enlist", which, spool)

    def _enlist(self, which: int, spool: str | None) -> None:
        puppet = self.table.enlist(self._host(which), spool)
        self._go(puppet.process, lambda: self.model.enlist(puppet.id), puppet)

    @precondition(lambda self: self._awake())
    @rule(which=WHICH, orders=ORDERS)
    def work(self, which: int, orders: list[int]) -> None:
        """Let a worker do some of what makes sense, one after the other."""
        puppet = self._pick(self._awake(), which)
        for order in orders:
            self._order(puppet, order)

    @precondition(lambda self: self._awake())
    @rule(orders=ORDERS)
    def work_in_turns(self, orders: list[int]) -> None:
        """Let all workers do that, in turns."""
        for order in orders:
            for puppet in self._awake():
                self._order(puppet, order)

    @precondition(lambda self: any(puppet.work for puppet in self._awake()))
    @rule(which=WHICH, order=st.integers(0, 63))
    def go_on(self, which: int, order: int) -> None:
        """Let a worker go on with the claim that it runs."""
        self._order(self._pick([p for p in self._awake() if p.work], which), order)

    def _order(self, puppet: Puppet, order: int) -> None:
        if puppet in self._awake():
            sensible = IDLE if puppet.work is None else BUSY
            self._do(sensible[order % len(sensible)], puppet, order // len(sensible))

    def _take(self, puppet: Puppet, number: int) -> None:
        """Take what waits, or waited once: a listing may be as old as it likes."""
        if not self.waited:
            return
        spool, name = self.waited[-1 - number % len(self.waited)]
        at = At("spools", spool, name.attempt, name.returns)
        foresee = lambda: self.model.take(puppet.id, spool, name.id, at)  # noqa: E731
        self._tell(puppet, driven.taking(puppet, spool, name), foresee)

    def _choose(self, puppet: Puppet, _: int) -> None:
        """Take what it likes best."""

        def foresee() -> Foresight:
            seen = Foresight()
            for id, at in self.model.of("spools"):
                seen.add(self.model.take(puppet.id, at.where, id, at))
            for key, values in seen.sure.items():
                values.add(self.model.facts.get(key))  # it takes one of them at most
            return seen

        self._tell(puppet, driven.choosing(puppet), foresee)

    def _finish(self, puppet: Puppet, _: int) -> None:
        mine = self._mine(puppet)
        self._tell(puppet, "finish", lambda: self.model.finish(*mine))

    def _fail(self, puppet: Puppet, number: int) -> None:
        mine, how = self._mine(puppet), ("fail", "err")[number % 2]
        foresee = lambda: self.model.fail(*mine, final=False, leaves=False)  # noqa: E731
        self._tell(puppet, how, foresee)

    def _give_up(self, puppet: Puppet, _: int) -> None:
        mine = self._mine(puppet)
        foresee = lambda: self.model.fail(*mine, final=True, leaves=False)  # noqa: E731
        self._tell(puppet, "give up", foresee)

    def _break(self, puppet: Puppet, _: int) -> None:
        mine = self._mine(puppet)
        foresee = lambda: self.model.fail(  # noqa: E731
            *mine, final=False, leaves=self.model.claim(mine[1]) == mine[2]
        )
        self._tell(puppet, "break", foresee)

    def _release(self, puppet: Puppet, _: int) -> None:
        mine = self._mine(puppet)
        self._tell(puppet, "stop", lambda: self.model.stop(*mine))

    def _checkpoint(self, puppet: Puppet, number: int) -> None:
        (me, id, _), part = self._mine(puppet), PARTS[number % len(PARTS)]
        self._tell(puppet, driven.saving(puppet, part), lambda: self.model.save(me, id, part))

    def _renew(self, puppet: Puppet, _: int) -> None:
        """Beat, and read the orders: who idles may leave."""

        def foresee() -> Foresight:
            seen = self.model.renew(puppet.id, puppet.worker.lease.name.beat or 0)
            told = {"drain", "stop"} & self.model.orders()
            if puppet.work is None and (told or not self.model.lives(puppet.id)):
                gone = self.model.leave(puppet.id, puppet.spool or SPOOLS[0])
                seen.sure.clear()
                return seen.add(gone)
            return seen

        self._tell(puppet, driven.hearing, foresee)

    def _sweep(self, puppet: Puppet, _: int) -> None:
        self._tell(puppet, driven.sweeping, lambda: self._swept(puppet))

    def _idle(self, puppet: Puppet, _: int) -> None:
        foresee = lambda: self.model.idle(puppet.id, self._swept(puppet))  # noqa: E731
        calm = self._tell(puppet, driven.idling, foresee)
        if calm and puppet.process.exit in (0, 3) and self.model.of("spools"):
            raise Violation(f"{puppet} left as if nothing was left")

    def _leave(self, puppet: Puppet, _: int) -> None:
        foresee = lambda: self.model.leave(puppet.id, puppet.spool or SPOOLS[0])  # noqa: E731
        self._tell(puppet, driven.shutdown, foresee)

    # ---- accidents ----

    @rule(what=st.integers(0, 31), which=WHICH)
    def befall(self, what: int, which: int) -> None:
        """Let time pass, or an accident happen, or be over."""
        dark = self.steps >= CALM_STEPS
        names = ["pass_time", *["wake"] * bool(self.middle), *["kill"] * bool(self._alive())]
        names += ["lose_power"] * dark
        self._do(names[what % len(names)], which)

    def _wake(self, which: int) -> None:
        """Let somebody go on who was stopped in the middle of something, however long ago."""
        process, puppet, foresee, old, harmed = self.middle.pop(which % len(self.middle))
        if process.alive:
            process.until = self.world.now
            again = lambda: self.model.still(foresee(), old, command=puppet is None)  # noqa: E731
            self._go(process, again, puppet, harmed=harmed)

    def _kill(self, which: int) -> None:
        process = self._pick(self._alive(), which).process
        process.excuses.add("dead")
        self.world.end(process)
        self._judge(Foresight(), calm=True)

    def _pass_time(self, which: int) -> None:
        self.table.pass_time((0.5, 3.0, 9.0, 40.0)[which % 4])
        self._judge(Foresight(), calm=True)

    def _lose_power(self, which: int) -> None:
        self.table._lose_power()
        self._after_power_loss(Foresight())
        self._enlist_two()

    @precondition(lambda self: len(self._ambushes()) < AMBUSHES_MAX)
    @rule(moment=st.sampled_from((*LIKELY, *MOMENTS)), kind=st.sampled_from(TROUBLES))
    def lie_in_wait(self, moment: str, kind: str) -> None:
        """Let this happen to whoever comes next to this moment: a lost reply, an error, ..."""
        self.count["lie_in_wait"] += 1
        accidents = self.table.accidents
        ambushes = accidents._before_it if kind in BEFORE else accidents._during_it
        ambushes.append(Ambush(moment, kind))

    # ---- the end ----

    @invariant()
    def everything_is_where_the_model_has_it(self) -> None:
        if hasattr(self, "model"):
            assert self._facts() == self.model.facts
            for id, _ in self.model.of("done"):
                assert ("output", id) in self.model.facts, f"I6: {id} is done without an output"

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        try:
            self.count["example"] += 1
            self.count["accident"] += self.table.sprung()
            if self.world.violation is None:
                self.table.settle(INPUTS)
        except Violation as error:
            error.add_note(told(self.table, 60))
            raise
        finally:
            self.table.accidents.active = False
            self.world.stop()

    # ---- parts ----

    def _do(self, name: str, *how: Any) -> None:
        self.count[name] += 1
        self.steps += 1
        self.world.say(f"STEP {name}", " ".join(map(str, how)))
        getattr(self, f"_{name}")(*how)

    def _enlist_two(self) -> None:
        for which, spool in enumerate(SPOOLS):
            self._do("enlist", which, spool)

    def _host(self, which: int) -> Any:
        return self.table.hosts[which % len(self.table.hosts)]

    @staticmethod
    def _pick(puppets: list[Puppet], which: int) -> Puppet:
        return puppets[which % len(puppets)]

    def _alive(self) -> list[Puppet]:
        return [puppet for puppet in self.table.puppets if puppet.process.alive]

    def _awake(self) -> list[Puppet]:
        return [puppet for puppet in self._alive() if puppet.idles]

    @staticmethod
    def _mine(puppet: Puppet) -> tuple[str, str, At]:
        name = puppet.name
        assert name is not None
        return puppet.id, name.id, At("running", puppet.id, name.attempt, name.returns)

    def _ambushes(self) -> list[Ambush]:
        return self.table.accidents._before_it + self.table.accidents._during_it

    def _swept(self, me: Puppet) -> Foresight:
        now, lives = self.world.now + 0.5, self.model.lives
        here = me.process.host
        gone = [p.id for p in self.table.puppets if lives(p.id) and not p.process.alive
                and p.process.host is here and p.boot == here.boot]  # fmt: skip
        old = [key[1] for key, at in self.model.changed.items() if key[0] == "lease"
               and lives(key[1]) and now - at >= 0.98 * LEASE_S and key[1] != me.id]  # fmt: skip
        return self.model.sweep(me.id, old, gone)

    def _run(self, name: str, body: Any, foresee: Callable[[], Foresight], which: int) -> None:
        self._go(self.table.start(name, body, self._host(which)), foresee)

    def _command(
        self, name: str, which: int, ids: list[str], foresee: Callable[[], Foresight], **how: Any
    ) -> None:
        body = command(self.table.laws.workers, name, *ids, **how)
        self._run(name, body, foresee, which)

    def _tell(
        self, puppet: Puppet, order: str | BroadcastRequest, foresee: Callable[[], Foresight]
    ) -> bool:
        puppet.tell(order)
        return self._go(puppet.process, foresee, puppet)

    def _go(
        self,
        process: Process,
        foresee: Callable[[], Foresight],
        puppet: Puppet | None = None,
        *,
        harmed: bool = False,
    ) -> bool:
        """Let a process go on, and judge what came of it; return whether nothing went wrong.

        `harmed`: something has gone wrong in the part of this step that is done already.
        """
        table, world = self.table, self.world
        for each in self._alive():
            if hasattr(each, "worker"):
                self.model.seen[each.id] = each.worker.beat.orders
        seen, sprung, cuts = foresee(), table.sprung(), table.cuts
        try:
            table.go(process, puppet)
            amid = process.alive and not (puppet is not None and puppet.idles)
            if amid:
                harmed |= table.sprung() - sprung > 1
                self.middle.append((process, puppet, foresee, seen, harmed))
            if table.cuts > cuts:
                self._after_power_loss(seen)
                return False
            calm = table.sprung() == sprung and not (amid or harmed) and world.traits is LOCAL
            self._judge(seen, calm=calm)
            return calm
        except Violation as error:
            error.add_note(told(table, 60))
            raise

    def _facts(self) -> dict[Any, Any]:
        return facts_of(self.world.disk, ROOT, self.table.laws.plans.values())

    def _judge(self, seen: Foresight, *, calm: bool) -> None:
        self.model.allow_late(
            [path[len(ROOT) + 1 :] for path in self.table.late], seen, IDS.values()
        )
        self.model.judge(self.world.now, self._facts(), seen, calm=calm)
        self._look_what_waits()

    def _after_power_loss(self, seen: Foresight) -> None:
        self.middle.clear()
        self.steps = 0
        self.model.lose_power(self.world.now, self._facts(), seen)
        self._look_what_waits()

    def _look_what_waits(self) -> None:
        for id, at in self.model.of("spools"):
            entry = at.where, ClaimName(id, KINDS_OF[id], 5, at.attempt, at.returns)
            if entry not in self.waited:
                self.waited.append(entry)
