"""Deliberate mistakes in the protocol, each of which the simulation must notice.

A mutation replaces one named function of fsqueue by a wrong one that is written here. The wrong
function gets the right one as its first argument, so that it can call it.

What this module does not know: how the functions it replaces are written.
"""

from __future__ import annotations

import json
import os.path
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final
from unittest.mock import patch

from fsqueue.errors import LeaseLost
from fsqueue.pool import claims, leases, plans
from fsqueue.pool.layout import Layout, State
from fsqueue.pool.leases import Lease, Observer, Standing
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, add_spool
from fsqueue.scheduling import planner
from fsqueue.storage import atomic, directories
from fsqueue.worker.attempts.attempt import Attempt
from fsqueue.worker.recovery import Recovery
from fsqueue.worker.worker import Worker

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake: which function of which module or class is wrong, and how."""

    name: str
    owner: ModuleType | type
    function: str
    wrong: Any
    """The wrong function, or the wrong value of a constant."""
    scene: str = ""
    """The scene that shows it, if most scenarios do not."""


MUTATIONS: Final[dict[str, Mutation]] = {}


def mutation(
    name: str, owner: ModuleType | type, function: str, *, scene: str = ""
) -> Callable[[Function], Function]:
    """Register the decorated function as what `owner.function` wrongly is."""
    assert callable(vars(owner)[function]), f"{owner.__name__}.{function} is not a function"

    def register(wrong: Function) -> Function:
        assert name not in MUTATIONS, name
        MUTATIONS[name] = Mutation(name, owner, function, wrong, scene)
        return wrong

    return register


def wrong_constant(
    name: str, owner: ModuleType, constant: str, value: Any, *, scene: str = ""
) -> None:
    """Register a wrong value of a named constant."""
    assert not callable(vars(owner)[constant]) and name not in MUTATIONS, name
    MUTATIONS[name] = Mutation(name, owner, constant, value, scene)


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Make the mistake until the block ends, also where the function was imported by name.

    Raises RuntimeError if the wrong function itself does not fit the program any more.
    """
    right = getattr(mutation.owner, mutation.function)
    if not callable(right):
        with patch.object(mutation.owner, mutation.function, mutation.wrong):
            yield
        return
    misfits: list[Exception] = []

    def wrong(*args: Any, **options: Any) -> Any:
        try:
            return mutation.wrong(right, *args, **options)
        except (AttributeError, NameError, TypeError) as error:
            misfits.append(error)
            raise

    owners: list[Any] = [mutation.owner]
    if isinstance(mutation.owner, ModuleType):
        owners = [m for name, m in sys.modules.items() if name.startswith(("fsqueue.", "tests."))]
    with ExitStack() as stack:
        for owner in owners:
            for name in [name for name, value in vars(owner).items() if value is right]:
                stack.enter_context(patch.object(owner, name, wrong))
        yield
    if misfits:
        raise RuntimeError(f"rewrite the mutation {mutation.name!r}") from misfits[0]


# ---- moving claims ----


def _move_and_believe(source: str, target: str, *, failed: bool) -> bool:
    try:
        atomic.rename(source, target)
        return True
    except OSError as error:
        if error.errno not in atomic.GONE:
            raise
        return failed


@mutation(
    "no look after a rename that reported failure",
    claims,
    "_leave_running",
    scene="the reply of a finish is lost",
)
def _(right: Function, pool: PoolDirectory, name: ClaimName, target: str, verb: str) -> None:
    if not _move_and_believe(pool.owned(State.RUNNING, name), target, failed=False):
        raise claims._lost(name, verb)


@mutation(
    "a rename that reported failure counts as done", claims, "move", scene="a zombie finishes"
)
def _(right: Function, source: str, target: str) -> bool:
    return _move_and_believe(source, target, failed=True)


@mutation("take by link and unlink", claims, "move")
def _(right: Function, source: str, target: str) -> bool:
    try:
        atomic.os.link(source, target)
        atomic.discard(source)
        return True
    except OSError:
        return os.path.basename(target) in atomic.names(os.path.dirname(target))


@mutation("take by copying the bytes", claims, "move")
def _(right: Function, source: str, target: str) -> bool:
    try:
        atomic.publish(target, atomic.read(source, patience_s=0.0))
        atomic.discard(source)
        return True
    except OSError:
        return os.path.basename(target) in atomic.names(os.path.dirname(target))


@mutation("take to a target that others choose, too", claims, "take")
def _(
    right: Function, pool: PoolDirectory, spool: str, name: ClaimName, worker: str
) -> ClaimName | None:
    taken: ClaimName | None = right(pool, spool, name, "another")
    return taken


@mutation(
    "a claim that was lost is finished all the same", claims, "finish", scene="a zombie finishes"
)
def _(right: Function, pool: PoolDirectory, name: ClaimName) -> None:
    claims.move(pool.owned(State.RUNNING, name), pool.owned(State.DONE, name))


@mutation("release reuses the waiting name", ClaimName, "returned")
def _(right: Function, self: ClaimName, *, failed: bool, vain: bool = False) -> ClaimName:
    return replace(right(self, failed=failed, vain=vain), returns=self.returns + failed)


@mutation("every return reuses the waiting name", ClaimName, "returned")
def _(right: Function, self: ClaimName, *, failed: bool, vain: bool = False) -> ClaimName:
    return replace(self, owner=None)


@mutation("a failure costs two attempts", ClaimName, "returned")
def _(right: Function, self: ClaimName, *, failed: bool, vain: bool = False) -> ClaimName:
    return replace(right(self, failed=failed, vain=vain), attempt=self.attempt + 2 * failed)


@mutation("release charges an attempt", claims, "release")
def _(
    right: Function, pool: PoolDirectory, name: ClaimName, spool: str, *, vain: bool = False
) -> ClaimName:
    return claims.requeue(pool, name, spool)


@mutation("requeue charges nothing", claims, "requeue")
def _(
    right: Function, pool: PoolDirectory, name: ClaimName, spool: str, *, kind: str | None = None
) -> ClaimName:
    return claims.release(pool, name, spool)


@mutation("retry does not count on", claims, "retry")
def _(right: Function, pool: PoolDirectory, name: ClaimName, spool: str) -> ClaimName | None:
    back = replace(name.returned(failed=False), attempt=name.attempt)
    moved = claims.move(pool.owned(State.FAILED, name), pool.waiting(spool, back))
    return back if moved else None


@mutation("one attempt too few", claims, "charge")
def _(
    right: Function,
    pool: PoolDirectory,
    name: ClaimName,
    spool: str,
    record: dict[str, Any],
    *,
    final: bool = False,
    kind: str | None = None,
) -> ClaimName:
    final = final or (name.attempt + 2) % pool.attempts_max == 0
    ended: ClaimName = right(pool, name, spool, record, final=final, kind=kind)
    return ended


@mutation("the claim moves before its error is recorded", claims, "charge")
def _(
    right: Function,
    pool: PoolDirectory,
    name: ClaimName,
    spool: str,
    record: dict[str, Any],
    *,
    final: bool = False,
    kind: str | None = None,
) -> ClaimName:
    if final or (name.attempt + 1) % pool.attempts_max == 0:
        ended: ClaimName = right(pool, name, spool, record, final=final, kind=kind)
        return ended
    back = claims.requeue(pool, name, spool, kind=kind)
    claims.record_error(pool, name, record)
    return back


@mutation("the error is recorded for the next attempt", claims, "record_error")
def _(right: Function, pool: PoolDirectory, name: ClaimName, record: dict[str, Any]) -> None:
    right(pool, replace(name, attempt=name.attempt + 1), record)


@mutation("cancel removes the claim", claims, "cancel")
def _(
    right: Function, pool: PoolDirectory, spool: str, name: ClaimName, by: str
) -> ClaimName | None:
    atomic.discard(pool.waiting(spool, name))
    ended: ClaimName | None = right(pool, spool, name, by)
    return ended


# ---- atomic files: whole, never replacing, synced ----


@mutation("publish by rename, which replaces", atomic, "_link")
def _(right: Function, private: str, path: str) -> bool:
    atomic.os.rename(private, path)
    return True


@mutation("publish by exists, then rename", atomic, "_link")
def _(right: Function, private: str, path: str) -> bool:
    if atomic.os.path.exists(path):
        return False
    atomic.os.rename(private, path)
    return True


@mutation("remove the private name before the link", atomic, "_link")
def _(right: Function, private: str, path: str) -> bool:
    atomic.discard(private)
    won: bool = right(private, path)
    return won


@mutation("write under the final name", atomic, "publish")
def _(
    right: Function, path: str, data: bytes, *, durable: bool = True, personal: bool = False
) -> bool:
    atomic.stage(path, (data,), personal=personal)
    return True


@mutation("no fsync of what is written", atomic, "_write")
def _(right: Function, path: str, parts: Any, *, durable: bool, personal: bool = False) -> None:
    right(path, parts, durable=False, personal=personal)


@mutation("no fsync of an output", atomic, "commit")
def _(right: Function, private: str, path: str, **how: Any) -> bool:
    won: bool = right(private, path, **how | {"synced": True})
    return won


@mutation("no fsync of the directory a file appears in", atomic, "commit")
def _(
    right: Function,
    private: str,
    path: str,
    *,
    durable: bool = True,
    synced: bool = False,
    keep: bool = False,
) -> bool:
    if durable and not synced:
        atomic._sync(private)
    won: bool = right(private, path, durable=False, keep=keep)
    return won


@mutation(
    "no fsync of what was staged",
    atomic,
    "sync_directory",
    scene="the power fails when a plan has its number",
)
def _(right: Function, directory: str) -> None:
    if ".staged/" not in directory:
        right(directory)


# ---- leases: a compare-and-swap ----


@mutation("renew without the compare", Lease, "renew")
def _(right: Function, self: Lease, *, leaving: bool = False) -> None:
    following = self.name.following(leaving=leaving)
    atomic.publish(self._pool.lease(following), b"{}")
    atomic.discard(self._pool.lease(self.name))
    self.name = following


@mutation("a lost lease is made anew", Lease, "renew")
def _(right: Function, self: Lease, *, leaving: bool = False) -> None:
    try:
        right(self, leaving=leaving)
    except LeaseLost:
        following = self.name.following()
        atomic.publish(self._pool.lease(following), b"{}")
        self.name = following


@mutation("two identical ids share a lease", Lease, "enlist")
def _(right: Function, self: Lease, facts: dict[str, Any] | None = None) -> None:
    data = json.dumps((facts or {}) | leases.proof_of_life()).encode() + b"\n"
    atomic.replace(self._pool.lease(self.name), data)


@mutation("work without a lease", Lease, "enlist")
def _(right: Function, self: Lease, facts: dict[str, Any] | None = None) -> None:
    return


@mutation("recover before winning the lease", Observer, "end")
def _(right: Function, self: Observer, worker: str, ender: str) -> bool:
    return True


@mutation(
    "recover after losing the race for a lease",
    Observer,
    "end",
    scene="a zombie in a long claim wakes while it is declared dead",
)
def _(right: Function, self: Observer, worker: str, ender: str) -> bool:
    right(self, worker, ender)
    return True


@mutation(
    "end the newest beat, not the one last seen",
    Observer,
    "end",
    scene="a zombie wakes before it is declared dead",
)
def _(right: Function, self: Observer, worker: str, ender: str) -> bool:
    for name in leases.lease_names(self._pool):
        if name.worker == worker and name.living:
            self._seen[worker].name = name
    ended: bool = right(self, worker, ender)
    return ended


@mutation(
    "tidy up after the living",
    Observer,
    "end",
    scene="a zombie wakes while it is declared dead",
)
def _(right: Function, self: Observer, worker: str, ender: str) -> bool:
    directories.discard(self._pool.scratch(worker))
    ended: bool = right(self, worker, ender)
    return ended


@mutation("a quarter of a lease is enough", Observer, "standing")
def _(right: Function, self: Observer, worker: str) -> Standing:
    standing: Standing = right(self, worker)
    if standing is Standing.ENDED or worker not in self._seen:
        return standing
    age_s = self._looked - self._seen[worker].since
    return Standing.EXPIRED if age_s >= self._pool.lease_s / 4 else standing


@mutation("a suspect is as good as dead", Observer, "standing")
def _(right: Function, self: Observer, worker: str) -> Standing:
    standing: Standing = right(self, worker)
    return Standing.EXPIRED if standing is Standing.SUSPECT else standing


@mutation("a first sight counts from the beginning of time", Observer, "look")
def _(right: Function, self: Observer, owners: Any = ()) -> None:
    before = dict(self._seen)
    right(self, owners)
    for worker, sighting in self._seen.items():
        if worker not in before or before[worker].name != sighting.name:
            sighting.since = 0.0


@mutation("another host's process counts as gone", Observer, "is_gone")
def _(right: Function, self: Observer, worker: str) -> bool:
    here = {key: leases.proof_of_life()[key] for key in ("boot", "host")}
    return leases.look_at_process({**self.facts(worker), **here}) is leases.Process.GONE


@mutation("leave while a worker may be dead", Observer, "sees_alive")
def _(right: Function, self: Observer, worker: str) -> bool:
    return True


# ---- plans: the number is the compare-and-swap ----


@mutation("complete what has no number", plans, "complete")
def _(right: Function, pool: PoolDirectory, listed: Any = None) -> int:
    staged = [n for n in atomic.names(pool.directory("plans")) if n.endswith(".staged")]
    return sum(plans.complete_one(pool, name.removesuffix(".staged")) for name in staged)


@mutation(
    "plans of dead planners are left half published",
    plans,
    "complete",
    scene="a planner dies between number and spools",
)
def _(right: Function, pool: PoolDirectory, listed: Any = None) -> int:
    return 0


@mutation("go on after losing a plan's number", plans, "number_plan")
def _(right: Function, pool: PoolDirectory, uid: str, path: str, number: int) -> bool:
    if not right(pool, uid, path, number):
        atomic.discard(path)
    return True


@mutation("tidy up a plan that has its number", plans, "number_plan")
def _(right: Function, pool: PoolDirectory, uid: str, path: str, number: int) -> bool:
    numbered: bool = right(pool, uid, path, number)
    if numbered:
        directories.discard(pool.staged(uid))
    return numbered


@mutation("move the claims before the plan has its number", plans, "number_plan")
def _(right: Function, pool: PoolDirectory, uid: str, path: str, number: int) -> bool:
    plans.complete_one(pool, uid)
    numbered: bool = right(pool, uid, path, number)
    return numbered


@mutation("do not read again what was planned meanwhile", planner, "plan_into")
def _(right: Function, pool: PoolDirectory, request: planner.PlanRequest, **how: Any) -> Any:
    plans.complete(pool)
    outcome = planner.PlanResult(spools=[add_spool(pool, spool) for spool in request.spools])
    sources = planner._survey(request, outcome, None)
    fresh = planner._fresh(pool, plans.numbers(pool), request, sources, outcome)
    planner._weigh(pool, request, fresh, outcome)
    while outcome.total.claims and outcome.number is None:
        number = max(plans.numbers(pool), default=0) + 1
        if planner._publish(pool, request, fresh, outcome, number):
            outcome.number = number
    return outcome


@mutation("stage straight into the spool", Layout, "staged")
def _(right: Function, self: Layout, plan: str, spool: str | None = None) -> str:
    return self.spool(spool) if spool else right(self, plan)


# ---- one attempt, one worker, recovery: in this order ----


@mutation("finish before publishing", Attempt, "_work")
def _(right: Function, self: Attempt) -> Any:
    claims.finish(self.pool, self.name)
    return right(self)


@mutation("finish without publishing", atomic, "commit")
def _(right: Function, private: str, path: str, **how: Any) -> bool:
    if "/outputs/" in path:
        return True
    won: bool = right(private, path, **how)
    return won


@mutation("write the output under its final name", Layout, "unpublished")
def _(right: Function, self: Layout, worker: str, id: str, returns: int, suffix: str) -> str:
    return self.output(id, suffix)


@mutation(
    "retire before putting back",
    Worker,
    "_put_back",
    scene="a take is reported as an I/O error as a signal comes",
)
def _(right: Function, self: Worker, name: ClaimName) -> None:
    self.lease.retire()
    right(self, name)


@mutation(
    "leave without putting back",
    Worker,
    "_put_back",
    scene="a take is reported as an I/O error as a signal comes",
)
def _(right: Function, self: Worker, name: ClaimName) -> None:
    return


@mutation("never recover", Recovery, "sweep")
def _(right: Function, self: Recovery, *, quiet: bool = False) -> list[Any]:
    self.running = list(claims.owned(self._pool, State.RUNNING))
    return []


@mutation(
    "a claim won without knowing is left alone",
    Recovery,
    "sweep",
    scene="a take is done, and reported as an I/O error",
)
def _(right: Function, self: Recovery, *, quiet: bool = False) -> list[Any]:
    recovered: list[Any] = right(self, quiet=quiet)
    self.running = [name for name in self.running if name.owner != self._me]
    return recovered


@mutation("recover from any worker not seen alive", Recovery, "_is_dead")
def _(right: Function, self: Recovery, worker: str, *, gone: bool) -> bool:
    return gone or self.observer.standing(worker) in (Standing.EXPIRED, Standing.ENDED)
