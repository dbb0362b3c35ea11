"""Planning an input again replaces its former version (R43-R45); forgetting ends a failed claim."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import UsageError
from fsqueue.handler import Handler, Item, Source, Work
from fsqueue.history.failures import failed_attempts, failed_claims
from fsqueue.maintenance import repair
from fsqueue.maintenance.audit import audit_pool
from fsqueue.monitor.counts import ClaimCounter
from fsqueue.pool import claims
from fsqueue.pool.completeness import look_for_all
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName, Role, role_of
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.scheduling.planner import PlanRequest, PlanResult, plan_into, preview
from tests.support.pools import (
    ManualWorker,
    contents,
    names_in,
    problems,
    spools,
    state_counts,
)


class Copy(Handler):
    """Copy files whose content is their identity; a claim holds up to two of them."""

    name = "copy"
    suffix = ".txt"
    together = 1

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        return Source(path, f"{path} {Path(path).read_text()}", 1, {"inputs": 1})

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        for at in range(0, len(sources), self.together):
            group = sources[at : at + self.together]
            payload = {"inputs": [source.path for source in group]}
            identity = {"keys": [source.key for source in group]}
            yield Item(Path(group[0].path).stem, "copy", len(group), identity, payload)

    def inputs(self, payload: Mapping[str, Any]) -> list[str]:
        return list(payload["inputs"])

    def run(self, work: Work) -> None:
        work.output.write_text("".join(Path(path).read_text() for path in work.payload["inputs"]))


class Pairs(Copy):
    together = 2


class Bench:
    """A pool, its inputs, and the handler that plans them."""

    def __init__(self, root: Path, handler: Handler) -> None:
        self.root, self.handler = root, handler
        self.pool: PoolDirectory = create_pool(str(root / "pool"), attempts_max=1)

    def write(self, **texts: str) -> list[str]:
        for name, text in texts.items():
            (self.root / name).write_text(text)
        return [str(self.root / name) for name in texts]

    def request(self, *paths: str) -> PlanRequest:
        return PlanRequest(self.handler, {}, paths, spools(1.0))

    def plan(self, *paths: str) -> PlanResult:
        return plan_into(self.pool, self.request(*paths))

    def work(self) -> None:
        hand = ManualWorker(self.pool, handler=self.handler)
        while names_in(self.pool, State.WAITING):
            hand.run(hand.take())
        hand.leave()

    def fail_all(self) -> None:
        hand = ManualWorker(self.pool, handler=self.handler)
        while names_in(self.pool, State.WAITING):
            claims.charge(self.pool, hand.take(), "gpu0", {"error": "no"})
        hand.leave()

    def outputs(self) -> list[str]:
        return sorted(path.read_text() for path in Path(self.pool.root, "outputs").glob("*.txt"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Copy())


@pytest.fixture
def pairs(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Pairs())


def owner_role(name: ClaimName) -> Role:
    return role_of(name.owner or "")


@pytest.mark.parametrize("failed", [False, True])
def test_R43_a_changed_input_replaces_its_former_claims(bench: Bench, failed: bool) -> None:
    a, b = bench.write(a="1", b="1")
    bench.plan(a, b)
    if failed:
        bench.fail_all()
    bench.write(a="2")
    result = bench.plan(a)
    assert (result.total.claims, result.superseded) == (1, 1)
    (old,) = [name for name in names_in(bench.pool, State.FAILED) if name.owner[:2] == "su"]
    assert owner_role(old) is Role.SUPERSEDE
    assert failed_attempts(bench.pool, old.id)[-1].error.startswith("superseded")
    assert problems(bench.pool) == []
    repair.retry(bench.pool)  # puts back b, if it failed; a is superseded
    bench.work()
    assert bench.outputs() == ["1", "2"]
    count = ClaimCounter(bench.pool).take_verified()
    assert (count.exit_status, count.superseded.claims, count.failed.claims) == (0, 1, 0)
    assert look_for_all(bench.pool).exit_status == 0
    assert failed_claims(bench.pool) == [] and not claims.any_failed(bench.pool)


def test_R43_what_runs_or_is_done_is_not_touched(bench: Bench) -> None:
    a, b = bench.write(a="1", b="1")
    bench.plan(a, b)
    hand = ManualWorker(bench.pool, handler=bench.handler)
    hand.run(hand.take())
    held = hand.take()
    bench.write(a="2", b="2")
    assert bench.plan(a, b).superseded == 0
    assert names_in(bench.pool, State.RUNNING) == [held]
    hand.run(held)
    assert bench.plan(a, b).superseded == 0
    assert state_counts(bench.pool) == {"spools": 2, "done": 2}


def test_R43_what_fails_after_its_input_was_planned_again_is_superseded_by_planning_again(
    bench: Bench,
) -> None:
    (a,) = bench.write(a="1")
    bench.plan(a)
    hand = ManualWorker(bench.pool, handler=bench.handler)
    held = hand.take()
    bench.write(a="2")
    bench.plan(a)
    claims.charge(bench.pool, held, "gpu0", {"error": "its input changed"})
    result = bench.plan(a)
    assert (result.total.claims, result.already, result.superseded) == (0, 1, 1)


def test_R43_other_options_or_handlers_do_not_replace(bench: Bench) -> None:
    (a,) = bench.write(a="1")
    bench.plan(a)
    bench.write(a="2")
    other = PlanRequest(bench.handler, {"model": "other"}, (a,), spools(1.0))
    assert plan_into(bench.pool, other).superseded == 0
    assert state_counts(bench.pool) == {"spools": 2}


def test_R43_an_input_that_did_not_change_replaces_nothing(bench: Bench) -> None:
    a, b = bench.write(a="1", b="1")
    bench.plan(a, b)
    before = contents(bench.pool.root)
    result = bench.plan(a, b)
    assert (result.already, result.superseded) == (2, 0)
    assert contents(bench.pool.root) == before


def test_R43_a_dry_run_counts_and_changes_nothing(bench: Bench) -> None:
    (a,) = bench.write(a="1")
    bench.plan(a)
    bench.write(a="2")
    before = contents(bench.pool.root)
    result = preview(bench.pool, bench.request(a))
    assert (result.total.claims, result.superseded) == (1, 1)
    assert contents(bench.pool.root) == before


def test_R43_a_planner_that_died_before_it_superseded_is_completed_by_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = bench.write(a="1")
    bench.plan(a)
    bench.write(a="2")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            "fsqueue.scheduling.planner.supersede",
            lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        bench.plan(a)
    assert state_counts(bench.pool) == {"spools": 2}
    assert bench.plan(a).superseded == 1


def test_R44_inputs_that_share_a_claim_with_a_changed_one_are_planned_again(pairs: Bench) -> None:
    a, b, c = pairs.write(a="a1", b="b1", c="c1")
    pairs.plan(a, b, c)
    pairs.write(a="a2")
    result = pairs.plan(a)
    assert (result.total.claims, result.superseded) == (1, 1)
    pairs.work()
    assert pairs.outputs() == ["a2b1", "c1"]
    assert problems(pairs.pool) == [] and ClaimCounter(pairs.pool).take().exit_status == 0
    assert pairs.plan(b, a, c).total.claims == 0


def test_R44_a_claim_that_shares_an_input_that_is_gone_is_kept(pairs: Bench) -> None:
    a, b = pairs.write(a="a1", b="b1")
    pairs.plan(a, b)
    pairs.write(a="a2")
    os.unlink(b)

    class Careful(Pairs):
        def survey(self, path: str, options: Mapping[str, Any]) -> Source:
            self.identify(path)
            return super().survey(path, options)

    pairs.handler = Careful()
    result = pairs.plan(a)
    assert result.superseded == 0
    (note,) = result.notes
    assert "b: No such file" in note and "shares a claim" in note


def test_R45_an_input_that_is_as_it_was_gets_its_claims_back(bench: Bench) -> None:
    (a,) = bench.write(a="1")
    bench.plan(a)
    bench.write(a="2")
    bench.plan(a)
    bench.write(a="1")
    result = bench.plan(a)
    assert (result.total.claims, result.superseded, result.brought_back) == (0, 1, 1)
    bench.work()
    assert bench.outputs() == ["1"]
    assert audit_pool(bench.pool).problems == []
    assert ClaimCounter(bench.pool).take_verified().exit_status == 0


# ---- forget ----


def test_R43_a_forgotten_claim_is_no_failure_and_keeps_its_errors(bench: Bench) -> None:
    a, b = bench.write(a="1", b="1")
    bench.plan(a, b)
    bench.fail_all()
    first, second = (name.id for name in names_in(bench.pool, State.FAILED))
    assert repair.forget(bench.pool, [first]) == [first]
    count = ClaimCounter(bench.pool).take_verified()
    assert (count.exit_status, count.failed.claims, count.forgotten.claims) == (3, 1, 1)
    assert [attempt.error for attempt in failed_attempts(bench.pool, first)] == [
        "no",
        claims.FORGOTTEN["error"],
    ]
    assert [claim.name.id for claim in failed_claims(bench.pool)] == [second]
    assert repair.forget(bench.pool) == [second]
    assert ClaimCounter(bench.pool).take_verified().exit_status == 0
    assert problems(bench.pool) == []
    assert repair.retry(bench.pool) == []


def test_only_a_failed_claim_can_be_forgotten(bench: Bench) -> None:
    (a,) = bench.write(a="1")
    bench.plan(a)
    (name,) = names_in(bench.pool, State.WAITING)
    for id in (name.id, "nothing"):
        with pytest.raises(UsageError, match="is failed"):
            repair.forget(bench.pool, [id])
    bench.fail_all()
    before = contents(bench.pool.root)
    assert repair.forget(bench.pool, dry_run=True) == [name.id]
    assert contents(bench.pool.root) == before
