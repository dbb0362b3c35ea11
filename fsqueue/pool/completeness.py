"""Look for every planned claim once, before anything answers that all is done.

Counts elsewhere reckon: what was planned and is not waiting, running or failed is taken to be done
(`monitor.counts`). That is cheap and never lists done/, and a claim whose file was removed looks
done. So the last answer is not reckoned:

R30 No command and no worker answers 0, and no dependent job starts, before done/ was listed and
    every planned claim was seen in a state directory. A claim that is in none of them is named,
    and the exit status is 1.
    A plan whose file was removed hides what it planned: it is recognised by a gap in the numbers,
    or by claims that no plan holds, and then nothing is answered 0 either.
    Equal numbers prove nothing: a plan that an old listing does not show may have as many claims
    as were removed, so the ids themselves are compared.
R31 A claim is called missing only if it was in no state directory in any of several looks: a
    listing of a busy directory misses names, and a claim can move between two listings.

It costs one listing of the pool and one reading of its plans: 1.4 s for a million done claims.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import chain
from typing import Final

from fsqueue.errors import ExitStatus, PoolError
from fsqueue.pool import plans
from fsqueue.pool.layout import State
from fsqueue.pool.names import SPOOL, id_and_cost, is_given_up
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from fsqueue.storage.name_sets import Fingerprints, distinct, mark, sets

LOOKS: Final = 5
PAUSE_S: Final = 0.05
"""Before the second look; doubled before each one after it."""
NAMED: Final = 5
"""How many missing claims a message names."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """Where the planned claims were seen."""

    planned: int
    remaining: int
    """How many wait or run."""
    failed: int
    """How many failed, without those that were superseded or forgotten."""
    missing: tuple[str, ...] = ()
    """The ids of planned claims that are in no state directory, in planned order."""
    missing_cost: int = 0
    unplanned: int = 0
    """How many claims are in the pool that no plan holds."""
    lost_plans: tuple[int, ...] = ()
    """The numbers of plans that are gone, as far as later ones show it."""

    @property
    def is_broken(self) -> bool:
        """Whether something was removed, so that nothing can be said to be all."""
        return bool(self.missing or self.unplanned or self.lost_plans)

    @property
    def exit_status(self) -> ExitStatus:
        """0 all done, 1 something was removed, 3 some failed, 5 work remains."""
        if self.is_broken:
            return ExitStatus.ERROR
        if self.remaining:
            return ExitStatus.WORK_REMAINS
        return ExitStatus.SOME_FAILED if self.failed else ExitStatus.DONE


def look_for_all(pool: PoolDirectory, *, looks: int | None = None) -> Completeness:
    """Look for every planned claim. Raises PoolError or OSError if something cannot be listed.

    After fewer `looks` than LOOKS, what it calls missing may be there (R31).
    """
    seen = Fingerprints()
    looks = LOOKS if looks is None else looks
    for look in range(looks):
        numbers = plans.numbers(pool)
        gaps = sorted(set(range(1, max(numbers, default=0))) - set(numbers))
        heads = [plans.read_plan(pool, number) for number in numbers]
        planned = {number: head.total.claims for number, head in zip(numbers, heads, strict=True)}
        # Each look adds to `seen`: a claim counts if any look saw it (R31).
        if look == 0 and not gaps:
            failed = _see_ended(pool, seen)
            if distinct(seen) == sum(planned.values()) and not any(_compare(pool, planned, seen)):
                return Completeness(distinct(seen), 0, failed)  # however many spools there are
        remaining, failed = _see(pool, seen, {head.uid for head in heads})
        missing, unplanned = _compare(pool, planned, seen)
        found = Completeness(
            sum(planned.values()),
            remaining,
            failed,
            tuple(id for id, _ in missing),
            sum(cost for _, cost in missing),
            unplanned,
            tuple(gaps),
        )
        if not found.is_broken:
            break
        if look + 1 < looks:
            time.sleep(PAUSE_S * 2**look)
    return found


def trouble(pool: PoolDirectory, found: Completeness) -> str:
    """Return what was removed from a pool, and what to type; "" if nothing was."""
    if found.lost_plans:
        return (
            f"{pool.plan(found.lost_plans[0])} is gone: it was removed outside fsqueue, so what it "
            f"planned cannot be counted. Restore it, or plan its inputs again into a new pool"
        )
    if found.missing:
        return _missing_text(pool, found.missing)
    if found.unplanned:
        claims = "1 claim is" if found.unplanned == 1 else f"{found.unplanned:,} claims are"
        return (
            f"{claims} in {pool.root} that no plan holds; was a file in {pool.directory('plans')} "
            f"removed? What else it planned cannot be counted. See which: fsqueue check {pool.root}"
        )
    return ""


def _missing_text(pool: PoolDirectory, ids: tuple[str, ...]) -> str:
    count = len(ids)
    named = ", ".join(ids[:NAMED]) + (", ..." if count > NAMED else "")
    if count == 1:
        what, file, them = "1 planned claim is", "its file was", "it"
    else:
        what, file, them = f"{count:,} planned claims are", "their files were", "them"
    return (
        f"{what} nowhere: {named}; {file} removed from {pool.root} outside fsqueue, perhaps by a "
        f"purge of old files. To plan {them} again: fsqueue check --repair {pool.root}"
    )


def _see(pool: PoolDirectory, seen: Fingerprints, uids: Set[str]) -> tuple[int, int]:
    """Add the fingerprint of every id in a state directory; return how many remain and failed.

    What is staged counts for the plans that have a number, `uids`: any other may never get one.

    In the order in which claims move, so that one on its way is seen twice rather than never.
    """
    remaining = 0
    for directory in chain(_staged(pool, uids), _spools(pool), (pool.state(State.RUNNING),)):
        try:
            remaining += atomic.gather(directory, lambda texts: _add(texts, seen))
        except (PoolError, OSError) as error:
            if getattr(error.__cause__ or error, "errno", None) not in atomic.GONE:
                raise
            # RACE: a plan was completed, and its empty directory removed. The spools have it now;
            # and if a spool is gone, its claims are missing.
    return remaining, _see_ended(pool, seen)


def _see_ended(pool: PoolDirectory, seen: Fingerprints) -> int:
    """Add what is in failed/ and done/; return how many failed."""
    failed = atomic.gather(pool.state(State.FAILED), lambda texts: _add_failed(texts, seen))
    atomic.gather(pool.state(State.DONE), lambda texts: _add_done(texts, seen))
    return failed


def _staged(pool: PoolDirectory, uids: Set[str]) -> Iterator[str]:
    root = pool.directory("plans")
    for name in atomic.names(root):
        if name.endswith(".staged") and name.removesuffix(".staged") in uids:
            try:
                yield from (f"{root}/{name}/{each}" for each in atomic.names(f"{root}/{name}"))
            except (PoolError, OSError):
                continue  # RACE: as above


def _spools(pool: PoolDirectory) -> Iterator[str]:
    listed = {name.removesuffix(".json") for name in atomic.names(pool.directory("spools"))}
    return (pool.spool(name) for name in sorted(listed) if SPOOL.fullmatch(name))


def _add(texts: Iterable[str], seen: Fingerprints) -> int:
    count = 0
    for text in texts:
        if (facts := id_and_cost(text, owned="@" in text)) is not None:
            seen.add(facts[0])
            count += 1
    return count


def _add_failed(texts: Iterable[str], seen: Fingerprints) -> int:
    count = 0
    for text in texts:
        if (facts := id_and_cost(text, owned=True)) is not None:
            seen.add(facts[0])
            count += not is_given_up(text)
    return count


def _add_done(texts: Iterable[str], seen: Fingerprints) -> None:
    # Not by `id_and_cost`: of a million names, that takes twice as long. An id has no dot.
    seen.extend(mark(text.partition(".")[0]) for text in texts if "@" in text)


def _compare(
    pool: PoolDirectory, planned: Mapping[int, int], seen: Fingerprints
) -> tuple[list[tuple[str, int]], int]:
    """Return id and cost of each planned claim that was not seen, and how many are not planned.

    `planned`: how many claims each plan holds, by its number.
    """
    asked = Fingerprints()
    for number, claims in planned.items():
        for ids in plans.read_ids(pool, number, claims):
            asked.extend(map(mark, ids))
    lost: set[int] = set()
    unplanned = 0
    for those, these in sets(asked, seen):
        lost |= those - these
        unplanned += len(these - those)
    missing = []
    for number in planned if lost else ():
        for text, _spool in plans.read_names(pool, number):
            facts = id_and_cost(text, owned="@" in text)
            if facts and mark(facts[0]) in lost:
                lost.discard(mark(facts[0]))
                missing.append(facts)
    return missing, unplanned
