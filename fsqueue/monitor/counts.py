"""How many claims a pool has in each state, from its directories and the heads of its plans.

Claims are counted, not reported: status/ and events/ are never read here. `take` never lists done/
or outputs/, however many claims there are: a claim is done if it was planned and is nowhere else.
That reckons, and cannot tell a claim that is done from one whose file was removed; so a count that
says that all has ended is `verified` before it is answered (R30 in `pool.completeness`).

The directories are listed one after the other while claims move between them, in the order in which
claims move. So a claim on its way is seen twice rather than never, under the same name, and counts
once. Only a claim that goes back to waiting at that moment can be missed; therefore "nothing is
left" is believed only after a second look.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from heapq import nlargest, nsmallest
from itertools import chain, compress
from typing import Final

from fsqueue.errors import ExitStatus, PoolError
from fsqueue.pool import completeness, plans
from fsqueue.pool.layout import State
from fsqueue.pool.names import (
    SPOOL,
    VAIN_RUNS_MAX,
    ClaimName,
    Role,
    id_and_cost,
    is_given_up,
    natural,
    priority_of,
    role_of,
    vain_of,
)
from fsqueue.pool.plans import Plan
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from fsqueue.storage.name_sets import Fingerprints, mark, repeated, sets

LOOKS_MAX: Final = 3
LOST_SHOWN: Final = 5
IN_VAIN_SHOWN: Final = 100
INPUTS: Final = "inputs"
"""The measure of handlers that count nothing: one input a claim, so claims tell as much."""


@dataclass(frozen=True, slots=True)
class Count:
    """Where the claims are.

    planned == waiting + running + done + failed + superseded + forgotten + missing.

    `waiting` includes `staged`: claims that their planner has not moved to the spools yet. If not
    `certain`, something could not be listed or read (`damage` says what). Claims that may be hidden
    there count as waiting, and a damaged pool never looks finished.
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
    """The last few that failed, newest last."""
    damage: tuple[str, ...]
    certain: bool
    measures: dict[str, int] = field(default_factory=dict)
    """What the handlers counted in what was planned, beside claims and cost."""
    by_priority: tuple[Queue, ...] = ()
    """What waits at each priority, the highest first; empty if all have the same."""
    in_vain: tuple[ClaimName, ...] = ()
    """The first few waiting claims that were put back in vain VAIN_RUNS_MAX times or more."""
    superseded: Amount = field(default_factory=lambda: Amount())
    """What was replaced by a plan of a newer version of its input."""
    forgotten: Amount = field(default_factory=lambda: Amount())
    """What failed, and was given up by a person."""
    missing: Amount = field(default_factory=lambda: Amount())
    """What was planned and is in no state directory; known only once `verified`."""
    missing_ids: tuple[str, ...] = ()
    trouble: str = ""
    """What was removed from the pool, so that all cannot be said to be done."""

    @property
    def ended(self) -> Amount:
        """What no worker has to run any more."""
        return self.done + self.failed + self.superseded + self.forgotten

    @property
    def others(self) -> dict[str, Amount]:
        """The amounts that most pools do not have, by name, of those that this one has."""
        named = ("superseded", self.superseded), ("forgotten", self.forgotten)
        every = (*named, ("missing", self.missing))
        return {name: amount for name, amount in every if amount.claims}

    @property
    def item(self) -> str | None:
        """The measure that speeds are shown in: the handlers' first one; None: claims."""
        return next((name for name in self.measures if name != INPUTS), None)

    @property
    def finished(self) -> bool:
        """Whether it is certain that nothing waits and nothing runs."""
        return self.certain and not self.waiting.claims and not self.running.claims

    @property
    def exit_status(self) -> int:
        """0 all done, 1 claims are missing, 3 all finished but some failed, 5 work remains."""
        if not self.finished:
            return ExitStatus.WORK_REMAINS
        if self.trouble:
            return ExitStatus.ERROR
        return ExitStatus.SOME_FAILED if self.failed.claims else ExitStatus.DONE


@dataclass(frozen=True, slots=True)
class Queue:
    """The claims of one priority that wait."""

    priority: int
    claims: int
    example: str
    """The id of one of them."""
    planned: str
    """When the first plan of that priority was made, by its planner's clock; "" if unknown."""


class ClaimCounter:
    """Counts repeatedly; remembers the last listings, for directories that cannot be listed now."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._plans: dict[int, Plan] = {}
        self._staged: list[Listing] = []
        self._spools: dict[str, Listing] = {}
        self._running = Listing(owned=True)
        self._held: list[str] = []
        self._failed = Listing(owned=True)
        self._superseded = Listing(owned=True)
        self._forgotten = Listing(owned=True)
        self._lost: list[str] = []
        self._damage: list[str] = []
        self._certain = True

    def take(self) -> Count:
        """List every directory once; again, if a plan appeared meanwhile or all seems done."""
        for look in range(LOOKS_MAX):
            before = self._look()
            count = self._count()
            if self._plan_numbers() == before and not (count.finished and look == 0):
                break
        return count

    def take_verified(self) -> Count:
        """Do what `take` does; if nothing is left, look for every planned claim (R30)."""
        for _ in range(LOOKS_MAX):
            count = self.take()
            if not count.finished:
                break
            try:
                seen = completeness.look_for_all(self._pool)
            except (OSError, PoolError) as error:
                return replace(count, certain=False, damage=(*count.damage, str(error)))
            if seen.is_broken:
                lost = Amount(len(seen.missing), seen.missing_cost)
                done = count.done - lost
                trouble = completeness.trouble(self._pool, seen)
                return replace(
                    count, done=done, missing=lost, missing_ids=seen.missing, trouble=trouble
                )
            if not seen.remaining:
                break
            # RACE: a claim went back to waiting, or was planned, since it was counted.
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

    # ---- listing ----

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
            atomic.gather(directory, self._look_failed)
            if self._failed.marks != before:
                fresh: set[int] = set()
                for now, then in (
                    sets(Fingerprints(self._failed.marks), Fingerprints(before)) if before else ()
                ):
                    fresh |= now - then
                self._lost = atomic.gather(
                    directory,
                    lambda texts: newest(
                        (text for text in texts if not is_given_up(text)),
                        LOST_SHOWN,
                        shown=self._lost,
                        fresh=fresh,
                    ),
                )
        except (OSError, PoolError) as error:
            self._doubt(error)

    def _look_failed(self, texts: Iterable[str]) -> None:
        """Tell apart what failed, what was superseded and what was forgotten."""
        given_up: list[str] = []

        def failed() -> Iterator[str]:
            for text in texts:
                if is_given_up(text):
                    given_up.append(text)
                else:
                    yield text

        self._failed.look(failed())
        roles = [role_of(text.partition("@")[2]) for text in given_up]
        for listing, role in ((self._superseded, Role.SUPERSEDE), (self._forgotten, Role.FORGET)):
            listing.look(t for t, its in zip(given_up, roles, strict=True) if its is role)

    def _doubt(self, error: Exception) -> None:
        self._certain = False
        if str(error) not in self._damage:
            self._damage.append(str(error))

    # ---- counting ----

    def _count_once(self) -> None:
        """If a claim was seen twice on its way, keep the place where it was seen last."""
        given_up = self._superseded, self._forgotten
        last_first = [*given_up, self._failed, self._running, *self._spools.values(), *self._staged]
        twice = repeated(Fingerprints(chain.from_iterable(listing.marks for listing in last_first)))
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
        superseded, forgotten = self._superseded.amount, self._forgotten.amount
        seen = waiting + running + failed + superseded + forgotten
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
            superseded=superseded,
            forgotten=forgotten,
            by_priority=tuple(self._queues()),
            in_vain=tuple(filter(None, map(ClaimName.parse, self._in_vain()))),
        )

    def _queues(self) -> Iterator[Queue]:
        counts: Counter[int] = Counter()
        examples: dict[int, str] = {}
        for listing in self._spools.values():
            counts.update(listing.priorities)
            examples = {**listing.examples, **examples}
        if len(counts) < 2:
            return
        for priority in sorted(counts, reverse=True):
            made = (plan.created for plan in self._plans.values() if plan.priority == priority)
            id = examples[priority].partition(".")[0]
            yield Queue(priority, counts[priority], id, min(made, default=""))

    def _in_vain(self) -> list[str]:
        found = chain.from_iterable(listing.in_vain for listing in self._spools.values())
        return sorted(found)[:IN_VAIN_SHOWN]


def _sound(plan: Plan) -> Plan:
    """Return the plan; PoolError if its numbers cannot be added up."""
    for share in (plan.total, *plan.spools.values()):
        facts = share.measures
        counts = [share.claims, share.cost, *(facts.values() if isinstance(facts, dict) else "?")]
        if not all(isinstance(count, int) and 0 <= count < 10**24 for count in counts):
            raise PoolError(
                f"plan {plan.uid} counts {counts!r:.80}, which cannot be added up; its file was "
                f"edited or damaged. Its claims are not touched; restore the file."
            )
    return plan


# ---- one directory of claims ----


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of claims, and their total cost."""

    claims: int = 0
    cost: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.claims + other.claims, self.cost + other.cost)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(max(0, self.claims - other.claims), max(0, self.cost - other.cost))


class Listing:
    """The claims in one directory: a fingerprint and the cost of each, 17 bytes, and no name."""

    def __init__(self, *, owned: bool = False) -> None:
        self._owned = owned
        self.marks = array("q")
        """Of the names under which they wait or waited: the same wherever a claim is seen."""
        self._costs = array("q")
        self._cost = 0
        self.in_vain: list[str] = []
        """The first few that wait and were put back in vain too often."""
        self.priorities: Counter[int] = Counter()
        self.examples: dict[int, str] = {}
        """How many claims wait here at each priority, and the name of one of them."""
        self.assumed: Amount | None = Amount()
        """What may be here, until the directory could be listed once."""

    def look(self, texts: Iterable[str]) -> None:
        """Read a new listing. Names that are not those of claims in this state are ignored."""
        marks, costs, in_vain = array("q"), array("q"), []
        its = waiting_mark if self._owned else mark
        self.priorities, self.examples = Counter(), {}
        for text in texts:
            if (facts := id_and_cost(text, owned=self._owned)) is not None:
                marks.append(its(text))
                costs.append(facts[1])
                if not self._owned:
                    priority = priority_of(text) if ".p" in text[-7:] else 0
                    self.priorities[priority] += 1
                    self.examples.setdefault(priority, text)
                if ".v" in text[-4:] and vain_of(text) >= VAIN_RUNS_MAX:
                    in_vain.append(text)
        self.in_vain = nsmallest(IN_VAIN_SHOWN, in_vain)
        self.marks, self._costs, self._cost = marks, costs, sum(costs)
        self.assumed = None

    def drop_seen(self, twice: Set[int], seen: set[int]) -> None:
        """Drop the claims in `twice` that are in `seen` already, and add the others to `seen`."""
        if twice.isdisjoint(self.marks):
            return
        kept = bytearray(b"\1") * len(self.marks)
        for index, each in enumerate(self.marks):
            if each in twice:
                kept[index] = each not in seen
                seen.add(each)
        self.marks = array("q", compress(self.marks, kept))
        self._costs = array("q", compress(self._costs, kept))
        self._cost = sum(self._costs)

    @property
    def amount(self) -> Amount:
        """How many claims are here, and what they cost."""
        return self.assumed or Amount(len(self.marks), self._cost)


def waiting_mark(text: str) -> int:
    """Return the fingerprint of the name under which a claim waits or waited."""
    return mark(text.partition("@")[0])


def newest(texts: Iterable[str], count: int, *, shown: Sequence[str], fresh: Set[int]) -> list[str]:
    """Return the last `count` that arrived: those `shown` by the last look, and `fresh` ones."""

    def rank(text: str) -> tuple[int, int, str]:
        if text in shown:
            return 1, shown.index(text), text
        return 2 * (waiting_mark(text) in fresh), 0, text

    owned = (text for text in texts if id_and_cost(text, owned=True) is not None)
    return nlargest(count, owned, key=rank)[::-1]
