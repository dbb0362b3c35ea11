"""`fsqueue check --repair` mends what it can without doubt, and leaves the rest (R34, R35)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fsqueue.cli import cli
from fsqueue.handler import Handler
from fsqueue.maintenance.audit import audit_pool
from fsqueue.maintenance.restore import Repair, repair_pool
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.records.checksums import Checksums, measure
from fsqueue.scheduling.planner import plan_into
from tests.support.pools import (
    Divisible,
    ManualWorker,
    Trivial,
    contents,
    make_pool,
    names_in,
    only_claim,
    problems,
    request,
    state_counts,
    work_until_done,
)

HANDLERS: dict[str, Callable[[], Handler]] = {"trivial": Trivial, "divisible": Divisible}


def repair(pool: PoolDirectory, *, deep: bool = False, dry_run: bool = False) -> Repair:
    report = audit_pool(pool, deep=deep)
    return repair_pool(pool, report, dry_run=dry_run, handler_named=lambda name: HANDLERS[name]())


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.4", "b.3", "c.2")


def path_of(pool: PoolDirectory, name: ClaimName, state: State = State.WAITING) -> Path:
    if state is State.WAITING:
        return Path(pool.waiting("gpu0", name))
    return Path(pool.owned(state, name))


def set_aside(pool: PoolDirectory) -> Iterator[Path]:
    return Path(pool.set_aside).iterdir()


# ---- a claim that is nowhere ----


def test_R34_a_waiting_claim_whose_file_was_removed_is_planned_again(pool: PoolDirectory) -> None:
    name = names_in(pool, State.WAITING)[0]
    before = path_of(pool, name).read_bytes()
    path_of(pool, name).unlink()
    found = repair(pool)
    assert found.done == [f"{name.id} is planned again into gpu0"] and not found.left
    again = names_in(pool, State.WAITING)[0]
    assert again.id == name.id and path_of(pool, again).read_bytes() == before
    assert problems(pool) == []
    work_until_done(pool)
    assert state_counts(pool) == {"done": 3}


def test_R34_a_claim_that_is_planned_again_has_a_name_that_it_never_had(
    pool: PoolDirectory,
) -> None:
    hand = ManualWorker(pool)
    names = set()
    for _ in range(3):  # a0, a1, then failed at a2
        taken = hand.take()
        names.add(str(taken).partition("@")[0])
        claims.charge(pool, taken, "gpu0", {"error": "no"})
    failed = only_claim(pool, State.FAILED)
    back = claims.retry(pool, failed, "gpu0")
    assert back is not None
    names.add(str(back))
    path_of(pool, back).unlink()
    assert not repair(pool).left
    again = next(name for name in names_in(pool, State.WAITING) if name.id == back.id)
    assert str(again) not in names and again.attempt > back.attempt


def test_R34_a_done_claim_whose_file_was_removed_adopts_its_output(pool: PoolDirectory) -> None:
    work_until_done(pool)
    name = names_in(pool, State.DONE)[0]
    output = Path(pool.output(name.id, ".txt"))
    before = output.stat()
    path_of(pool, name, State.DONE).unlink()
    repair(pool)
    work_until_done(pool)
    assert state_counts(pool) == {"done": 3} and problems(pool) == []
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_R34_one_piece_of_a_divided_input_is_planned_again_alone(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "pool"))
    plan_into(pool, request("a.100", handler=Divisible()))
    name = names_in(pool, State.WAITING)[3]
    path_of(pool, name).unlink()
    assert len(repair(pool).done) == 1
    assert problems(pool) == []


def test_R35_a_claim_whose_input_changed_is_left_with_a_reason(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("one")
    root = str(tmp_path / "pool")
    words = ["plan", "command", root, str(source), "--gpus", "cpu", "--", "cat", "{input}"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    (claim,) = Path(root, "spools", "cpu0").iterdir()
    claim.unlink()
    source.write_text("another")
    result = CliRunner().invoke(cli, ["check", "--repair", root])
    assert result.exit_code == 1
    assert "cannot be planned again: its input changed or is gone since plan 1" in result.output


def test_a_purged_claim_of_a_program_is_repaired_from_the_command_line(tmp_path: Path) -> None:
    for stem in "abc":
        (tmp_path / f"{stem}.txt").write_text(stem)
    root = str(tmp_path / "pool")
    inputs = [str(tmp_path / f"{stem}.txt") for stem in "abc"]
    words = ["plan", "command", root, *inputs, "--gpus", "cpu", "--", "cat", "{input}"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    sorted(Path(root, "spools", "cpu0").iterdir())[1].unlink()
    before = contents(root)
    dry = CliRunner().invoke(cli, ["check", root, "--repair", "--dry-run"])
    assert dry.exit_code == 1 and "would be planned again" in dry.output
    assert contents(root) == before
    result = CliRunner().invoke(cli, ["check", root, "--repair"])
    assert result.exit_code == 0, result.output
    assert "is planned again into cpu0" in result.output and "clean" in result.output


# ---- a claim in several places ----


@pytest.mark.parametrize("copy_in", [State.WAITING, State.FAILED])
def test_R34_a_copy_of_a_done_claim_is_set_aside(pool: PoolDirectory, copy_in: State) -> None:
    work_until_done(pool)
    name = names_in(pool, State.DONE)[0]
    copy = ClaimName(name.id, name.kind, name.cost, 0, 5)
    copy = copy if copy_in is State.WAITING else copy.owned_by("vm-2-bbbbbb")
    shutil.copy(path_of(pool, name, State.DONE), path_of(pool, copy, copy_in))
    found = repair(pool)
    assert len(found.done) == 1 and not found.left
    assert problems(pool) == [] and state_counts(pool) == {"done": 3}
    (aside,) = set_aside(pool)
    assert aside.name.endswith(str(copy))


def test_R34_of_two_waiting_copies_the_one_that_went_further_stays(pool: PoolDirectory) -> None:
    name = names_in(pool, State.WAITING)[0]
    copy = ClaimName(name.id, name.kind, name.cost, 1, 1)
    shutil.copy(path_of(pool, name), path_of(pool, copy))
    repair(pool)
    assert names_in(pool, State.WAITING)[0] == copy and problems(pool) == []


def test_R34_a_running_claim_is_never_touched(pool: PoolDirectory) -> None:
    held = ManualWorker(pool).take()
    copy = ClaimName(held.id, held.kind, held.cost, 0, 1)
    shutil.copy(path_of(pool, held, State.RUNNING), path_of(pool, copy))
    repair(pool)
    assert only_claim(pool, State.RUNNING) == held and problems(pool) == []


def test_R35_no_copy_is_chosen_over_a_running_one(pool: PoolDirectory) -> None:
    held = ManualWorker(pool).take()
    copy = ClaimName(held.id, held.kind, held.cost, 0, 0, "vm-2-bbbbbb")
    shutil.copy(path_of(pool, held, State.RUNNING), path_of(pool, copy, State.DONE))
    before = contents(pool.root)
    found = repair(pool)
    assert held.id in found.left[0]
    assert {p for p in contents(pool.root) if "spools" not in p} >= {
        p for p in before if "running" in p or "done" in p
    }


def test_R35_a_copy_that_is_not_whole_is_not_chosen(pool: PoolDirectory) -> None:
    name = names_in(pool, State.WAITING)[0]
    copy = ClaimName(name.id, name.kind, name.cost, 1, 1)
    path_of(pool, copy).write_text("{")
    before = contents(pool.root)
    assert "is not whole" in repair(pool).left[0]
    assert contents(pool.root) == before


def test_R35_a_claim_that_no_plan_holds_is_left(pool: PoolDirectory) -> None:
    path_of(pool, ClaimName("ghost", "trivial", 1)).write_text('{"id": "ghost"}')
    found = repair(pool)
    assert found.left[0].startswith("ghost is in no plan") and not found.done


# ---- a done claim without its output ----


def test_R34_a_done_claim_without_output_runs_again(pool: PoolDirectory) -> None:
    work_until_done(pool)
    name = names_in(pool, State.DONE)[0]
    os.unlink(pool.output(name.id, ".txt"))
    assert repair(pool).done == [f"{name.id} waits in gpu0 again"]
    work_until_done(pool)
    assert problems(pool) == [] and state_counts(pool) == {"done": 3}


@pytest.mark.parametrize("deep", [False, True])
def test_R34_a_damaged_output_is_set_aside_and_made_again(pool: PoolDirectory, deep: bool) -> None:
    work_until_done(pool)
    name = names_in(pool, State.DONE)[0]
    output = Path(pool.output(name.id, ".txt"))
    records = Checksums(pool, "vm-1-aaaaaa")
    records.record(output.name, measure(output))
    whole = output.read_bytes()
    damaged = whole[::-1] if deep else b""
    output.write_bytes(damaged)
    before = contents(pool.root)
    assert repair(pool, deep=deep, dry_run=True).done
    assert contents(pool.root) == before
    assert len(repair(pool, deep=deep).done) == 2
    (aside,) = set_aside(pool)
    assert aside.read_bytes() == damaged
    work_until_done(pool)
    assert output.read_bytes() == whole and problems(pool) == []


def test_R34_a_repair_that_was_killed_half_way_is_completed_by_the_next(
    pool: PoolDirectory,
) -> None:
    work_until_done(pool)
    name = names_in(pool, State.DONE)[0]
    output = Path(pool.output(name.id, ".txt"))
    records = Checksums(pool, "vm-1-aaaaaa")
    records.record(output.name, measure(output))
    output.write_bytes(b"")
    assert claims.set_aside(pool, str(output))  # and here it was killed
    repair(pool)
    work_until_done(pool)
    assert problems(pool) == []


def test_a_clean_pool_needs_no_repair(pool: PoolDirectory) -> None:
    before = contents(pool.root)
    found = repair(pool)
    assert (found.done, found.left) == ([], []) and contents(pool.root) == before
