"""Test your own handler or function: preempt it, kill it, let its lease end, without waiting.

    from fsqueue.testing import PoolForTests

    def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path):
        pool = PoolForTests(tmp_path / "pool")
        pool.plan(MyHandler, [tmp_path / "a.txt"], {"batch": 32})
        pool.worker().run(kill_after=3)  # dies at its third sign of life in the claim
        assert pool.counts() == {"running": 1}
        pool.let_leases_end()  # what others do when a worker is silent for a lease
        pool.worker().run()
        assert pool.counts() == {"done": 1} and pool.problems() == []

A *sign of life* is a look at `work.stopping` or a call of `work.progress`. The pool, its claims,
leases, attempts, checkpoints and outputs are the real ones, so everything can be looked at with
`ls` and with every command of fsqueue; only the worker's loop and the time are under your control.
All of it runs in the process of the test: no GPU is looked for and no signal is sent.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fsqueue.errors import UsageError
from fsqueue.handler import Handler, Work, complete_options, load_handler
from fsqueue.history.failures import failed_attempts
from fsqueue.history.outputs import Output
from fsqueue.maintenance.audit import audit_pool
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import SILENCE_LEASES, Lease, Observer
from fsqueue.pool.names import ClaimName, new_worker_id
from fsqueue.pool.reader import PoolReader
from fsqueue.pool.settings import Spool, create_pool, spool_names
from fsqueue.records.journal import Journal
from fsqueue.records.status import Status
from fsqueue.scheduling.choose import Preferences, in_order
from fsqueue.scheduling.inputs import find_inputs
from fsqueue.scheduling.planner import PlanRequest, PlanResult, plan_into
from fsqueue.storage import directories
from fsqueue.worker.attempts.attempt import Attempt
from fsqueue.worker.attempts.verdicts import Cause
from fsqueue.worker.liveness.heartbeat import Heartbeat
from fsqueue.worker.recovery import Recovery
from fsqueue.worker.shutdown import Shutdown

SPOOL: Final = "test0"
Code = str | Handler | type[Handler] | Callable[[Work], object]


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing is put back. A handler might catch an Exception."""


class PoolForTests:
    """A pool in a directory, whose time only moves by `let_leases_end`."""

    def __init__(
        self, directory: str | os.PathLike[str], *, attempts_max: int = 3, lease_s: float = 30.0
    ) -> None:
        self.pool = create_pool(os.fspath(directory), lease_s=lease_s, attempts_max=attempts_max)
        self._handlers: dict[str, Handler] = {}
        self._workers: list[WorkerInTests] = []
        self._passed_s = 0.0
        self._id = new_worker_id()
        self._observer = Observer(self.pool, self._clock)
        self._recovery = Recovery(self.pool, self._id, self._observer, Journal(self.pool, self._id))

    def plan(
        self,
        code: Code,
        inputs: Sequence[str | os.PathLike[str]],
        options: Mapping[str, Any] | None = None,
        *,
        suffix: str = ".out",
        timeout_s: float = 0.0,
    ) -> PlanResult:
        """Plan inputs for a Handler (an instance, a class, or an installed one's name).

        Or for a function `run(work)`, which finds `options` in `work.options`, and whose outputs
        end with `suffix`. Raises UsageError if an input cannot be planned.
        """
        handler, given = self._handler_of(code, suffix), dict(options or {})
        if not isinstance(handler, _Function):
            given = handler.prepare(complete_options(handler, given))
        found = find_inputs([os.fspath(path) for path in inputs])
        spools = [Spool(SPOOL, "cpu", 1.0)]
        request = PlanRequest(handler, given, found.paths, spools, timeout_s=timeout_s)
        result = plan_into(self.pool, request)
        if found.broken or result.bad:
            raise UsageError("; ".join([*found.broken, *result.bad]))
        return result

    def worker(self) -> WorkerInTests:
        """Return another worker, which holds a lease and nothing else."""
        made = WorkerInTests(self)
        self._workers.append(made)
        return made

    def let_leases_end(self) -> list[str]:
        """Let so much time pass that silent workers are dead; return the ids of their claims.

        Those wait again, with an attempt charged, or have failed after the last attempt.
        """
        found = []
        for _ in range(2 * SILENCE_LEASES + 2):
            for worker in self._workers:
                worker.renew()
            found += self._recovery.sweep()
            self._passed_s += self.pool.lease_s / 2  # an observer counts no more between two looks
        return sorted(each.name.id for each in found)

    def counts(self) -> dict[str, int]:
        """Return how many claims are waiting, running, done and failed, each if there is any."""
        found = Counter(
            "waiting" if state is State.WAITING else state.value for state, _ in self._all()
        )
        return dict(found)

    def names(self) -> list[ClaimName]:
        """Return the claims' names, which hold their attempts and owners, by id."""
        return sorted((name for _, name in self._all()), key=lambda name: name.id)

    def outputs(self) -> list[Output]:
        """Return the outputs that are published, in the order of the inputs."""
        reader = PoolReader(self.pool.root)
        return [
            Output(claim.id, Path(claim.output), tuple(map(Path, inputs)))
            for plan in reader.plans()
            for claim in reader.claims(plan)
            if claim.done and claim.output
            for inputs in [self._handlers[plan.handler].inputs(reader.payload(claim))]
        ]

    def errors(self) -> dict[str, list[str]]:
        """Return the errors of the attempts that failed, by the claims' ids."""
        found = {n.id: [e.error for e in failed_attempts(self.pool, n.id)] for n in self.names()}
        return {id: errors for id, errors in found.items() if errors}

    def problems(self) -> list[str]:
        """Return what `fsqueue check` finds wrong."""
        return audit_pool(self.pool).problems

    def _all(self) -> Iterator[tuple[State, ClaimName]]:
        for spool in spool_names(self.pool):
            yield from ((State.WAITING, name) for name in claims.waiting(self.pool, spool))
        for state in (State.RUNNING, State.DONE, State.FAILED):
            yield from ((state, name) for name in claims.owned(self.pool, state))

    def _handler_of(self, code: Code, suffix: str) -> Handler:
        if isinstance(code, str):
            handler = load_handler(code)
        elif isinstance(code, type):
            handler = code()
        else:
            handler = code if isinstance(code, Handler) else _Function(code, suffix)
        handler.name = handler.name or type(handler).__name__.lower()
        return self._handlers.setdefault(handler.name, handler)

    def _clock(self) -> float:
        return time.monotonic() + self._passed_s


class WorkerInTests:
    """One worker. After it was preempted or killed, it runs nothing more."""

    def __init__(self, tests: PoolForTests) -> None:
        self._tests = tests
        self.id = new_worker_id()
        pool = tests.pool
        self._journal = Journal(pool, self.id)
        self._lease = Lease(pool, self.id)
        self._beat = Heartbeat(pool, self._lease, Status(self.id, spool=SPOOL, pid=os.getpid()))
        self._shutdown = Shutdown(self._beat)
        self._lease.enlist({"worker": self.id})
        directories.make(pool.scratch(self.id))
        self.gone = False
        self.killed = False

    def run(
        self,
        claims_max: int | None = None,
        *,
        preempt_after: int | None = None,
        kill_after: int | None = None,
    ) -> int:
        """Take and run claims until none waits, or so many; return how many were done.

        `preempt_after`: from the so-manieth sign of life (in all claims together) on,
        `work.stopping` is true; when that run has ended, the worker leaves. 0: from the beginning.
        `kill_after`: at the so-manieth sign of life it dies, and holds its claim until
        `let_leases_end`.
        """
        assert not self.gone, "this worker has left, or was killed; use another one"
        signs = _Signs(preempt_after, kill_after)
        ran = done = 0
        while (claims_max is None or ran < claims_max) and (name := self._take()) is not None:
            ran += 1
            try:
                done += self._run(name, signs) is Cause.DONE
            except Killed:
                self.gone = self.killed = True
                return done
            if signs.stopping:
                self.leave()
                break
        return done

    def leave(self) -> None:
        """Retire the lease, as a worker does that has a reason to leave."""
        if not self.gone:
            self._journal.close()
            directories.discard(self._tests.pool.scratch(self.id))
            self._lease.retire()
            self.gone = True

    def renew(self) -> None:
        """Renew the lease, if it is alive; `let_leases_end` calls it."""
        if not self.gone:
            self._lease.renew()

    def _take(self) -> ClaimName | None:
        pool = self._tests.pool
        waiting = (name for spool in spool_names(pool) for name in claims.waiting(pool, spool))
        order = in_order(waiting, Preferences())
        return claims.take(pool, SPOOL, order[-1], self.id) if order else None

    def _run(self, name: ClaimName, signs: _Signs) -> Cause:
        def handler_for(handler: str) -> Handler:
            return _Watched(self._tests._handlers[handler], signs)

        attempt = Attempt(
            self._tests.pool, name, SPOOL, self._beat, self._journal, handler_for, self._shutdown
        )
        return attempt.run()


class _Signs:
    """Counts the signs of life of a handler, and ends or preempts it at one of them."""

    def __init__(self, preempt_after: int | None, kill_after: int | None) -> None:
        self._preempt_after = preempt_after
        self._kill_after = kill_after
        self._count = 0

    def add(self) -> None:
        self._count += 1
        if self._kill_after is not None and self._count >= self._kill_after:
            raise Killed

    @property
    def stopping(self) -> bool:
        return self._preempt_after is not None and self._count >= self._preempt_after


class _Watched(Handler):
    """A handler whose signs of life are counted."""

    def __init__(self, inner: Handler, signs: _Signs) -> None:
        self._inner = inner
        self._signs = signs
        self.name, self.suffix, self.unit = inner.name, inner.suffix, inner.unit
        self.ends_in_time = inner.ends_in_time

    def setup(self) -> None:
        self._inner.set_up()

    def run(self, work: Work) -> None:
        is_stopping, report = work.is_stopping, work.report

        def stopping() -> bool:
            self._signs.add()
            return self._signs.stopping or is_stopping()

        def reported(done: int, total: int, measures: Mapping[str, int]) -> None:
            self._signs.add()
            report(done, total, measures)

        work.is_stopping, work.report = stopping, reported
        self._inner.run(work)

    def inputs(self, payload: Mapping[str, Any]) -> list[str]:
        return self._inner.inputs(payload)

    def loaded(self) -> list[str]:
        return self._inner.loaded()


class _Function(Handler):
    """A function `run(work)` as a handler."""

    def __init__(self, function: Callable[[Work], object], suffix: str) -> None:
        self.name = getattr(function, "__name__", "function").strip("<>").lower()
        self.suffix = suffix
        self._function = function

    def run(self, work: Work) -> None:
        self._function(work)
