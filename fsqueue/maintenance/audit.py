"""Verify a pool's invariants on disk, and report in plain words what contradicts them.

Workers may be at work meanwhile, and listings are not taken at one moment: a claim that moves
between two of them is seen twice or not at all. So what looks wrong is looked at again, and
reported only if it looks wrong the same way three times.

Of a claim that looks right only fingerprints are kept (`storage.name_sets`), 26 bytes in all. What
looks wrong by its fingerprint is then looked up by name.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from fsqueue.errors import FsqueueError, PoolError
from fsqueue.maintenance.cleanup import Cleaner, LeftoverKind
from fsqueue.monitor.format import plural
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import DIRECTORIES, State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ID, SPOOL, id_and_cost
from fsqueue.pool.settings import PoolDirectory, read_spool, spool_names
from fsqueue.records.checksums import verify_outputs
from fsqueue.storage import atomic
from fsqueue.storage.name_sets import Fingerprints, mark, repeated, sets
from fsqueue.storage.untrusted import read_json

LOOKS = 3


@dataclass(slots=True)
class AuditReport:
    """What an audit found. A pool without problems is clean; notes are not problems."""

    planned: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    misplaced: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The claims that contradict I1, and where each is."""
    without_output: dict[str, str] = field(default_factory=dict)
    """The done claims whose output is missing, and the output's name."""
    damaged: dict[str, str] = field(default_factory=dict)
    """The outputs that are not what was published, and why."""
    matching: int = 0
    """How many outputs are what was published."""


def audit_pool(pool: PoolDirectory, *, deep: bool = False) -> AuditReport:
    """Check everything in the pool; change nothing. `deep`: read every output, too."""
    report = AuditReport()
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
    _check_checksums(pool, report, deep=deep)
    _note_leftovers(pool, planned, report)
    return report


def _any(texts: Iterator[str]) -> bool:
    return any(True for _ in texts)


# ---- I1: each planned claim is in exactly one place ----


def _check_places(pool: PoolDirectory, report: AuditReport) -> Planned:
    asked: set[int] = set()
    planned = planned_in(pool, asked)
    places = places_in(pool, planned.uids, asked)
    suspects: dict[str, tuple[str, ...]] = {}
    if asked := suspect_fingerprints(planned, places):
        for time in range(LOOKS):
            planned = planned_in(pool, asked)  # each time: a planner may be at work, too
            places = places_in(pool, planned.uids, asked)
            wrong = dict(suspects_among(places.found, planned.ids))
            same = {id: what for id, what in suspects.items() if wrong.get(id) == what}
            suspects = same if time else wrong
            if not suspects:
                break
    report.planned = sum(map(len, planned.marks.values()))
    report.counts = dict(places.counts)
    report.problems += planned.problems
    report.misplaced = dict(sorted(suspects.items()))
    for id, where in report.misplaced.items():
        report.problems.append(f"I1: {id} {_misplaced(id, where, planned.ids)}")
    report.problems += places.other_names
    if staged := places.counts["staged"]:
        verb = "is" if staged == 1 else "are"
        report.notes.append(
            f"{plural(staged, 'claim')} of a plan {verb} not in a spool yet: its planner is at "
            f"work, or died. The next plan, an idle worker or fsqueue recover completes it."
        )
    return planned


# ---- I4: what waits or runs is whole ----


def _check_spools(pool: PoolDirectory, report: AuditReport) -> None:
    for spool in spool_names(pool):
        try:
            atomic.gather(pool.spool(spool), _any)
            read_spool(pool, spool)
        except (FsqueueError, OSError) as error:
            report.problems.append(str(error))


def _check_contents(pool: PoolDirectory, uids: Set[str], report: AuditReport) -> None:
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


def _check_outputs(pool: PoolDirectory, planned: Planned, report: AuditReport) -> None:
    done = Fingerprints()
    done.extend(
        atomic.gather(pool.state(State.DONE), partial(look, owned=True, asked=frozenset())).marks
    )
    made = {suffix: Fingerprints() for suffix in planned.marks if suffix is not None}
    for name in _outputs(pool, report):
        for suffix, marks in made.items():
            if name.endswith(suffix):
                marks.add(name.removesuffix(suffix))
    asked: set[int] = set()
    for suffix, marks in made.items():
        for ended, outputs, those in sets(done, marks, planned.marks[suffix]):
            asked |= (ended & those) - outputs
    if asked:
        report.without_output = dict(_without_output(pool, asked))
    for id, name in report.without_output.items():
        report.problems.append(f"I6: {id} is done, and outputs/{name} is missing")


def _check_checksums(pool: PoolDirectory, report: AuditReport, *, deep: bool) -> None:
    """Compare the outputs with what was recorded when they were published (R33)."""
    verified = verify_outputs(pool, deep=deep)
    report.damaged, report.matching = verified.damaged, verified.matching
    for name, what in sorted(report.damaged.items()):
        report.problems.append(
            f"outputs/{name} {what}: it was changed, truncated or damaged outside fsqueue"
        )
    if deep:
        done = report.counts.get(State.DONE, 0)
        if report.matching + len(report.damaged) < done:
            report.notes.append(
                f"{plural(report.matching, 'output')} of {done:,} could be compared; the others "
                f"have no checksum: they were made by an earlier version, or their workers were "
                f"killed before they wrote it"
            )


def _outputs(pool: PoolDirectory, report: AuditReport | None = None) -> Iterator[str]:
    """Yield the names of all outputs; report what is not an output."""
    with os.scandir(pool.directory("outputs")) as entries:
        for entry in entries:
            private = entry.name.startswith(".")
            if report and not private and not entry.is_file(follow_symlinks=False):
                report.problems.append(f"outputs/{entry.name} is not a regular file; remove it")
            yield entry.name


def _without_output(pool: PoolDirectory, asked: Set[int]) -> Iterator[tuple[str, str]]:
    """Look up the claims in question by name; yield those without output, and its name."""
    done = atomic.gather(pool.state(State.DONE), partial(look, owned=True, asked=asked)).asked
    planned = planned_in(pool, asked)
    suffixes = {id: planned.suffixes[number] for id, number in planned.ids.items()}
    missing = {f"{id}{suffixes[id]}": id for id, _ in done if suffixes.get(id) is not None}
    for name in _outputs(pool):
        missing.pop(name, None)
    for name, id in missing.items():
        # R31: a listing of a busy directory misses names, and a repair would run the claim again.
        if not os.path.lexists(f"{pool.directory('outputs')}/{name}"):
            yield id, name


# ---- not problems, but worth a note ----


def _note_leftovers(pool: PoolDirectory, planned: Planned, report: AuditReport) -> None:
    for uid in sorted(staged_in(pool) - planned.uids):
        report.notes.append(
            f"{pool.staged(uid)} belongs to no plan yet: its planner is at work, or died before it "
            f"planned anything; then remove it: fsqueue clean {pool.root}"
        )
    for leftover in [] if planned.problems else Cleaner(pool).look():
        if leftover.kind != LeftoverKind.SCRATCH:
            report.notes.append(
                f"{leftover.path} is not needed any more: fsqueue clean {pool.root}"
            )
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
                f"outputs/{text} was left by a worker that is gone: fsqueue clean {pool.root}"
            )


# ---- compare plans with where claims are ----
#
# Of a claim that is planned once and found once, two fingerprints are kept, 17 bytes in all.

T = TypeVar("T")


@dataclass(slots=True)
class Planned:
    """What was planned: the output suffix of every plan, their uids, fingerprints of all ids."""

    suffixes: dict[int, str | None] = field(default_factory=dict)
    uids: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    marks: dict[str | None, Fingerprints] = field(default_factory=dict)
    """Fingerprints of the ids, by the suffix of their outputs."""
    ids: dict[str, int] = field(default_factory=dict)
    """The plan of each id that is looked up by name."""


def planned_in(pool: PoolDirectory, asked: Set[int]) -> Planned:
    """Read all plans; `asked` are the fingerprints of the ids to look up by name."""
    planned = Planned()
    for number in plans.numbers(pool):
        try:
            plan = plans.read_plan(pool, number)
            planned.suffixes[number] = plan.suffix
            planned.uids.add(plan.uid)
            add = planned.marks.setdefault(plan.suffix, Fingerprints()).add
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
    """Where claims are: how many in each state, their fingerprints, and names of other things."""

    counts: Counter[str] = field(default_factory=Counter)
    marks: Fingerprints = field(default_factory=Fingerprints)
    other_names: list[str] = field(default_factory=list)
    found: dict[str, list[str]] = field(default_factory=dict)
    """The places of each id that is looked up by name."""


def places_in(pool: PoolDirectory, uids: Set[str], asked: Set[int]) -> Places:
    """List where all claims are; `uids` are the plans that have a number."""
    places = Places()
    for place, directory, owned in claim_directories(pool, uids):
        seen = listed(directory, partial(look, owned=owned, asked=asked))
        places.marks.extend(seen.marks)
        if seen.marks:
            places.counts[place.split("/")[0]] += len(seen.marks)
        for text in seen.other_names:
            places.other_names.append(f"{directory}/{text!r} is not a claim's name; remove it")
        for id, text in seen.asked:
            places.found.setdefault(id, []).append(f"{place}/{text}")
    return places


@dataclass(slots=True)
class Seen:
    """One directory of claims."""

    marks: array[int] = field(default_factory=lambda: array("q"))
    other_names: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)


def look(texts: Iterator[str], *, owned: bool, asked: Set[int]) -> Seen:
    """Read the names in one directory."""
    seen = Seen()
    for text in texts:
        facts = id_and_cost(text, owned=owned)
        if facts is None:
            seen.other_names.append(text)
            continue
        seen.marks.append(mark(facts[0]))
        if asked and mark(facts[0]) in asked:
            seen.asked.append((facts[0], text))
    return seen


def claim_directories(pool: PoolDirectory, uids: Set[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield each place, its directory, and whether claims have an owner there.

    Staged claims count once their plan has a number. Before that they may have been left by a
    planner that died, and the next plan has planned them anew.
    """
    for uid in staged_in(pool) & uids:
        for spool in filter(SPOOL.fullmatch, listed(pool.staged(uid), list)):
            yield f"staged/{spool}", pool.staged(uid, spool), False
    for spool in spool_names(pool):
        yield f"spools/{spool}", pool.spool(spool), False
    for state in (State.RUNNING, State.DONE, State.FAILED):
        yield state.value, pool.state(state), True


def staged_in(pool: PoolDirectory) -> set[str]:
    """Return the plans that have a directory of staged claims."""
    texts = atomic.names(pool.directory("plans"))
    found = {text.removesuffix(".staged") for text in texts if text.endswith(".staged")}
    return set(filter(ID.fullmatch, found))


def listed(directory: str, into: Callable[[Iterator[str]], T]) -> T:
    """Gather the names in a directory; none if it does not exist."""
    try:
        return atomic.gather(directory, into)
    except PoolError:
        return into(iter(()))  # a broken spool is reported separately; a staged one was completed


def suspect_fingerprints(planned: Planned, places: Places) -> set[int]:
    """Return the fingerprints of ids that are not planned once and found once."""
    groups = planned.marks.values()
    odd = repeated(*groups) | repeated(places.marks)
    for found, *those in sets(places.marks, *groups):
        odd |= found.symmetric_difference(set().union(*those))
    return odd


def suspects_among(
    found: dict[str, list[str]], planned: dict[str, int]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the ids that are not planned once and found once, and where they are."""
    for id in planned:
        if id not in found:
            yield id, ()
    for id, places in found.items():
        if len(places) > 1 or id not in planned:
            yield id, tuple(sorted(places))


def _misplaced(id: str, places: tuple[str, ...], planned: dict[str, int]) -> str:
    if not places:
        return "is planned but nowhere: its file was removed"
    if len(places) > 1:
        return f"is in {len(places)} places: {', '.join(places)}"
    return f"is in {places[0]}, but in no plan"
