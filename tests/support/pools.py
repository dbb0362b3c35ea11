"""Make small pools in milliseconds, and work them one step at a time.

The planner, the claims and the leases are real. Only the handler is trivial: its inputs are names
such as `a.30`, a stem and a cost, and need not exist on disk.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsqueue.errors import BadInput
from fsqueue.handler import Handler, Item, Source, Work
from fsqueue.maintenance.audit import audit_pool
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Lease, Observer
from fsqueue.pool.names import ClaimName, new_worker_id
from fsqueue.pool.settings import PoolDirectory, Spool, create_pool, spool_names
from fsqueue.records.journal import Journal
from fsqueue.records.status import Status
from fsqueue.scheduling.planner import PlanRequest, PlanResult, plan_into
from fsqueue.storage import directories
from fsqueue.storage.locks import try_lock
from fsqueue.worker.attempts.attempt import Attempt
from fsqueue.worker.attempts.verdicts import Cause
from fsqueue.worker.liveness.heartbeat import Heartbeat
from fsqueue.worker.recovery import Recovered, Recovery
from fsqueue.worker.shutdown import Shutdown

STEPS_MAX = 1000


class Trivial(Handler):
    """Plan `a.30` as a claim of cost 30, and let its output be its id."""

    name = "trivial"
    suffix = ".txt"

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        stem, _, cost = Path(path).name.partition(".")
        if not cost.isdecimal():
            raise BadInput(f"{path} has no cost. Name it {stem}.10.")
        return Source(path, path, int(cost), {"inputs": 1}, detail=stem)

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        for source in sources:
            identity, payload = {"key": source.key}, {"input": source.path}
            yield Item(source.detail, "trivial", source.cost, identity, payload, source.measures)

    def run(self, work: Work) -> None:
        work.output.write_text(work.id)


class HookHandler(Trivial):
    """Call a function in the middle of a claim, before its output is written."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens

    def run(self, work: Work) -> None:
        self._happens()
        super().run(work)


class Divisible(Trivial):
    """Cut an input into pieces as fine as the planner wants them."""

    name = "divisible"

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        for source in sources:
            for begin in range(0, source.cost, cost_max):
                cost = min(cost_max, source.cost - begin)
                identity = {"key": source.key, "begin": begin, "cost": cost}
                yield Item(source.detail, "divisible", cost, identity, identity, {"units": cost})


def spools(*weights: float) -> list[Spool]:
    """Return spools gpu0, gpu1, ... of these weights."""
    return [Spool(f"gpu{index}", "RTX 3090", weight) for index, weight in enumerate(weights)]


def request(
    *inputs: str, weights: Sequence[float] = (1.0,), handler: Handler | None = None, **how: Any
) -> PlanRequest:
    """Return the request to plan these inputs for spools of these weights."""
    return PlanRequest(handler or Trivial(), {}, inputs, spools(*weights), **how)


def make_pool(
    root: Path,
    *inputs: str,
    weights: Sequence[float] = (1.0,),
    lease_s: float = 30.0,
    attempts: int = 3,
) -> PoolDirectory:
    """Make a pool at `root` in which these inputs wait."""
    pool = create_pool(str(root), lease_s=lease_s, attempts_max=attempts)
    plan(pool, *inputs, weights=weights)
    return pool


def plan(pool: PoolDirectory, *inputs: str, weights: Sequence[float] = (1.0,)) -> PlanResult:
    """Plan more inputs into a pool."""
    return plan_into(pool, request(*inputs, weights=weights))


def id_here(pid: int) -> str:
    """Return the id of a worker of this host whose process has this pid."""
    host, _, tail = new_worker_id().rsplit("-", 2)
    return f"{host}-{pid}-{tail}"


class ManualWorker:
    """A worker without its loop and thread: the test takes each step."""

    def __init__(
        self,
        pool: PoolDirectory,
        spool: str | None = None,
        *,
        handler: Handler | None = None,
        clock: Callable[[], float] = time.monotonic,
        enlist: bool = True,
    ) -> None:
        self.pool = pool
        self.id = new_worker_id()
        self.handler = handler or Trivial()
        self.status = Status(self.id, spool=spool, pid=os.getpid())
        self.journal = Journal(pool, self.id)
        self.lease = Lease(pool, self.id)
        self.beat = Heartbeat(pool, self.lease, self.status)
        self.observer = Observer(pool, clock)
        self.recovery = Recovery(pool, self.id, self.observer, self.journal)
        self.shutdown = Shutdown(self.beat)
        self.reason = ""
        if enlist:
            self.enlist()

    def enlist(self) -> None:
        """Do what a worker does before it takes anything."""
        self.lease.enlist({"worker": self.id})
        directories.make(self.pool.scratch(self.id))

    def take(self) -> ClaimName:
        """Take the largest waiting claim of all spools, without the stealing policy."""
        where = [
            (spool, name)
            for spool in spool_names(self.pool)
            for name in claims.waiting(self.pool, spool)
        ]
        spool, name = max(where, key=lambda found: (found[1].cost, found[1].id))
        taken = claims.take(self.pool, spool, name, self.id)
        assert taken is not None, f"{name} was taken by another process"
        return taken

    def run(self, name: ClaimName, spool: str = "gpu0") -> Cause:
        """Run a claim that was taken; return why the run ended."""
        attempt = Attempt(
            self.pool,
            name,
            spool,
            self.beat,
            self.journal,
            lambda _: self.handler,
            self.shutdown,
        )
        cause = attempt.run()
        self.reason = attempt.reason
        return cause

    def sweep(self) -> list[Recovered]:
        """Look for dead workers once, and put back what they held."""
        return self.recovery.sweep()

    def leave(self) -> None:
        """Hold nothing, and retire."""
        self.journal.close()
        directories.discard(self.pool.scratch(self.id))
        self.lease.retire()


def work_until_done(pool: PoolDirectory, **how: Any) -> None:
    """Take, run and recover with a fresh worker until nothing waits or runs."""
    hand = ManualWorker(pool, **how)
    for _ in range(STEPS_MAX):
        hand.sweep()
        if names_in(pool, State.WAITING):
            hand.run(hand.take())
        elif not names_in(pool, State.RUNNING):
            return hand.leave()
    raise AssertionError(f"still there after {STEPS_MAX} steps: {state_counts(pool)}")


# ---- looking ----


def names_in(pool: PoolDirectory, *states: State) -> list[ClaimName]:
    """Return the names of the claims in these states, by id."""
    found: list[ClaimName] = []
    for state in states:
        if state is State.WAITING:
            found += [name for spool in spool_names(pool) for name in claims.waiting(pool, spool)]
        else:
            found += claims.owned(pool, state)
    return sorted(found, key=lambda name: name.id)


def only_claim(pool: PoolDirectory, state: State) -> ClaimName:
    """Return the one claim that is in a state."""
    (name,) = names_in(pool, state)
    return name


def state_counts(pool: PoolDirectory) -> dict[str, int]:
    """Return how many claims are in each state, those without any left out."""
    return dict(Counter(state.value for state in State for _ in names_in(pool, state)))


def stems(pool: PoolDirectory, *states: State) -> list[str]:
    """Return the stems of the inputs whose claims are in these states, sorted."""
    return [name.id.partition("-")[0] for name in names_in(pool, *states)]


def problems(pool: PoolDirectory) -> list[str]:
    """Return the problems that `fsqueue check` finds."""
    return audit_pool(pool).problems


def contents(root: str | Path) -> dict[str, bytes | None]:
    """Return every path below `root` with its bytes, None for a directory."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(Path(root).rglob("*"))
    }


@contextmanager
def held_by_another_process(path: str) -> Iterator[int]:
    """Let another process hold a lock until the block ends; yield its pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with try_lock(path) as mine:
            os.write(writer, b"y" if mine else b"n")
            signal.pause()
    try:
        assert os.read(reader, 1) == b"y", "the other process did not get the lock"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
