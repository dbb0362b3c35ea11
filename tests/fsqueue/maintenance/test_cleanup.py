"""`fsqueue clean` removes what the killed left behind, and never anything of the living."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fsqueue.errors import ClaimFailed, PoolError
from fsqueue.handler import Work
from fsqueue.maintenance.audit import audit_pool
from fsqueue.maintenance.cleanup import Cleaner, Leftover, remove
from fsqueue.pool import plans
from fsqueue.pool.layout import State
from fsqueue.pool.leases import ended_lease_names, lease_names
from fsqueue.pool.names import new_worker_id
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import read_status
from fsqueue.scheduling.planner import plan_into
from fsqueue.storage import atomic
from tests.support.crash import copies, crash, every_crash, interrupted
from tests.support.planning import FOREVER, make_inputs, plan_command
from tests.support.pools import (
    Clock,
    ManualWorker,
    Trivial,
    contents,
    make_pool,
    names_in,
    only_claim,
    plan,
    problems,
    request,
    state_counts,
    work_until_done,
)
from tests.support.processes import Start, fsqueue, wait_for

LEASE_S = 30.0


class Saving(Trivial):
    """Save a checkpoint, then fail."""

    def run(self, work: Work) -> None:
        work.checkpoint("part1", b"x" * 100)
        raise ClaimFailed("no luck")


class LocalWorkers:
    """A cleaner with a clock of ours, and a worker that lives while we let it beat."""

    def __init__(self, pool: PoolDirectory, **how: float) -> None:
        self.pool = pool
        self.clock = Clock()
        self.cleaner = Cleaner(pool, clock=self.clock, **how)  # type: ignore[arg-type]
        self.living = ManualWorker(pool, "gpu0")

    def looks(self, seconds: float = LEASE_S) -> list[Leftover]:
        """Let time pass in steps in which the living worker beats; return what is litter then."""
        found = self.cleaner.look()
        for _ in range(8):
            self.clock.forward(seconds / 8)
            self.living.lease.renew()
            found = self.cleaner.look()
        return found

    def clean(self, seconds: float = LEASE_S) -> list[str]:
        """Look for so long, then remove; return the kinds of what was removed."""
        return sorted(each.kind for each in self.looks(seconds) if remove(self.pool, each))


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.3", "b.2", weights=(1.0, 1.0))


def half_written(pool: PoolDirectory, directory: str, pid: int, name: str = "x.json") -> Path:
    """Leave a private file, as `atomic.publish` does when it is killed."""
    path = Path(pool.root, directory, f".{name}.{pid}-0123456789ab")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    return path


# ---- half-written files ----


@pytest.mark.parametrize(
    "directory",
    ". errors status workers spools plans control spools/gpu0 partial/a inbox inbox/spools".split(),
)
def test_a_half_written_file_goes_after_a_lease(pool: PoolDirectory, directory: str) -> None:
    path = half_written(pool, directory, 999_999)
    crew = LocalWorkers(pool)
    assert crew.clean(LEASE_S / 2) == []
    assert path.exists() and crew.cleaner.doubtful
    assert crew.clean(LEASE_S / 2) == ["unfinished"]
    assert not path.exists()
    assert crew.clean() == []


def test_what_a_living_worker_is_writing_stays(pool: PoolDirectory) -> None:
    """A worker may be stopped in the middle of a write for longer than a lease, and live."""
    path = half_written(pool, "errors", os.getpid())
    crew = LocalWorkers(pool)
    assert crew.clean(10 * LEASE_S) == []
    assert path.exists()
    crew.living.leave()
    crew.living = ManualWorker(pool, enlist=False)
    crew.living.id = new_worker_id()
    crew.living.lease.enlist({})
    (name,) = (n for n in lease_names(pool) if n.living)
    os.rename(pool.lease(name), pool.lease(name).replace(f"-{os.getpid()}-", "-1-"))
    cleaner = Cleaner(pool, clock=crew.clock)
    cleaner.look()
    for _ in range(8):
        crew.clock.forward(LEASE_S / 8)
        found = cleaner.look()
    assert [each.path for each in found] == [str(path)]


def test_a_file_that_came_and_went_meanwhile_is_nobody_s_litter(pool: PoolDirectory) -> None:
    crew = LocalWorkers(pool)
    first = half_written(pool, "errors", 999_999, "one")
    crew.looks(LEASE_S * 0.9)
    first.unlink()
    second = half_written(pool, "errors", 999_999, "two")
    assert crew.clean(LEASE_S * 0.9) == []
    assert second.exists()


# ---- workers that are gone ----


def test_the_scratch_of_a_dead_worker_goes_and_that_of_a_living_one_stays(
    pool: PoolDirectory,
) -> None:
    crew, lost = LocalWorkers(pool), ManualWorker(pool)
    scratch = Path(pool.scratch(lost.id))
    (scratch / "half.txt").write_text("half")
    Path(pool.scratch(crew.living.id), "half.txt").write_text("half")
    lost.lease.retire()
    assert crew.clean(0.0) == ["scratch"]
    assert not scratch.exists()
    assert os.listdir(pool.scratch(crew.living.id)) == ["half.txt"]


def test_the_scratch_directory_that_a_recoverer_was_about_to_remove_goes(
    pool: PoolDirectory,
) -> None:
    crew, lost = LocalWorkers(pool), ManualWorker(pool)
    scratch = Path(pool.scratch(lost.id))
    (scratch / "half.txt").write_text("half")
    scratch.rename(f"{scratch}.dead")
    lost.lease.retire()
    assert crew.clean(0.0) == ["scratch"]
    assert not Path(f"{scratch}.dead").exists()


@pytest.mark.parametrize("directory", ["running", "spools/gpu0"])
def test_what_an_idle_worker_makes_to_list_anew_goes_if_it_was_killed_at_it(
    pool: PoolDirectory, directory: str
) -> None:
    crew = LocalWorkers(pool)
    left = Path(pool.root, directory, ".renew.vm-1-abcdef")
    left.mkdir()
    kept = Path(pool.root, directory, f".renew.{crew.living.id}")
    kept.mkdir()
    assert crew.clean(LEASE_S / 2) == []
    assert crew.clean(LEASE_S / 2) == ["unfinished"]
    assert kept.exists() and not left.exists()


def test_a_worker_whose_lease_is_out_of_sight_for_a_moment_is_not_gone(pool: PoolDirectory) -> None:
    """RACE: a renewal can hide a lease from a listing."""
    crew, hidden = LocalWorkers(pool), ManualWorker(pool)
    atomic.publish(pool.order("drain", hidden.id), b"")
    path = pool.lease(hidden.lease.name)
    for _ in range(3):
        os.rename(path, f"{pool.root}/away")
        assert crew.clean(LEASE_S / 2) == []
        os.rename(f"{pool.root}/away", path)
        assert crew.clean(LEASE_S / 2) == []
    os.unlink(path)
    assert crew.clean(LEASE_S * 1.2) == [], "R12: its process runs here"
    assert crew.clean(LEASE_S * 2) == ["order", "scratch"]


def test_a_suspended_worker_keeps_all_until_its_lease_is_ended(pool: PoolDirectory) -> None:
    crew, suspended = LocalWorkers(pool, older_than_s=0.0), ManualWorker(pool)
    half_written(pool, "errors", os.getpid())
    assert crew.clean(10 * LEASE_S) == []
    assert os.path.isdir(pool.scratch(suspended.id))


def test_who_left_is_forgotten_only_if_asked_and_only_when_that_is_long_ago(
    pool: PoolDirectory,
) -> None:
    gone, recent = ManualWorker(pool), ManualWorker(pool)
    for hand in (gone, recent):
        hand.beat.flush()
        hand.journal.write("joined")
        hand.leave()
    (lease,) = (name for name in ended_lease_names(pool) if name.worker == gone.id)
    os.utime(pool.lease(lease), (1.0, 1.0))
    assert LocalWorkers(pool).clean(0.0) == []
    assert LocalWorkers(pool, older_than_s=3600.0).clean(0.0) == ["journal", "lease", "status"]
    assert read_status(pool, gone.id) is None and read_status(pool, recent.id) is not None
    assert LocalWorkers(pool, older_than_s=0.0).clean(0.0) == ["journal", "lease", "status"]
    assert problems(pool) == []


def test_who_holds_a_claim_is_not_forgotten(pool: PoolDirectory) -> None:
    """Its lease was ended, and the worker that ended it died before the claim was put back."""
    hand = ManualWorker(pool)
    name = hand.take()
    hand.beat.flush()
    hand.lease.retire()
    assert LocalWorkers(pool, older_than_s=0.0).clean() == []
    work_until_done(pool)
    assert state_counts(pool) == {"done": 2}
    assert name.id in {each.id for each in names_in(pool, State.DONE)}


# ---- claims ----


def test_checkpoints_go_when_their_claim_is_done_and_not_before(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool, handler=Saving())
    name = hand.take()
    hand.run(name)
    kept = Path(pool.partial(name.id))
    assert os.listdir(kept) == ["part1"]
    assert LocalWorkers(pool).clean() == []
    work_until_done(pool)
    kept.mkdir(exist_ok=True)
    (kept / "part1").write_bytes(b"of a zombie")
    assert any(str(kept) in note for note in audit_pool(pool).notes)
    crew = LocalWorkers(pool)
    assert [(each.kind, each.size) for each in crew.looks(0.0)] == [("checkpoints", 11)]
    assert crew.clean(0.0) == ["checkpoints"]
    assert problems(pool) == [] and not kept.exists()


# ---- plans ----


def abandoned(pool: PoolDirectory, at: int) -> str:
    """Let a planner of two more inputs die at a change; return its plan's id."""
    assert crash(lambda: plan(pool, "c.4", "d.5"), at)
    texts = atomic.names(pool.directory("plans"))
    (uid,) = (text.removesuffix(".staged") for text in texts if text.endswith(".staged"))
    return uid


def test_an_abandoned_plan_goes_and_its_inputs_can_be_planned_again(pool: PoolDirectory) -> None:
    uid = abandoned(pool, 12)
    crew = LocalWorkers(pool)
    assert crew.clean(LEASE_S / 2) == []
    assert os.path.isdir(pool.staged(uid))
    assert crew.clean(LEASE_S / 2) == ["plan"]
    assert not os.path.lexists(pool.staged(uid))
    assert crew.clean() == []
    plan(pool, "c.4", "d.5")
    crew.living.leave()
    work_until_done(pool)
    assert state_counts(pool) == {"done": 4} and problems(pool) == []


def test_a_plan_that_still_grows_stays(pool: PoolDirectory) -> None:
    uid = abandoned(pool, 12)
    crew = LocalWorkers(pool)
    for number in range(4):
        crew.looks(LEASE_S * 0.8)
        Path(pool.staged(uid), "gpu0", f"e{number}").touch()
    assert [each for each in crew.looks(LEASE_S * 0.8) if each.kind == "plan"] == []


def test_a_planner_that_was_only_slow_cannot_leave_a_plan_without_its_claims(
    tmp_path: Path,
) -> None:
    """A whole clean happens between any two operations of the planner."""
    template = make_pool(tmp_path / "pool", "a.3")
    outcomes = set()

    def clean(pool: PoolDirectory) -> None:
        for text in atomic.names(pool.directory("plans")):
            if text.endswith(".staged"):
                uid = text.removesuffix(".staged")
                remove(pool, Leftover("plan", pool.staged(uid), uid))

    def action(pool: PoolDirectory) -> str:
        try:
            plan_into(pool, request("b.2", "c.1"))
            return "planned"
        except PoolError as error:
            assert "removed by fsqueue clean" in str(error)
            return "refused"

    for _, pool, outcome in interrupted(copies(template), action, clean):
        outcomes.add(outcome)
        assert problems(pool) == []
        if outcome == "refused":
            plan(pool, "b.2", "c.1")
        work_until_done(pool)
        assert state_counts(pool) == {"done": 3} and problems(pool) == []
    assert outcomes == {"planned", "refused"}


# ---- killed, and beside others ----


def littered(root: Path) -> PoolDirectory:
    """Return a pool with litter of every kind."""
    pool = make_pool(root, "a.3", "b.2")
    work_until_done(pool)
    abandoned(pool, 12)
    lost = ManualWorker(pool)
    Path(pool.scratch(lost.id), "half").write_text("half")
    lost.beat.flush()
    lost.journal.write("joined")
    atomic.publish(pool.order("pause", lost.id), b"")
    lost.lease.retire()
    half_written(pool, "errors", 999_999)
    id = names_in(pool, State.DONE)[0].id
    os.mkdir(pool.partial(id))
    Path(pool.partial(id), "part1").write_text("x")
    return pool


@pytest.mark.slow
def test_a_cleaner_may_be_killed_at_any_operation_and_the_next_one_ends_its_work(
    tmp_path: Path,
) -> None:
    template = littered(tmp_path / "pool")
    kinds = ["checkpoints", "journal", "lease", "order", "plan", "scratch", "status", "unfinished"]

    def clean(pool: PoolDirectory) -> set[str]:
        clock = Clock()
        cleaner = Cleaner(pool, older_than_s=0.0, clock=clock)
        cleaner.look()
        clock.forward(LEASE_S / 2)
        cleaner.look()
        clock.forward(LEASE_S / 2)
        return {each.kind for each in cleaner.look() if remove(pool, each)}

    n = 0
    for n, pool in every_crash(copies(template), clean):
        kept = contents(pool.directory("done")), contents(pool.directory("outputs"))
        clean(pool)
        assert clean(pool) == set(), n
        assert problems(pool) == [] and audit_pool(pool).notes == []
        assert contents(pool.directory("done")) == kept[0]
        plan(pool, "c.4", "d.5")
        work_until_done(pool)
        assert state_counts(pool) == {"done": 4} and problems(pool) == []
    assert n > 10
    assert sorted(clean(template)) == kinds


@pytest.mark.slow
def test_cleaning_beside_a_running_worker_disturbs_nothing(start: Start, tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER, lease_s=2.0)
    worker = start("work", pool.root)
    wait_for(lambda: names_in(pool, State.RUNNING), "the claim to run")
    name = only_claim(pool, State.RUNNING)
    half_written(pool, "errors", worker.pid)
    litter = half_written(pool, "errors", 999_999)
    dry = fsqueue("clean", pool.root, "--dry-run", "--all", "--json")
    assert [each["path"] for each in json.loads(dry.stdout)["litter"]] == [str(litter)]
    assert litter.exists()
    done = fsqueue("clean", pool.root, "--all")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 leftover removed, 4 bytes."
    assert only_claim(pool, State.RUNNING) == name and not litter.exists()
    assert os.path.isdir(pool.scratch(name.owner or ""))
    again = fsqueue("clean", pool.root, "--all")
    assert again.stdout == "0 leftovers removed, 0 bytes.\n"


def test_a_plan_that_has_a_number_is_never_abandoned(pool: PoolDirectory) -> None:
    """Its planner died before its claims were in their spools."""
    n = 0
    while crash(lambda: plan(pool, "c.4", "d.5"), n):
        texts = atomic.names(pool.directory("plans"))
        uids = {text.removesuffix(".staged") for text in texts}
        if uids & {each.uid for each in plans.read_plans(pool)}:
            break
        n += 1
    (uid,) = uids & {each.uid for each in plans.read_plans(pool)}
    assert not remove(pool, Leftover("plan", pool.staged(uid), uid))
    work_until_done(pool)
    assert state_counts(pool) == {"done": 4} and problems(pool) == []
