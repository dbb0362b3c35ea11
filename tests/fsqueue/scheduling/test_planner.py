"""Planning: shares by weight, every input once, even if others plan or die meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import PoolError, UsageError
from fsqueue.handler import Item, Source
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.scheduling.inputs import find_inputs
from fsqueue.scheduling.planner import CLAIMS_PER_SPOOL, plan_into, pool_spools, preview
from tests.support.crash import CHANGES, copies, every_crash, interrupted
from tests.support.interleave import (
    RandomTurns,
    Sequencer,
    interpose,
    refused,
    reply_lost,
    run_in_threads,
)
from tests.support.pools import (
    Divisible,
    ManualWorker,
    Trivial,
    contents,
    make_pool,
    names_in,
    plan,
    problems,
    request,
    state_counts,
    stems,
    work_until_done,
)


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def inputs(*costs: int) -> list[str]:
    return [f"in{index:03d}.{cost}" for index, cost in enumerate(costs)]


# ---- shares ----

K = 1000
NINE = (0.90, 1.0, 1.35, 1.5, 1.1, 1.2, 2.5, 0.75, 0.80)


@pytest.mark.parametrize(
    ("costs", "weights", "counts"),
    [
        ([2500] * 50, (1.0, 1.5), [20, 30]),
        ([2500] * 50, (1.5, 1.0), [30, 20]),
        ([1] * 35, (1.0, 2.5), [10, 25]),
        ([50 * K, 20 * K, 20 * K, 10 * K, 10 * K, 5 * K, 5 * K, 5 * K], (1.0, 1.5), [4, 4]),
        ([7], (1.0, 2.5), [0, 1]),
        ([1] * 100, NINE, [8, 9, 12, 14, 10, 11, 23, 6, 7]),
        ([10 * K] * 79 + [4577], (1.0, 1.5), [32, 48]),
        ([5] * 4, (1.0,), [4]),
        ([5, 5], (1.0, 1.0, 1.0), [1, 1, 0]),
    ],
    ids="W1 W1-reversed W2 W3 W4 W5 W7 one-spool more-spools-than-inputs".split(),
)
def test_each_spool_is_given_its_share_by_weight(
    costs: list[int], weights: tuple[float, ...], counts: list[int]
) -> None:
    outcome = preview(None, request(*inputs(*costs), weights=weights))
    assert [share.claims for share in outcome.shares.values()] == counts
    assert outcome.total.claims == len(costs)
    assert sum(share.cost for share in outcome.shares.values()) == outcome.total.cost == sum(costs)


def test_w1_and_w3_end_together() -> None:
    for costs in ([2500] * 50, [50 * K, 20 * K, 20 * K, 10 * K, 10 * K, 5 * K, 5 * K, 5 * K]):
        outcome = preview(None, request(*inputs(*costs), weights=(1.0, 1.5)))
        assert [share.cost for share in outcome.shares.values()] == [50 * K, 75 * K]


@pytest.mark.parametrize(
    ("count", "longest"), [(4, 20_000), (8, 16_667), (16, 16_667), (32, 16_250)]
)
def test_w6_the_finer_the_claims_the_nearer_the_ideal_of_16_000(count: int, longest: int) -> None:
    outcome = preview(None, request(*inputs(*[40_000 // count] * count), weights=(1.0, 1.5)))
    ends = [outcome.shares["gpu0"].cost, outcome.shares["gpu1"].cost / 1.5]
    assert round(max(ends)) == longest


def test_without_weighting_all_spools_are_equal() -> None:
    outcome = preview(None, request(*inputs(*[1] * 10), weights=(1.0, 4.0), weighted=False))
    assert [share.claims for share in outcome.shares.values()] == [5, 5]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.5), (0.05, 2.5), NINE])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_spool_gets_eight_claims_where_the_inputs_can_be_divided(
    weights: tuple[float, ...], count: int
) -> None:
    costs = [1_000_000 // count] * count
    asked = request(*inputs(*costs), weights=weights, handler=Divisible())
    outcome = preview(None, asked)
    assert min(share.claims for share in outcome.shares.values()) >= CLAIMS_PER_SPOOL
    assert outcome.largest <= outcome.cost_max
    ends = [s.cost / w for s, w in zip(outcome.shares.values(), weights, strict=True)]
    assert max(ends) - min(ends) <= outcome.cost_max / min(weights)


def test_what_waits_already_is_part_of_a_spools_load(pool: PoolDirectory) -> None:
    plan(pool, "big.100", weights=(2.0, 1.0))
    outcome = plan(pool, "a.40", weights=(2.0, 1.0))
    assert [share.claims for share in outcome.shares.values()] == [0, 1]


# ---- every input once ----


def test_planning_again_adds_nothing(pool: PoolDirectory) -> None:
    assert plan(pool, "a.3", "b.2").total.claims == 2
    before = contents(pool.root)
    again = plan(pool, "a.3", "b.2")
    assert (again.total.claims, again.already, again.number) == (0, 2, None)
    assert contents(pool.root) == before


def test_planning_again_for_other_gpus_adds_nothing(pool: PoolDirectory) -> None:
    plan(pool, "a.3", "b.2")
    assert plan(pool, "a.3", "b.2", weights=(1.0, 4.0)).total.claims == 0
    assert state_counts(pool) == {"spools": 2}


def test_an_input_named_twice_is_planned_once(pool: PoolDirectory) -> None:
    assert plan(pool, "a.3", "a.3").total.claims == 1


def test_planning_again_adds_nothing_when_all_is_done(pool: PoolDirectory) -> None:
    plan(pool, "a.3")
    work_until_done(pool)
    assert plan(pool, "a.3").already == 1
    assert state_counts(pool) == {"done": 1}


def test_new_inputs_go_into_a_pool_at_work(pool: PoolDirectory) -> None:
    plan(pool, "a.3", "b.2")
    hand = ManualWorker(pool)
    running = hand.take()
    outcome = plan(pool, "a.3", "b.2", "c.9")
    assert (outcome.total.claims, outcome.already, outcome.number) == (1, 2, 2)
    assert problems(pool) == []
    hand.run(running)
    assert hand.take().id.startswith("c-")
    assert problems(pool) == []


def test_a_bad_input_is_reported_and_the_others_are_planned(pool: PoolDirectory) -> None:
    outcome = plan(pool, "a.3", "nonsense", "b.2")
    assert outcome.bad == ["nonsense has no cost. Name it nonsense.10."]
    assert stems(pool, State.WAITING) == ["a", "b"]


def test_nothing_to_plan_leaves_no_plan(pool: PoolDirectory) -> None:
    assert plan(pool).number is None
    assert plan(pool, "nonsense").number is None
    assert plans.numbers(pool) == []
    assert problems(pool) == []


def test_the_table_of_a_plan_is_what_the_plan_file_says(pool: PoolDirectory) -> None:
    outcome = plan(pool, *inputs(5, 4, 3, 2), weights=(1.0, 1.5))
    head = plans.read_plan(pool, 1)
    assert head.total == outcome.total
    assert head.spools == outcome.shares
    counts = {spool.name: len(claims.waiting(pool, spool.name)) for spool in pool_spools(pool)}
    assert counts == {name: share.claims for name, share in outcome.shares.items()}


def test_the_weights_of_the_first_plan_stand(pool: PoolDirectory) -> None:
    plan(pool, "a.3", weights=(1.0, 1.5))
    outcome = plan(pool, "b.3", weights=(9.0, 1.0))
    assert [spool.weight for spool in outcome.spools] == [1.0, 1.5]


# ---- a preview touches nothing ----


def test_a_preview_of_a_pool_touches_nothing_and_says_what_planning_would_do(
    pool: PoolDirectory,
) -> None:
    plan(pool, "a.3", "b.2", weights=(1.0, 1.5))
    asked = request("b.2", "c.5", "d.4", weights=(1.0, 1.5, 2.0))
    before = contents(pool.root)
    foretold = preview(pool, asked)
    assert contents(pool.root) == before
    told = plan_into(pool, asked)
    assert foretold.shares == told.shares
    assert (foretold.total, foretold.already) == (told.total, told.already)


@pytest.mark.slow
def test_a_preview_completes_nobodys_plan(tmp_path: Path) -> None:
    template = make_pool(tmp_path / "pool", "a.3")
    for _, pool in every_crash(copies(template), lambda pool: plan(pool, "b.2")):
        before = contents(pool.root)
        preview(pool, request("c.1"))
        assert contents(pool.root) == before


# ---- planners that die ----


def check_planned_once(pool: PoolDirectory, *expected: str) -> None:
    """Every input's claim waits, once; no plan holds an input twice; nothing is left staged."""
    assert stems(pool, State.WAITING) == sorted(expected)
    keys = [key for number in plans.numbers(pool) for key in plans.read_sources(pool, number)]
    assert len(keys) == len(set(keys)) == len(expected)
    assert problems(pool) == []


@pytest.mark.slow
def test_a_planner_that_dies_at_any_operation_breaks_nothing_and_the_next_plan_completes(
    tmp_path: Path,
) -> None:
    template = make_pool(tmp_path / "pool", "a.5", weights=(1.0, 1.5))
    asked = request("b.3", "c.2", weights=(1.0, 1.5))
    n = 0
    for _, pool in every_crash(copies(template), lambda pool: plan_into(pool, asked)):
        n += 1
        counts = [len(plans.numbers(pool)), state_counts(pool)["spools"]]
        assert counts[0] == 2 or counts == [1, 1], "no claim before its plan has a number"
        assert [p for p in problems(pool) if "nowhere" not in p] == []
        assert problems(pool) == [], "claims of a numbered plan are in staging or in their spool"
        plan_into(pool, asked)
        check_planned_once(pool, "a", "b", "c")
    assert n > 20


@pytest.mark.slow
def test_what_a_planner_left_that_died_without_a_number_is_a_note_and_no_problem(
    tmp_path: Path,
) -> None:
    from fsqueue.maintenance.audit import audit_pool

    template = make_pool(tmp_path / "pool", "a.5")
    noted = 0
    for _, pool in every_crash(copies(template), lambda pool: plan(pool, "b.3")):
        plan(pool, "b.3")
        report = audit_pool(pool)
        assert report.problems == []
        noted += any("staged" in note for note in report.notes)
    assert noted > 5


@pytest.mark.parametrize("where", ["mkdir", "open", "write", "fsync", "close"])
def test_a_planner_whose_disk_is_full_takes_back_what_it_staged(
    pool: PoolDirectory, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(pool, "a.5")
    before = contents(pool.root)
    calls = refused(errno.ENOSPC, only="" if where in ("write", "fsync") else "plans/")
    if where == "close":
        calls = full_at_close
    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, **{where: calls})
        with pytest.raises(OSError):
            plan(pool, "b.3")
    assert contents(pool.root) == before


def full_at_close(real: Callable[[int], None], fd: int) -> None:
    staged = ".staged/gpu0/" in os.readlink(f"/proc/self/fd/{fd}")
    real(fd)
    if staged:
        raise OSError(errno.EDQUOT, "quota")


@pytest.mark.parametrize("hook", [refused, reply_lost])
def test_a_planner_that_cannot_tell_whether_it_got_its_number_takes_nothing_back(
    pool: PoolDirectory, hook: Callable[..., Callable[..., Any]]
) -> None:
    """Were it numbered, and its claims removed, they would be planned and nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, link=hook(errno.EIO, only="000001.json"))
        with pytest.raises(OSError):
            plan(pool, "b.3")
    plan(pool, "b.3")
    check_planned_once(pool, "b")


class Twins(Trivial):
    """A handler with a defect: all of its items have one identity."""

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        for source in sources:
            yield Item("x", "trivial", source.cost, {}, {})


def test_a_handler_that_gives_two_claims_one_identity_is_told_and_nothing_is_planned(
    pool: PoolDirectory,
) -> None:
    plan(pool, "a.5")
    before = contents(pool.root)
    with pytest.raises(PoolError, match="two claims of this plan have the id"):
        plan_into(pool, request("b.3", "c.2", handler=Twins()))
    assert contents(pool.root) == before


# ---- two planners ----


def staged(pool: PoolDirectory) -> list[str]:
    return [name for name in os.listdir(pool.directory("plans")) if not name[:6].isdecimal()]


@pytest.mark.slow
def test_a_whole_plan_may_happen_between_any_two_operations_of_another(tmp_path: Path) -> None:
    template = make_pool(tmp_path / "pool", "a.5", weights=(1.0, 1.5))
    losers = n = 0
    for _, pool, mine in interrupted(
        copies(template),
        lambda pool: plan(pool, "b.3", "c.2", weights=(1.0, 1.5)),
        lambda pool: plan(pool, "c.2", "d.4", weights=(1.0, 1.5)),
    ):
        check_planned_once(pool, "a", "b", "c", "d")
        assert staged(pool) == []
        losers += mine.total.claims == 1
        n += 1
    assert n > 20
    assert 10 < losers < n, "it lost the number to a planner that was there first"


@pytest.mark.parametrize("seed", range(8))
def test_two_planners_that_take_turns_at_every_operation_plan_every_input_once(
    pool: PoolDirectory, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns are drawn by a seed: each operation of each planner waits for one of its own."""
    plan(pool, "a.5", weights=(1.0, 1.5))
    turns = RandomTurns(2, seed)

    def change(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with turns.mine():
            return real(*args, **options)

    def planner(index: int, *inputs: str) -> Callable[[], object]:
        def act() -> object:
            with turns.taking_part(index):
                return plan(pool, *inputs, weights=(1.0, 1.5))

        return act

    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, **dict.fromkeys((*CHANGES, "listdir"), change))
        run_in_threads(planner(0, "b.3", "c.2"), planner(1, "d.4", "c.2", "b.3"))
    check_planned_once(pool, "a", "b", "c", "d")
    assert staged(pool) == []
    assert 2 <= len(plans.numbers(pool)) <= 3


def test_the_loser_of_a_number_plans_only_what_the_winner_did_not(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Sequencer()
    first: list[str] = []

    def link(real: Callable[[str, str], None], private: str, target: str) -> None:
        if not target.endswith("000001.json"):
            return real(private, target)
        first.append(private)
        with steps(len(first) - 1):
            return real(private, target)

    plan(pool)
    interpose(monkeypatch, link=link)
    outcomes = run_in_threads(
        lambda: plan(pool, "a.3", "b.2"),
        lambda: plan(pool, "a.3", "b.2", "c.1"),
    )
    assert sum(outcome.total.claims for outcome in outcomes) == 3
    check_planned_once(pool, "a", "b", "c")


# ---- inputs ----


def test_inputs_are_files_the_files_of_a_directory_in_natural_order_and_lists(
    tmp_path: Path,
) -> None:
    for name in ("f10", "f9", ".hidden", "²"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list").write_text("# a comment\n../f9\n\n/abs/x y\r\n")
    found = find_inputs([str(tmp_path), f"@{tmp_path}/lists/list", str(tmp_path / "f10")]).paths
    assert found == [*(f"{tmp_path}/{name}" for name in ("f9", "f10", "²")), "/abs/x y"]


def test_a_list_may_name_files_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff.fa\n")
    (path,) = find_inputs([f"@{tmp_path}/list"]).paths
    assert os.fsencode(path) == os.fsencode(tmp_path) + b"/\xff.fa"


def test_relative_inputs_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_inputs(["a", "./a", "b/../a"]).paths == [f"{tmp_path}/a"]


def test_a_stream_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="cannot be planned: claims name byte ranges"):
        find_inputs(["a", "-"])


def test_a_list_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="@/nowhere cannot be read"):
        find_inputs(["@/nowhere"])


def test_progress_is_told_of_every_input() -> None:
    told: list[tuple[int, int, str]] = []
    preview(None, request("a.1", "b.2"), progress=lambda *facts: told.append(facts))
    assert told == [(0, 2, "a.1"), (1, 2, "b.2")]


def test_claims_wait_with_the_names_that_the_plan_holds(pool: PoolDirectory) -> None:
    plan(pool, *inputs(5, 4, 3), weights=(1.0, 1.0))
    held = sorted((name for name, _ in plans.read_claims(pool, 1)), key=str)
    assert held == names_in(pool, State.WAITING)
