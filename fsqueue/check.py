"""Verify a pool's invariants on disk, and say in plain words what contradicts them.

A pool may be at work meanwhile, and no set of listings is one moment: a claim that moves between
two of them is seen twice or not at all. So what looks wrong is looked at again, and believed when
it looks wrong the same way three times.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fsqueue import atomic, claims, plans
from fsqueue.errors import FsqueueError, PoolError
from fsqueue.layout import DIRECTORIES, State
from fsqueue.leases import lease_names
from fsqueue.names import SPOOL, ClaimName
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
    planned, suffixes = _planned(pool, report)
    report.planned = len(planned)
    _check_places(pool, planned, report)
    _check_spools(pool, report)
    _check_contents(pool, report)
    _check_outputs(pool, planned, suffixes, report)
    _note_leftovers(pool, report)
    return report


def _planned(pool: Pool, report: Report) -> tuple[dict[str, int], dict[int, str | None]]:
    """Return the plan number of every planned id, and the output suffix of every plan."""
    planned: dict[str, int] = {}
    suffixes: dict[int, str | None] = {}
    for number in plans.numbers(pool):
        try:
            suffixes[number] = plans.read_plan(pool, number).suffix
            for name, _spool in plans.read_claims(pool, number):
                if name.id in planned:
                    report.problems.append(
                        f"I1: {name.id} is planned twice, by plan {planned[name.id]} and {number}"
                    )
                planned[name.id] = number
        except (FsqueueError, OSError) as error:
            report.problems.append(str(error))
    return planned, suffixes


# ---- I1: each planned claim is in exactly one place ----


def _check_places(pool: Pool, planned: dict[str, int], report: Report) -> None:
    suspects: dict[str, str] = {}
    for look in range(LOOKS):
        found, counts, strangers = _places(pool)
        odd = dict(_odd(found, planned))
        suspects = odd if look == 0 else {k: v for k, v in suspects.items() if odd.get(k) == v}
        if not suspects:
            break
    report.counts = dict(counts)
    report.problems += [f"I1: {id} {what}" for id, what in sorted(suspects.items())]
    report.problems += strangers
    if counts["staged"]:
        report.notes.append(
            f"{counts['staged']} claims of a plan are not yet in their spools: its planner is at "
            f"work, or died. The next plan, an idle worker or fsqueue recover completes it."
        )


def _places(pool: Pool) -> tuple[dict[str, list[str]], Counter[str], list[str]]:
    """Return where each id is, how many are in each state, and names that are no claims."""
    found: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    strangers: list[str] = []
    for place, directory, owned in _claim_directories(pool):
        try:
            texts = atomic.names(directory)
        except PoolError:
            continue  # a broken spool is reported by itself; a staged one may just be completed
        for text in texts:
            name = ClaimName.parse(text)
            if name is None or (name.owner is not None) != owned:
                strangers.append(f"{directory}/{text!r} is no claim's name; remove it")
                continue
            found.setdefault(name.id, []).append(f"{place}/{text}")
            counts[place.split("/")[0]] += 1
    return found, counts, strangers


def _claim_directories(pool: Pool) -> Iterator[tuple[str, str, bool]]:
    for text in atomic.names(pool.directory("plans")):
        if text.endswith(".staged") and os.path.isdir(
            staged := f"{pool.directory('plans')}/{text}"
        ):
            for spool in filter(SPOOL.fullmatch, os.listdir(staged)):
                yield f"staged/{spool}", f"{staged}/{spool}", False
    for spool in spool_names(pool):
        yield f"spools/{spool}", pool.spool(spool), False
    for state in (State.RUNNING, State.DONE, State.FAILED):
        yield state.value, pool.state(state), True


def _odd(found: dict[str, list[str]], planned: dict[str, int]) -> Iterator[tuple[str, str]]:
    for id in planned:
        if id not in found:
            yield id, "is planned but nowhere: somebody removed its file"
    for id, places in found.items():
        if len(places) > 1:
            yield id, f"is in {len(places)} places: {', '.join(sorted(places))}"
        elif id not in planned and not places[0].startswith("staged/"):
            yield id, f"is in {places[0]}, and no plan holds it"


# ---- I4: what waits or runs is whole ----


def _check_spools(pool: Pool, report: Report) -> None:
    for spool in spool_names(pool):
        try:
            atomic.names(pool.spool(spool))
            read_spool(pool, spool)
        except (FsqueueError, OSError) as error:
            report.problems.append(str(error))


def _check_contents(pool: Pool, report: Report) -> None:
    for place, directory, owned in _claim_directories(pool):
        if owned and place != State.RUNNING:
            continue
        try:
            texts = atomic.names(directory)
        except PoolError:
            continue  # as above
        for name in filter(None, map(ClaimName.parse, texts)):
            try:
                if read_json(f"{directory}/{name}", patience_s=0.0).get("id") != name.id:
                    report.problems.append(f"I4: {directory}/{name} holds another claim")
            except PoolError as error:
                report.problems.append(f"I4: {error}")
            except OSError:
                continue  # RACE: it moved on


# ---- I6: done implies output ----


def _check_outputs(
    pool: Pool, planned: dict[str, int], suffixes: dict[int, str | None], report: Report
) -> None:
    done = [name.id for name in claims.owned(pool, State.DONE)]
    outputs = set(atomic.names(pool.directory("outputs")))
    for id in done:
        suffix = suffixes.get(planned.get(id, 0))
        if suffix is not None and f"{id}{suffix}" not in outputs:
            report.problems.append(f"I6: {id} is done, and outputs/{id}{suffix} is missing")


# ---- no problems, but worth a word ----


def _note_leftovers(pool: Pool, report: Report) -> None:
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
                f"outputs/{text} was left by a worker that is gone; nothing reads it: rm -r it"
            )
