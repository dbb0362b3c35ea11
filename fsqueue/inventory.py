"""Compare what the plans say with where the claims are: by marks, and by name where asked.

Of a claim that is planned once and found once, two marks are held (`marks.py`), 17 bytes in all.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from fsqueue import atomic, plans
from fsqueue.errors import FsqueueError, PoolError
from fsqueue.layout import State
from fsqueue.marks import Marks, mark, repeated, sets
from fsqueue.names import ID, SPOOL, id_and_cost
from fsqueue.pool import Pool, spool_names

T = TypeVar("T")


@dataclass(slots=True)
class Planned:
    """What the plans say: the output suffix of every plan, their uids, and marks of all ids."""

    suffixes: dict[int, str | None] = field(default_factory=dict)
    uids: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    marks: dict[str | None, Marks] = field(default_factory=dict)
    """Of the ids, by the suffix of their outputs."""
    ids: dict[str, int] = field(default_factory=dict)
    """The plan of each id that was asked for."""


def planned_in(pool: Pool, asked: Set[int]) -> Planned:
    """Read all plans; `asked` are the marks of the ids that are to be known by name."""
    planned = Planned()
    for number in plans.numbers(pool):
        try:
            plan = plans.read_plan(pool, number)
            planned.suffixes[number] = plan.suffix
            planned.uids.add(plan.uid)
            add = planned.marks.setdefault(plan.suffix, Marks()).add
            for text, _ in plans.read_names(pool, number):
                id = text.partition(".")[0]
                add(id)
                if mark(id) in asked:
                    if id in planned.ids:
                        planned.problems.append(
                            f"I1: {id} is planned twice, by plan {planned.ids[id]} and {number}"
                        )
                    planned.ids[id] = number
        except (FsqueueError, OSError) as error:
            planned.problems.append(str(error))
    return planned


@dataclass(slots=True)
class Places:
    """Where claims are: how many in each state, marks of their ids, names that are no claims'."""

    counts: Counter[str] = field(default_factory=Counter)
    marks: Marks = field(default_factory=Marks)
    strangers: list[str] = field(default_factory=list)
    found: dict[str, list[str]] = field(default_factory=dict)
    """Where each id is that was asked for."""


def places_in(pool: Pool, uids: Set[str], asked: Set[int]) -> Places:
    """Look where all claims are; `uids` are the plans that have a number."""
    places = Places()
    for place, directory, owned in claim_directories(pool, uids):
        seen = listed(directory, partial(look, owned=owned, asked=asked))
        places.marks.extend(seen.marks)
        if seen.marks:
            places.counts[place.split("/")[0]] += len(seen.marks)
        for text in seen.strangers:
            places.strangers.append(f"{directory}/{text!r} is no claim's name; remove it")
        for id, text in seen.asked:
            places.found.setdefault(id, []).append(f"{place}/{text}")
    return places


@dataclass(slots=True)
class Seen:
    """One directory of claims."""

    marks: array[int] = field(default_factory=lambda: array("q"))
    strangers: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)


def look(texts: Iterator[str], *, owned: bool, asked: Set[int]) -> Seen:
    """Take in the names in one directory."""
    seen = Seen()
    for text in texts:
        facts = id_and_cost(text, owned=owned)
        if facts is None:
            seen.strangers.append(text)
            continue
        seen.marks.append(mark(facts[0]))
        if asked and mark(facts[0]) in asked:
            seen.asked.append((facts[0], text))
    return seen


def claim_directories(pool: Pool, uids: Set[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield each place, its directory, and whether claims have an owner there.

    What is staged counts once its plan has a number. Before that it is no claim, and may be what a
    planner left that died: the next plan has planned it anew.
    """
    for uid in staged_in(pool) & uids:
        for spool in filter(SPOOL.fullmatch, listed(pool.staged(uid), list)):
            yield f"staged/{spool}", pool.staged(uid, spool), False
    for spool in spool_names(pool):
        yield f"spools/{spool}", pool.spool(spool), False
    for state in (State.RUNNING, State.DONE, State.FAILED):
        yield state.value, pool.state(state), True


def staged_in(pool: Pool) -> set[str]:
    """Return the plans that have a directory of staged claims."""
    texts = atomic.names(pool.directory("plans"))
    found = {text.removesuffix(".staged") for text in texts if text.endswith(".staged")}
    return set(filter(ID.fullmatch, found))


def listed(directory: str, into: Callable[[Iterator[str]], T]) -> T:
    """Gather the names in a directory, none if it is not there."""
    try:
        return atomic.gather(directory, into)
    except PoolError:
        return into(iter(()))  # a broken spool is reported by itself; a staged one just completed


def odd_marks(planned: Planned, places: Places) -> set[int]:
    """Return the marks of ids that are not planned once and found once."""
    groups = planned.marks.values()
    odd = repeated(*groups) | repeated(places.marks)
    for found, *those in sets(places.marks, *groups):
        odd |= found.symmetric_difference(set().union(*those))
    return odd


def odd(found: dict[str, list[str]], planned: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the ids that are not planned once and found once, and what is wrong with them."""
    for id in planned:
        if id not in found:
            yield id, "is planned but nowhere: somebody removed its file"
    for id, places in found.items():
        if len(places) > 1:
            yield id, f"is in {len(places)} places: {', '.join(sorted(places))}"
        elif id not in planned:
            yield id, f"is in {places[0]}, and no plan holds it"
