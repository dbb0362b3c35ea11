"""What a claim's kind requires of a worker, its tier and capabilities, also of a thief."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.errors import UsageError
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import Tier, base_of, compose, conditions, lacks
from fsqueue.pool.settings import create_pool
from fsqueue.scheduling.choose import Peer, Preferences, choose, in_order
from fsqueue.scheduling.planner import plan_into
from fsqueue.worker.claim_source import ClaimSource
from tests.support.pools import ManualWorker, Trivial, names_in, request


@pytest.mark.parametrize(
    ("base", "tier", "requires", "kind"),
    [
        ("esm2", Tier.CPU, (), "esm2"),
        ("esm2_t6-bf16", Tier.CPU, (), "esm2_t6-bf16"),
        ("esm2", Tier.GPU, (), "esm2--t1"),
        ("merge", Tier.STORAGE, (), "merge--t3"),
        ("esm2-bf16", Tier.GPU, ("FP8", "big"), "esm2-bf16--t1-big-fp8"),
        ("esm2", Tier.CPU, ("big",), "esm2--big"),
    ],
)
def test_conditions_are_read_as_they_were_written(
    base: str, tier: int, requires: tuple[str, ...], kind: str
) -> None:
    assert compose(base, tier, requires) == kind
    assert base_of(kind) == base
    assert conditions(kind) == (tier, {word.lower() for word in requires})


@pytest.mark.parametrize("requires", [("a-b",), ("",), ("t1",), ("x" * 21,), ("l" * 15, "y" * 19)])
def test_an_invalid_kind_is_refused(requires: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        compose("esm2", Tier.GPU, requires)


@pytest.mark.parametrize(
    ("kind", "tiers"), [("k", (1, 2)), ("k--t1", (1,)), ("k--t2", (1, 2)), ("k--t3", (1, 2, 3))]
)
def test_higher_tiers_may_take_lower_work_and_never_the_reverse(
    kind: str, tiers: tuple[int, ...]
) -> None:
    assert tuple(tier for tier in Tier if not lacks(kind, tier, ())) == tiers


def test_a_missing_capability_is_named() -> None:
    assert "big" in lacks("k--big-fp8", Tier.GPU, {"fp8"})
    assert not lacks("k--big-fp8", Tier.GPU, {"fp8", "big"})


def test_claims_that_a_worker_may_not_take_are_not_offered_to_it() -> None:
    names = [ClaimName("a", "k--t1", 9), ClaimName("b", "k", 1)]
    assert [name.id for name in in_order(names, Preferences(tier=Tier.CPU))] == ["b"]
    assert [name.id for name in in_order(names, Preferences(tier=Tier.GPU))] == ["b", "a"]


def test_conditions_do_not_hide_that_a_model_is_loaded() -> None:
    assert Preferences(loaded=frozenset({"esm2"})).affinity("esm2--t1") == 100


def test_nothing_is_left_to_a_fast_worker_that_may_not_have_it() -> None:
    me = Peer("me", 1.0, spool="gpu0", capabilities={"big"})
    fast = Peer("fast", 9.0, spool="gpu1")
    preferences = Preferences(capabilities=frozenset({"big"}))
    assert choose({"gpu0": [ClaimName("a", "k--big", 9)]}, [fast], me, preferences) is not None
    assert choose({"gpu0": [ClaimName("a", "k", 9)]}, [fast], me, preferences) is None


def test_a_storage_worker_takes_only_claims_of_its_tier(
    tmp_path: Path,
) -> None:
    class Merge(Trivial):
        tier = Tier.STORAGE
        requires = ("disk",)

    pool = create_pool(str(tmp_path / "pool"))
    plan_into(pool, request("a.30", handler=Merge()))
    plan_into(pool, request("b.20"))
    kinds = {name.kind for name in names_in(pool, State.WAITING)}
    assert kinds == {"trivial--t3-disk", "trivial"}
    hand = ManualWorker(pool, "gpu0")
    claim_source = ClaimSource(pool, hand.beat, hand.journal, spool="gpu0", stealing=True)
    claim_source.set_preferences(Preferences(tier=Tier.STORAGE, capabilities=frozenset({"disk"})))
    found = claim_source.next()
    assert found is not None and found[0].id.startswith("a-")
    assert claim_source.next() is None
    assert claim_source.count_waiting().could_take == 0
