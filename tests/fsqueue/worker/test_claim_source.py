"""Claims from the own spool without a lock, from others with one, and despite stale lists."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import write_status
from fsqueue.scheduling.choose import PLENTY, Preferences
from fsqueue.scheduling.planner import plan_into
from fsqueue.worker import claim_source as claim_source_module
from fsqueue.worker.claim_source import LISTINGS_MAX, MISSES_MAX, ClaimSource, Waiting
from tests.support.interleave import interpose
from tests.support.pools import (
    ManualWorker,
    held_by_another_process,
    make_pool,
    names_in,
    only_claim,
    problems,
    request,
    state_counts,
    stems,
)
from tests.support.strace import fill

ME = "me-1-aaaaaa"


def source_of(
    hand: ManualWorker, *, stealing: bool = True, time_left_s: float = math.inf
) -> ClaimSource:
    return ClaimSource(
        hand.pool,
        hand.beat,
        hand.journal,
        spool=hand.status.spool,
        stealing=stealing,
        time_left_s=lambda: time_left_s,
    )


def take_all(claim_source: ClaimSource) -> Iterator[tuple[str, str]]:
    """Take until there is nothing to take; yield each claim's stem and where it came from."""
    while (found := claim_source.next()) is not None:
        yield found[0].id.partition("-")[0], found[1]


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """A pool in which a.8, c.6 and e.4 wait in gpu0, b.7 and d.5 in gpu1."""
    pool = make_pool(tmp_path / "pool", "a.8", "b.7", "c.6", "d.5", "e.4", weights=(1.0, 1.0))
    for stem, spool in zip("abcde", ("gpu0", "gpu1", "gpu0", "gpu1", "gpu0"), strict=True):
        move(pool, stem, spool)
    return pool


def move(pool: PoolDirectory, stem: str, spool: str) -> None:
    """Put a waiting claim where the test wants it."""
    for other in ("gpu0", "gpu1"):
        for name in claims.waiting(pool, other):
            if name.id.startswith(stem):
                os.rename(pool.waiting(other, name), pool.waiting(spool, name))


@contextmanager
def watched(**more: Callable[..., Any]) -> Iterator[dict[str, int]]:
    """Count the renames and the listings that are done in the block."""
    counts = {"rename": 0, "listdir": 0}

    def counting(name: str) -> Callable[..., Any]:
        def hook(real: Callable[..., Any], *args: Any) -> Any:
            counts[name] += 1
            return more[name](real, *args) if name in more else real(*args)

        return hook

    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, **{name: counting(name) for name in counts})
        yield counts


# ---- one's own spool, and others' ----


def test_a_worker_takes_its_own_largest_first_and_then_steals_the_largest(
    pool: PoolDirectory,
) -> None:
    hand = ManualWorker(pool, "gpu0")
    taken = list(take_all(source_of(hand)))
    assert taken == [("a", "gpu0"), ("c", "gpu0"), ("e", "gpu0"), ("b", "gpu1"), ("d", "gpu1")]
    assert hand.status.steals_in == 2
    assert hand.status.stolen_from == {"gpu1": 2}
    assert {name.owner for name in names_in(pool, State.RUNNING)} == {hand.id}


def test_a_worker_without_a_spool_is_a_pure_thief(pool: PoolDirectory) -> None:
    taken = [stem for stem, _ in take_all(source_of(ManualWorker(pool)))]
    assert taken == ["a", "b", "c", "d", "e"]


def test_a_worker_that_does_not_steal_leaves_others_alone(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    claim_source = source_of(hand, stealing=False)
    assert [stem for stem, _ in take_all(claim_source)] == ["a", "c", "e"]
    assert stems(pool, State.WAITING) == ["b", "d"]
    assert claim_source.count_waiting() == Waiting(2, 0)


def test_claims_of_kinds_a_worker_cannot_do_are_neither_taken_nor_counted(
    pool: PoolDirectory,
) -> None:
    claim_source = source_of(ManualWorker(pool, "gpu0"))
    claim_source.set_preferences(Preferences(unable=frozenset({"trivial"})))
    assert claim_source.next() is None
    assert claim_source.count_waiting() == Waiting(5, 0)


def test_a_claim_that_failed_here_is_taken_last(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", *(f"x{n}.{n}" for n in range(1, 9)))
    claim_source = source_of(ManualWorker(pool, "gpu0"))
    failed, spool = claim_source.next() or pytest.fail("nothing to take")
    claims.requeue(pool, failed, spool)
    claim_source.set_preferences(Preferences(failed_here=frozenset({failed.id})))
    assert [stem for stem, _ in take_all(claim_source)] == "x7 x6 x5 x4 x3 x2 x1 x8".split()


def test_a_claim_left_to_a_faster_worker_that_never_comes_is_taken_in_the_end(
    tmp_path: Path,
) -> None:
    pool = make_pool(tmp_path / "pool", "a.40")
    hand, fast = ManualWorker(pool), ManualWorker(pool, "gpu0")
    fast.status.weight = 4.0
    write_status(pool, fast.status)
    claim_source = source_of(hand)
    rounds = 0
    while claim_source.next() is None:
        rounds += 1
        assert rounds < 100
    assert 10 < rounds < 40
    assert only_claim(pool, State.RUNNING).owner == hand.id


def test_claims_too_long_for_the_time_left_are_counted(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    hand.status.rates = {"trivial": 1.0}
    claim_source = source_of(hand, time_left_s=5.5)
    assert claim_source.count_waiting() == Waiting(5, 2, 3)
    assert sorted(stem for stem, _ in take_all(claim_source)) == ["d", "e"]


# ---- listings are read once ----


def test_the_cost_of_a_claim_does_not_grow_with_the_claims_that_wait(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", *(f"x{n}.{n}" for n in range(1, 61)))
    claim_source = source_of(ManualWorker(pool, "gpu0"))
    claim_source.next()
    with watched() as counts:
        for _ in range(60 - PLENTY - 1):
            assert claim_source.next() is not None
    assert counts == {"rename": 60 - PLENTY - 1, "listdir": 0}


def test_a_spool_is_listed_again_after_a_few_misses(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", *(f"x{n}.{n}" for n in range(1, 61)))
    claim_source = source_of(ManualWorker(pool, "gpu0"))
    assert claim_source.next() is not None
    quick = sorted(claims.waiting(pool, "gpu0"), key=lambda name: name.cost)[-40:]
    for name in quick:
        claims.take(pool, "gpu0", name, ME)
    with watched() as counts:
        found = claim_source.next()
    assert found is not None and found[0].cost == 19
    assert counts["rename"] == MISSES_MAX + 1


def test_a_long_spool_is_not_listed_again_for_a_few_misses(tmp_path: Path) -> None:
    """While a million names are listed, others take thousands: listing again never catches up."""
    pool = fill(tmp_path / "pool", 1_000)
    claim_source = source_of(ManualWorker(pool, "cpu0"))
    assert claim_source.next() is not None
    gone = sorted(claims.waiting(pool, "cpu0"), key=lambda name: (name.cost, name.id))[-14:]
    for name in gone:
        claims.take(pool, "cpu0", name, ME)
    with watched() as counts:
        assert claim_source.next() is not None
    assert counts["rename"] == len(gone) + 1


# ---- listings that lie ----


def test_a_listing_that_lags_is_asked_a_few_times_and_then_given_a_rest(tmp_path: Path) -> None:
    """The mount keeps showing claims that are gone, as one that caches listings does."""
    pool = make_pool(tmp_path / "pool", *(f"x{n}.{n}" for n in range(1, 31)))
    gone = [str(name) for name in claims.waiting(pool, "gpu0")]
    for name in claims.waiting(pool, "gpu0"):
        claims.take(pool, "gpu0", name, ME)
    claim_source = source_of(ManualWorker(pool, "gpu0"))

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        spool = os.readlink(f"/proc/self/fd/{fd}").endswith("/gpu0")
        return gone if spool else real(fd)

    with watched(listdir=listdir) as counts:
        assert claim_source.next() is None
    assert MISSES_MAX < counts["rename"] <= (LISTINGS_MAX + 1) * MISSES_MAX
    with watched(listdir=listdir) as again:
        assert claim_source.next() is None
    assert again["rename"] <= (LISTINGS_MAX + 1) * MISSES_MAX
    assert len(names_in(pool, State.RUNNING)) == 30


def test_a_thief_gives_a_listing_that_lags_a_rest_too(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", *(f"x{n}.{n}" for n in range(1, 31)))
    gone = [str(name) for name in claims.waiting(pool, "gpu0")]
    for name in claims.waiting(pool, "gpu0"):
        claims.take(pool, "gpu0", name, ME)
    claim_source = source_of(ManualWorker(pool))

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        spool = os.readlink(f"/proc/self/fd/{fd}").endswith("/gpu0")
        return gone if spool else real(fd)

    with watched(listdir=listdir) as counts:
        assert claim_source.next() is None
    assert counts["rename"] <= MISSES_MAX


def test_a_claim_that_a_listing_hides_is_found_by_the_next(pool: PoolDirectory) -> None:
    claim_source = source_of(ManualWorker(pool, "gpu0"))

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        return [text for text in real(fd) if not text.startswith("a-")]

    with watched(listdir=listdir):
        found = claim_source.next()
    assert found is not None and found[0].id.startswith("c-")
    assert sorted(stem for stem, _ in take_all(source_of(ManualWorker(pool, "gpu0")))) == list(
        "abde"
    )


# ---- locks ----


def test_a_thief_skips_a_spool_someone_is_scanning(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool)
    claim_source = source_of(hand)
    with held_by_another_process(pool.spool_lock("gpu0")):
        assert [stem for stem, _ in take_all(claim_source)] == ["b", "d"]
        assert hand.status.lock_skips > 0
    assert [stem for stem, _ in take_all(claim_source)] == ["a", "c", "e"]


def test_a_thief_does_not_wait_for_the_only_spool_there_is(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3")
    claim_source = source_of(ManualWorker(pool))
    with held_by_another_process(pool.spool_lock("gpu0")), pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: pytest.fail("it waited"))
        assert claim_source.next() is None
    assert claim_source.next() is not None


def test_an_owner_never_asks_for_the_lock_of_its_own_spool(pool: PoolDirectory) -> None:
    with held_by_another_process(pool.spool_lock("gpu0")):
        claim_source = source_of(ManualWorker(pool, "gpu0"), stealing=False)
        assert [stem for stem, _ in take_all(claim_source)] == ["a", "c", "e"]


@contextmanager
def no_lock_granted(path: str) -> Iterator[bool]:
    yield False


@contextmanager
def every_lock_granted(path: str) -> Iterator[bool]:
    yield True


@pytest.mark.parametrize("lock", [no_lock_granted, every_lock_granted])
def test_i5_without_locks_that_lock_every_claim_is_still_taken_by_one(
    pool: PoolDirectory, lock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_source_module, "try_lock", lock)
    hands = [ManualWorker(pool, "gpu0"), ManualWorker(pool, "gpu1"), ManualWorker(pool)]
    sources = [source_of(hand) for hand in hands]
    taken: list[ClaimName] = []
    for _ in range(10):
        taken += [found[0] for each in sources if (found := each.next()) is not None]
    assert sorted(taken, key=str) == sorted(names_in(pool, State.RUNNING), key=str)
    assert len({name.id for name in taken}) == 5
    assert state_counts(pool) == {"running": 5}
    assert problems(pool) == []


# ---- spools that are not fit to be worked ----


def make_link(pool: PoolDirectory, spool: str) -> None:
    shutil.move(pool.spool(spool), f"{pool.root}/elsewhere")
    os.symlink(f"{pool.root}/elsewhere", pool.spool(spool))


def remove(pool: PoolDirectory, spool: str) -> None:
    shutil.rmtree(pool.spool(spool))


@pytest.mark.parametrize("spoil", [make_link, remove])
@pytest.mark.parametrize("own", ["gpu0", "gpu1"])
def test_a_file_in_place_of_a_spool_is_skipped(
    pool: PoolDirectory,
    spoil: Callable[[PoolDirectory, str], None],
    own: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(pool, "gpu1")
    claim_source = source_of(ManualWorker(pool, own))
    assert sorted(stem for stem, _ in take_all(claim_source)) == ["a", "c", "e"]
    assert claim_source.count_waiting() == Waiting(1, 0), "something waits that we may not take"
    assert sum(pool.spool("gpu1") in record.message for record in caplog.records) == 1


def test_other_names_in_a_spool_are_not_taken(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3")
    for text in ("README", "x.k.c1.a0.r0@w", "a\nb.k.c1.a0.r0", "x" * 250, "..k.c1.a0.r0"):
        Path(pool.spool("gpu0"), text).touch()
    assert [stem for stem, _ in take_all(source_of(ManualWorker(pool, "gpu0")))] == ["a"]


# ---- statuses are hints ----

NUMBERS = st.integers(-(10**30), 10**30) | st.floats() | st.just(10**400) | st.just(5e-324)
FACTS = st.fixed_dictionaries(
    {},
    optional={
        "weight": NUMBERS | st.text(),
        "rates": st.dictionaries(st.sampled_from(["trivial", "x"]), NUMBERS) | st.text(),
        "spool": st.sampled_from(["gpu0", "gpu1", "nowhere", "../x", 7, None]),
        "state": st.text() | st.none(),
        "stealing": st.booleans() | st.integers(),
        "loaded": st.lists(st.text() | st.integers() | st.lists(st.none())) | st.text(),
        "current": st.dictionaries(
            st.sampled_from("id kind cost done total started".split()), NUMBERS | st.text()
        ),
        "written_at": NUMBERS,
        "model": st.sampled_from(["", "RTX 3090"]),
    },
)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[PoolDirectory, list[ManualWorker]]:
    """A pool in which b.7 waits and a.8 runs, with two other living workers."""
    root = tmp_path_factory.mktemp("crowd") / "pool"
    pool = make_pool(root, "a.8", "b.7", weights=(1.0, 1.0))
    others = [ManualWorker(pool), ManualWorker(pool)]
    others[0].take()
    return pool, others


@pytest.mark.slow
@settings(max_examples=50)
@given(first=FACTS, second=FACTS)
def test_i8_no_status_of_another_worker_keeps_a_worker_from_taking_claims(
    crowd: tuple[PoolDirectory, list[ManualWorker]], first: dict[str, Any], second: dict[str, Any]
) -> None:
    pool, others = crowd
    held = next(name for name in names_in(pool, State.RUNNING) if name.owner == others[0].id)
    for other, facts in zip(others, (first, second), strict=True):
        if "id" in facts.get("current", {}):
            facts["current"]["id"] = held.id
        Path(pool.status(other.id)).write_text(json.dumps({"worker_id": other.id} | facts))
    claim_source = source_of(ManualWorker(pool, enlist=False))
    found = next(filter(None, (claim_source.next() for _ in range(60))), None)
    assert found is not None, "it waits for others for ever"
    claims.release(pool, found[0], "gpu0")


# ---- a threshold ----


def test_a_thief_with_a_threshold_leaves_short_spools_to_the_workers_that_live_there(
    pool: PoolDirectory,
) -> None:
    hand, owner = ManualWorker(pool), ManualWorker(pool, "gpu1")
    write_status(pool, owner.status)
    claim_source = ClaimSource(
        pool, hand.beat, hand.journal, spool=None, stealing=True, steal_threshold=3
    )
    taken = [stem for stem, _ in take_all(claim_source)]
    assert taken == ["a", "c", "e"], "gpu0 has no living worker; of the two in gpu1 none is stolen"
    assert claim_source.count_waiting(since=time.monotonic()) == Waiting(2, 2), (
        "they are waited for: their owner may die"
    )
    owner.lease.retire()
    claim_source._others_listed_at = -1e9
    assert [stem for stem, _ in take_all(claim_source)] == ["b", "d"]


def test_a_spool_is_stolen_from_down_to_the_threshold(pool: PoolDirectory) -> None:
    hand, owner = ManualWorker(pool), ManualWorker(pool, "gpu0")
    write_status(pool, owner.status)
    move(pool, "b", "gpu0")
    move(pool, "d", "gpu0")
    claim_source = ClaimSource(
        pool, hand.beat, hand.journal, spool=None, stealing=True, steal_threshold=3
    )
    assert len(list(take_all(claim_source))) == 3
    assert len(names_in(pool, State.WAITING)) == 2


def test_r4_a_claim_put_back_in_vain_waits_for_the_good_ones_of_other_spools_too(
    tmp_path: Path,
) -> None:
    """However many wait in our own spool that came to nothing."""
    pool = make_pool(tmp_path / "pool", *(f"i{n}.10" for n in range(8)), weights=[1.0, 1.0])
    first = ManualWorker(pool, "gpu0")
    for name in claims.waiting(pool, "gpu0"):
        taken = claims.take(pool, "gpu0", name, first.id)
        assert taken is not None
        claims.release(pool, taken, "gpu0", vain=True)
    hand = ManualWorker(pool, "gpu0")
    claim_source = ClaimSource(pool, hand.beat, hand.journal, spool="gpu0", stealing=True)
    taken = [claim_source.next() or pytest.fail("nothing to take") for _ in range(8)]
    assert [name.vain for name, _ in taken] == [0] * 4 + [1] * 4


# ---- priority (R75) ----


def test_r75_urgent_claims_of_all_spools_go_before_ones_own(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "z.1", weights=(1.0, 1.0))
    for stem, cost, priority, spool in (
        ("own", 90, 0, "gpu0"), ("own2", 80, 0, "gpu0"), ("own3", 70, 0, "gpu0"),
        ("own4", 60, 0, "gpu0"), ("mine", 1, 2, "gpu0"), ("theirs", 2, 2, "gpu1"),
        ("theirs2", 3, 1, "gpu1"), ("small", 4, 0, "gpu1"),
    ):  # fmt: skip
        name = ClaimName(f"{stem}-x", "trivial", cost, priority=priority)
        Path(pool.waiting(spool, name)).touch()
    hand = ManualWorker(pool, "gpu0")
    taken = [stem for stem, _ in take_all(source_of(hand))]
    assert taken[:4] == ["mine", "theirs", "theirs2", "own"] or taken[:4] == [
        "theirs", "mine", "theirs2", "own",
    ]  # fmt: skip
    assert taken[4:6] == ["own2", "own3"]


def test_r75_a_worker_in_the_middle_of_a_long_listing_notices_an_urgent_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(tmp_path / "pool", *(f"a{n}.{100 - n}" for n in range(20)))
    hand = ManualWorker(pool, "gpu0")
    claim_source = source_of(hand)
    first = claim_source.next()
    assert first is not None and first[0].id.startswith("a0-")
    plan_into(pool, request("urgent.1", priority=5))
    second = claim_source.next()
    assert second is not None and second[0].id.startswith("a1-"), "it does not look every time"
    monkeypatch.setattr(claim_source_module, "PLANS_AGE_S", 0.0)
    third = claim_source.next()
    assert third is not None and third[0].id.startswith("urgent-")
    assert str(third[0]).split("@")[0].endswith(".p5")
    fourth = claim_source.next()
    assert fourth is not None and fourth[0].id.startswith("a2-")
