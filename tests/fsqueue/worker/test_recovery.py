"""Claims of dead workers are found, charged once, and put back into their spools."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import LeaseLost
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.leases import BEATS_PER_LEASE, Lease, Observer, ended_lease_names
from fsqueue.pool.names import ClaimName, new_worker_id
from fsqueue.pool.settings import PoolDirectory
from fsqueue.scheduling.planner import plan_into
from fsqueue.storage import directories
from fsqueue.storage.operation_count import operations
from fsqueue.worker import recovery
from fsqueue.worker.attempts.verdicts import Cause
from fsqueue.worker.recovery import Recovered
from tests.support.crash import copies, die_after, every_crash
from tests.support.interleave import interpose, refused, reply_lost, run_in_threads
from tests.support.pools import (
    Clock,
    HookHandler,
    ManualWorker,
    make_pool,
    names_in,
    only_claim,
    problems,
    request,
    state_counts,
    stems,
    work_until_done,
)

LEASE_S = 8.0
BEAT_S = LEASE_S / BEATS_PER_LEASE


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.3", "b.2", lease_s=LEASE_S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def judge(pool: PoolDirectory, clock: Clock) -> ManualWorker:
    """A worker that observes others, on a clock that the test moves."""
    return ManualWorker(pool, clock=clock)


def stay_away(worker: ManualWorker) -> None:
    """Make a worker one of another host, so that it cannot be proved dead or alive here."""
    path = worker.pool.lease(worker.lease.name)
    facts = json.loads(Path(path).read_bytes())
    Path(path).write_text(json.dumps(facts | {"boot": "another"}))


@pytest.fixture
def holder(pool: PoolDirectory) -> ManualWorker:
    """A worker of another host that holds the claim of a.3."""
    holder = ManualWorker(pool)
    stay_away(holder)
    holder.take()
    return holder


def expire(judge: ManualWorker, clock: Clock) -> list[Recovered]:
    """Let a lease pass while the judge sweeps at every beat; return what it recovered."""
    found = judge.sweep()
    for _ in range(BEATS_PER_LEASE):
        clock.forward(BEAT_S)
        found += judge.sweep()
    return found


def record(pool: PoolDirectory, name: ClaimName) -> dict[str, Any]:
    return json.loads(Path(pool.error(name.id, name.attempt)).read_bytes())  # type: ignore[no-any-return]


def die_with(pool: PoolDirectory, *, claims_held: int = 1) -> None:
    """Let a child process take claims and die while holding them."""

    def action() -> None:
        hand = ManualWorker(pool)
        for _ in range(claims_held):
            hand.take()

    die_after(action)


# ---- which workers are dead ----


def test_a_claim_whose_owner_did_not_renew_for_a_lease_goes_back_one_attempt_later(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker, clock: Clock
) -> None:
    held = only_claim(pool, State.RUNNING)
    (recovered,) = expire(judge, clock)
    assert recovered == Recovered(held, held.returned(failed=True))
    assert not recovered.failed
    assert recovered.became in names_in(pool, State.WAITING)
    assert record(pool, held)["error"].startswith(f"worker lost: {holder.id}")
    assert record(pool, held)["recovered_by"] == judge.id
    with pytest.raises(LeaseLost, match=judge.id):
        holder.lease.renew()


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_claim_whose_output_its_dead_owner_published_is_not_charged_and_ends_done(
    tmp_path: Path, attempts: int
) -> None:
    """On its last attempt it ended in failed/, and its output was there, whole."""
    pool = make_pool(tmp_path / "pool", "a.3", attempts=attempts)

    def publish_and_die() -> None:
        name = ManualWorker(pool).take()
        Path(pool.output(name.id, ".txt")).write_text(name.id)

    die_after(publish_and_die)
    held = only_claim(pool, State.RUNNING)
    judge = ManualWorker(pool)
    (recovered,) = judge.sweep()
    judge.leave()
    assert recovered == Recovered(held, held.returned(failed=False))
    published = fingerprint(pool, held)
    work_until_done(pool)
    done = only_claim(pool, State.DONE)
    assert (done.attempt, done.returns) == (0, 1)
    assert fingerprint(pool, held) == published, "I7: adopted, not made again"
    assert os.listdir(pool.directory("errors")) == []
    assert problems(pool) == []


def fingerprint(pool: PoolDirectory, name: ClaimName) -> tuple[int, int]:
    """Return what distinguishes a claim's output from any other file."""
    facts = os.stat(pool.output(name.id, ".txt"))
    return facts.st_ino, facts.st_mtime_ns


def test_half_an_output_of_a_worker_declared_dead_is_never_published(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch, judge: ManualWorker, clock: Clock
) -> None:
    """Its program wrote a new file by name between the removal of its file and of the directory."""
    zombie = ManualWorker(pool)
    stay_away(zombie)
    held = zombie.take()
    private = Path(pool.unpublished(zombie.id, held.id, held.returns, ".txt"))
    private.parent.mkdir(exist_ok=True)
    private.write_text("the first half, ")
    refused: list[OSError] = []

    def write_on(real: Callable[..., Any], path: str, **options: Any) -> None:
        real(path, **options)
        try:
            with open(private, "a") as file:
                file.write("and the second")
        except FileNotFoundError as error:
            refused.append(error)

    with monkeypatch.context() as patch:
        interpose(patch, unlink=write_on)
        expire(judge, clock)
    assert refused and not private.exists()
    assert [name for name in os.listdir(pool.directory("outputs")) if zombie.id in name] == []


def test_a_claim_whose_owner_renews_its_lease_is_never_taken_away(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker, clock: Clock
) -> None:
    for _ in range(5 * BEATS_PER_LEASE):
        assert judge.sweep() == []
        clock.forward(BEAT_S)
        holder.lease.renew()
    assert state_counts(pool) == {"running": 1, "spools": 1}


def test_a_dead_process_of_this_host_is_recovered_at_the_first_look(
    pool: PoolDirectory, judge: ManualWorker
) -> None:
    die_with(pool, claims_held=2)
    assert sorted(r.name.id[0] for r in judge.sweep()) == ["a", "b"]
    assert state_counts(pool) == {"spools": 2}
    assert problems(pool) == []


def test_a_worker_that_died_idle_has_its_lease_ended_too(
    pool: PoolDirectory, judge: ManualWorker
) -> None:
    die_with(pool, claims_held=0)
    assert judge.sweep() == []
    ended = [name for name in ended_lease_names(pool) if name.ended_by == judge.id]
    assert len(ended) == 1


def test_what_a_dead_worker_was_writing_is_removed(
    pool: PoolDirectory, judge: ManualWorker
) -> None:
    die_with(pool)
    (scratch,) = (name for name in os.listdir(pool.directory("outputs")) if judge.id not in name)
    Path(pool.directory("outputs"), scratch, "half").write_bytes(b"...")
    judge.sweep()
    assert os.listdir(pool.directory("outputs")) == [f".{judge.id}"]


def test_files_of_a_dead_worker_that_cannot_be_removed_stop_no_recovery(
    pool: PoolDirectory, judge: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_with(pool)
    interpose(
        monkeypatch, rmdir=refused(errno.EACCES), unlink=refused(errno.EACCES, only="outputs")
    )
    assert len(judge.sweep()) == 1


def test_a_worker_that_left_with_a_claim_in_its_hands_is_not_waited_for(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker
) -> None:
    """It must not, but if it has to, for example by a full disk, the claim is not stranded."""
    holder.leave()
    assert [r.name.owner for r in judge.sweep()] == [holder.id]


def test_a_recoverer_never_judges_itself(
    pool: PoolDirectory, judge: ManualWorker, clock: Clock
) -> None:
    judge.take()
    assert expire(judge, clock) == []
    judge.lease.renew()


def test_a_claim_without_any_lease_goes_back_only_after_a_whole_lease(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker, clock: Clock
) -> None:
    judge.sweep()
    os.unlink(pool.lease(holder.lease.name))
    for _ in range(BEATS_PER_LEASE):
        clock.forward(BEAT_S)
        assert judge.sweep() == []
    clock.forward(BEAT_S)
    assert len(judge.sweep()) == 1


# ---- the zombie ----


def test_a_zombie_can_finish_nothing_and_its_output_is_the_successors_to_adopt(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker, clock: Clock
) -> None:
    theirs: list[ClaimName | None] = []

    def is_declared_dead() -> None:
        (recovered,) = expire(judge, clock)
        theirs.append(claims.take(pool, "gpu0", recovered.became, judge.id))
        directories.make(pool.scratch(holder.id))  # it went with the lease

    holder.handler = HookHandler(is_declared_dead)
    assert holder.run(only_claim(pool, State.RUNNING)) is Cause.LOST
    assert "lease had lapsed" in holder.reason
    (name,) = theirs
    assert name is not None and only_claim(pool, State.RUNNING) == name
    assert judge.run(name) is Cause.ALREADY_DONE
    judge.run(judge.take())
    assert stems(pool, State.DONE) == ["a", "b"]
    assert problems(pool) == []


def test_a_zombie_that_takes_one_more_claim_after_its_lease_was_ended_strands_nothing(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker, clock: Clock
) -> None:
    """It was paused between choosing and taking."""
    expire(judge, clock)
    taken = holder.take()
    assert taken in names_in(pool, State.RUNNING)
    assert [r.name for r in judge.sweep()] == [taken], "at once: its lease has been ended"
    with pytest.raises(LeaseLost):
        holder.lease.renew()
    assert state_counts(pool) == {"spools": 2}


def test_a_zombie_that_can_still_put_its_claim_back_costs_no_attempt(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker
) -> None:
    held = only_claim(pool, State.RUNNING)
    judge.sweep()
    assert judge.observer.end(holder.id, judge.id)
    back = claims.release(pool, held, "gpu0")
    assert back.attempt == 0
    assert judge.sweep() == []
    assert back in names_in(pool, State.WAITING)


# ---- recoverers that meet, or die ----


@pytest.mark.slow
def test_a_recoverer_that_dies_half_way_is_finished_by_another(tmp_path: Path) -> None:
    """At every operation of a sweep that ends one lease and puts two claims back."""
    template = make_pool(tmp_path / "pool", "a.3", "b.2")
    die_with(template, claims_held=2)
    n = 0
    for _, pool in every_crash(copies(template), lambda pool: ManualWorker(pool).sweep()):
        n += 1
        work_until_done(pool)
        assert stems(pool, State.DONE) == ["a", "b"]
        assert {name.attempt for name in names_in(pool, State.DONE)} == {1}, "charged once"
        assert problems(pool) == []
    assert n > 12


def test_two_recoverers_of_one_claim_charge_it_once(
    pool: PoolDirectory,
    holder: ManualWorker,
    judge: ManualWorker,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = only_claim(pool, State.RUNNING)
    other = ManualWorker(pool, clock=clock)
    met: list[list[Recovered]] = []

    def rename(real: Callable[[str, str], None], source: str, target: str) -> None:
        if str(held) in source and not met:
            met.append([])
            met[0] = other.sweep()
        real(source, target)

    other.sweep()
    judge.sweep()
    interpose(monkeypatch, rename=rename)
    mine = expire(judge, clock)
    assert met
    assert {r.became for r in mine + met[0]} == {held.returned(failed=True)}
    assert stems(pool, State.WAITING) == ["a", "b"]
    assert os.listdir(pool.directory("errors")) == [f"{held.id}.a0.json"]


def test_a_claim_that_its_owner_finished_meanwhile_is_not_recovered(
    pool: PoolDirectory,
    holder: ManualWorker,
    judge: ManualWorker,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The owner finishes and leaves while a sweep is between its two listings."""
    held = only_claim(pool, State.RUNNING)

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/workers"):
            mount.hooks.clear()
            assert holder.run(held) is Cause.DONE
            holder.leave()
        return real(fd)

    mount = interpose(monkeypatch, listdir=listdir)
    monkeypatch.setattr(
        "time.sleep", lambda s: pytest.fail("it waits for a claim that has moved on")
    )
    assert judge.sweep() == []
    assert only_claim(pool, State.DONE) == held
    assert os.listdir(pool.directory("errors")) == [], "nothing went wrong in any attempt"


def test_a_requeue_whose_reply_was_lost_is_recognised(
    pool: PoolDirectory, judge: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_with(pool)
    interpose(monkeypatch, rename=reply_lost(errno.ENOENT, only="/running/"))
    assert len(judge.sweep()) == 1
    assert state_counts(pool) == {"spools": 2}


# ---- the poison claim ----


def test_a_claim_that_kills_every_worker_ends_in_failed_with_a_record_of_each(
    tmp_path: Path,
) -> None:
    pool = make_pool(tmp_path / "pool", "a.3", attempts=3)
    judge = ManualWorker(pool)
    for attempt in range(3):
        die_with(pool)
        (recovered,) = judge.sweep()
        assert recovered.name.attempt == attempt
        assert recovered.failed == (attempt == 2)
    last = only_claim(pool, State.FAILED)
    assert last.attempt == 2
    owners = {record(pool, ClaimName(last.id, "k", 1, n))["worker"] for n in range(3)}
    assert len(owners) == 3
    assert judge.sweep() == []
    assert problems(pool) == []


# ---- where it goes back to ----


def test_a_stolen_claim_goes_back_to_the_spool_it_was_planned_for(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3", "b.2", weights=(1.0, 1.0))
    homes = {name.id: spool for spool in ("gpu0", "gpu1") for name in claims.waiting(pool, spool)}
    assert set(homes.values()) == {"gpu0", "gpu1"}
    die_with(pool, claims_held=2)
    ManualWorker(pool).sweep()
    for spool in ("gpu0", "gpu1"):
        assert {homes[name.id] for name in claims.waiting(pool, spool)} == {spool}


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"id": "x"}', b'{"spool": "../../x"}', b"\xff"], ids=repr
)
def test_a_damaged_claim_is_recovered_too_and_fails_by_name_when_taken(
    tmp_path: Path, data: bytes
) -> None:
    pool = make_pool(tmp_path / "pool", "a.3")
    die_with(pool)
    Path(pool.owned(State.RUNNING, only_claim(pool, State.RUNNING))).write_bytes(data)
    judge = ManualWorker(pool)
    (recovered,) = judge.sweep()
    assert only_claim(pool, State.WAITING) == recovered.became
    assert judge.run(judge.take()) is Cause.IMPOSSIBLE
    failed = only_claim(pool, State.FAILED)
    assert failed.attempt == 1
    assert str(failed.id) in record(pool, failed)["error"]


def test_a_claim_whose_spool_is_gone_goes_to_another(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3", weights=(2.0, 1.0))
    die_with(pool)
    os.rmdir(pool.spool("gpu0"))
    os.unlink(pool.spool_file("gpu0"))
    (recovered,) = ManualWorker(pool).sweep()
    assert claims.waiting(pool, "gpu1") == [recovered.became]


# ---- plans of the dead ----


def test_a_sweep_completes_the_plan_of_a_planner_that_died(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3")

    def die_after_numbering() -> None:
        plans.complete_one = lambda *args: os._exit(99)
        plan_into(pool, request("b.2", "c.1"))

    die_after(die_after_numbering)
    assert stems(pool, State.WAITING) == ["a"]
    ManualWorker(pool).sweep()
    assert stems(pool, State.WAITING) == ["a", "b", "c"]
    assert problems(pool) == []


def test_a_damaged_plan_beside_a_dead_planners_stops_no_recovery(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3")
    directories.make(pool.staged("abandoned"))
    Path(pool.plan(2)).write_bytes(b"{")
    die_with(pool)
    assert len(ManualWorker(pool).sweep()) == 1


def test_listings_are_refreshed_once_since_a_worker_became_idle(
    pool: PoolDirectory, judge: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[str] = []
    monkeypatch.setattr(directories, "make", lambda path: changed.append(Path(path).parent.name))
    monkeypatch.setattr(recovery, "listings_may_be_old", lambda root: True)
    assert judge.recovery.refresh_listings(idle_s=0.5)
    assert changed == ["running", "gpu0"]
    assert not judge.recovery.refresh_listings(idle_s=60.0), "it did so since it became idle"
    assert judge.recovery.refresh_listings(idle_s=0.0)


def test_a_full_disk_keeps_no_worker_from_leaving(
    pool: PoolDirectory, judge: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(directories, "make", full)
    monkeypatch.setattr(recovery, "listings_may_be_old", lambda root: True)
    assert judge.recovery.refresh_listings(idle_s=0.5)
    assert not judge.recovery.refresh_listings(idle_s=60.0)


# ---- R14, R15, R18: who watches, who is excused, what it costs ----


def test_r14_a_busy_workers_thread_sweeps_every_half_lease_and_requeues_what_it_finds(
    pool: PoolDirectory, judge: ManualWorker
) -> None:
    die_with(pool)
    assert judge.recovery.sweep_while_busy() == [], "the last sweep was a moment ago"
    judge.recovery.swept_at -= LEASE_S
    assert len(judge.recovery.sweep_while_busy()) == 1
    assert state_counts(pool) == {"spools": 2}


def test_r14_two_threads_that_sweep_at_once_charge_a_claim_once(
    pool: PoolDirectory, judge: ManualWorker
) -> None:
    die_with(pool, claims_held=2)
    judge.recovery.swept_at -= LEASE_S
    found = run_in_threads(judge.recovery.sweep_while_busy, judge.recovery.sweep)
    assert sorted(r.name.id[0] for each in found for r in each) == ["a", "b"]
    assert {name.attempt for name in names_in(pool, State.WAITING)} == {1}


@pytest.mark.parametrize("leaving", [False, True])
def test_r15_what_a_worker_held_that_died_while_leaving_is_not_charged(
    pool: PoolDirectory, judge: ManualWorker, clock: Clock, leaving: bool
) -> None:
    holder = ManualWorker(pool)
    stay_away(holder)
    held = holder.take()
    holder.lease.renew(leaving=leaving)
    (recovered,) = expire(judge, clock)
    assert recovered.became == held.returned(failed=not leaving, vain=leaving)
    assert bool(os.listdir(pool.directory("errors"))) is not leaving
    events = Path(pool.events(judge.id)).read_text()
    assert ('"why":"it was leaving"' in events) is leaving


def test_r15_the_excuse_outlives_the_recoverer_that_ended_the_lease(
    pool: PoolDirectory, judge: ManualWorker
) -> None:
    holder = ManualWorker(pool)
    stay_away(holder)
    held = holder.take()
    holder.lease.renew(leaving=True)
    first = Observer(pool)
    first.look()
    assert first.end(holder.id, "died-1-aaaaaa")
    (recovered,) = judge.sweep()
    assert recovered.became == held.returned(failed=False, vain=True)


def test_r15_what_a_worker_could_not_put_back_when_it_left_is_not_charged(
    pool: PoolDirectory, holder: ManualWorker, judge: ManualWorker
) -> None:
    holder.leave()
    (recovered,) = judge.sweep()
    assert recovered.became == recovered.name.returned(failed=False, vain=True)


def test_r18_a_first_sweep_opens_no_lease_of_a_worker_that_is_not_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this host or another. So it costs as much beside forty workers as beside two."""
    opened: list[str] = []
    costs = []

    def note(real: Callable[..., int], path: str, *given: Any, **how: Any) -> int:
        opened.append(path)
        return real(path, *given, **how)

    for workers in (2, 40):
        pool = make_pool(tmp_path / f"pool{workers}", "a.3", lease_s=LEASE_S)
        judge = ManualWorker(pool)
        for number in range(workers):
            Lease(pool, f"elsewhere-{number}-aaaaaa").enlist()
            Lease(pool, new_worker_id()).enlist()
        with monkeypatch.context() as patch:
            interpose(patch, open=note)
            before = operations.total
            assert judge.sweep() == []
            costs.append(operations.total - before)
    assert not [path for path in opened if "/workers/" in path]
    assert costs[0] == costs[1]


def test_r18_on_a_local_disk_the_last_look_makes_no_directory(
    pool: PoolDirectory, judge: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "listings_may_be_old", lambda root: False)
    monkeypatch.setattr(directories, "make", lambda path: pytest.fail(f"it made {path}"))
    assert not judge.recovery.refresh_listings(idle_s=0.0)
