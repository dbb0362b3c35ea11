"""`fsqueue explain POOL ID`: where a claim is, and why nobody has taken it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fsqueue.cli import cli
from fsqueue.command import Command
from fsqueue.monitor.locate import Location, find
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, open_pool
from fsqueue.records.journal import EventKind
from fsqueue.records.status import Current, write_status
from fsqueue.storage import atomic
from fsqueue.worker.claim_source import ClaimSource
from tests.support.pools import ManualWorker, make_pool, names_in, work_until_done
from tests.support.processes import fsqueue


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """Claims a.30, b.20 and c.10 wait in gpu0."""
    return make_pool(tmp_path / "pool", "a.30", "b.20", "c.10", weights=(1.0,))


def id_of(pool: PoolDirectory, stem: str) -> str:
    return next(n.id for n in names_in(pool, *State) if n.id.startswith(f"{stem}-"))


def look(pool: PoolDirectory, stem: str) -> Location:
    return find(pool, id_of(pool, stem))


def report(hand: ManualWorker, **facts: Any) -> None:
    for name, value in facts.items():
        setattr(hand.status, name, value)
    write_status(hand.pool, hand.status)


def test_a_waiting_claim_says_how_many_come_before_it_and_that_nobody_lives(
    pool: PoolDirectory,
) -> None:
    found = look(pool, "c")
    assert [place.state for place in found.places] == ["waiting"]
    assert found.places[0].path.startswith("spools/gpu0/c-")
    assert (found.ahead, found.forecast, found.takers) == (2, "no worker is alive", [])
    assert found.since is not None


def test_an_idle_worker_is_said_to_take_it_soon(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    report(hand, state="idle")
    found = look(pool, "a")
    assert [taker.may for taker in found.takers] == [True]
    assert "looks again" in found.takers[0].why
    assert hand.id in found.forecast


def test_a_busy_worker_is_said_to_be_busy_and_for_how_long(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    name = hand.take()
    current = Current(name.id, name.kind, name.cost, 0, "gpu0", started=0.0, done=1, total=2)
    report(hand, state="running", current=current, rates={name.kind: 3.0})
    found = look(pool, "b")
    assert found.takers[0].why == f"it runs {name.id}, for 5 s more"
    assert "done in 12 s" in found.forecast  # 15 left, then 20, at 3 a second


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"stealing": False, "spool": "gpu1"}, "works only on gpu1"),
        ({"unable": ["trivial"]}, "cannot do claims of kind trivial"),
        ({"state": "draining"}, "it is draining"),
    ],
)
def test_a_worker_that_may_not_take_it_is_named_with_the_reason(
    pool: PoolDirectory, facts: dict[str, Any], why: str
) -> None:
    hand = ManualWorker(pool, "gpu0")
    report(hand, **facts)
    found = look(pool, "a")
    assert why in found.takers[0].why and not found.takers[0].may
    assert found.forecast == "no living worker may take it"


@pytest.mark.parametrize("everybody", [True, False])
def test_orders_are_told(pool: PoolDirectory, everybody: bool) -> None:
    hand = ManualWorker(pool, "gpu0")
    report(hand, state="idle")
    atomic.publish(pool.order("pause", None if everybody else hand.id), b"")
    assert look(pool, "a").takers[0].why == "ordered to pause"


def test_without_any_status_the_workers_are_still_named(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    taker = look(pool, "a").takers[0]
    assert (taker.worker, taker.may) == (hand.id, True)
    assert "reports nothing" in taker.why


def test_a_failed_claim_shows_its_attempts_and_what_happened(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    claim_source = ClaimSource(pool, hand.beat, hand.journal, spool="gpu0", stealing=True)
    name, _ = claim_source.next() or pytest.fail("nothing to take")
    back = claims.charge(pool, name, "gpu0", {"error": "out of memory"})
    # By name: a host that failed a claim leaves it to others for a while.
    again = claims.take(pool, "gpu0", back, hand.id) or pytest.fail("it is gone")
    hand.journal.claim(EventKind.TOOK, again, spool="gpu0")
    claims.charge(pool, again, "gpu0", {"error": "still out of memory"}, final=True)
    found = find(pool, name.id)
    assert [place.state for place in found.places] == ["failed"]
    assert [e["error"] for e in found.errors] == ["out of memory", "still out of memory"]
    assert [e["event"] for e in found.events] == ["took", "took"]
    assert found.takers == [] and found.forecast == ""


@pytest.mark.slow
def test_the_command_prints_it_for_people_and_for_programs(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    report(hand, state="idle")
    id = id_of(pool, "b")
    shown = fsqueue("explain", pool.root, id)
    assert shown.returncode == 0, shown.stderr
    assert f"{id} is waiting since" in shown.stdout and hand.id in shown.stdout
    facts = json.loads(fsqueue("explain", pool.root, id, "--json").stdout)
    assert facts["places"][0]["state"] == "waiting"
    assert facts["ahead"] == 1
    unknown = fsqueue("explain", pool.root, "nothing-like-it")
    assert unknown.returncode == 1 and "nowhere" in unknown.stdout
    assert fsqueue("explain", pool.root).returncode == 2


@pytest.mark.slow
def test_the_workers_of_a_pool_are_scored_for_a_need(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, "gpu0")
    report(hand, state="idle", tier=1, loaded=["esm2"], capabilities=["embed"])
    need = json.dumps({"service": "embed", "model": "esm2", "required_capability": "embed"})
    done = fsqueue("explain", pool.root, "--need", need, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["best"] == hand.id
    assert answer["workers"][0]["score"] >= 100


# ---- inputs and their outputs ----


def test_an_input_leads_to_its_claims_and_outputs(tmp_path: Path) -> None:
    for name in ("x/sample.txt", "y/sample.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    root = str(tmp_path / "pool")
    inputs = [str(tmp_path / name / "sample.txt") for name in "xy"]
    runner = CliRunner()
    words = ["plan", "command", root, *inputs, "--gpus", "cpu", "--", "cat", "{input}"]
    assert runner.invoke(cli, words).exit_code == 0
    work_until_done(open_pool(root), handler=Command())
    for path in inputs:
        found = runner.invoke(cli, ["explain", root, path, "--json"])
        (claim,) = json.loads(found.stdout)["claims"]
        assert (claim["inputs"], claim["state"]) == ([path], "done")
        assert Path(claim["output"]).read_text() == Path(path).read_text()
        shown = runner.invoke(cli, ["explain", root, path])
        assert shown.exit_code == 0 and f"{path}: 1 claim" in shown.stdout
        assert claim["output"] in shown.stdout
    status = json.loads(runner.invoke(cli, ["status", root, "--json", "--inputs"]).stdout)
    assert sorted(claim["inputs"][0] for claim in status["claims"]) == inputs
    assert inputs[0] in runner.invoke(cli, ["status", root, "--inputs"]).stdout
    log = runner.invoke(cli, ["joblog", root, "--inputs"]).stdout.splitlines()
    assert log[0].split("\t")[-1] == "Inputs"
    assert sorted(line.split("\t")[-1] for line in log[1:]) == inputs
    facts = json.loads(runner.invoke(cli, ["joblog", root, "--inputs", "--json"]).stdout)
    assert sorted(attempt["inputs"][0] for attempt in facts["attempts"]) == inputs
    other = runner.invoke(cli, ["explain", root, str(tmp_path / "other.txt")])
    assert other.exit_code == 1 and "is no input of a plan" in other.stdout


def test_a_planned_claim_whose_file_was_removed_is_told_from_an_unknown_one(
    pool: PoolDirectory,
) -> None:
    id = id_of(pool, "b")
    (path,) = Path(pool.spool("gpu0")).glob(f"{id}.*")
    path.unlink()
    shown = CliRunner().invoke(cli, ["explain", pool.root, id])
    assert shown.exit_code == 1 and "was planned by plan 1 and is nowhere" in shown.stdout
    other = CliRunner().invoke(cli, ["explain", pool.root, "nothing"])
    assert other.exit_code == 1 and "not planned, or still being planned" in other.stdout
