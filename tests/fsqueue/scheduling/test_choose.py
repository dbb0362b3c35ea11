"""The policy: pure functions, so tables. Who takes what, and what is left to others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.pool.names import ClaimName
from fsqueue.scheduling import choose as module
from fsqueue.scheduling.choose import (
    Patience,
    Peer,
    Preferences,
    choose,
    in_order,
    polls_for,
    speeds,
    takes_too_long,
)
from fsqueue.scheduling.waiting import WaitingClaims

NO_TASTE = Preferences()


def claim(text: str) -> ClaimName:
    """Return the claim of `id:cost` or `id:cost:kind`."""
    id, cost, *kind = text.split(":")
    return ClaimName(id, kind[0] if kind else "k", int(cost))


def listing(*texts: str, preferences: Preferences = NO_TASTE) -> list[ClaimName]:
    return in_order(map(claim, texts), preferences)


def ids(names: Iterable[ClaimName]) -> list[str]:
    """Return the ids in the order in which they would be taken."""
    return [name.id for name in names][::-1]


def peer(worker: str = "peer", **facts: Any) -> Peer:
    return Peer(worker, **facts)


def pick(
    listings: dict[str, list[ClaimName]],
    *crew: Peer,
    me: Peer | None = None,
    preferences: Preferences = NO_TASTE,
    **how: Any,
) -> str | None:
    """Return the id of the claim that I would take."""
    found = choose(listings, crew, me or Peer("me", spool="mine"), preferences, **how)
    return found[1].id if found else None


# ---- the order within a spool ----


@pytest.mark.parametrize(
    ("texts", "preferences", "order"),
    [
        (("a:1", "b:3", "c:2"), NO_TASTE, "b c a"),
        (("a:1", "b:1", "c:1"), NO_TASTE, "c b a"),
        (("a:1:x", "b:3:y"), Preferences(unable=frozenset({"y"})), "a"),
        (("a:1:x", "b:3:y"), Preferences(loaded=frozenset({"x"})), "a b"),
        (("a:9", "b:3", "c:2"), Preferences(failed_here=frozenset({"a"})), "b c a"),
        (("a:9", "b:1"), Preferences(failed_here=frozenset({"a", "b"})), "a b"),
        (("a:1:x", "b:3:y"), Preferences(frozenset({"x"}), failed_here=frozenset({"a"})), "b a"),
        (("a:1:esm2_t6", "b:3:y"), Preferences(special=frozenset({"esm2"})), "a b"),
        (("a:1:x", "b:2:z"), Preferences(frozenset({"x"}), special=frozenset({"z"})), "a b"),
        ((), NO_TASTE, ""),
    ],
    ids="largest equal unable loaded failed all-failed failed-beats-loaded special "
    "loaded-beats-special none".split(),
)
def test_a_worker_takes_in_the_order_of_its_taste(
    texts: Sequence[str], preferences: Preferences, order: str
) -> None:
    assert ids(listing(*texts, preferences=preferences)) == order.split()


# ---- alone ----


def test_alone_a_worker_takes_its_own_largest_before_anything_of_others() -> None:
    listings = {"mine": listing("a:1", "b:2"), "other": listing("x:100")}
    assert pick(listings) == "b"


def test_alone_with_nothing_of_its_own_it_steals_the_largest_of_all() -> None:
    listings = {"gpu1": listing("a:1", "b:20"), "gpu2": listing("x:3", "y:10")}
    assert pick({"mine": [], **listings}) == "b"
    assert pick(listings, me=Peer("me")) == "b"


def test_where_nothing_waits_there_is_nothing_to_take() -> None:
    assert pick({}) is None
    assert pick({"mine": [], "gpu1": []}) is None


# ---- against others ----

OTHERS = [
    # my weight, theirs, what is left of what they run, what waits with them, what I take
    ("a slow thief leaves the last claim of a fast worker", 1.0, 4.0, 10, ("x:40",), None),
    ("a fast thief takes the last claim of a slow worker", 4.0, 1.0, 10, ("x:40",), "x"),
    ("an equal thief takes it while the owner is busy", 1.0, 1.0, 1, ("x:40",), "x"),
    ("an equal thief takes it from an owner as idle as itself", 1.0, 1.0, 0, ("x:40",), "x"),
    ("a slow thief takes what the fast one comes to too late", 1.0, 4.0, 200, ("x:40",), "x"),
    ("a slow thief takes a small one of many", 1.0, 4.0, 0, ("x:40", "y:40", "z:10"), "z"),
    ("a slow thief takes one of many equals", 1.0, 2.0, 0, ("x:10", "y:10", "z:10"), "y"),
]


@pytest.mark.parametrize(
    ("mine", "theirs", "left", "texts", "taken"),
    [case[1:] for case in OTHERS],
    ids=[case[0] for case in OTHERS],
)
def test_a_thief_takes_the_largest_claim_that_nobody_would_end_sooner(
    mine: float, theirs: float, left: float, texts: Sequence[str], taken: str | None
) -> None:
    owner = peer(weight=theirs, spool="theirs", kind="k", left=left)
    me = Peer("me", mine, spool="mine")
    assert pick({"theirs": listing(*texts)}, owner, me=me) == taken


def test_a_slow_worker_leaves_its_own_last_claim_to_a_thief_that_ends_it_sooner() -> None:
    fast = peer(weight=4.0, spool="theirs")
    assert pick({"mine": listing("a:40")}, fast) is None
    assert pick({"mine": listing("a:40")}, peer(weight=4.0, spool="theirs", stealing=False)) == "a"


def test_a_worker_that_does_not_steal_is_dealt_nothing_of_others() -> None:
    honest = peer(weight=4.0, spool="theirs", stealing=False)
    assert pick({"third": listing("x:40")}, honest) == "x"
    assert pick({"theirs": listing("x:40")}, honest) is None


def test_speeds_as_measured_count_before_weights() -> None:
    owner = peer(weight=4.0, spool="theirs", rates={"k": 1.0})
    me = Peer("me", 1.0, {"k": 2.0}, "mine")
    assert pick({"theirs": listing("x:40")}, owner, me=me) == "x"


def test_a_claim_is_left_to_a_worker_with_its_model_loaded_unless_that_is_too_busy() -> None:
    def taken(left: float) -> str | None:
        owner = peer(spool="theirs", loaded=["k"], rates={"k": 1.0}, kind="k", left=left)
        return pick({"theirs": listing("x:10")}, owner, me=Peer("me", rates={}))

    assert taken(0.0) is None
    assert taken(module.LOAD_S - 1) is None
    assert taken(module.LOAD_S + 1) == "x"


def test_a_model_that_nobody_has_loaded_is_as_far_from_everybody() -> None:
    me = Peer("me", 1.0, {"k": 1.0})
    assert pick({"theirs": listing("x:10")}, peer(weight=0.5, spool="theirs"), me=me) == "x"


def test_a_claim_left_often_enough_is_taken_after_all() -> None:
    """The faster worker may hang while its lease lives."""
    owner = peer(weight=4.0, spool="theirs")
    assert pick({"theirs": listing("x:40")}, owner) is None
    assert pick({"theirs": listing("x:40")}, owner, waited={"x"}) == "x"


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=20),
    st.lists(st.floats(0.05, 4.0), min_size=1, max_size=5),
)
def test_if_anything_waits_some_worker_takes_something(
    costs: list[int], weights: list[float]
) -> None:
    """If each left all to others, nothing would ever be done."""
    names = listing(*(f"c{index}:{cost}" for index, cost in enumerate(costs)))
    everybody = [Peer(f"w{index}", weight) for index, weight in enumerate(weights)]
    picks = [
        choose({"gpu0": names}, [p for p in everybody if p is not me], me, NO_TASTE)
        for me in everybody
    ]
    assert any(picks)


def test_a_crowd_too_large_to_reckon_with_has_plenty_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crowd = [peer(f"w{index}", weight=4.0) for index in range(10)]
    names = listing(*(f"c{index}:40" for index in range(10)))
    assert pick({"gpu1": names}, *crowd) is None
    monkeypatch.setattr(module, "STEPS_MAX", 20)
    assert pick({"gpu1": names}, *crowd) is not None


# ---- time ----


@pytest.mark.parametrize(
    ("cost", "rate", "left_s", "too_long"),
    [(100, 10.0, 11.0, False), (100, 10.0, 9.0, True), (100, None, 1.0, False),
     (100, 10.0, math.inf, False), (100, 10.0, 0.0, True)],
)  # fmt: skip
def test_what_would_not_end_in_time_is_known_by_measured_rates_alone(
    cost: int, rate: float | None, left_s: float, too_long: bool
) -> None:
    rates = {} if rate is None else {"k": rate}
    assert takes_too_long(claim(f"x:{cost}"), rates, left_s) is too_long


def test_what_would_not_end_in_time_is_not_begun_and_what_would_is() -> None:
    me = Peer("me", 1.0, {"k": 10.0}, "mine")
    listings = {"mine": listing("a:200", "b:50")}
    assert pick(listings, me=me) == "a"
    assert pick(listings, me=me, time_left_s=6.0) == "b"
    assert pick(listings, me=me, time_left_s=1.0) is None


# ---- speeds ----


@pytest.mark.parametrize(
    ("weights", "rates", "expected"),
    [
        ({"a": 1.0, "b": 2.0}, {}, {"a": 1.0, "b": 2.0}),
        ({"a": 1.0, "b": 2.0}, {"a": {"k": 50.0}}, {"a": 50.0, "b": 100.0}),
        ({"a": 1.0, "b": 2.0}, {"a": {"k": 50.0}, "b": {"k": 70.0}}, {"a": 50.0, "b": 70.0}),
        ({"a": 1.0, "b": 2.0}, {"a": {"other": 50.0}}, {"a": 50.0, "b": 100.0}),
        ({"a": 1.0, "b": 2.0}, {"a": {"k": 0.0}}, {"a": 1.0, "b": 2.0}),
        ({"a": 1.0, "b": 2.0}, {"a": {"k": -7.0}}, {"a": 1.0, "b": 2.0}),
        (
            {"a": 1.0, "b": 1.0, "c": 1.0, "d": 2.0},
            {"a": {"k": 10.0}, "b": {"k": 20.0}, "c": {"k": 90.0}},
            {"a": 10.0, "b": 20.0, "c": 90.0, "d": 40.0},
        ),
    ],
    ids="weights one-measured all-measured other-kind zero negative median".split(),
)
def test_speeds_are_measured_or_by_weight_in_the_unit_of_what_was_measured(
    weights: dict[str, float], rates: dict[str, dict[str, float]], expected: dict[str, float]
) -> None:
    assert speeds(weights, rates, "k") == expected


# ---- patience ----


def test_patience_ends_after_so_many_rounds_and_begins_anew_when_a_claim_was_not_refused() -> None:
    patience = Patience()
    assert patience.left_alone({"x": 2}) == set()
    assert patience.left_alone({"x": 2, "y": 2}) == set()
    assert patience.left_alone({"x": 2, "y": 2}) == {"x"}
    assert patience.left_alone({"y": 2}) == {"y"}
    assert patience.left_alone({"x": 2}) == set()


@pytest.mark.parametrize(
    ("holder", "loaded", "polls"),
    [
        (peer(loaded=["k"]), (), 2),
        (peer(loaded=["k"], kind="j", left=9), (), 20),
        (peer(loaded=["j"]), (), 20),
        (peer(loaded=["k"]), ("k",), 20),
        (peer(loaded=["k"], tier=3), (), 20),
    ],
    ids="idle-and-loaded busy other-model loaded-here-too of-too-low-a-tier".split(),
)
def test_a_claim_is_left_for_two_polls_to_an_idle_worker_that_has_its_model(
    holder: Peer, loaded: Sequence[str], polls: int
) -> None:
    preferences = Preferences(loaded=frozenset(loaded))
    assert polls_for(claim("x:1:k"), [holder], preferences) == polls


# ---- models ----


def test_among_kinds_that_must_be_loaded_what_nobody_else_has_comes_first() -> None:
    preferences = Preferences(held=frozenset({"big"}))
    assert ids(listing("a:9:big", "b:1:new", "c:8:big--t1", preferences=preferences)) == [
        "b",
        "a",
        "c",
    ]
    loaded = Preferences(loaded=frozenset({"big"}), held=frozenset({"big"}))
    assert ids(listing("a:9:big", "b:1:new", preferences=loaded)) == ["a", "b"]


def test_points_are_those_of_the_guide() -> None:
    preferences = Preferences(
        loaded=frozenset({"esm2_t6"}), special=frozenset({"esm2"}), healthy=frozenset({"esm2_t6"})
    )
    assert preferences.affinity("esm2_t6--t1") == 100 + 50 + 10
    assert preferences.affinity("esm2_t33") == 50
    assert preferences.affinity("dnabert") == 0
    assert ids(listing("a:1:x", "b:9:y", preferences=Preferences(healthy=frozenset({"x"})))) == [
        "a",
        "b",
    ]


def test_another_s_claim_comes_before_our_own_if_it_saves_a_load_and_not_if_it_is_larger() -> None:
    preferences = Preferences(loaded=frozenset({"k"}))
    listings = {
        "mine": listing("a:5:j"),
        "theirs": listing("x:1:k", "y:90:j", preferences=preferences),
    }
    assert pick(listings, preferences=preferences) == "x"
    listings = {"mine": listing("a:5:j"), "theirs": listing("y:90:j")}
    assert pick(listings, preferences=preferences) == "a"


def test_a_worker_has_loaded_or_is_loading_what_it_runs() -> None:
    running = peer(spool="theirs", kind="k", left=1.0, rates={"j": 1.0})
    assert pick({"theirs": listing("x:10")}, running, me=Peer("me", rates={"j": 1.0})) is None


def test_what_needs_no_loading_is_not_left_to_those_who_happen_to_run_it() -> None:
    busy = [peer(f"p{n}", kind="k", left=10.0, rates={"k": 1.0}) for n in range(2)]
    assert pick({"mine": listing("x:10")}, *busy, me=Peer("me", rates={"k": 1.0})) == "x"


# ---- claims that came to nothing (R4, R51) ----


def test_r4_a_claim_put_back_in_vain_is_taken_after_all_others() -> None:
    names = [ClaimName("long", "k", 900, vain=1), ClaimName("hopeless", "k", 999, vain=3),
             ClaimName("small", "k", 1), ClaimName("failed", "k", 500)]  # fmt: skip
    order = in_order(names, Preferences(failed_here=frozenset({"failed"})))
    assert ids(order) == ["small", "long", "hopeless", "failed"]


def test_r4_of_claims_put_back_in_vain_the_cheapest_is_taken_first() -> None:
    """One that is too long for every worker must not keep all of them from those that are not."""
    names = [ClaimName("long", "k", 900, vain=1), ClaimName("unlucky", "k", 10, vain=1),
             ClaimName("again", "k", 1, vain=2)]  # fmt: skip
    assert ids(in_order(names, Preferences())) == ["unlucky", "long", "again"]
    spools = {
        "mine": in_order(names[:1], Preferences()),
        "other": in_order(names[1:], Preferences()),
    }
    assert pick(spools) == "unlucky"


def test_r4_what_this_worker_left_to_others_is_not_offered_again() -> None:
    assert in_order([claim("a:9")], Preferences(left=frozenset("a"))) == []


def test_r4_a_hopeless_claim_is_not_begun() -> None:
    offered = {"mine": [ClaimName("long", "k", 900, vain=3)]}
    assert pick(offered, is_hopeless=lambda name: True) is None
    assert pick(offered, is_hopeless=lambda name: False) == "long"


def test_r51_a_claim_that_failed_on_this_host_is_left_to_another_host_for_a_while() -> None:
    failed = Preferences(failed_here=frozenset("a"))
    me = Peer("bad-1-aaaaaa", spool="mine")
    offered = {"mine": listing("a:9", "b:1", preferences=failed)}
    near, far = peer("bad-2-bbbbbb"), peer("good-3-cccccc")
    choice = {"me": me, "preferences": failed}
    assert pick(offered, near, **choice) == "b"
    only = {"mine": listing("a:9", preferences=failed)}
    assert pick(only, near, **choice) == "a", "another worker of this host would do no better"
    assert pick(only, near, far, **choice) is None
    assert pick(only, near, far, waited={"a"}, **choice) == "a"
    assert pick(only, peer("good-3-cccccc", tier=3), **choice) == "a", "it may not"


# ---- priority (R75) ----


def urgent(id: str, cost: int, priority: int, kind: str = "k", vain: int = 0) -> ClaimName:
    return ClaimName(id, kind, cost, priority=priority, vain=vain)


def test_r75_a_higher_priority_goes_before_size_and_before_what_is_loaded() -> None:
    names = [urgent("big", 900, 0), urgent("soon", 5, 1), urgent("first", 1, 9, kind="other")]
    order = in_order(names, Preferences(loaded=frozenset({"k"})))
    assert ids(order) == ["first", "soon", "big"]


def test_r75_what_came_to_nothing_waits_behind_a_lower_priority() -> None:
    names = [urgent("low", 1, 0), urgent("hangs", 9, 9, vain=1), urgent("failed", 9, 9)]
    order = in_order(names, Preferences(failed_here=frozenset({"failed"})))
    assert ids(order) == ["low", "hangs", "failed"]


def test_r75_an_urgent_claim_that_is_too_long_goes_after_small_ones_put_back_with_it() -> None:
    names = [urgent("long", 900, 9, vain=1), urgent("small", 1, 0, vain=1)]
    names += [urgent("longer", 950, 9, vain=2), urgent("smaller", 1, 0, vain=2)]
    assert ids(in_order(names, Preferences())) == ["small", "long", "smaller", "longer"]
    waiting = WaitingClaims(map(str, names))
    assert [waiting.pop().id for _ in names] == ["small", "long", "smaller", "longer"]


def test_r75_an_urgent_claim_of_another_spool_goes_before_ones_own() -> None:
    listings = {"mine": [urgent("own", 900, 0)], "theirs": [urgent("theirs", 1, 3)]}
    assert pick(listings) == "theirs"


def test_r75_an_urgent_claim_that_falls_to_a_faster_worker_is_left_to_it() -> None:
    listings = {"mine": [urgent("own", 10, 0)], "theirs": [urgent("theirs", 10, 3)]}
    fast = peer(spool="theirs", weight=1.5)
    assert pick(listings, fast) == "own"
