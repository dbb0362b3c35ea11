"""Count the claims of a pool, from the names in its directories and the heads of its plans.

What is counted is true, not reported: status/ and events/ are never read here. done/ and outputs/
are never listed, however many claims there are: done is what was planned and is nowhere else.

The directories are listed one after the other while claims move between them. They are listed in
the order in which claims move, so that a claim on its way is seen twice rather than never, and seen
twice it has the same name, so that it counts once. Only a claim that goes back to waiting at that
moment can be missed; so "nothing is left" is said after a second look.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from fsqueue import atomic, plans
from fsqueue.errors import PoolError
from fsqueue.layout import State
from fsqueue.listings import Amount, Listing, newest, waiting_mark
from fsqueue.marks import Marks, repeated, sets
from fsqueue.names import SPOOL, ClaimName
from fsqueue.plans import Plan
from fsqueue.pool import Pool, natural

LOOKS_MAX: Final = 3
LOST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Count:
    """Where the claims are. planned == waiting + running + done + failed.

    `waiting` includes `staged`, what its planner has not yet moved to the spools. Not `certain`:
    something could not be listed or read (`damage` says what). What may be hidden there counts as
    waiting, and a damaged pool never looks finished.
    """

    planned: Amount
    staged: Amount
    waiting: Amount
    running: Amount
    done: Amount
    failed: Amount
    spools: dict[str, tuple[Amount, Amount]]
    """By name, in natural order: what was planned for the spool, and what waits in it."""
    held: tuple[ClaimName, ...]
    lost: tuple[ClaimName, ...]
    """The last few that failed; the newest last."""
    damage: tuple[str, ...]
    certain: bool
    measures: dict[str, int] = field(default_factory=dict)
    """What the plans say they hold, beside claims and cost: sequences, residues."""

    @property
    def finished(self) -> bool:
        """Say whether nothing waits and nothing runs, for sure."""
        return self.certain and not self.waiting.claims and not self.running.claims

    @property
    def exit_status(self) -> int:
        """Return the exit status that says how the pool stands."""
        if not self.finished:
            return 5
        return 3 if self.failed.claims else 0


class Census:
    """One observer's counting: it remembers the last listings, for what cannot be listed now."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._plans: dict[int, Plan] = {}
        self._staged: list[Listing] = []
        self._spools: dict[str, Listing] = {}
        self._running = Listing(owned=True)
        self._held: list[str] = []
        self._failed = Listing(owned=True)
        self._lost: list[str] = []
        self._damage: list[str] = []
        self._certain = True

    def take(self) -> Count:
        """Look at every directory once; again, if a plan appeared meanwhile or all seems done."""
        for look in range(LOOKS_MAX):
            before = self._look()
            count = self._count()
            if self._plan_numbers() == before and not (count.finished and look == 0):
                break
        return count

    def _look(self) -> list[int]:
        self._damage, self._certain = [], True
        numbers = self._plan_numbers()
        self._read_plans(numbers)
        self._list_staged()
        for spool in self._spool_names():
            self._list_spool(spool)
        self._list_running()
        self._list_failed()
        self._count_once()
        return numbers

    # ---- looking ----

    def _plan_numbers(self) -> list[int]:
        try:
            return plans.numbers(self._pool)
        except (OSError, PoolError) as error:
            self._doubt(error)
            return sorted(self._plans)

    def _read_plans(self, numbers: list[int]) -> None:
        self._plans = {number: self._plans[number] for number in numbers if number in self._plans}
        for number in numbers:
            if number not in self._plans:
                try:
                    self._plans[number] = _sound(plans.read_plan(self._pool, number))
                except (OSError, PoolError) as error:
                    self._doubt(error)

    def _list_staged(self) -> None:
        planned = {f"{plan.uid}.staged" for plan in self._plans.values()}
        self._staged = []
        try:
            root = self._pool.directory("plans")
            for staged in planned.intersection(atomic.names(root)):
                for spool in filter(SPOOL.fullmatch, atomic.names(f"{root}/{staged}")):
                    listing = Listing()
                    atomic.gather(f"{root}/{staged}/{spool}", listing.look)
                    self._staged.append(listing)
        except (OSError, PoolError):
            pass  # RACE: completed and removed between two listings; the spools have them now

    def _spool_names(self) -> list[str]:
        """Return every spool that has a file, a directory, or a share of a plan."""
        found = {spool for plan in self._plans.values() for spool in plan.spools}
        try:
            listed = atomic.names(self._pool.directory("spools"))
            found.update(name.removesuffix(".json") for name in listed)
        except (OSError, PoolError) as error:
            self._doubt(error)
        names = sorted(filter(SPOOL.fullmatch, found), key=natural)
        self._spools = {name: self._spools.get(name) or Listing() for name in names}
        return names

    def _list_spool(self, spool: str) -> None:
        listing = self._spools[spool]
        try:
            atomic.gather(self._pool.spool(spool), listing.look)
        except (OSError, PoolError) as error:
            self._doubt(error)
            if listing.assumed is not None:
                listing.assumed = self._planned_for(spool)

    def _list_running(self) -> None:
        try:
            self._held = atomic.names(self._pool.state(State.RUNNING))
            self._running.look(self._held)
        except (OSError, PoolError) as error:
            self._doubt(error)

    def _list_failed(self) -> None:
        directory, before = self._pool.state(State.FAILED), self._failed.marks
        try:
            atomic.gather(directory, self._failed.look)
            if self._failed.marks != before:
                fresh: set[int] = set()
                for now, then in sets(Marks(self._failed.marks), Marks(before)) if before else ():
                    fresh |= now - then
                self._lost = atomic.gather(
                    directory,
                    lambda texts: newest(texts, LOST_SHOWN, shown=self._lost, fresh=fresh),
                )
        except (OSError, PoolError) as error:
            self._doubt(error)

    def _doubt(self, error: Exception) -> None:
        self._certain = False
        if str(error) not in self._damage:
            self._damage.append(str(error))

    # ---- counting ----

    def _count_once(self) -> None:
        """Where a claim was seen twice on its way, keep the place where it was seen last."""
        last_first = [self._failed, self._running, *self._spools.values(), *self._staged]
        twice = repeated(Marks(chain.from_iterable(listing.marks for listing in last_first)))
        seen: set[int] = set()
        for listing in last_first if twice else ():
            listing.drop_seen(twice, seen)

    def _planned_for(self, spool: str) -> Amount:
        shares = [plan.spools[spool] for plan in self._plans.values() if spool in plan.spools]
        return sum((Amount(share.claims, share.cost) for share in shares), Amount())

    def _count(self) -> Count:
        heads = list(self._plans.values())
        spools = {
            spool: (self._planned_for(spool), listing.amount)
            for spool, listing in self._spools.items()
        }
        staged = sum((listing.amount for listing in self._staged), Amount())
        waiting = sum((listing.amount for listing in self._spools.values()), staged)
        running, failed = self._running.amount, self._failed.amount
        heads_say = sum((Amount(plan.total.claims, plan.total.cost) for plan in heads), Amount())
        seen = waiting + running + failed
        done = heads_say - seen
        runs = set(self._running.marks)
        held = (text for text in dict.fromkeys(self._held) if waiting_mark(text) in runs)
        measures: dict[str, int] = {}
        for plan in heads:
            for name, count in plan.total.measures.items():
                measures[name] = measures.get(name, 0) + count
        return Count(
            planned=seen + done,
            staged=staged,
            waiting=waiting,
            running=running,
            done=done,
            failed=failed,
            spools=spools,
            held=tuple(filter(None, map(ClaimName.parse, held))),
            lost=tuple(filter(None, map(ClaimName.parse, self._lost))),
            damage=tuple(self._damage),
            certain=self._certain,
            measures=measures,
        )


def _sound(plan: Plan) -> Plan:
    """Refuse the head of a plan whose numbers cannot be added up."""
    for share in (plan.total, *plan.spools.values()):
        facts = share.measures
        counts = [share.claims, share.cost, *(facts.values() if isinstance(facts, dict) else "?")]
        if not all(isinstance(count, int) and 0 <= count < 10**24 for count in counts):
            raise PoolError(
                f"plan {plan.uid} counts {counts!r:.80}, which cannot be added up; its file was "
                f"edited or damaged. Its claims are not touched; restore the file."
            )
    return plan
