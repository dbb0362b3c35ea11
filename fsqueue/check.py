"""Verify a pool's invariants on disk, and say in plain words what contradicts them.

A pool may be at work meanwhile, and no set of listings is one moment: a claim that moves between
two of them is seen twice or not at all. So what looks wrong is looked at again, and believed when
it looks wrong the same way three times.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from fsqueue import atomic, claims, plans
from fsqueue.errors import FsqueueError, PoolError
from fsqueue.layout import DIRECTORIES, State
from fsqueue.leases import lease_names
from fsqueue.litter import Cleaner
from fsqueue.names import ID, SPOOL, ClaimName
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
            atomic.names(pool.directory(name))
        except PoolError as error:
            report.problems.append(str(error))
    if report.problems:
        return report
    planned = _check_places(pool, report)
    _check_spools(pool, report)
    _check_contents(pool, planned, report)
    _check_outputs(pool, planned, report)
    _note_leftovers(pool, planned, report)
    return report


@dataclass(slots=True)
class _Planned:
    """What the plans say: the plan of every id, the output suffix of every plan, their uids."""

    ids: dict[str, int] = field(default_factory=dict)
    suffixes: dict[int, str | None] = field(default_factory=dict)
    uids: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def _planned(pool: Pool) -> _Planned:
    planned = _Planned()
    for number in plans.numbers(pool):
        try:
            plan = plans.read_plan(pool, number)
            planned.suffixes[number] = plan.suffix
            planned.uids.add(plan.uid)
            for name, _spool in plans.read_claims(pool, number):
                if name.id in planned.ids:
                    planned.problems.append(
                        f"I1: {name.id} is planned twice, "
                        f"by plan {planned.ids[name.id]} and {number}"
                    )
                planned.ids[name.id] = number
        except (FsqueueError, OSError) as error:
            planned.problems.append(str(error))
    return planned


# ---- I1: each planned claim is in exactly one place ----


def _check_places(pool: Pool, report: Report) -> _Planned:
    suspects: dict[str, str] = {}
    for look in range(LOOKS):
        planned = _planned(pool)  # each time: a planner may be at work, too
        found, counts, strangers = _places(pool, planned.uids)
        odd = dict(_odd(found, planned.ids))
        suspects = odd if look == 0 else {k: v for k, v in suspects.items() if odd.get(k) == v}
        if not suspects:
            break
    report.planned = len(planned.ids)
    report.counts = dict(counts)
    report.problems += planned.problems
    report.problems += [f"I1: {id} {what}" for id, what in sorted(suspects.items())]
    report.problems += strangers
    if counts["staged"]:
        report.notes.append(
            f"{counts['staged']} claims of a plan are not yet in their spools: its planner is at "
            f"work, or died. The next plan, an idle worker or fsqueue recover completes it."
        )
    return planned


def _places(
    pool: Pool, uids: Collection[str]
) -> tuple[dict[str, list[str]], Counter[str], list[str]]:
    """Return where each id is, how many are in each state, and names that are no claims."""
    found: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    strangers: list[str] = []
    for place, directory, owned in _claim_directories(pool, uids):
        for text in _listed(directory):
            name = ClaimName.parse(text)
            if name is None or (name.owner is not None) != owned:
                strangers.append(f"{directory}/{text!r} is no claim's name; remove it")
                continue
            found.setdefault(name.id, []).append(f"{place}/{text}")
            counts[place.split("/")[0]] += 1
    return found, counts, strangers


def _claim_directories(pool: Pool, uids: Collection[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield each place, its directory, and whether claims have an owner there.

    What is staged counts once its plan has a number. Before that it is no claim, and may be what a
    planner left that died: the next plan has planned it anew.
    """
    for uid in _staged(pool) & set(uids):
        for spool in filter(SPOOL.fullmatch, _listed(pool.staged(uid))):
            yield f"staged/{spool}", pool.staged(uid, spool), False
    for spool in spool_names(pool):
        yield f"spools/{spool}", pool.spool(spool), False
    for state in (State.RUNNING, State.DONE, State.FAILED):
        yield state.value, pool.state(state), True


def _staged(pool: Pool) -> set[str]:
    texts = atomic.names(pool.directory("plans"))
    found = {text.removesuffix(".staged") for text in texts if text.endswith(".staged")}
    return set(filter(ID.fullmatch, found))


def _listed(directory: str) -> list[str]:
    try:
        return atomic.names(directory)
    except PoolError:
        return []  # a broken spool is reported by itself; a staged one may just be completed


def _odd(found: dict[str, list[str]], planned: dict[str, int]) -> Iterator[tuple[str, str]]:
    for id in planned:
        if id not in found:
            yield id, "is planned but nowhere: somebody removed its file"
    for id, places in found.items():
        if len(places) > 1:
            yield id, f"is in {len(places)} places: {', '.join(sorted(places))}"
        elif id not in planned:
            yield id, f"is in {places[0]}, and no plan holds it"


# ---- I4: what waits or runs is whole ----


def _check_spools(pool: Pool, report: Report) -> None:
    for spool in spool_names(pool):
        try:
            atomic.names(pool.spool(spool))
            read_spool(pool, spool)
        except (FsqueueError, OSError) as error:
            report.problems.append(str(error))


def _check_contents(pool: Pool, planned: _Planned, report: Report) -> None:
    for place, directory, owned in _claim_directories(pool, planned.uids):
        if owned and place != State.RUNNING:
            continue
        for name in filter(None, map(ClaimName.parse, _listed(directory))):
            try:
                if read_json(f"{directory}/{name}", patience_s=0.0).get("id") != name.id:
                    report.problems.append(f"I4: {directory}/{name} holds another claim")
            except PoolError as error:
                report.problems.append(f"I4: {error}")
            except OSError:
                continue  # RACE: it moved on


# ---- I6: done implies output ----


def _check_outputs(pool: Pool, planned: _Planned, report: Report) -> None:
    done = [name.id for name in claims.owned(pool, State.DONE)]
    outputs = set()
    with os.scandir(pool.directory("outputs")) as entries:
        for entry in entries:
            outputs.add(entry.name)
            if not entry.name.startswith(".") and not entry.is_file(follow_symlinks=False):
                report.problems.append(f"outputs/{entry.name} is no regular file; remove it")
    for id in done:
        suffix = planned.suffixes.get(planned.ids.get(id, 0))
        if suffix is not None and f"{id}{suffix}" not in outputs:
            report.problems.append(f"I6: {id} is done, and outputs/{id}{suffix} is missing")


# ---- no problems, but worth a word ----


def _note_leftovers(pool: Pool, planned: _Planned, report: Report) -> None:
    for uid in sorted(_staged(pool) - planned.uids):
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
    for text in os.listdir(pool.directory("outputs")):
        if text.startswith(".") and text[1:] not in living:
            report.notes.append(
                f"outputs/{text} was left by a worker that is gone; nothing reads it: "
                f"fsqueue clean {pool.root}"
            )
