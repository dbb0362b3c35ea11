"""I1 to I9, as numbered at the head of fsqueue/pool/claims.py: one test each, or a few.

Each is checked at every operation that could break it, not in one lucky run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from fsqueue.errors import ClaimFailed, LeaseLost
from fsqueue.handler import Work
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.leases import BEATS_PER_LEASE, Observer, ended_lease_names, lease_names
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage.atomic import discard
from fsqueue.storage.locks import try_lock
from fsqueue.worker import claim_source
from fsqueue.worker.attempts.verdicts import Cause
from fsqueue.worker.claim_source import ClaimSource
from tests.support.crash import CHANGES, copies, interrupted, looking
from tests.support.interleave import RandomTurns, interpose, run_in_threads
from tests.support.pools import (
    Clock,
    ManualWorker,
    Trivial,
    contents,
    make_pool,
    names_in,
    only_claim,
    plan,
    state_counts,
    work_until_done,
)

ME, OTHER = "me-1-aaaaaa", "other-2-bbbbbb"


class Unlucky(Trivial):
    """Fail at the first attempt."""

    def run(self, work: Work) -> None:
        super().run(work)
        if not work.attempt:
            raise ClaimFailed("no luck")


def life_of_a_pool(pool: PoolDirectory) -> None:
    """Plan, take, fail, requeue, put back, finish, cancel and retry: every transition."""
    plan(pool, "a.5", "b.4", "c.3")
    hand = ManualWorker(pool, handler=Unlucky())
    hand.run(hand.take())  # fails, and is requeued
    hand.run(hand.take())  # finishes
    claims.release(pool, hand.take(), "gpu0")
    claims.fail(pool, hand.take())
    claims.retry(pool, only_claim(pool, State.FAILED), "gpu0")
    last = names_in(pool, State.WAITING)[-1]
    claims.cancel(pool, "gpu0", last, ME)
    claims.retry(pool, only_claim(pool, State.FAILED), "gpu0")
    hand.leave()
    work_until_done(pool)


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.5", "b.4", "c.3")


def every_claim(pool: PoolDirectory) -> list[ClaimName]:
    return names_in(pool, *State)


# ---- I1: a planned claim is in exactly one of the state directories ----


def test_i1_at_every_operation_a_claim_of_a_complete_plan_is_in_exactly_one_place(
    tmp_path: Path,
) -> None:
    pool = make_pool(tmp_path / "pool", "z.1")
    seen: list[list[str]] = []

    def look(pool: PoolDirectory) -> None:
        complete = not any(".staged" in name for name in os.listdir(pool.directory("plans")))
        found = [name.id for name in every_claim(pool)]
        assert len(found) == len(set(found)), "in two places"
        held = [name.id for n in plans.numbers(pool) for name, _ in plans.read_claims(pool, n)]
        assert set(found) <= set(held), "visible before it is planned"
        if complete:
            assert sorted(found) == sorted(held)
            seen.append(found)

    looking(life_of_a_pool, pool, look)
    assert {len(found) for found in seen} == {1, 4}
    assert len(seen) > 50


# ---- I2: a claim moves only by one rename(2) ----


def test_i2_every_transition_is_one_rename_and_nothing_else_ever_touches_a_claim(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[tuple[str, str]] = []
    state_of = {f"{pool.root}/{state.value}": state.name.lower() for state in State}

    def place(path: str) -> str | None:
        directory, name = os.path.split(path)
        if ClaimName.parse(name) is None:
            return None
        if ".staged/" in path:
            return "staged"
        return state_of.get(directory) or state_of.get(os.path.dirname(directory))

    def hook(verb: str) -> Callable[..., object]:
        def call(real: Callable[..., object], *paths: str, **options: int) -> object:
            base = os.readlink(f"/proc/self/fd/{options['dir_fd']}") + "/" if options else ""
            touched = [place(base + path) for path in paths if isinstance(path, str)]
            if verb == "rename" and touched[0] is not None:
                moves.append((touched[0], touched[1] or "?"))
            else:
                assert not any(touched), f"{verb} {paths}"
            return real(*paths, **options)

        return call

    verbs = [verb for verb in CHANGES if verb != "fsync"]
    interpose(monkeypatch, **{verb: hook(verb) for verb in verbs})
    life_of_a_pool(pool)
    assert set(moves) == {
        ("waiting", "running"),
        ("running", "waiting"),
        ("running", "done"),
        ("running", "failed"),
        ("waiting", "failed"),
        ("failed", "waiting"),
    }
    monkeypatch.undo()
    interpose(monkeypatch, rename=hook("rename"))
    moves.clear()
    plan(pool, "d.1")
    assert moves == [("staged", "waiting")]


# ---- I3: the worker whose rename into running/ took effect owns the claim ----


def test_i3_two_workers_take_one_claim_and_one_owns_it(pool: PoolDirectory) -> None:
    for name in names_in(pool, State.WAITING):
        taken = [claims.take(pool, "gpu0", name, worker) for worker in (ME, OTHER, ME)]
        assert taken == [name.owned_by(ME), None, name.owned_by(ME)]
    assert {name.owner for name in names_in(pool, State.RUNNING)} == {ME}


def test_i3_no_other_process_moves_a_claim_while_its_owners_lease_holds(
    pool: PoolDirectory,
) -> None:
    clock = Clock()
    owner, others = ManualWorker(pool), [ManualWorker(pool, clock=clock) for _ in range(3)]
    held = owner.take()
    for _ in range(10 * BEATS_PER_LEASE):
        assert [other.sweep() for other in others] == [[], [], []]
        clock.forward(pool.lease_s / BEATS_PER_LEASE)
        for hand in (owner, *others):
            hand.lease.renew()
    assert only_claim(pool, State.RUNNING) == held


# ---- I4: a claim is complete before it is visible, and its bytes never change ----


def test_i4_at_every_operation_each_visible_claim_is_whole_and_as_it_was(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "z.1")
    bytes_of: dict[str, bytes] = {}

    def look(pool: PoolDirectory) -> None:
        for state in State:
            for path in Path(pool.state(state)).rglob("*.c*.a*.r*"):
                name = ClaimName.parse(path.name)
                assert name is not None
                data = path.read_bytes()
                assert json.loads(data)["id"] == name.id
                assert bytes_of.setdefault(name.id, data) == data

    looking(life_of_a_pool, pool, look)
    assert len(bytes_of) == 4


# ---- I5: locks make taking cheap, never correct ----


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("granted", ["always", "never", "as it comes"])
def test_i5_with_every_lock_removed_each_claim_has_one_owner(
    tmp_path: Path, seed: int, granted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thieves and two owners take turns at every rename and listing, in a seeded order."""
    inputs = [f"x{n}.{n}" for n in range(1, 13)]
    pool = make_pool(tmp_path / "pool", *inputs, weights=(1.0, 1.0))

    @contextmanager
    def lock(path: str):  # type: ignore[no-untyped-def]
        with try_lock(path) as free:
            discard(path)  # I9 broken on purpose: now two may hold a lock on two files
            yield free if granted == "as it comes" else granted == "always"

    monkeypatch.setattr(claim_source, "try_lock", lock)
    turns = RandomTurns(4, seed)
    hands = [ManualWorker(pool, spool) for spool in ("gpu0", "gpu1", None, None)]
    stocks = [
        ClaimSource(pool, h.beat, h.journal, spool=h.status.spool, stealing=True) for h in hands
    ]

    def take_all(index: int) -> Callable[[], list[ClaimName]]:
        def act() -> list[ClaimName]:
            with turns.taking_part(index):
                looks = (stocks[index].next() for _ in range(2 * len(inputs)))
                return [found[0] for found in looks if found is not None]

        return act

    def change(real: Callable[..., object], *args: object) -> object:
        with turns.mine():
            return real(*args)

    interpose(monkeypatch, rename=change, listdir=change)
    taken = [name for names in run_in_threads(*map(take_all, range(4))) for name in names]
    monkeypatch.undo()
    assert sorted(map(str, taken)) == sorted(map(str, names_in(pool, State.RUNNING)))
    assert len({name.id for name in taken}) == len(taken) == len(inputs)


# ---- I6: done implies output ----


def test_i6_at_every_operation_a_done_claim_has_its_whole_output(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "z.1")
    most = [0]

    def look(pool: PoolDirectory) -> None:
        for name in names_in(pool, State.DONE):
            assert Path(pool.output(name.id, ".txt")).read_text() == name.id
        for path in Path(pool.directory("outputs")).glob("[!.]*"):
            assert path.read_text() == path.name.removesuffix(".txt"), "visible, and not whole"
        most[0] = max(most[0], len(names_in(pool, State.DONE)))

    looking(life_of_a_pool, pool, look)
    assert most == [4]


def test_i6_a_worker_killed_before_finish_leaves_the_claim_running(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = ManualWorker(pool)
    name = hand.take()

    def rename(real: Callable[..., None], source: str, target: str) -> None:
        if "/done/" in target:
            raise KeyboardInterrupt
        real(source, target)

    interpose(monkeypatch, rename=rename)
    with pytest.raises(KeyboardInterrupt):
        hand.run(name)
    assert only_claim(pool, State.RUNNING) == name
    assert Path(pool.output(name.id, ".txt")).read_text() == name.id


# ---- I7: an output, once visible under its final name, is never replaced ----


def test_i7_a_second_attempt_adopts_the_output_that_it_finds(pool: PoolDirectory) -> None:
    first, second = ManualWorker(pool), ManualWorker(pool)
    name = first.take()
    output = Path(pool.output(name.id, ".txt"))
    output.write_text("made by the first attempt")
    inode = output.stat().st_ino
    back = claims.requeue(pool, name, "gpu0")
    assert second.run(second.take()) is Cause.ALREADY_DONE
    assert (output.read_text(), output.stat().st_ino) == ("made by the first attempt", inode)
    assert only_claim(pool, State.DONE).returns == back.returns == 1


def test_i7_an_output_that_appears_while_its_claim_runs_stands(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool)
    name = hand.take()
    output = Path(pool.output(name.id, ".txt"))

    class Overtaken(Trivial):
        def run(self, work: Work) -> None:
            super().run(work)
            output.write_text("made by a zombie")

    hand.handler = Overtaken()
    assert hand.run(name) is Cause.DONE
    assert output.read_text() == "made by a zombie"


# ---- I8: deleting status/ and events/ changes nothing but what is displayed ----


@pytest.mark.slow
def test_i8_deleting_status_and_events_at_any_operation_changes_nothing_else(
    tmp_path: Path,
) -> None:
    template = make_pool(tmp_path / "pool", "a.2", "b.1")

    def delete(pool: PoolDirectory) -> None:
        for name in ("status", "events"):
            shutil.rmtree(pool.directory(name))

    def live(pool: PoolDirectory) -> None:
        hand = ManualWorker(pool, "gpu0", handler=Unlucky())
        hand.beat.flush()
        hand.run(hand.take())
        hand.run(hand.take())
        hand.beat.flush()
        claims.release(pool, hand.take(), "gpu0")
        hand.leave()
        work_until_done(pool)

    outcomes = []
    for n, pool, _ in interrupted(copies(template), live, delete):
        assert state_counts(pool) == {"done": 2}, n
        visible = contents(pool.directory("outputs"))
        outcomes.append((visible, [(m.id, m.attempt) for m in every_claim(pool)]))
    assert all(outcome == outcomes[-1] for outcome in outcomes)


# ---- I9: a lease moves only by rename, from the exact beat last seen ----


def test_i9_a_worker_that_loses_the_race_for_its_lease_has_lost_it(pool: PoolDirectory) -> None:
    """For every number of beats between an observer's look and its attempt to end the lease."""
    for beats in range(3):
        hand = ManualWorker(pool)
        observer = Observer(pool)
        observer.look()
        for _ in range(beats):
            hand.lease.renew()
        assert observer.end(hand.id, OTHER) == (beats == 0)
        names = (*lease_names(pool), *ended_lease_names(pool))
        mine = [name for name in names if name.worker == hand.id]
        assert len(mine) == 1
        assert mine[0].living == (beats > 0)


@pytest.mark.slow
def test_i9_at_every_operation_a_worker_has_at_most_one_lease_and_no_beat_repeats(
    tmp_path: Path,
) -> None:
    template = make_pool(tmp_path / "pool", "z.1")
    ended = 0

    def live(pool: PoolDirectory) -> list[int]:
        hand = ManualWorker(pool)
        beats = []
        for _ in range(3):
            hand.lease.renew()
            beats.append(hand.lease.name.beat or 0)
        hand.leave()
        return beats

    def judge(pool: PoolDirectory) -> None:
        nonlocal ended
        observer = Observer(pool)
        observer.look()
        names = [name.worker for name in lease_names(pool)]
        assert len(names) == len(set(names))
        for worker in observer.workers():
            ended += observer.end(worker, OTHER)

    def tolerant(pool: PoolDirectory) -> list[int] | None:
        try:
            return live(pool)
        except LeaseLost:
            return None

    for _, pool, beats in interrupted(copies(template), tolerant, judge):
        assert beats in (None, [1, 2, 3])
        assert not any(name.living for name in lease_names(pool))
    assert ended > 3


def test_i9_no_lock_file_is_ever_unlinked(pool: PoolDirectory) -> None:
    path = pool.spool_lock("gpu0")
    with try_lock(path) as free:
        assert free
        inode = os.stat(path).st_ino
    life_of_a_pool(pool)
    thief = ManualWorker(pool)
    ClaimSource(pool, thief.beat, thief.journal, spool=None, stealing=True).next()
    assert os.stat(path).st_ino == inode
