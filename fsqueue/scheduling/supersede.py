"""Replace the claims of an input's former version, when the input is planned again.

A claim is pinned to the content of its inputs, so once an input changed, its old claims can only
fail. They would keep the exit status at 3 for ever, whatever is planned anew.

R43 An input that is planned again, with the same handler and the same options, replaces its former
    version: claims of that version that wait or have failed end in failed/ as superseded, with a
    record that says so. They are not failures. Claims that run or are done are not touched.
R44 A claim is superseded only after every input it reads was planned again. Inputs that share one
    with a changed input are planned again together with it, unchanged, so nothing of them is lost.
R45 An input that is again as it was in an earlier plan gets its superseded claims of it back.

The new plan is published before anything is superseded, and what a killed planner did not supersede
the next `plan` does: it looks at all plans, not at what it has just done.

Which version counts is decided by mtime and size for handlers that do not read their inputs (as
make does: a `touch` is a new version), and by content for those that do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsqueue.errors import PoolError
from fsqueue.handler import Handler
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName, Role, is_given_up, is_superseded, new_worker_id
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.journal import EventKind, Journal
from fsqueue.storage.untrusted import read_json


@dataclass(frozen=True, slots=True)
class _Old:
    """A claim that no worker runs, of an input that was planned again."""

    name: ClaimName
    spool: str | None
    """None for one that failed."""
    inputs: frozenset[str]
    plan: int


@dataclass(slots=True)
class Versions:
    """Which version of each input every plan of one handler and one set of options holds."""

    current: Mapping[str, str]
    """The key of each input that is being planned, by its path."""
    by_plan: dict[int, dict[str, str]] = field(default_factory=dict)
    """The key of each input, by its path, of every plan, oldest first; empty if none changed."""

    @property
    def is_any_replaced(self) -> bool:
        """Whether an input that is being planned has another version in a plan."""
        return bool(self.by_plan)

    def is_replaced(self, path: str, number: int) -> bool:
        """Return whether another plan than `number` holds the version that counts."""
        wanted = self.current.get(path)
        if wanted is not None and self.by_plan[number].get(path) != wanted:
            return True
        return any(
            later > number and path in held and wanted in (None, held[path])
            for later, held in self.by_plan.items()
        )


def read_versions(
    pool: PoolDirectory, handler: Handler, options: Mapping[str, Any], current: Mapping[str, str]
) -> Versions:
    """Read which versions the plans of this handler, with these options, hold."""
    versions = Versions(current)
    mine = _plain(handler.result_options(options))
    numbers = []
    for number in plans.numbers(pool):
        plan = plans.read_plan(pool, number)
        if plan.handler == handler.name and _plain(handler.result_options(plan.options)) == mine:
            numbers.append(number)
    # Usually nothing changed, and then a million inputs need no memory.
    if any(
        current.get(path, key) != key
        for number in numbers
        for key, path in plans.read_keyed_inputs(pool, number)
    ):
        for number in numbers:
            held = plans.read_keyed_inputs(pool, number)
            versions.by_plan[number] = {path: key for key, path in held}
    return versions


def _plain(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=dict)


def companions(pool: PoolDirectory, handler: Handler, versions: Versions) -> set[str]:
    """Return the inputs that must be planned again with those that changed (R44)."""
    found: set[str] = set()
    if versions.is_any_replaced:
        for old in _old_claims(pool, handler, versions):
            if old.spool is None and is_superseded(str(old.name)):
                continue
            changed = {path for path in old.inputs if versions.is_replaced(path, old.plan)}
            if changed:
                found |= old.inputs - changed
    return found


def supersede(
    pool: PoolDirectory, handler: Handler, versions: Versions, *, dry_run: bool = False
) -> tuple[int, int]:
    """Supersede what was replaced, and bring back what is current again; return both counts.

    `versions` must hold the new plan, if there is one.
    """
    if not versions.is_any_replaced:
        return 0, 0
    me = new_worker_id(Role.SUPERSEDE)
    journal = Journal(pool, me)
    ended = back = 0
    for old in list(_old_claims(pool, handler, versions)):
        replaced = all(versions.is_replaced(path, old.plan) for path in old.inputs)
        was_superseded = old.spool is None and is_superseded(str(old.name))
        if replaced and not was_superseded:
            ended += dry_run or _end(pool, old, me, journal)
        elif was_superseded and not replaced and _is_current(versions, old):
            back += dry_run or _bring_back(pool, old, journal)
    journal.close()
    return ended, back


def _is_current(versions: Versions, old: _Old) -> bool:
    held = versions.by_plan[old.plan]
    return all(versions.current.get(path) == held.get(path) for path in old.inputs)


def _end(pool: PoolDirectory, old: _Old, me: str, journal: Journal) -> bool:
    if old.spool is not None:
        ended = claims.cancel(pool, old.spool, old.name, me)
    else:
        ended = claims.give_up(pool, old.name, me)
    if ended is None:
        return False  # RACE: a worker took it, or another planner was faster; the next plan sees it
    claims.record_error(pool, ended, claims.SUPERSEDED)
    journal.claim(EventKind.SUPERSEDED, ended)
    return True


def _bring_back(pool: PoolDirectory, old: _Old, journal: Journal) -> bool:
    spool = _home(pool, old.name)
    if claims.retry(pool, old.name, spool) is None:
        return False  # RACE: as above
    journal.claim(EventKind.RETRIED, old.name, to=spool)
    return True


def _home(pool: PoolDirectory, name: ClaimName) -> str:
    spools = spool_names(pool)
    try:
        spool = read_json(pool.owned(State.FAILED, name)).get("spool")
    except (PoolError, OSError):
        spool = None  # a damaged claim: the worker that takes it next reports that
    return spool if isinstance(spool, str) and spool in spools else spools[0]


def _old_claims(pool: PoolDirectory, handler: Handler, versions: Versions) -> Iterator[_Old]:
    """Yield the claims that wait or failed, of plans with another version of a current input."""
    numbers = [
        number
        for number, held in versions.by_plan.items()
        if any(path in held for path in versions.current)
    ]
    home = {
        name.id: number for number in numbers for name, _spool in plans.read_claims(pool, number)
    }
    for spool, name in _resting(pool):
        if name.id in home:
            path = pool.waiting(spool, name) if spool else pool.owned(State.FAILED, name)
            inputs = _inputs(handler, path)
            if not versions.current.keys().isdisjoint(inputs):
                yield _Old(name, spool, inputs, home[name.id])


def _resting(pool: PoolDirectory) -> Iterable[tuple[str | None, ClaimName]]:
    for spool in spool_names(pool):
        for name in claims.waiting(pool, spool):
            yield spool, name
    for name in claims.owned(pool, State.FAILED):
        if not is_given_up(str(name)) or is_superseded(str(name)):
            yield None, name


def _inputs(handler: Handler, path: str) -> frozenset[str]:
    try:
        payload = read_json(path, patience_s=0.0).get("payload")
        return frozenset(handler.inputs(payload)) if isinstance(payload, dict) else frozenset()
    except (PoolError, OSError, KeyError, TypeError, ValueError):
        return frozenset()  # RACE: a worker took it; or it is damaged, which `check` reports
