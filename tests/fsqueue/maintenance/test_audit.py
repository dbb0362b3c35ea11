"""`fsqueue check`: every violation made by hand is found, and a pool at work raises no alarm."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue.maintenance.audit import audit_pool
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import DIRECTORIES, State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.storage import atomic
from tests.support.crash import copies, every_crash, interrupted, looking
from tests.support.interleave import interpose
from tests.support.pools import (
    ManualWorker,
    contents,
    make_pool,
    names_in,
    only_claim,
    plan,
    problems,
)

STRANGER = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="giving a directory to another user needs root"
)


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """A pool with a claim in every state: a waits, b runs, c is done, d failed."""
    pool = make_pool(tmp_path / "pool", "d.4", "c.3", "b.2", "a.1", weights=(1.0, 1.0))
    hand = ManualWorker(pool)
    claims.fail(pool, hand.take())
    hand.run(hand.take())
    hand.take()
    assert [stem_of(pool, state) for state in State] == ["a", "b", "c", "d"]
    assert problems(pool) == []
    return pool


def stem_of(pool: PoolDirectory, state: State) -> str:
    return only_claim(pool, state).id[0]


def path_of(pool: PoolDirectory, state: State) -> str:
    """Return where the one claim in a state lies."""
    name = only_claim(pool, state)
    if state is not State.WAITING:
        return pool.owned(state, name)
    (spool,) = (s for s in ("gpu0", "gpu1") if name in claims.waiting(pool, s))
    return pool.waiting(spool, name)


# ---- a pool in which nothing is wrong ----


def test_a_new_pool_is_clean(tmp_path: Path) -> None:
    report = audit_pool(create_pool(str(tmp_path / "pool")))
    assert (report.problems, report.notes, report.planned) == ([], [], 0)


def test_a_pool_with_claims_in_every_state_is_clean_and_counted(pool: PoolDirectory) -> None:
    report = audit_pool(pool)
    assert report.problems == []
    assert report.planned == 4
    assert report.counts == {"spools": 1, "running": 1, "done": 1, "failed": 1}


def test_checking_changes_nothing(pool: PoolDirectory) -> None:
    before = contents(pool.root)
    audit_pool(pool)
    assert contents(pool.root) == before


# ---- I1 ----


def test_i1_a_claim_that_is_nowhere_is_found(pool: PoolDirectory) -> None:
    id = only_claim(pool, State.WAITING).id
    os.unlink(path_of(pool, State.WAITING))
    assert problems(pool) == [f"I1: {id} is planned but nowhere: its file was removed"]


@pytest.mark.parametrize("state", list(State))
def test_i1_a_claim_in_two_places_is_found_and_both_are_named(
    pool: PoolDirectory, state: State
) -> None:
    name = only_claim(pool, state)
    copy = ClaimName(name.id, name.kind, name.cost, name.attempt, 9, "you-2-bbbbbb")
    shutil.copy(path_of(pool, state), pool.owned(State.FAILED, copy))
    (problem,) = problems(pool)
    assert problem.startswith(f"I1: {name.id} is in 2 places: ")
    assert f"failed/{copy}" in problem and str(name) in problem


def test_i1_a_claim_that_no_plan_holds_is_found(pool: PoolDirectory) -> None:
    name = ClaimName("ghost", "trivial", 1)
    atomic.stage(pool.waiting("gpu0", name), [b'{"id": "ghost"}'])
    assert problems(pool) == [f"I1: ghost is in spools/gpu0/{name}, but in no plan"]


def test_i1_a_claim_that_two_plans_hold_is_found(pool: PoolDirectory) -> None:
    shutil.copy(pool.plan(1), pool.plan(2))
    found = problems(pool)
    assert len(found) == 4
    assert all("is planned twice, by plan 1 and 2" in problem for problem in found)


# ---- plans ----


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_plan_that_was_cut_is_found_by_name(pool: PoolDirectory, cut: int) -> None:
    lines = Path(pool.plan(1)).read_bytes().splitlines(keepends=True)
    Path(pool.plan(1)).write_bytes(b"".join(lines[:cut]))
    assert any(pool.plan(1) in problem for problem in problems(pool))


# ---- names ----


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("spools/gpu0", "README"),
        ("spools/gpu0", "x.k.c1.a0.r0@w"),
        ("running", "x.k.c1.a0.r0"),
        ("running", "x y"),
        ("done", "x.k.c1.a0.r0"),
        ("failed", "x" * 250),
        ("done", "a\nb.k.c1.a0.r0@w"),
    ],
)
def test_what_is_no_claims_name_is_found(pool: PoolDirectory, place: str, text: str) -> None:
    Path(pool.root, place, text).touch()
    assert f"{pool.root}/{place}/{text!r} is not a claim's name; remove it" in problems(pool)


def test_private_names_are_nobodys_business(pool: PoolDirectory) -> None:
    for place in ("spools/gpu0", "running", "done", "plans", "workers"):
        Path(pool.root, place, ".nfs0001").touch()
    assert problems(pool) == []


# ---- directories and spools ----


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_that_is_gone_is_found(pool: PoolDirectory, name: str) -> None:
    shutil.rmtree(pool.directory(name))
    (problem,) = problems(pool)
    assert problem.startswith(f"{pool.directory(name)} is not a directory")


def test_a_spool_that_is_a_symbolic_link_is_found(pool: PoolDirectory, tmp_path: Path) -> None:
    shutil.move(pool.spool("gpu0"), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", pool.spool("gpu0"))
    assert any(problem.startswith(f"{pool.spool('gpu0')} is not a") for problem in problems(pool))


@needs_root
def test_a_spool_that_another_user_could_fill_is_found(pool: PoolDirectory) -> None:
    os.chown(pool.spool("gpu0"), STRANGER, STRANGER)
    found = problems(pool)
    assert any(f"{pool.spool('gpu0')} belongs to user {STRANGER}" in p for p in found)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"model": "x", "weight": 0}'])
def test_a_damaged_spool_file_is_found(pool: PoolDirectory, data: bytes) -> None:
    Path(pool.spool_file("gpu1")).write_bytes(data)
    (problem,) = problems(pool)
    assert problem.startswith(pool.spool_file("gpu1"))


# ---- I4 ----


@pytest.mark.parametrize("state", [State.WAITING, State.RUNNING])
@pytest.mark.parametrize("data", [b"", b'{"id": "a', b"[]", b'{"id": "other"}', b"\xff"], ids=repr)
def test_i4_a_claim_that_is_not_whole_is_found(
    pool: PoolDirectory, state: State, data: bytes
) -> None:
    path = path_of(pool, state)
    Path(path).write_bytes(data)
    (problem,) = problems(pool)
    assert problem.startswith("I4: ") and path in problem


def test_i4_a_claim_that_is_a_symbolic_link_is_found(pool: PoolDirectory, tmp_path: Path) -> None:
    path = path_of(pool, State.WAITING)
    shutil.move(path, tmp_path / "claim")
    os.symlink(tmp_path / "claim", path)
    (problem,) = problems(pool)
    assert problem.startswith("I4: ") and path in problem


# ---- I6 ----


def test_i6_a_done_claim_without_its_output_is_found(pool: PoolDirectory) -> None:
    id = only_claim(pool, State.DONE).id
    os.unlink(pool.output(id, ".txt"))
    assert problems(pool) == [f"I6: {id} is done, and outputs/{id}.txt is missing"]


def test_i6_an_output_whose_claim_is_not_done_yet_is_as_it_should_be(pool: PoolDirectory) -> None:
    Path(pool.output(only_claim(pool, State.RUNNING).id, ".txt")).touch()
    assert problems(pool) == []


# ---- no problems, but worth a word ----


def test_what_is_left_over_is_a_note(pool: PoolDirectory) -> None:
    held = only_claim(pool, State.RUNNING)
    (lease,) = lease_names(pool)
    os.rename(pool.lease(lease), pool.lease(lease.dead("you-2-bbbbbb")))
    report = audit_pool(pool)
    assert report.problems == []
    assert any(f"{held.id} is in running/ under {held.owner}" in note for note in report.notes)
    assert any(f"outputs/.{held.owner} was left" in note for note in report.notes)


@pytest.mark.slow
def test_a_plan_that_is_not_all_in_its_spools_yet_is_a_note(tmp_path: Path) -> None:
    template = make_pool(tmp_path / "pool", "a.3")
    noted = False
    for _, pool in every_crash(copies(template), lambda pool: plan(pool, "b.2", "c.1")):
        report = audit_pool(pool)
        assert report.problems == []
        noted |= any("of a plan are not in a spool yet" in note for note in report.notes)
    assert noted


# ---- a pool at work ----


def between_listings(
    patch: pytest.MonkeyPatch, word: str, act: Callable[[], object], *, times: int = 10**9
) -> list[int]:
    """Do something after every listing of a directory whose path ends in `word`."""
    done: list[int] = []
    busy: list[int] = []

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        found = real(fd)
        if os.readlink(f"/proc/self/fd/{fd}").endswith(word) and not busy and len(done) < times:
            busy.append(1)
            act()
            busy.pop()
            done.append(1)
        return found

    interpose(patch, listdir=listdir)
    return done


def test_a_claim_taken_between_two_listings_is_not_in_two_places(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = ManualWorker(pool)
    spool = "spools/gpu0" if claims.waiting(pool, "gpu0") else "spools/gpu1"
    acted = between_listings(monkeypatch, spool, hand.take, times=1)
    assert problems(pool) == []
    assert acted


def test_a_claim_released_between_two_listings_is_not_missing(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = only_claim(pool, State.RUNNING)
    acted = between_listings(
        monkeypatch, "spools/gpu1", lambda: claims.release(pool, held, "gpu0"), times=1
    )
    assert problems(pool) == []
    assert acted


def test_a_claim_that_is_on_its_way_at_every_look_raises_no_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look sees it in two places: each time under other names."""
    pool = make_pool(tmp_path / "pool", "a.3")
    taken: list[ClaimName] = []

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        found = real(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        waiting = next(filter(None, map(ClaimName.parse, found)), None)
        if path.endswith("spools/gpu0") and waiting is not None and moving:
            moving.clear()
            taken.append(waiting.owned_by("me-1-aaaaaa"))
            claims.take(pool, "gpu0", waiting, "me-1-aaaaaa")
        elif path.endswith("running") and not moving:
            moving.append(1)
            claims.release(pool, taken[-1], "gpu0")
        return found

    moving = [1]
    interpose(monkeypatch, listdir=listdir)
    assert problems(pool) == []
    assert len(taken) >= 3


def test_a_claim_finished_while_outputs_are_checked_has_its_output(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = ManualWorker(pool)
    name = hand.take()
    acted = between_listings(monkeypatch, "/done", lambda: finish_once(hand, name))
    assert problems(pool) == []
    assert acted
    assert name in names_in(pool, State.DONE)


def finish_once(hand: ManualWorker, name: ClaimName) -> None:
    if name in names_in(hand.pool, State.RUNNING):
        hand.run(name)


def test_a_plan_made_while_the_pool_is_checked_holds_its_claims(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted = between_listings(
        monkeypatch, "spools/gpu0", lambda: plan(pool, "e.5", "f.6", weights=(1.0, 1.0)), times=1
    )
    assert problems(pool) == []
    assert acted


@pytest.mark.slow
def test_a_plan_completed_while_the_pool_is_checked_leaves_no_claim_nowhere(
    tmp_path: Path,
) -> None:
    """Somebody else completes it, between any two operations of its planner and any listing."""
    template = make_pool(tmp_path / "pool", "a.3")
    for n, pool, _ in interrupted(copies(template), lambda pool: plan(pool, "b.2"), plans.complete):
        assert problems(pool) == [], n


def test_whatever_happens_between_two_operations_of_a_worker_the_pool_is_clean(
    tmp_path: Path,
) -> None:
    """A whole check is done at every operation of plan, take, run, finish, fail and retry."""
    pool = make_pool(tmp_path / "pool", "a.3", "b.2", weights=(1.0, 1.0))

    def act(pool: PoolDirectory) -> None:
        plan(pool, "c.1", weights=(1.0, 1.0))
        hand = ManualWorker(pool)
        hand.run(hand.take())
        name = claims.charge(pool, hand.take(), "gpu1", {"error": "x"}, final=True)
        claims.retry(pool, name, "gpu1")
        hand.leave()

    looks: list[list[str]] = []
    looking(act, pool, lambda pool: looks.append(problems(pool)))
    assert len(looks) > 40
    assert not any(looks)
