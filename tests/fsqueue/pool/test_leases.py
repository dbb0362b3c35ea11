"""Leases: a beat in a name, renewed and ended by rename, read by listing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import LeaseLost, PoolError
from fsqueue.pool import proof_of_life as proof
from fsqueue.pool.leases import (
    ABSENT_LOOKS,
    BEATS_PER_LEASE,
    Lease,
    Observer,
    Process,
    Standing,
    ended_lease_names,
    lease_names,
    look_at_process,
    proof_of_life,
)
from fsqueue.pool.names import LeaseName
from fsqueue.pool.settings import PoolDirectory, create_pool
from tests.support.interleave import Sequencer, interpose, refused, reply_lost, run_in_threads
from tests.support.pools import Clock, id_here
from tests.support.processes import state_of, wait_for

LEASE_S = 8.0
ME = "me-1-aaaaaa"
BEAT_S = LEASE_S / BEATS_PER_LEASE


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"), lease_s=LEASE_S)


@pytest.fixture
def lease(pool: PoolDirectory) -> Lease:
    """A lease at its first beat, of a process that cannot be proved dead here."""
    lease = Lease(pool, ME)
    lease.enlist()
    return lease


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(pool: PoolDirectory, clock: Clock) -> Observer:
    return Observer(pool, clock)


def listed(pool: PoolDirectory) -> list[str]:
    """Return the names of all leases, living or ended."""
    return sorted(map(str, (*lease_names(pool), *ended_lease_names(pool))))


def watch(observer: Observer, clock: Clock, seconds: float, owners: tuple[str, ...] = ()) -> None:
    """Look once per beat while time passes, as an idle worker does."""
    observer.look(owners)
    for _ in range(round(seconds / BEAT_S)):
        clock.forward(BEAT_S)
        observer.look(owners)


def hide(patch: pytest.MonkeyPatch, *words: str, times: int = 10**9) -> None:
    """Leave names that contain one of `words` out of the next listings, as a renewal can."""
    left = [times]

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        left[0] -= 1
        found = real(fd)
        return found if left[0] < 0 else [n for n in found if not any(w in n for w in words)]

    interpose(patch, listdir=listdir)


# ---- the worker's side ----


def test_a_lease_is_enlisted_with_proof_of_life_and_its_bytes_never_change(
    pool: PoolDirectory,
) -> None:
    lease = Lease(pool, ME)
    lease.enlist({"worker": ME})
    first = Path(pool.lease(lease.name))
    data = first.read_bytes()
    lease.renew()
    lease.retire()
    (last,) = Path(pool.ended_leases).iterdir()
    assert os.listdir(pool.directory("workers")) == ["ended"]
    assert (first.name, last.name) == (f"{ME}.b000000", f"{ME}.left")
    assert last.read_bytes() == data
    assert json.loads(data) == {"worker": ME} | proof_of_life()


def test_two_workers_of_one_identity_are_an_error(pool: PoolDirectory, lease: Lease) -> None:
    with pytest.raises(PoolError, match="two workers have the same id"):
        Lease(pool, ME).enlist()


def test_each_renewal_moves_to_the_next_beat(pool: PoolDirectory, lease: Lease) -> None:
    for beat in (1, 2, 3):
        lease.renew()
        assert listed(pool) == [f"{ME}.b{beat:06d}"]


def test_a_renewal_whose_reply_was_lost_is_recognised(
    pool: PoolDirectory, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=reply_lost(errno.ENOENT))
    lease.renew()
    lease.renew()
    assert listed(pool) == [f"{ME}.b000002"]


def test_a_renewal_that_was_done_and_reported_as_an_io_error_is_found_at_the_next_beat(
    pool: PoolDirectory, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=reply_lost(errno.EIO))
    with pytest.raises(OSError):
        lease.renew()
    lease.renew()
    lease.renew()
    assert listed(pool) == [f"{ME}.b000002"]


def test_retiring_works_after_a_renewal_that_took_effect_but_reported_an_error(
    pool: PoolDirectory, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=reply_lost(errno.EIO))
    with pytest.raises(OSError):
        lease.renew()
    lease.retire()
    assert listed(pool) == [f"{ME}.left"]


def test_a_passing_enoent_does_not_lose_a_lease(
    pool: PoolDirectory, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=refused(errno.ENOENT, times=1))
    with pytest.raises(FileNotFoundError):
        lease.renew()
    lease.renew()
    assert listed(pool) == [f"{ME}.b000001"]


def test_a_lost_lease_names_the_worker_that_ended_it(
    pool: PoolDirectory, lease: Lease, observer: Observer
) -> None:
    observer.look()
    assert observer.end(ME, "judge-2-bbbbbb")
    with pytest.raises(LeaseLost, match="declared dead by judge-2-bbbbbb"):
        lease.renew()
    with pytest.raises(LeaseLost):
        lease.renew()
    assert listed(pool) == [f"{ME}.dead@judge-2-bbbbbb"]


def test_a_missing_lease_file_is_reported_as_removed(pool: PoolDirectory, lease: Lease) -> None:
    os.unlink(pool.lease(lease.name))
    with pytest.raises(LeaseLost, match="is gone from workers/"):
        lease.renew()


def test_retiring_an_ended_lease_succeeds(
    pool: PoolDirectory, lease: Lease, observer: Observer
) -> None:
    observer.look()
    observer.end(ME, "judge-2-bbbbbb")
    lease.retire()
    assert listed(pool) == [f"{ME}.dead@judge-2-bbbbbb"]


# ---- partitioned ----


def test_a_worker_cut_off_for_longer_than_a_lease_continues_if_its_lease_was_not_ended(
    pool: PoolDirectory, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=refused(errno.EIO, times=3 * BEATS_PER_LEASE))
    for _ in range(3 * BEATS_PER_LEASE):
        with pytest.raises(OSError):
            lease.renew()
    lease.renew()
    assert listed(pool) == [f"{ME}.b000001"]


def test_a_worker_cut_off_for_longer_than_a_lease_is_lost_if_its_lease_was_ended(
    pool: PoolDirectory,
    lease: Lease,
    observer: Observer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mount = interpose(monkeypatch, rename=refused(errno.EIO))
    with pytest.raises(OSError):
        lease.renew()
    mount.hooks.clear()  # the others are on another mount
    watch(observer, clock, LEASE_S)
    assert observer.standing(ME) is Standing.EXPIRED
    assert observer.end(ME, "judge-2-bbbbbb")
    with pytest.raises(LeaseLost, match="cut off"):
        lease.renew()


# ---- the observer's side ----


def test_a_worker_that_beats_lives_however_long_it_is_watched(
    lease: Lease, observer: Observer, clock: Clock
) -> None:
    for _ in range(10):
        watch(observer, clock, LEASE_S / 2)
        assert observer.standing(ME) in (Standing.LIVING, Standing.SUSPECT)
        lease.renew()
    observer.look()
    assert observer.standing(ME) is Standing.LIVING
    assert observer.beating(ME)


def test_a_killed_worker_is_suspect_after_half_a_lease_and_expired_after_a_whole_one(
    lease: Lease, observer: Observer, clock: Clock
) -> None:
    seen = []
    for _ in range(BEATS_PER_LEASE + 1):
        observer.look()
        seen.append(observer.standing(ME))
        clock.forward(BEAT_S)
    assert seen == [Standing.LIVING] * 2 + [Standing.SUSPECT] * 2 + [Standing.EXPIRED]
    assert not observer.beating(ME)


def test_a_worker_first_seen_is_not_judged_by_its_beat(
    lease: Lease, observer: Observer, clock: Clock
) -> None:
    for _ in range(1000):
        lease.renew()
    clock.forward(100 * LEASE_S)
    observer.look()
    assert observer.standing(ME) is Standing.LIVING
    assert not observer.beating(ME), "one look does not show that it moves"


def test_a_paused_worker_that_wakes_before_its_lease_is_ended_continues(
    lease: Lease, observer: Observer, clock: Clock
) -> None:
    watch(observer, clock, LEASE_S)
    assert observer.standing(ME) is Standing.EXPIRED
    lease.renew()
    assert not observer.end(ME, "judge-2-bbbbbb"), "the beat it saw is not there any more"
    observer.look()
    assert observer.standing(ME) is Standing.LIVING
    lease.renew()


def test_an_end_from_a_stale_beat_ends_nothing(
    pool: PoolDirectory, lease: Lease, observer: Observer
) -> None:
    observer.look()
    lease.renew()
    lease.renew()
    assert not observer.end(ME, "judge-2-bbbbbb")
    assert listed(pool) == [f"{ME}.b000002"]


def test_of_two_enders_one_renames_and_both_know_that_it_is_dead(
    pool: PoolDirectory,
    lease: Lease,
    observer: Observer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Observer(pool, clock)
    observer.look()
    other.look()
    steps = Sequencer()

    def rename(real: Callable[[str, str], None], source: str, target: str) -> None:
        with steps(0 if target.endswith("first-2-bbbbbb") else 1):
            real(source, target)

    interpose(monkeypatch, rename=rename)
    results = run_in_threads(
        lambda: observer.end(ME, "first-2-bbbbbb"), lambda: other.end(ME, "second-3-cccccc")
    )
    assert results == [True, True]
    assert listed(pool) == [f"{ME}.dead@first-2-bbbbbb"]


def test_of_an_ender_and_a_renewal_that_meet_exactly_one_succeeds(
    pool: PoolDirectory, lease: Lease, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for winner in ("renewal", "ender"):
        observer.look()
        steps = Sequencer()

        def rename(
            real: Callable[[str, str], None],
            source: str,
            target: str,
            steps: Sequencer = steps,
            winner: str = winner,
        ) -> None:
            with steps(0 if (".dead@" in target) == (winner == "ender") else 1):
                real(source, target)

        def renew() -> bool:
            try:
                lease.renew()
            except LeaseLost:
                return False
            return True

        with pytest.MonkeyPatch.context() as patch:
            interpose(patch, rename=rename)
            renewed, ended = run_in_threads(renew, lambda: observer.end(ME, "judge-2-bbbbbb"))
        assert (renewed, ended) == (winner == "renewal", winner == "ender")
        assert len(listed(pool)) == 1


def test_an_end_whose_reply_was_lost_is_recognised(
    pool: PoolDirectory, lease: Lease, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer.look()
    interpose(monkeypatch, rename=reply_lost(errno.ENOENT))
    assert observer.end(ME, "judge-2-bbbbbb")


def test_an_end_that_the_mount_refuses_is_an_error_and_not_a_death(
    lease: Lease, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer.look()
    interpose(monkeypatch, rename=refused(errno.EIO))
    with pytest.raises(OSError):
        observer.end(ME, "judge-2-bbbbbb")


def test_a_worker_listed_as_left_or_dead_is_ended(
    pool: PoolDirectory, lease: Lease, observer: Observer
) -> None:
    lease.retire()
    Path(pool.directory("workers"), "you-2-bbbbbb.dead@me-1-aaaaaa").touch()
    observer.look([ME, "you-2-bbbbbb"])
    assert observer.standing(ME) is Standing.ENDED
    assert observer.standing("you-2-bbbbbb") is Standing.ENDED
    assert observer.workers() == []


def test_of_two_beats_that_one_listing_shows_the_later_counts(
    pool: PoolDirectory, lease: Lease, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that runs while a lease is renewed may show both names."""
    lease.renew()
    old = str(replace(lease.name, beat=0))
    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, listdir=lambda real, fd: [old, *real(fd), old])
        observer.look()
    assert observer.end(ME, "judge-2-bbbbbb"), "it was ended from the beat that is there"
    assert listed(pool) == [f"{ME}.dead@judge-2-bbbbbb"]


# ---- leases that are out of sight ----


def test_a_lease_that_vanished_expires_only_after_a_whole_lease_of_absence(
    pool: PoolDirectory, lease: Lease, observer: Observer, clock: Clock
) -> None:
    watch(observer, clock, LEASE_S / 2, (ME,))
    os.unlink(pool.lease(lease.name))
    seen = []
    for _ in range(BEATS_PER_LEASE + 1):
        observer.look([ME])
        seen.append(observer.standing(ME))
        clock.forward(BEAT_S)
    assert Standing.EXPIRED not in seen[:-1]
    assert seen[-1] is Standing.EXPIRED
    assert observer.end(ME, "judge-2-bbbbbb"), "there is no lease left to end"


def test_a_renewal_that_hides_a_lease_from_one_listing_makes_no_worker_suspect(
    lease: Lease, observer: Observer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(observer, clock, LEASE_S / 4, (ME,))
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, ME)
        clock.forward(BEAT_S)
        observer.look([ME])
        assert observer.standing(ME) is Standing.LIVING
    clock.forward(BEAT_S)
    lease.renew()
    observer.look([ME])
    assert observer.standing(ME) is Standing.LIVING
    assert observer.beating(ME)


def test_a_lease_that_every_other_listing_hides_never_expires(
    lease: Lease, observer: Observer, clock: Clock
) -> None:
    for _ in range(5 * BEATS_PER_LEASE):
        with pytest.MonkeyPatch.context() as patch:
            hide(patch, ME)
            observer.look([ME])
            assert observer.standing(ME) is Standing.LIVING
        clock.forward(BEAT_S)
        lease.renew()
        observer.look([ME])
        assert observer.standing(ME) is Standing.LIVING
        clock.forward(BEAT_S)


# ---- an observer that was itself away ----


@pytest.mark.parametrize("away_s", [LEASE_S, 10 * LEASE_S, 1e6])
def test_an_observer_does_not_count_time_in_which_it_did_not_look(
    lease: Lease, observer: Observer, clock: Clock, away_s: float
) -> None:
    """It may have been suspended together with the workers it watches: all wake at once."""
    watch(observer, clock, LEASE_S / 4)
    clock.forward(away_s)
    observer.look()
    assert observer.standing(ME) is not Standing.EXPIRED
    lease.renew()
    clock.forward(BEAT_S)
    observer.look()
    assert observer.standing(ME) is Standing.LIVING


def test_two_looks_far_apart_that_both_miss_a_lease_do_not_make_it_absent_in_between(
    lease: Lease, observer: Observer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, ME, times=2)
    observer.look([ME])
    clock.forward(3 * LEASE_S)
    observer.look([ME])
    assert observer.standing(ME) is not Standing.EXPIRED


def test_a_beat_that_moved_between_rare_looks_is_not_a_sign_of_life(
    observer: Observer, lease: Lease, clock: Clock
) -> None:
    """It moved at some time in between; believing it would leave a claim to a dead worker."""
    observer.look()
    lease.renew()
    clock.forward(3 * LEASE_S)
    observer.look()
    assert not observer.beating(ME)
    clock.forward(LEASE_S / 4)
    lease.renew()
    observer.look()
    assert observer.beating(ME)


def test_an_observer_that_was_away_still_finds_the_dead(
    lease: Lease, observer: Observer, clock: Clock
) -> None:
    observer.look()
    clock.forward(100 * LEASE_S)
    watch(observer, clock, LEASE_S / 2)
    assert observer.standing(ME) is Standing.EXPIRED


@pytest.mark.parametrize("beats", [0, 1])
def test_a_beat_that_moved_while_an_observer_was_stopped_is_not_a_sign_of_life(
    lease: Lease, observer: Observer, clock: Clock, beats: int
) -> None:
    """Its worker may have died at once; leaving because of it would strand a claim."""
    observer.look()
    clock.forward(BEAT_S)
    lease.renew()
    observer.look()
    assert observer.beating(ME)
    for _ in range(beats):
        lease.renew()
    clock.forward(10 * LEASE_S)
    observer.look()
    assert not observer.beating(ME)
    clock.forward(BEAT_S)
    lease.renew()
    observer.look()
    assert observer.beating(ME)


def test_a_listing_that_takes_longer_than_a_lease_makes_no_worker_expire(
    pool: PoolDirectory, lease: Lease, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beat may have been listed first, and have moved while the listing went on."""

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        found = real(fd)
        clock.forward(2 * LEASE_S)
        return found

    interpose(monkeypatch, listdir=listdir)
    observer = Observer(pool, clock)
    observer.look()
    observer.look()
    assert observer.standing(ME) is Standing.LIVING


# ---- proof on one host ----


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits to be killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def facts_of(pid: int) -> dict[str, Any]:
    """Return what a worker with this pid would have put into its lease."""
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return proof_of_life() | {"pid": pid, "started": started}


def test_a_process_of_this_host_that_runs_is_seen_to_run(child: subprocess.Popen[bytes]) -> None:
    assert look_at_process(proof_of_life()) is Process.RUNNING
    assert look_at_process(facts_of(child.pid)) is Process.RUNNING


def test_a_process_that_was_killed_is_gone_reaped_or_not(child: subprocess.Popen[bytes]) -> None:
    facts = facts_of(child.pid)
    child.kill()
    wait_for(lambda: state_of(child.pid) == "Z", "the child to be a zombie")
    assert look_at_process(facts) is Process.GONE
    child.wait()
    assert look_at_process(facts) is Process.GONE


def test_a_stopped_process_is_not_gone(child: subprocess.Popen[bytes]) -> None:
    facts = facts_of(child.pid)
    child.send_signal(signal.SIGSTOP)
    wait_for(lambda: state_of(child.pid) == "T", "the child to stop")
    assert look_at_process(facts) is Process.STOPPED


def test_a_pid_that_is_another_processs_by_now_proves_the_death_of_the_first() -> None:
    assert look_at_process(proof_of_life() | {"started": "1"}) is Process.GONE


@pytest.mark.parametrize(
    "facts",
    [
        {"boot": "another"},
        {"boot": ""},
        {"boot": None},
        {"pid_namespace": "pid:[1]"},
        {"pid_namespace": ""},
        {"time_namespace": "time:[1]"},
        {"started": ""},
        {"started": 7},
        {"started": None},
        {"pid": 0},
        {"pid": -1},
        {"pid": "1"},
        {"pid": None},
    ],
    ids=str,
)
def test_nothing_is_proved_of_another_boot_container_or_without_all_the_facts(
    facts: dict[str, Any],
) -> None:
    gone = proof_of_life() | {"pid": 2**22 + 1}
    assert look_at_process(gone) is Process.GONE
    assert look_at_process(gone | facts) is Process.UNKNOWN


def test_an_empty_proof_proves_nothing() -> None:
    assert look_at_process({}) is Process.UNKNOWN


def test_nothing_is_proved_without_a_boot_id_or_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_boot_id", "_pid_namespace"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(proof, name, lambda: "")
            gone = proof_of_life() | {"pid": 2**22 + 1}
            assert look_at_process(gone) is Process.UNKNOWN


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_an_observer_that_cannot_look_at_a_process_does_not_call_it_gone(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = proof_of_life()

    def no_open(path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("/stat"):
            raise OSError(number, os.strerror(number))
        return open(path, *args, **options)

    monkeypatch.setattr(proof, "open", no_open, raising=False)
    assert look_at_process(facts) is Process.UNKNOWN


def test_an_observer_proves_a_death_from_the_lease_even_after_the_lease_is_gone(
    pool: PoolDirectory, observer: Observer, child: subprocess.Popen[bytes]
) -> None:
    worker = id_here(child.pid)
    path = pool.lease(LeaseName(worker, 3))
    Path(path).write_text(json.dumps(facts_of(child.pid)))
    observer.look()
    assert observer.process(worker) is Process.RUNNING
    assert not observer.is_gone(worker)
    child.kill()
    child.wait()
    assert observer.process(worker) is Process.GONE
    os.unlink(path)
    assert observer.process(worker) is Process.GONE
    assert observer.is_gone(worker)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"], ids=repr)
def test_a_damaged_lease_proves_nothing_and_expires_by_time_alone(
    pool: PoolDirectory, observer: Observer, clock: Clock, data: bytes
) -> None:
    Path(pool.lease(LeaseName(ME, 0))).write_bytes(data)
    watch(observer, clock, LEASE_S)
    assert observer.process(ME) is Process.UNKNOWN
    assert observer.standing(ME) is Standing.EXPIRED


def test_nothing_is_known_of_a_worker_that_was_never_seen(observer: Observer) -> None:
    observer.look()
    assert observer.process("unknown") is Process.UNKNOWN
    assert observer.standing("unknown") is Standing.LIVING
    assert not observer.beating("unknown")
    assert observer.end("unknown", "judge-2-bbbbbb")


def test_other_names_among_the_leases_are_skipped(pool: PoolDirectory, lease: Lease) -> None:
    for text in ("README", f"{ME}.b1", ".hidden.b000001", "x.json"):
        Path(pool.directory("workers"), text).touch()
    assert lease_names(pool) == [lease.name]


# ---- R12: a process that runs here ----


def test_r12_a_silent_process_that_runs_on_this_host_is_not_dead_before_three_leases(
    pool: PoolDirectory, observer: Observer, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    worker = id_here(child.pid)
    Path(pool.lease(LeaseName(worker, 3))).write_text(json.dumps(facts_of(child.pid)))
    watch(observer, clock, 2.5 * LEASE_S)
    assert observer.standing(worker) is Standing.SUSPECT
    watch(observer, clock, LEASE_S)
    assert observer.standing(worker) is Standing.EXPIRED


def test_r12_a_stopped_process_is_dead_after_one(
    pool: PoolDirectory, observer: Observer, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    worker = id_here(child.pid)
    Path(pool.lease(LeaseName(worker, 3))).write_text(json.dumps(facts_of(child.pid)))
    child.send_signal(signal.SIGSTOP)
    wait_for(lambda: state_of(child.pid) == "T", "the child to stop")
    watch(observer, clock, LEASE_S)
    assert observer.standing(worker) is Standing.EXPIRED


# ---- R13: an absence is looked at again ----


@pytest.mark.parametrize("missed", range(ABSENT_LOOKS))
def test_r13_a_lease_that_listings_missed_for_a_lease_is_looked_for_again_before_it_counts_as_gone(
    lease: Lease,
    observer: Observer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    missed: int,
) -> None:
    """A busy directory hides a name from every listing of a lease, and from some more."""
    watch(observer, clock, BEAT_S, (ME,))
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, ME)
        watch(observer, clock, 2 * LEASE_S, (ME,))
    assert observer.standing(ME) is Standing.EXPIRED
    hide(monkeypatch, ME, times=missed)
    assert not observer.end(ME, "judge-2-bbbbbb"), "it lives"
    lease.renew()


def test_r13_a_lease_that_every_listing_misses_is_absent(
    observer: Observer, lease: Lease, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, ME)
    watch(observer, clock, 2 * LEASE_S, (ME,))
    assert observer.end(ME, "judge-2-bbbbbb")


def test_r13_a_worker_does_not_believe_a_listing_that_misses_its_own_lease(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal failed for a moment, and the listing that should tell why misses the lease."""
    left = [ABSENT_LOOKS - 1]

    def listdir(real: Callable[[int], list[str]], fd: int) -> list[str]:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("/workers"):
            return real(fd)
        left[0] -= 1
        return real(fd) if left[0] < 0 else []

    interpose(monkeypatch, rename=refused(errno.ENOENT, times=1), listdir=listdir)
    with pytest.raises(OSError) as error:
        lease.renew()
    assert not isinstance(error.value, LeaseLost)
    lease.renew()
    assert lease.name.beat == 1


# ---- R15: leaving ----


def test_r15_a_lease_that_says_leaving_goes_on_saying_so_until_it_ends(
    pool: PoolDirectory, lease: Lease, observer: Observer
) -> None:
    lease.renew()
    lease.renew(leaving=True)
    lease.renew()
    assert listed(pool) == [f"{ME}.leaving-b000003"]
    observer.look()
    assert observer.excuses(ME)
    assert observer.end(ME, "judge-2-bbbbbb")
    assert listed(pool) == [f"{ME}.leaving-dead@judge-2-bbbbbb"]
    observer.look([ME])
    assert (observer.standing(ME), observer.excuses(ME)) == (Standing.ENDED, True)


def test_r15_a_worker_that_left_is_excused_and_one_that_was_declared_dead_is_not(
    pool: PoolDirectory, lease: Lease, observer: Observer
) -> None:
    other = Lease(pool, "you-2-bbbbbb")
    other.enlist()
    observer.look()
    assert not observer.excuses(ME)
    lease.retire()
    assert observer.end(other.name.worker, ME)
    observer.look([ME, other.name.worker])
    assert observer.excuses(ME) and not observer.excuses(other.name.worker)


def test_r15_a_renewal_whose_maker_died_before_it_could_tell_is_recognised(
    pool: PoolDirectory, lease: Lease
) -> None:
    """Its guardian renewed, perhaps without knowing yet that the worker leaves."""
    for leaving_then, leaving_now in ((False, True), (True, True), (False, False)):
        before = lease.name
        lease.renew(leaving=leaving_then)
        reached, lease.name = lease.name, before
        lease.renew(leaving=leaving_now)
        assert lease.name == reached
    lease.retire()
    assert listed(pool) == [f"{ME}.left"]


# ---- R19: leases that have ended ----


def test_r19_leases_that_have_ended_are_not_among_the_living(
    pool: PoolDirectory, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not even listed, unless a worker is missed."""
    for number in range(20):
        lease = Lease(pool, f"them-{number}-cccccc")
        lease.enlist()
        lease.retire()
    assert os.listdir(pool.directory("workers")) == ["ended"]
    looked: list[str] = []

    def note(real: Callable[[int], list[str]], fd: int) -> list[str]:
        looked.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
        return real(fd)

    interpose(monkeypatch, listdir=note)
    observer.look()
    assert looked == ["workers"]
    observer.look(["them-3-cccccc"])
    assert looked[1:] == ["workers", "ended"]
    assert observer.standing("them-3-cccccc") is Standing.ENDED


def test_r19_a_pool_of_an_earlier_version_gets_its_directory_of_ended_leases_when_one_ends(
    pool: PoolDirectory, lease: Lease, observer: Observer
) -> None:
    os.rmdir(pool.ended_leases)
    Path(pool.directory("workers"), "old-2-bbbbbb.left").touch()
    observer.look(["old-2-bbbbbb"])
    assert observer.standing("old-2-bbbbbb") is Standing.ENDED
    assert observer.end(ME, "judge-2-bbbbbb")
    assert os.listdir(pool.ended_leases) == [f"{ME}.dead@judge-2-bbbbbb"]
    with pytest.raises(LeaseLost):
        lease.renew()


def test_r10_a_lease_that_cannot_be_given_up_now_is_not_renewed_by_trying(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(pool, ME)
    lease.enlist()
    with monkeypatch.context() as patch:
        interpose(patch, rename=refused(errno.ESTALE, times=9))
        with pytest.raises(OSError, match="could not be renamed"):
            lease.give_up(leaving=True)
    assert lease_names(pool) == [LeaseName(ME, beat=0)]
    assert "gave up its lease" in lease.give_up(leaving=True)
    assert lease_names(pool) == []
