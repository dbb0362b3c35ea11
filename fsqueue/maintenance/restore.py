"""Repair what an audit found, where there is no doubt how (`fsqueue check --repair`).

what is wrong                                         what is done
a planned claim is nowhere                            it is planned again, from its plan and its
                                                      input, if that is unchanged
a claim is in several places                          one stays: done before running before waiting
                                                      before failed; the copies are set aside
a done claim's output is missing                      the claim goes back to waiting
a done claim's output is not what was published       the output is set aside, then the same

R34 A repair removes nothing: what it takes out of the way is in set-aside/. It touches no running
    claim, and may be killed at any point: what it has not done is done by running it again.
R35 What a repair cannot do without doubt it leaves, and says why.

Everything else that an audit reports is a file that only its owner can judge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from fsqueue.errors import BadInput, FsqueueError
from fsqueue.handler import Handler, Source, claim_id, load_handler, source_key
from fsqueue.maintenance.audit import AuditReport, audit_pool
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.names import ATTEMPT_MAX, ID, ClaimName, slug
from fsqueue.pool.plans import Plan
from fsqueue.pool.settings import PoolDirectory, read_spool, spool_names
from fsqueue.scheduling.planner import CLAIM_S, cost_limit
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import read_json

ROUNDS_MAX: Final = 4
"""One repair can show the next: of several copies the done one stays, and has no output."""
RANK: Final = {State.DONE: 0, State.RUNNING: 1, State.WAITING: 2, State.FAILED: 3}


@dataclass(slots=True)
class Repair:
    """What was done, or would be, and what was left; one line each."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def repair_pool(
    pool: PoolDirectory,
    report: AuditReport,
    *,
    dry_run: bool = False,
    handler_named: Callable[[str], Handler] = load_handler,
) -> Repair:
    """Repair what `report` says is wrong. Safe beside workers; see the module docstring."""
    repair = Repair()
    if not os.path.isdir(pool.state(State.DONE)):
        repair.left.append("the pool lacks directories: put them back first, then check again")
        return repair
    act = _Repairer(pool, repair, dry_run, handler_named)
    for id, places in report.misplaced.items():
        if len(places) > 1:
            act.keep_one(id, places)
        elif places:
            repair.left.append(f"{id} is in no plan: find out what put it into {places[0]}")
    act.plan_again([id for id, places in report.misplaced.items() if not places])
    act.run_again(report)
    return repair


@dataclass(slots=True)
class _Repairer:
    pool: PoolDirectory
    repair: Repair
    dry_run: bool
    handler_named: Callable[[str], Handler]

    # ---- a claim in several places ----

    def keep_one(self, id: str, places: Sequence[str]) -> None:
        found = sorted(filter(None, map(self._parse, places)), key=_rank)
        if not found:
            return  # RACE: its plan is being completed
        kept, copies = found[0], found[1:]
        if any(copy.state is State.RUNNING for copy in copies):
            self.repair.left.append(
                f"{id} is running in more than one place, or done and running: wait until no "
                f"worker has it (fsqueue wait {self.pool.root}), then check again"
            )
            return
        if not _is_whole(kept):
            self.repair.left.append(f"{id}: {kept.path} is not whole, so no copy was chosen")
            return
        for copy in copies:
            self._set_aside(copy.path, f"{id}: kept {kept.place}; the copy {copy.place}")

    def _parse(self, place: str) -> _Place | None:
        directory, _, text = place.rpartition("/")
        name = ClaimName.parse(text)
        if name is None or directory.startswith("staged/"):
            return None  # a staged claim moves to its spool by itself
        spool = directory.removeprefix("spools/") if name.owner is None else None
        state = State.WAITING if spool else State(directory)
        path = self.pool.waiting(spool, name) if spool else self.pool.owned(state, name)
        return _Place(place, path, state, name)

    def _set_aside(self, path: str, what: str) -> None:
        if self.dry_run:
            self.repair.done.append(f"{what} would be set aside")
        elif (target := claims.set_aside(self.pool, path)) is not None:
            self.repair.done.append(f"{what} is now {target}")

    # ---- a claim that is nowhere ----

    def plan_again(self, ids: Sequence[str]) -> None:
        lost = set(ids)
        for number in plans.numbers(self.pool) if lost else ():
            rows = {
                name.id: (name, spool)
                for name, spool in plans.read_claims(self.pool, number)
                if name.id in lost
            }
            if rows:
                lost -= rows.keys()
                self._plan_again_from(number, rows)

    def _plan_again_from(self, number: int, rows: dict[str, tuple[ClaimName, str]]) -> None:
        try:
            plan = plans.read_plan(self.pool, number)
            handler = self.handler_named(plan.handler)
            sources = list(_unchanged(self.pool, number, plan, handler, rows))
            items = handler.cut(sources, plan.options, self._cost_max(plan, sources, handler))
            for item in items:
                id = claim_id(handler, plan.options, item)
                if id in rows:
                    name, spool = rows.pop(id)
                    facts = plan.options, dict(item.payload), dict(item.measures)
                    claim = claims.Claim(
                        plan.handler,
                        spool,
                        *facts,
                        plan.suffix,
                        timeout_s=plan.timeout_s,
                        retry_requires=plan.retry_requires,
                    )
                    self._publish(handler, name, spool, claim)
        except (FsqueueError, OSError) as error:
            self.repair.left += [f"{id} cannot be planned again: {error}" for id in rows]
            return
        for id in rows:
            self.repair.left.append(
                f"{id} cannot be planned again: its input changed or is gone since plan {number}. "
                f"Plan the input as it is now, which replaces it; or: fsqueue forget "
                f"{self.pool.root} {id}"
            )

    def _cost_max(self, plan: Plan, sources: Sequence[Source], handler: Handler) -> int:
        if plan.cost_max is not None:
            return plan.cost_max
        weights = [read_spool(self.pool, name).weight for name in plan.spools]
        return cost_limit(sum(source.cost for source in sources), weights, handler, CLAIM_S)

    def _publish(
        self, handler: Handler, planned: ClaimName, spool: str, claim: claims.Claim
    ) -> None:
        attempt = _unused_attempt(self.pool, planned.id)
        name = ClaimName(
            planned.id, planned.kind, planned.cost, attempt, 1, priority=planned.priority
        )
        if self.dry_run:
            self.repair.done.append(f"{name.id} would be planned again into {spool}")
            return
        # RACE: another repair may have planned it; the name is the same, and one of them stands.
        claims.plan_again(self.pool, spool, name, claim, personal=handler.personal)
        self.repair.done.append(f"{name.id} is planned again into {spool}")

    # ---- a done claim without its output ----

    def run_again(self, report: AuditReport) -> None:
        lost = dict(report.without_output)
        damaged = {ID.match(name)[0]: name for name in report.damaged}  # type: ignore[index]
        # A claim in several places first becomes one; the next audit sees whether that is done.
        wanted = {id: name for id, name in (lost | damaged).items() if id not in report.misplaced}
        done = [n for n in claims.owned(self.pool, State.DONE) if n.id in wanted] if wanted else []
        for name in done:
            output = f"{self.pool.directory('outputs')}/{wanted[name.id]}"
            spool = self._spool(name)
            if name.is_spent:
                self.repair.left.append(f"{name.id} was put back so often that no name is left")
            elif self.dry_run:
                aside = f"{output} would be set aside, and " if name.id in damaged else ""
                self.repair.done.append(f"{name.id}: {aside}it would run again")
            else:
                # The output first: a worker that takes the claim would adopt it.
                if name.id in damaged:
                    self._set_aside(output, f"{name.id}: its damaged output")
                if claims.undo_done(self.pool, name, spool) is not None:
                    self.repair.done.append(f"{name.id} waits in {spool} again")
        for id in sorted(damaged.keys() & wanted.keys() - {name.id for name in done}):
            self.repair.left.append(
                f"outputs/{damaged[id]} is damaged, and its claim is not done: it is left alone"
            )

    def _spool(self, name: ClaimName) -> str:
        spools = spool_names(self.pool)
        try:
            spool = read_json(self.pool.owned(State.DONE, name)).get("spool")
        except (FsqueueError, OSError):
            spool = None  # the worker that takes it next reports that
        return spool if isinstance(spool, str) and spool in spools else spools[0]


# ---- parts ----


@dataclass(frozen=True, slots=True)
class _Place:
    place: str
    path: str
    state: State
    name: ClaimName


def _rank(place: _Place) -> tuple[int, int, int, str]:
    return RANK[place.state], -place.name.attempt, -place.name.returns, place.place


def _is_whole(place: _Place) -> bool:
    try:
        return read_json(place.path, patience_s=0.0).get("id") == place.name.id
    except (FsqueueError, OSError):
        return False


def _unchanged(
    pool: PoolDirectory,
    number: int,
    plan: Plan,
    handler: Handler,
    rows: dict[str, tuple[ClaimName, str]],
) -> Iterator[Source]:
    """Survey the inputs of a plan again, and yield those that are as they were planned."""
    # With the usual `cut`, a claim is one input, and its id begins with the input's name.
    one_each = type(handler).cut is Handler.cut
    stems = {id.rpartition("-")[0] for id in rows}
    for key, path in plans.read_keyed_inputs(pool, number):
        if one_each and slug(os.path.splitext(os.path.basename(path))[0]) not in stems:
            continue
        try:
            source = handler.survey(path, plan.options)
        except BadInput:
            continue  # reported with the claims that were made from it
        if source_key(handler, plan.options, source) == key:
            yield source


def _unused_attempt(pool: PoolDirectory, id: str) -> int:
    """Return an attempt that no earlier name of a claim can have had.

    A lost claim had the attempt after its last error record, or, after a retry, the first of the
    next round; so the round after that is unused.
    """
    tried = [
        int(text.removeprefix(f"{id}.a").removesuffix(".json"))
        for text in atomic.names(pool.directory("errors"))
        if text.startswith(f"{id}.a") and text.removeprefix(f"{id}.a")[:-5].isdecimal()
    ]
    rounds = max(tried) // pool.attempts_max + 2 if tried else 1
    return min(rounds * pool.attempts_max, ATTEMPT_MAX)


def check_and_repair(
    pool: PoolDirectory, *, deep: bool = False, dry_run: bool = False
) -> tuple[Repair, AuditReport]:
    """Audit, repair, and audit again; return what was done, and what is wrong now."""
    if not dry_run:
        plans.complete(pool)
    report = audit_pool(pool, deep=deep)
    done: list[str] = []
    for _ in range(ROUNDS_MAX):
        repair = repair_pool(pool, report, dry_run=dry_run)
        done += repair.done
        if dry_run or not repair.done:
            break
        report = audit_pool(pool, deep=deep)
    return Repair(done, repair.left), report
