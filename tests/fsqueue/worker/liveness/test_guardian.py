"""A lease says the truth about its worker: with real workers, guardians, signals and deaths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsqueue.handler import Handler
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import LeaseName, ended_lease_names, lease_names
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.worker.liveness.guardian import IGNORED, overdue_error
from tests.support.handlers import install_handler
from tests.support.planning import FOREVER, counts, ids, make_inputs, names_in, plan, plan_command
from tests.support.pools import ManualWorker, make_pool, only_claim
from tests.support.processes import (
    Running,
    Start,
    alive,
    environment,
    fsqueue,
    guardians_of,
    leases_in,
    wait_for,
    wait_until_gone,
)

pytestmark = pytest.mark.slow

LEASE_S = 1.0
LONG_S = 60.0
"""A lease so long that no beat of it comes by itself during a test."""
QUICK = ("--steal-interval", "0.2")

HOLDS_THE_INTERPRETER = """
import ctypes, os, pathlib
from fsqueue import Handler

class Made(Handler):
    suffix = ".txt"

    def run(self, work):
        pathlib.Path(os.environ["BEGUN"]).touch()
        ctypes.PyDLL(None).usleep(ctypes.c_uint(4_000_000))  # it does not let go of the GIL
        work.output.write_text("fine")
"""

LIFE = """
import ctypes, os, signal, sys, time
from fsqueue.pool.leases import Lease
from fsqueue.pool.names import ClaimName, new_worker_id
from fsqueue.pool.settings import open_pool
from fsqueue.records.status import Status
from fsqueue.storage import directories
from fsqueue.pool import claims
from fsqueue.worker.liveness.heartbeat import Heartbeat

pool = open_pool(sys.argv[1])
me = new_worker_id()
lease = Lease(pool, me)
lease.enlist({"worker": me})
directories.make_private(pool.scratch(me))
(name,) = claims.waiting(pool, "gpu0")
name = claims.take(pool, "gpu0", name, me)
beat = Heartbeat(pool, lease, Status(me), guarded=True)
beat.start()
while not beat.progress.ticked:
    time.sleep(0.01)
signal.signal(signal.SIGTERM, lambda *_: beat.announce_leaving())

def hold_the_interpreter():
    ctypes.PyDLL(None).sleep(600)

def say(what):
    print(what, flush=True)

"""
"""The start of a process that enlists, takes the only claim, and begins to beat."""


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.3", lease_s=LEASE_S)


@pytest.fixture
def live() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that does LIFE, and then what it is told; kill it at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(pool: PoolDirectory, code: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", LIFE + code, pool.root],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def hears(process: subprocess.Popen[str], what: str) -> None:
    """Wait until a process has said something."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line == what, (line, process.stderr.read() if process.stderr else "")


def held(pool: PoolDirectory) -> ClaimName:
    """Wait until a claim runs; return its name."""
    return wait_for(lambda: names_in(pool, State.RUNNING), "a claim to run")[0]


def lease_of(pool: PoolDirectory, worker: str) -> LeaseName:
    """Return a worker's lease, which a renewal can hide from one listing."""

    def found() -> LeaseName | None:
        names = [*lease_names(pool), *ended_lease_names(pool)]
        return next((name for name in names if name.worker == worker), None)

    name = wait_for(found, f"the lease of {worker}")
    assert name is not None
    return name


def ended_lease_of(pool: PoolDirectory, worker: str) -> LeaseName:
    """Wait until a worker's lease has ended; return it."""
    wait_for(lambda: not lease_of(pool, worker).living, f"the lease of {worker} to end")
    return lease_of(pool, worker)


def guardian_of(worker: Running) -> int:
    """Return the pid of a worker's guardian."""
    return wait_for(lambda: guardians_of(worker.pid), "its guardian")[0]


def beats_on(pool: PoolDirectory, worker: str, beats: int) -> None:
    """Wait until a lease has moved on by so many beats."""
    before = lease_of(pool, worker).beat or 0
    wait_for(lambda: (lease_of(pool, worker).beat or 0) >= before + beats, f"{beats} more beats")


def events(pool: PoolDirectory) -> list[dict[str, object]]:
    """Return all events of all journals."""
    paths = Path(pool.directory("events")).glob("*.jsonl")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


# ---- R10: what is renewed for, and what is not ----


def test_r10_a_handler_that_holds_the_interpreter_for_three_leases_is_not_declared_dead(
    start: Start, tmp_path: Path
) -> None:
    env = install_handler(tmp_path / "site", "greedy", HOLDS_THE_INTERPRETER)
    env["BEGUN"] = str(tmp_path / "begun")
    handler = Handler()
    handler.name, handler.suffix = "greedy", ".txt"
    inputs = make_inputs(tmp_path / "in", 1)
    pool, _ = plan(tmp_path / "pool", handler, [*inputs], {}, lease_s=LEASE_S)
    worker = start("work", pool.root, env=env)
    name = held(pool)
    wait_for(Path(env["BEGUN"]).exists, "the handler to begin")
    other = start("work", pool.root, "--keep-alive", *QUICK, env=env)
    beats_on(pool, name.owner or "", 12)
    assert names_in(pool, State.RUNNING) == [name], "three leases have passed, and it still runs"
    assert worker.reap() == 0, worker.log
    other.send(signal.SIGTERM)
    other.reap()
    assert [done.attempt for done in names_in(pool, State.DONE)] == [0]
    assert not [event for event in events(pool) if event["event"] in ("ended", "recovered")]


def test_r10_a_worker_that_is_stuck_outside_a_handler_gives_its_lease_up_uncharged(
    pool: PoolDirectory, live: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Its main thread opens a FIFO that nothing writes to; a worker beside it does the claim."""
    os.mkfifo(tmp_path / "fifo")
    stuck = live(pool, f"beat.step(); say('stuck'); open({str(tmp_path / 'fifo')!r})")
    hears(stuck, "stuck")
    owner = only_claim(pool, State.RUNNING).owner or ""
    lease = ended_lease_of(pool, owner)
    assert stuck.poll() is None, "its process lives"
    assert (lease.ended_by, lease.excuses) == (owner, True)
    judge = ManualWorker(pool)
    (recovered,) = judge.sweep()
    assert (recovered.became.attempt, recovered.became.returns) == (0, 1)


def test_r10_a_main_thread_that_gets_on_or_is_in_a_handler_is_not_stuck(
    pool: PoolDirectory, live: Callable[..., subprocess.Popen[str]]
) -> None:
    """It sleeps for five leases in a handler, takes steps for as long, and then uses the disk."""
    code = f"""
with beat.handling():
    time.sleep(5 * {LEASE_S})
for _ in range(50):
    beat.step()
    time.sleep({LEASE_S} / 10)
for _ in range(50):
    claims.waiting(pool, "gpu0")
    time.sleep({LEASE_S} / 10)
assert beat.lost is None
beat.stop()
lease.retire()
say("left")
"""
    process = live(pool, code)
    hears(process, "left")
    assert process.wait() == 0


def test_r10_a_stopped_worker_is_not_renewed_for(pool: PoolDirectory, start: Start) -> None:
    pool = plan_command(
        Path(pool.root, "../stopped"), make_inputs(Path(pool.root, "../in"), 1), FOREVER,
        lease_s=LEASE_S,
    )  # fmt: skip
    worker = start("work", pool.root)
    owner = held(pool).owner or ""
    guardian = guardian_of(worker)
    worker.freeze()
    judge = ManualWorker(pool)
    wait_for(judge.sweep, "its claim to go back")
    assert ended_lease_of(pool, owner).ended_by == judge.id
    assert alive(guardian)
    worker.thaw()
    assert worker.reap() == 1
    assert "declared dead by" in worker.log
    wait_until_gone([guardian])


# ---- R16: the watchdog ----


def test_r16_a_handler_that_cannot_be_interrupted_is_ended_with_its_worker_and_charged(
    pool: PoolDirectory, live: Callable[..., subprocess.Popen[str]]
) -> None:
    code = "with beat.handling(0.3, name, grace_s=0.3): say('in'); hold_the_interpreter()"
    process = live(pool, code)
    hears(process, "in")
    name = only_claim(pool, State.RUNNING)
    assert process.wait() == -signal.SIGKILL
    lease = ended_lease_of(pool, name.owner or "")
    assert (lease.ended_by, lease.excuses) == (name.owner, False)
    (recovered,) = ManualWorker(pool).sweep()
    assert recovered.became.attempt == 1
    record = json.loads(Path(pool.error(name.id, 0)).read_text())
    assert record["error"] == overdue_error(0.3)


def test_r16_a_handler_that_ends_in_time_is_left_alone(
    pool: PoolDirectory, live: Callable[..., subprocess.Popen[str]]
) -> None:
    """Also one whose time is up, but that ends within its grace."""
    code = """
for timeout_s in (60.0, 0.1):
    with beat.handling(timeout_s, name, grace_s=60.0):
        time.sleep(1.0)
with beat.handling(0.1, name, grace_s=60.0):
    with beat.handling():
        time.sleep(0.5)
beat.stop()
lease.retire()
say("left")
"""
    process = live(pool, code)
    hears(process, "left")
    assert process.wait() == 0
    assert os.listdir(pool.directory("errors")) == []


def test_r16_the_time_in_which_a_worker_was_stopped_is_not_counted(
    pool: PoolDirectory, live: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
stood_still_s = lambda: time.monotonic() - beat.progress.running_s
say("in")
while stood_still_s() < 1.0:
    time.sleep(0.01)
say("counted")
"""
    process = live(pool, code)
    hears(process, "in")
    process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 1.5
    wait_for(lambda: time.monotonic() > until, "a second and a half to pass")
    process.send_signal(signal.SIGCONT)
    hears(process, "counted")


# ---- R17: death ----


def test_r17_a_killed_worker_ends_its_lease_at_once_and_removes_what_it_was_writing(
    start: Start, tmp_path: Path
) -> None:
    """No other process is there, and a lease is a minute: only its guardian can have done it."""
    inputs = make_inputs(tmp_path / "in", 1)
    script = 'echo half > "$1"; exec sleep 1000'
    argv = ["sh", "-c", script, "sh", "{output}", "{input}"]
    pool = plan_command(tmp_path / "pool", inputs, argv, lease_s=LONG_S)
    worker = start("work", pool.root)
    name = held(pool)
    scratch = Path(pool.scratch(name.owner or ""))
    wait_for(lambda: [*scratch.iterdir()], "half an output")
    guardian = guardian_of(worker)
    assert os.getsid(guardian) == guardian != worker.pid
    os.killpg(worker.pid, signal.SIGKILL)
    worker.reap()
    assert ended_lease_of(pool, name.owner or "").ended_by == name.owner
    wait_until_gone([guardian])
    assert not scratch.exists()
    assert fsqueue("recover", pool.root).returncode == 0
    (back,) = names_in(pool, State.WAITING)
    assert (back.attempt, back.returns) == (1, 1), "a crash is charged"
    assert [event["of"] for event in events(pool) if event["event"] == "ended"] == [name.owner]


def test_r17_no_signal_to_a_workers_job_or_terminal_ends_its_guardian(
    start: Start, tmp_path: Path
) -> None:
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER, lease_s=LEASE_S
    )
    worker = start("work", pool.root)
    owner = held(pool).owner or ""
    guardian = guardian_of(worker)
    for number in IGNORED:
        os.kill(guardian, number)
    beats_on(pool, owner, 4)
    assert guardians_of(worker.pid) == [guardian]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_r17_a_worker_whose_guardian_is_killed_or_stopped_renews_its_lease_itself(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    inputs = make_inputs(tmp_path / "in", 1)
    script = 'until [ -e "$1" ]; do sleep 0.05; done; cat "$2"'
    argv = ["sh", "-c", script, "sh", str(tmp_path / "gate"), "{input}"]
    pool = plan_command(tmp_path / "pool", inputs, argv, lease_s=LEASE_S)
    worker = start("work", pool.root)
    owner = held(pool).owner or ""
    guardian = guardian_of(worker)
    beats_on(pool, owner, 2)
    os.kill(guardian, number)
    wait_for(lambda: "a thread does so instead" in worker.log, "the worker to take over")
    wait_until_gone([guardian])
    beats_on(pool, owner, 8)
    assert guardians_of(worker.pid) == []
    (tmp_path / "gate").touch()
    assert worker.reap() == 0, worker.log
    assert [name.attempt for name in names_in(pool, State.DONE)] == [0]
    assert leases_in(pool) == [f"{owner}.left"]


def test_r17_a_lease_is_never_lost_at_whatever_moment_the_guardian_is_killed(
    tmp_path: Path, live: Callable[..., subprocess.Popen[str]]
) -> None:
    """With a beat every few milliseconds, the kill often falls between a renewal and its report."""
    code = """
import random
assert beat._guardian is not None
with beat.handling():
    time.sleep(random.uniform(0.0, 0.1))
    os.kill(beat._guardian.pid, signal.SIGKILL)
    while beat._guardian is not None:
        time.sleep(0.001)
    for _ in range(20):
        reached = lease.name.beat
        while lease.name.beat == reached and beat.lost is None:
            time.sleep(0.001)
assert beat.lost is None, beat.lost
beat.stop()
lease.retire()
say("left")
"""
    for number in range(8):
        pool = make_pool(tmp_path / f"pool{number}", "a.3", lease_s=0.02)
        process = live(pool, code)
        hears(process, "left")
        assert process.wait() == 0
        (lease,) = leases_in(pool)
        assert lease.endswith(".left")


def test_a_worker_that_leaves_takes_its_guardian_with_it(start: Start, tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", 1)
    pool = plan_command(tmp_path / "pool", inputs, ["sh", "-c", "sleep 0.5", "sh", "{input}"])
    worker = start("work", pool.root)
    guardian = guardian_of(worker)
    assert worker.reap() == 0
    assert not alive(guardian)
    assert [name.split(".")[1] for name in leases_in(pool)] == ["left"]


def test_where_no_process_can_be_started_a_thread_renews_the_lease(
    pool: PoolDirectory, live: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
beat.stop()
sys.executable = "/nowhere/python"
beat = Heartbeat(pool, lease, Status(me), guarded=True)
beat.start()
reached = lease.name.beat
while lease.name.beat < reached + 8 and beat.lost is None:
    time.sleep(0.01)
assert beat.lost is None, beat.lost
say("renewed")
"""
    process = live(pool, code)
    hears(process, "renewed")
    process.kill()
    assert "a thread does so instead" in process.communicate()[1]


# ---- R15: leaving ----


def test_r15_a_worker_that_dies_while_its_lease_says_leaving_is_excused(
    tmp_path: Path, live: Callable[..., subprocess.Popen[str]]
) -> None:
    """The lease says so at once: the next beat would be a quarter of a minute away."""
    pool = make_pool(tmp_path / "pool", "a.3", lease_s=LONG_S)
    process = live(pool, "say('here'); signal.pause(); signal.pause()")
    hears(process, "here")
    owner = only_claim(pool, State.RUNNING).owner or ""
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: lease_of(pool, owner).leaving, "the lease to say that it leaves")
    assert lease_of(pool, owner).living
    process.kill()
    process.wait()
    lease = ended_lease_of(pool, owner)
    assert (lease.ended_by, lease.leaving) == (owner, True)
    (recovered,) = ManualWorker(pool).sweep()
    assert (recovered.became.attempt, recovered.became.returns) == (0, 1)
    assert os.listdir(pool.directory("errors")) == []


def test_r15_the_thread_says_so_too_where_there_is_no_guardian(pool: PoolDirectory) -> None:
    hand = ManualWorker(pool)
    hand.beat.start()
    hand.beat.announce_leaving()
    wait_for(lambda: lease_of(pool, hand.id).leaving, "the lease to say that it leaves")
    hand.beat.stop()
    hand.leave()


# ---- R14: busy workers watch, too ----


def test_r14_a_worker_that_is_busy_puts_back_what_a_dead_one_held(
    start: Start, tmp_path: Path
) -> None:
    """Both run claims without end; then one of them, and all that could prove it, is gone."""
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 2), FOREVER, lease_s=LEASE_S
    )
    busy, dead = start("work", pool.root, *QUICK), start("work", pool.root, *QUICK)
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "both claims to run")
    gone = dead.worker_in(pool)
    dead.vanish()
    name = wait_for(lambda: [n for n in lease_names(pool) if n.worker == gone], "its lease")[0]
    Path(pool.lease(name)).write_text("{}")
    wait_for(lambda: counts(pool) == {"running": 1, "waiting": 1}, "its claim to go back")
    assert not busy.ended()
    (back,) = names_in(pool, State.WAITING)
    assert back.attempt == 1
    assert claims.waiting(pool, "cpu0") == [back]
