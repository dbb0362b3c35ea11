"""Deliberate mistakes in the protocol, each of which the simulation must notice.

A mutation is a few words of a module and what stands there instead. It is applied by giving the
functions of the loaded module the code that the changed source compiles to, so that whoever has
already imported them has the mistake as well.
"""

from __future__ import annotations

import importlib
import inspect
import marshal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake: in which module, instead of which words, and the scene that shows it if most
    stories do not.
    """

    name: str
    module: str
    old: str
    new: str
    scene: str = ""


def _m(name: str, module: str, old: str, new: str, scene: str = "") -> Mutation:
    return Mutation(name, module, old, new, scene)


MUTATIONS: Final = (
    # ---- claims: one rename, to a name of one's own ----
    _m(
        "no look after a rename that reported failure",
        "pool.claims",
        "return name in atomic.names(directory)",
        "return False",
        "the reply of a finish is lost",
    ),
    _m(
        "a rename that reported failure counts as done",
        "pool.claims",
        "return name in atomic.names(directory)",
        "return True",
        "a zombie finishes",
    ),
    _m(
        "take to a target that others choose, too",
        "pool.claims",
        "mine = name.owned_by(worker)",
        "mine = name.owned_by('somebody')",
    ),
    _m(
        "take by link and unlink",
        "pool.claims",
        "        atomic.rename(source, target)  # I2\n",
        "        atomic._link(source, target)\n        atomic.discard(source)\n",
    ),
    _m(
        "take by copying the bytes",
        "pool.claims",
        "        atomic.rename(source, target)  # I2\n",
        "        atomic.publish(target, atomic.read(source))\n        atomic.discard(source)\n",
    ),
    _m(
        "a claim that was lost is finished all the same",
        "pool.claims",
        "        raise _lost(name, verb)\n\n\ndef _lost",
        "        pass\n\n\ndef _lost",
        "a zombie finishes",
    ),
    _m(
        "release reuses the waiting name",
        "pool.names",
        "returns=self.returns + 1",
        "returns=self.returns + failed",
    ),
    _m(
        "every return reuses the waiting name",
        "pool.names",
        "attempt=self.attempt + failed, returns=self.returns + 1",
        "returns=self.returns",
    ),
    _m(
        "a failure costs two attempts",
        "pool.names",
        "self.attempt + failed",
        "self.attempt + 2 * failed",
    ),
    _m(
        "release charges an attempt",
        "pool.claims",
        "    back = name.returned(failed=False)\n    _leave_running(",
        "    back = name.returned(failed=True)\n    _leave_running(",
    ),
    _m(
        "requeue charges nothing",
        "pool.claims",
        "    back = name.returned(failed=True)\n    _leave_running(",
        "    back = name.returned(failed=False)\n    _leave_running(",
    ),
    _m(
        "retry does not count on",
        "pool.claims",
        "attempt=fresh)",
        "attempt=name.attempt)",
    ),
    _m(
        "one attempt too few",
        "pool.claims",
        "(name.attempt + 1) % pool.attempts_max == 0",
        "(name.attempt + 2) % pool.attempts_max == 0",
    ),
    _m(
        "the error is recorded for the next attempt",
        "pool.claims",
        "atomic.publish(pool.error(name.id, name.attempt), data)",
        "atomic.publish(pool.error(name.id, name.attempt + 1), data)",
    ),
    _m(
        "the claim moves before its error is recorded",
        "pool.claims",
        "    record_error(pool, name, record)\n    if final",
        "    if not final and (name.attempt + 1) % pool.attempts_max:\n"
        "        back = requeue(pool, name, spool)\n"
        "        record_error(pool, name, record)\n"
        "        return back\n"
        "    record_error(pool, name, record)\n    if final",
    ),
    _m(
        "cancel removes the claim",
        "pool.claims",
        "    ended = name.owned_by(by)\n",
        "    ended = name.owned_by(by)\n    atomic.discard(pool.waiting(spool, name))\n",
    ),
    # ---- atomic: whole, never replacing, synced ----
    _m(
        "publish by rename, which replaces",
        "storage.atomic",
        "        os.link(private, path)\n        return True\n",
        "        os.rename(private, path)\n        return True\n",
    ),
    _m(
        "publish by exists, then rename",
        "storage.atomic",
        "        os.link(private, path)\n        return True\n",
        "        if os.path.exists(path):\n            return False\n"
        "        os.rename(private, path)\n        return True\n",
    ),
    _m(
        "write under the final name",
        "storage.atomic",
        '    private = f"{directory}/.{name[:120]}.{os.getpid()}-{secrets.token_hex(6)}"\n',
        '    private = f"{directory}/{name}"\n',
    ),
    _m(
        "remove the private name before the link",
        "storage.atomic",
        "    won = _link(private, path)\n",
        "    discard(private)\n    won = _link(private, path)\n",
    ),
    _m(
        "no fsync of what is written",
        "storage.atomic",
        "            if durable:\n                os.fsync(fd)\n",
        "",
    ),
    _m(
        "no fsync of an output",
        "storage.atomic",
        "    if durable and not synced:\n        _sync(private)\n",
        "",
    ),
    _m(
        "no fsync of the directory a file appears in",
        "storage.atomic",
        "    if durable:\n        sync_directory(os.path.dirname(path))\n    return won",
        "    return won",
    ),
    _m(
        "no fsync of what was staged",
        "scheduling.planner",
        "        atomic.sync_directory(pool.staged(uid, spool.name))\n",
        "        pass\n",
        "the power fails when a plan has its number",
    ),
    # ---- leases: a compare-and-swap ----
    _m(
        "renew without the compare",
        "pool.leases",
        "            atomic.rename(self._pool.lease(self.name), self._pool.lease(following))\n",
        "            atomic.publish(self._pool.lease(following), b'{}')\n"
        "            atomic.discard(self._pool.lease(self.name))\n",
    ),
    _m(
        "a lost lease is made anew",
        "pool.leases",
        "                raise LeaseLost(_obituary(self.name.worker, mine)) from error\n",
        "                atomic.publish(self._pool.lease(following), b'{}')\n",
    ),
    _m(
        "recover before winning the lease",
        "pool.leases",
        "        dead = LeaseName(worker, ended_by=ender)\n",
        "        return True\n        dead = LeaseName(worker, ended_by=ender)\n",
    ),
    _m(
        "whoever lost the race for a lease recovers all the same",
        "pool.leases",
        "            return any(not name.living for name in mine)\n",
        "            return True\n",
        "a zombie in a long claim wakes while it is declared dead",
    ),
    _m(
        "end the newest beat, not the one last seen",
        "pool.leases",
        "        dead = LeaseName(worker, ended_by=ender)\n",
        "        dead = LeaseName(worker, ended_by=ender)\n"
        "        for name in lease_names(self._pool):\n"
        "            if name.worker == worker and name.living:\n"
        "                sighting.name = name\n",
        "a zombie wakes before it is declared dead",
    ),
    _m(
        "a quarter of a lease is enough",
        "pool.leases",
        "        if age_s >= self._pool.lease_s:\n",
        "        if age_s >= self._pool.lease_s / 4:\n",
    ),
    _m(
        "a first sight counts from the beginning of time",
        "pool.leases",
        "seen[worker] = _Sighting(current, after, moved)",
        "seen[worker] = _Sighting(current, 0.0, moved)",
    ),
    _m(
        "another host's process counts as gone",
        "pool.leases",
        'facts.get("boot") == boot',
        "facts",
    ),
    _m(
        "two identical ids share a lease",
        "pool.leases",
        "        if not atomic.publish(self._pool.lease(self.name), data):\n",
        "        if atomic.replace(self._pool.lease(self.name), data):\n",
    ),
    # ---- plans: the number is the compare-and-swap ----
    _m(
        "complete what has no number",
        "pool.plans",
        "ready = sorted(staged & {plan.uid for plan in read_plans(pool)})",
        "ready = sorted(staged)",
    ),
    _m(
        "whoever lost a plan's number goes on",
        "pool.plans",
        "    if read_plan(pool, number).uid != uid:\n        return False\n",
        "",
    ),
    _m(
        "do not read again what was planned meanwhile",
        "scheduling.planner",
        "    while True:\n        numbers = plans.numbers(pool)\n",
        "    numbers = plans.numbers(pool)\n    while True:\n",
    ),
    _m(
        "tidy up a plan that has its number",
        "scheduling.planner",
        "    if numbered:\n",
        "    if numbered:\n        directories.discard(pool.staged(uid))\n",
    ),
    _m(
        "stage straight into the spool",
        "scheduling.planner",
        'path, data = f"{pool.staged(uid, home)}/{name}"',
        'path, data = f"{pool.spool(home)}/{name}"',
    ),
    _m(
        "move the claims before the plan has its number",
        "scheduling.planner",
        "        numbered = plans.number_plan(pool, uid, private, number)\n",
        "        plans.complete_one(pool, uid)\n"
        "        numbered = plans.number_plan(pool, uid, private, number)\n",
    ),
    # ---- attempt, worker, recovery: in this order ----
    _m(
        "finish before publishing",
        "worker.attempt",
        "        if final:\n            if not os.path.isfile(private):\n",
        "        claims.finish(self.pool, self.name)\n"
        "        if final:\n            if not os.path.isfile(private):\n",
    ),
    _m(
        "finish without publishing",
        "worker.attempt",
        "            if not atomic.commit(str(private), final):\n",
        "            if not final and not atomic.commit(str(private), final):\n",
    ),
    _m(
        "write the output under its final name",
        "worker.attempt",
        "private = Path(self.pool.unpublished(worker, id, run, handler.suffix))",
        "private = Path(final)",
    ),
    _m(
        "retire before putting back",
        "worker.worker",
        "        for name in claims.owned(self.pool, State.RUNNING):\n"
        "            if name.owner == self.id:\n"
        "                self._put_back(name)\n",
        "        self.lease.retire()\n"
        "        for name in claims.owned(self.pool, State.RUNNING):\n"
        "            if name.owner == self.id:\n"
        "                self._put_back(name)\n",
        "two signals come while a claim is taken",
    ),
    _m(
        "leave without putting back",
        "worker.worker",
        "            if name.owner == self.id:\n                self._put_back(name)\n",
        "            pass\n",
        "two signals come while a claim is taken",
    ),
    _m(
        "work without a lease",
        "worker.worker",
        '        self.lease.enlist({"worker": self.id',
        '        dict({"worker": self.id',
    ),
    _m(
        "leave while somebody may be dead",
        "worker.worker",
        'if name.owner != self.id and not self.observer.sees_alive(name.owner or ""):',
        "if False:",
    ),
    _m(
        "never recover",
        "worker.worker",
        "        if self.recovery.sweep(quiet=self.pace.quiet):\n"
        "            self.pace.hurry()\n            return None\n",
        "        self.recovery.running = list(claims.owned(self.pool, State.RUNNING))\n",
    ),
    _m(
        "a claim won without knowing is left alone",
        "worker.worker",
        "            if name.owner == self.id:\n                # RACE",
        "            if False:\n                # RACE",
        "a take succeeds and nobody knows",
    ),
    _m(
        "recover whoever is not seen living",
        "worker.recovery",
        "        ended = self.observer.end(worker, self._me)\n",
        "        ended = True\n",
    ),
    _m(
        "tidy up after the living",
        "worker.recovery",
        "        ended = self.observer.end(worker, self._me)\n",
        "        directories.discard(self._pool.workshop(worker))\n"
        "        ended = self.observer.end(worker, self._me)\n",
        "a zombie wakes while it is declared dead",
    ),
    _m(
        "a suspect is as good as dead",
        "worker.recovery",
        "        if standing is Standing.SUSPECT and not gone:\n            return False\n",
        "",
    ),
    _m(
        "plans of dead planners are left half published",
        "worker.recovery",
        "            plans.complete(self._pool, planned)\n",
        "            pass\n",
        "a planner dies between number and spools",
    ),
)


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Make the mistake, for as long as the context lasts."""
    module = importlib.import_module(f"fsqueue.{mutation.module}")
    source = inspect.getsource(module)
    found = source.count(mutation.old)
    assert found == 1, (
        f"{mutation.name!r}: {mutation.module}.py has its words {found} times; it was rewritten, "
        f"so write the mistake anew"
    )
    mutant = ModuleType(module.__name__)
    code = compile(source.replace(mutation.old, mutation.new), str(module.__file__), "exec")
    exec(code, mutant.__dict__)
    changed: list[tuple[FunctionType, CodeType]] = []
    theirs = dict(_functions(mutant))
    for name, function in _functions(module):
        new = theirs[name].__code__
        if marshal.dumps(new) != marshal.dumps(function.__code__):
            changed.append((function, function.__code__))
            function.__code__ = new
    assert changed, f"{mutation.name!r} changes nothing"
    try:
        yield
    finally:
        for function, old in changed:
            function.__code__ = old


def _functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Yield every function and method that a module defines, by qualified name."""
    for thing in list(vars(module).values()):
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if isinstance(thing, type):
            for inner in vars(thing).values():
                if (
                    function := _plain(inner)
                ) is not None and function.__module__ == thing.__module__:
                    yield function.__qualname__, function
        elif (function := _plain(thing)) is not None:
            yield function.__qualname__, function


def _plain(thing: Any) -> FunctionType | None:
    thing = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
    thing = inspect.unwrap(thing) if callable(thing) else thing
    return thing if isinstance(thing, FunctionType) else None
