"""Two actors in every order: takers, a zombie and its successor, an operator and a worker.

One of them is held inside an operation, or at every operation in turn, while the other does all
that it has to do. Nothing here waits for chance.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsqueue.errors import ClaimLost, Interrupted, LeaseLost
from fsqueue.handler import Work
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import BEATS_PER_LEASE
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories
from fsqueue.worker.attempts.verdicts import Cause
from tests.support.crash import copies, interrupted
from tests.support.interleave import Sequencer, interpose, run_in_threads
from tests.support.pools import (
    Clock,
    ManualWorker,
    Trivial,
    make_pool,
    names_in,
    only_claim,
    problems,
    state_counts,
    work_until_done,
)

ME, OTHER = "me-1-aaaaaa", "other-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.3")


def ordered_by(
    patch: pytest.MonkeyPatch, first: Callable[[str, str], bool], *, calls: int = 2
) -> None:
    """Order two concurrent renames: the one that `first` selects happens first."""
    steps = Sequencer()
    begun = [0]

    def rename(real: Callable[[str, str], None], source: str, target: str) -> None:
        begun[0] += 1
        if begun[0] > calls:
            return real(source, target)
        with steps(0 if first(source, target) else 1):
            return real(source, target)

    interpose(patch, rename=rename)


# ---- takers ----


@pytest.mark.parametrize("first", [ME, OTHER])
def test_of_two_workers_taking_one_claim_the_first_rename_owns_it(
    pool: PoolDirectory, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = only_claim(pool, State.WAITING)
    ordered_by(monkeypatch, lambda source, target: target.endswith(first))
    taken = run_in_threads(
        lambda: claims.take(pool, "gpu0", name, ME), lambda: claims.take(pool, "gpu0", name, OTHER)
    )
    assert [claim is not None for claim in taken] == [first == ME, first == OTHER]
    assert only_claim(pool, State.RUNNING).owner == first


@pytest.mark.parametrize("first", ["take", "cancel"])
def test_a_claim_is_taken_or_cancelled_and_not_both(
    pool: PoolDirectory, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = only_claim(pool, State.WAITING)
    ordered_by(monkeypatch, lambda source, target: ("/running/" in target) == (first == "take"))
    taken, cancelled = run_in_threads(
        lambda: claims.take(pool, "gpu0", name, ME),
        lambda: claims.cancel(pool, "gpu0", name, OTHER),
    )
    assert (taken is not None, cancelled is not None) == (first == "take", first == "cancel")
    assert state_counts(pool) == {"running" if first == "take" else "failed": 1}


def test_two_operators_retrying_one_claim_put_it_back_once(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = ManualWorker(pool).take()
    claims.fail(pool, failed)
    turn = iter((True, False))
    ordered_by(monkeypatch, lambda source, target: next(turn))
    backs = run_in_threads(*[lambda: claims.retry(pool, failed, "gpu0")] * 2)
    assert backs[0] == backs[1] == only_claim(pool, State.WAITING)


# ---- the owner and a recoverer ----


@pytest.mark.parametrize("first", ["finish", "requeue"])
def test_a_claim_is_finished_or_given_to_another_and_not_both(
    pool: PoolDirectory, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ManualWorker(pool).take()
    ordered_by(monkeypatch, lambda source, target: ("/done/" in target) == (first == "finish"))

    def succeeds(move: Callable[[], object]) -> Callable[[], bool]:
        def act() -> bool:
            try:
                move()
            except ClaimLost:
                return False
            return True

        return act

    finished, requeued = run_in_threads(
        succeeds(lambda: claims.finish(pool, held)),
        succeeds(lambda: claims.requeue(pool, held, "gpu0")),
    )
    assert (finished, requeued) == (first == "finish", first == "requeue")
    assert state_counts(pool) == {"done" if first == "finish" else "spools": 1}


@dataclass
class World:
    """A worker of another host, and an observer that will declare it dead."""

    pool: PoolDirectory
    worker: ManualWorker
    judge: ManualWorker
    clock: Clock

    @classmethod
    def make(cls, pool: PoolDirectory) -> World:
        clock = Clock()
        world = cls(
            pool, ManualWorker(pool, handler=Numbered()), ManualWorker(pool, clock=clock), clock
        )
        path = pool.lease(world.worker.lease.name)
        facts = json.loads(Path(path).read_bytes())
        Path(path).write_text(json.dumps(facts | {"boot": "another host's"}))
        return world

    def declare_dead(self) -> None:
        """Watch for a lease while the worker does not renew; recover all that it holds."""
        for _ in range(BEATS_PER_LEASE + 1):
            self.judge.sweep()
            self.clock.forward(self.pool.lease_s / BEATS_PER_LEASE)

    def declare_dead_and_succeed(self) -> None:
        """Do the same, and then run the claims that wait."""
        self.declare_dead()
        while names_in(self.pool, State.WAITING):
            assert self.judge.run(self.judge.take()) in (Cause.DONE, Cause.ALREADY_DONE)


class Numbered(Trivial):
    """Save a checkpoint, then write an output that differs between attempts."""

    def run(self, work: Work) -> None:
        work.checkpoint("part", b"as good as any other")
        work.output.write_text(f"{work.id} by attempt {work.attempt}")


def work_once(world: World) -> Cause | None:
    """Take the claim, beat, run it, beat; None if it could not be taken."""
    name = next(iter(names_in(world.pool, State.WAITING)), None)
    if name is None or (taken := claims.take(world.pool, "gpu0", name, world.worker.id)) is None:
        return None
    return world.worker.run(taken)


def the_lease_is_lost(world: World) -> bool:
    try:
        world.worker.lease.renew()
    except LeaseLost:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("takeover", [World.declare_dead, World.declare_dead_and_succeed])
def test_a_worker_declared_dead_at_any_operation_damages_nothing(
    tmp_path: Path, takeover: Callable[[World], None]
) -> None:
    template = make_pool(tmp_path / "pool", "a.3")
    copy = copies(template)
    endings: list[Cause | None] = []
    outputs: dict[str, str] = {}

    def succeed(world: World) -> None:
        takeover(world)
        for name in names_in(world.pool, State.DONE):
            outputs[world.pool.root] = Path(world.pool.output(name.id, ".txt")).read_text()

    n = 0
    for n, world, ending in interrupted(
        lambda n: World.make(copy(n)), lambda world: work_once(world), succeed
    ):
        pool = world.pool
        endings.append(ending)
        assert the_lease_is_lost(world), n
        assert problems(pool) == [], n
        world.judge.sweep()  # what the zombie took after its lease was ended
        world.judge.leave()
        work_until_done(pool)
        assert state_counts(pool) == {"done": 1}, n
        done = only_claim(pool, State.DONE)
        text = Path(pool.output(done.id, ".txt")).read_text()
        assert text == outputs.get(pool.root, text), "an output that was visible never changes"
        assert problems(pool) == []
        if ending is Cause.DONE:
            assert done.owner == world.worker.id
        charged = [each for each in os.listdir(pool.directory("errors")) if ".a" in each]
        assert len(charged) <= 1, "charged once"
    assert n > 15
    assert {Cause.DONE, Cause.LOST} <= set(endings)


@pytest.mark.slow
def test_a_worker_that_leaves_on_purpose_at_any_moment_of_a_sweep_costs_no_attempt(
    tmp_path: Path,
) -> None:
    """It puts its claim back and retires its lease between two operations of the sweep."""
    template = make_pool(tmp_path / "pool", "a.3")
    copy = copies(template)

    def prepare(n: int) -> World:
        world = World.make(copy(n))
        world.worker.take()
        return world

    def leave(world: World) -> None:
        claims.release(world.pool, only_claim(world.pool, State.RUNNING), "gpu0")
        world.worker.leave()

    def sweep(world: World) -> int:
        return len(world.judge.sweep())

    for _, world, recovered in interrupted(prepare, sweep, leave):
        assert recovered == 0
        assert only_claim(world.pool, State.WAITING).attempt == 0
        assert os.listdir(world.pool.directory("errors")) == []


# ---- two workers that finish one output ----


@pytest.mark.parametrize("first", ["zombie", "successor"])
def test_the_first_output_stands_and_the_other_is_adopted(
    pool: PoolDirectory, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie and its successor have both done the work, and publish at the same time. I7."""
    world = World.make(pool)
    held = world.worker.take()
    declared = threading.Event()
    steps = Sequencer()

    class Unaware(Numbered):
        def run(self, work: Work) -> None:
            world.declare_dead()
            directories.make(pool.scratch(world.worker.id))  # it went with the lease
            declared.set()
            super().run(work)

    def succeed() -> tuple[ClaimName, Cause]:
        assert declared.wait(10), "the worker was not declared dead"
        theirs = world.judge.take()
        return theirs, world.judge.run(theirs)

    def link(real: Callable[[str, str], None], private: str, target: str) -> None:
        if not target.endswith(".txt"):
            return real(private, target)
        with steps(0 if (world.worker.id in private) == (first == "zombie") else 1):
            return real(private, target)

    world.worker.handler, world.judge.handler = Unaware(), Numbered()
    interpose(monkeypatch, link=link)
    zombies, (theirs, ending) = run_in_threads(lambda: world.worker.run(held), succeed)
    assert (zombies, ending) == (Cause.LOST, Cause.DONE)
    attempt = 0 if first == "zombie" else 1
    output = Path(pool.output(theirs.id, ".txt"))
    assert output.read_text() == f"{theirs.id} by attempt {attempt}"
    assert only_claim(pool, State.DONE) == theirs
    assert problems(pool) == []


# ---- an operator who changes their mind ----


@pytest.mark.parametrize("taken_back", [True, False])
def test_a_cancel_that_a_retry_took_back_does_not_hit_the_next_run(
    pool: PoolDirectory, taken_back: bool
) -> None:
    """The worker read the order at its last beat, before the retry removed it."""
    hand = ManualWorker(pool)

    class Obedient(Trivial):
        def run(self, work: Work) -> None:
            raise Interrupted("asked to stop")

    hand.handler = Obedient()
    held = hand.take()
    atomic.publish(pool.order("cancel", held.id), b"")
    hand.beat.read_orders()
    if taken_back:
        atomic.discard(pool.order("cancel", held.id))
    ending = hand.run(held)
    assert ending is (Cause.LEAVING if taken_back else Cause.CANCELLED)
    assert state_counts(pool) == {"spools" if taken_back else "failed": 1}
    assert len(os.listdir(pool.directory("errors"))) == (0 if taken_back else 1)


# ---- three thieves, any order ----


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_three_takers_with_one_listing_each_claim_has_one_owner(
    tmp_path: Path, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All list before any takes: the second and third must check what they really got."""
    pool = make_pool(tmp_path / "pool", "a.3", "b.2")
    listing = claims.waiting(pool, "gpu0")
    workers = [f"w-{index}-aaaaaa" for index in range(3)]
    got: dict[str, list[ClaimName]] = {
        workers[index]: [
            taken
            for name in listing
            if (taken := claims.take(pool, "gpu0", name, workers[index])) is not None
        ]
        for index in order
    }
    assert got[workers[order[0]]] and not got[workers[order[1]]] and not got[workers[order[2]]]
    assert names_in(pool, State.RUNNING) == sorted(got[workers[order[0]]], key=lambda n: n.id)
