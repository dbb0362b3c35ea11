"""Verify a pool's invariants on disk, and say in plain words what contradicts them.

A pool may be at work meanwhile, and no set of listings is one moment: a claim that moves between
two of them is seen twice or not at all. So what looks wrong is looked at again, and believed when
it looks wrong the same way three times.

Of a claim that looks right only marks are held (`marks.py`), 26 bytes in all. What looks wrong by
its mark is then looked at by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import partial

from fsqueue import atomic, claims
from fsqueue.errors import FsqueueError, PoolError
from fsqueue.inventory import (
    Planned,
    claim_directories,
    listed,
    look,
    odd,
    odd_marks,
    places_in,
    planned_in,
    staged_in,
)
from fsqueue.layout import DIRECTORIES, State
from fsqueue.leases import lease_names
from fsqueue.litter import Cleaner
from fsqueue.marks import Marks, sets
from fsqueue.names import id_and_cost
from fsqueue.pool import Pool, read_json, read_spool, spool_names

LOOKS = 3


@dataclass(slots=True)
class Report:
    """What a check found. A pool without problems is clean; notes are no problems."""

    planned: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_pool(pool: Pool) -> Report:
    """Look at everything in the pool; change nothing."""
    report = Report()
    for name in DIRECTORIES:
        try:
            atomic.gather(pool.directory(name), _any)
        except PoolError as error:
            report.problems.append(str(error))
    if report.problems:
        return report
    planned = _check_places(pool, report)
    _check_spools(pool, report)
    _check_contents(pool, planned.uids, report)
    _check_outputs(pool, planned, report)
    _note_leftovers(pool, planned, report)
    return report


def _any(texts: Iterator[str]) -> bool:
    return any(True for _ in texts)


# ---- I1: each planned claim is in exactly one place ----


def _check_places(pool: Pool, report: Report) -> Planned:
    asked: set[int] = set()
    planned = planned_in(pool, asked)
    places = places_in(pool, planned.uids, asked)
    suspects: dict[str, str] = {}
    if asked := odd_marks(planned, places):
        for time in range(LOOKS):
            planned = planned_in(pool, asked)  # each time: a planner may be at work, too
            places = places_in(pool, planned.uids, asked)
            wrong = dict(odd(places.found, planned.ids))
            same = {id: what for id, what in suspects.items() if wrong.get(id) == what}
            suspects = same if time else wrong
            if not suspects:
                break
    report.planned = sum(map(len, planned.marks.values()))
    report.counts = dict(places.counts)
    report.problems += planned.problems
    report.problems += [f"I1: {id} {what}" for id, what in sorted(suspects.items())]
    report.problems += places.strangers
    if staged := places.counts["staged"]:
        report.notes.append(
            f"{staged} claims of a plan are not yet in their spools: its planner is at "
            f"work, or died. The next plan, an idle worker or fsqueue recover completes it."
        )
    return planned


# ---- I4: what waits or runs is whole ----


def _check_spools(pool: Pool, report: Report) -> None:
    for spool in spool_names(pool):
        try:
            atomic.gather(pool.spool(spool), _any)
            read_spool(pool, spool)
        except (FsqueueError, OSError) as error:
            report.problems.append(str(error))


def _check_contents(pool: Pool, uids: Set[str], report: Report) -> None:
    for place, directory, owned in claim_directories(pool, uids):
        if not owned or place == State.RUNNING:
            report.problems += listed(directory, partial(_not_whole, directory))


def _not_whole(directory: str, texts: Iterator[str]) -> list[str]:
    problems = []
    for text in texts:
        facts = id_and_cost(text, owned="@" in text)
        if facts is None:
            continue
        try:
            if read_json(f"{directory}/{text}", patience_s=0.0).get("id") != facts[0]:
                problems.append(f"I4: {directory}/{text} holds another claim")
        except PoolError as error:
            problems.append(f"I4: {error}")
        except OSError:
            continue  # RACE: it moved on
    return problems


# ---- I6: done implies output ----


def _check_outputs(pool: Pool, planned: Planned, report: Report) -> None:
    done = Marks()
    done.extend(
        atomic.gather(pool.state(State.DONE), partial(look, owned=True, asked=frozenset())).marks
    )
    made = {suffix: Marks() for suffix in planned.marks if suffix is not None}
    for name in _outputs(pool, report):
        for suffix, marks in made.items():
            if name.endswith(suffix):
                marks.add(name.removesuffix(suffix))
    asked: set[int] = set()
    for suffix, marks in made.items():
        for ended, outputs, those in sets(done, marks, planned.marks[suffix]):
            asked |= (ended & those) - outputs
    if asked:
        report.problems += _without_output(pool, asked)


def _outputs(pool: Pool, report: Report | None = None) -> Iterator[str]:
    """Yield the names of all outputs; report what is none."""
    with os.scandir(pool.directory("outputs")) as entries:
        for entry in entries:
            private = entry.name.startswith(".")
            if report and not private and not entry.is_file(follow_symlinks=False):
                report.problems.append(f"outputs/{entry.name} is no regular file; remove it")
            yield entry.name


def _without_output(pool: Pool, asked: Set[int]) -> Iterator[str]:
    """Look at the claims in question by name; yield what is wrong with them."""
    done = atomic.gather(pool.state(State.DONE), partial(look, owned=True, asked=asked)).asked
    planned = planned_in(pool, asked)
    suffixes = {id: planned.suffixes[number] for id, number in planned.ids.items()}
    missing = {f"{id}{suffixes[id]}": id for id, _ in done if suffixes.get(id) is not None}
    for name in _outputs(pool):
        missing.pop(name, None)
    for name, id in missing.items():
        yield f"I6: {id} is done, and outputs/{name} is missing"


# ---- no problems, but worth a word ----


def _note_leftovers(pool: Pool, planned: Planned, report: Report) -> None:
    for uid in sorted(staged_in(pool) - planned.uids):
        report.notes.append(
            f"{pool.staged(uid)} belongs to no plan yet: its planner is at work, or died before it "
            f"planned anything; then nothing needs it: fsqueue clean {pool.root}"
        )
    for litter in [] if planned.problems else Cleaner(pool).look():
        if litter.kind != "workshop":
            report.notes.append(f"nothing needs {litter.path} any more: fsqueue clean {pool.root}")
    living = {name.worker for name in lease_names(pool) if name.living}
    for name in claims.owned(pool, State.RUNNING):
        if name.owner not in living:
            report.notes.append(
                f"{name.id} is in running/ under {name.owner}, which has no lease; it goes back "
                f"within a lease (an idle worker, or: fsqueue recover {pool.root})"
            )
    for text in atomic.private_names(pool.directory("outputs")):
        if text[1:] not in living:
            report.notes.append(
                f"outputs/{text} was left by a worker that is gone; nothing reads it: "
                f"fsqueue clean {pool.root}"
            )
