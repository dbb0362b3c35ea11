"""Count the claims of a pool, from the names in its directories and the heads of its plans.

What is counted is true, not reported: status/ and events/ are never read here. done/ and outputs/
are never listed, however many claims there are: done is what was planned and is nowhere else.

The directories are listed one after the other while claims move between them. They are listed in
the order in which claims move, so that a claim on its way is seen twice rather than never, and seen
twice it has the same name, so that it counts once. Only a claim that goes back to waiting at that
moment can be missed; so "nothing is left" is said after a second look.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from fsqueue import atomic, plans
from fsqueue.errors import PoolError
from fsqueue.layout import State
from fsqueue.names import SPOOL, ClaimName
from fsqueue.plans import Plan
from fsqueue.pool import Pool, natural

LOOKS_MAX: Final = 3
LOST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Amount:
    """How many claims, and what they cost together."""

    claims: int = 0
    cost: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.claims + other.claims, self.cost + other.cost)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(max(0, self.claims - other.claims), max(0, self.cost - other.cost))


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


class Listing:
    """The claims in one directory; those already known are not parsed again."""

    def __init__(self) -> None:
        self.costs: dict[str, int] = {}
        self.cost = 0
        self.assumed: Amount | None = Amount()
        """What may be here, as long as the directory could not be listed once."""
        self.added: list[str] = []

    def look(self, texts: Iterable[str], *, owned: bool = False) -> None:
        """Take in a fresh listing. What is not the name of a claim in this state is left out."""
        now = set(texts)
        for text in [text for text in self.costs if text not in now]:
            self.drop(text)
        self.added = []
        fresh = now - self.costs.keys()
        for text in sorted(fresh) if owned else fresh:
            name = ClaimName.parse(text)
            if name is not None and (name.owner is not None) == owned:
                self.costs[text] = name.cost
                self.cost += name.cost
                self.added.append(text)
        self.assumed = None

    def drop(self, text: str) -> None:
        """Forget a name, if it is here."""
        self.cost -= self.costs.pop(text, 0)

    @property
    def amount(self) -> Amount:
        return self.assumed or Amount(len(self.costs), self.cost)


class Census:
    """One observer's counting: it remembers the last listings, to read only what is new."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._plans: dict[int, Plan] = {}
        self._staged = Listing()
        self._spools: dict[str, Listing] = {}
        self._running = Listing()
        self._failed = Listing()
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
        self._list_owned(self._running, State.RUNNING)
        self._list_owned(self._failed, State.FAILED)
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
        found: list[str] = []
        try:
            root = self._pool.directory("plans")
            for staged in planned.intersection(atomic.names(root)):
                for spool in filter(SPOOL.fullmatch, atomic.names(f"{root}/{staged}")):
                    found += atomic.names(f"{root}/{staged}/{spool}")
        except (OSError, PoolError):
            pass  # RACE: completed and removed between two listings; the spools have them now
        self._staged.look(found)

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
            listing.look(atomic.names(self._pool.spool(spool)))
        except (OSError, PoolError) as error:
            self._doubt(error)
            if listing.assumed is not None:
                listing.assumed = self._planned_for(spool)

    def _list_owned(self, listing: Listing, state: State) -> None:
        try:
            listing.look(atomic.names(self._pool.state(state)), owned=True)
        except (OSError, PoolError) as error:
            listing.added = []
            self._doubt(error)

    def _doubt(self, error: Exception) -> None:
        self._certain = False
        if str(error) not in self._damage:
            self._damage.append(str(error))

    # ---- counting ----

    def _count_once(self) -> None:
        """Where a claim was seen twice on its way, keep the place where it was seen last."""
        for text in self._failed.added:
            self._running.drop(text)
        for text in [*self._running.costs, *self._failed.added]:
            waiting = text.partition("@")[0]
            for listing in (self._staged, *self._spools.values()):
                listing.drop(waiting)
        if self._staged.costs:
            for listing in self._spools.values():
                for text in self._staged.costs.keys() & listing.costs.keys():
                    self._staged.drop(text)

    def _planned_for(self, spool: str) -> Amount:
        shares = [plan.spools[spool] for plan in self._plans.values() if spool in plan.spools]
        return sum((Amount(share.claims, share.cost) for share in shares), Amount())

    def _count(self) -> Count:
        heads = list(self._plans.values())
        spools = {
            spool: (self._planned_for(spool), listing.amount)
            for spool, listing in self._spools.items()
        }
        waiting = sum((listing.amount for listing in self._spools.values()), self._staged.amount)
        running, failed = self._running.amount, self._failed.amount
        heads_say = sum((Amount(plan.total.claims, plan.total.cost) for plan in heads), Amount())
        seen = waiting + running + failed
        done = heads_say - seen
        last = [*islice(reversed(self._failed.costs), LOST_SHOWN)][::-1]
        measures: dict[str, int] = {}
        for plan in heads:
            for name, count in plan.total.measures.items():
                measures[name] = measures.get(name, 0) + count
        return Count(
            planned=seen + done,
            staged=self._staged.amount,
            waiting=waiting,
            running=running,
            done=done,
            failed=failed,
            spools=spools,
            held=tuple(filter(None, map(ClaimName.parse, self._running.costs))),
            lost=tuple(filter(None, map(ClaimName.parse, last))),
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
