"""A program, and everything that it starts, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsqueue.processes import orphans, program, table
from fsqueue.processes.program import STDERR_KEPT, Program
from tests.support.processes import alive, state_of, wait_for, wait_until_gone

LINUX = pytest.mark.skipif(not table.shows_this_process(), reason="needs /proc of this namespace")
NOTE = 'note() { echo $1 > "$D/$2.tmp"; mv "$D/$2.tmp" "$D/$2"; }; '
"""`note NUMBER NAME` writes a number into a file of $D, whole."""

Begin = Callable[..., Program]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a shell script as a program, with $D as a directory for notes; end it at the end."""
    begun = []

    def begin(script: str, *words: str, stdout: int | None = None) -> Program:
        environment = {**os.environb, b"D": os.fsencode(tmp_path), b"MARK": b"1"}
        one = Program(
            ["sh", "-c", NOTE + script, "sh", *words],
            environment=environment,
            directory=None,
            stdout=stdout,
            mark=b"MARK=1",
        )
        begun.append(one)
        return one

    yield begin
    for one in begun:
        one.end(0.0)
        one.close()


def run(one: Program, *, linger_s: float = 0.0, grace_s: float = 5.0) -> int:
    """Wait for a program's end and for that of everything it started."""
    wait_for(lambda: one.wait(0.05), "the program to end")
    return one.finish(linger_s=linger_s, grace_s=grace_s)


def noted(directory: Path, name: str) -> int:
    """Wait for a number that the program writes into a file."""
    path = directory / name
    wait_for(path.exists, f"{name} to be noted")
    return int(path.read_text())


# ---- how it begins ----


def test_r20_a_program_leads_its_own_session_and_group_from_the_first_instruction(
    begin: Begin,
) -> None:
    one = begin("exec sleep 1000")
    process = table.read(one.pid)
    assert process is not None
    assert (process.group, process.session) == (one.pid, one.pid)


def test_r20_programs_start_while_other_threads_hold_locks_and_start_programs(
    begin: Begin,
) -> None:
    """No Python runs between fork and exec, so that no lock can be held there for ever."""
    threads = [
        threading.Thread(target=lambda: [subprocess.run(["true"]) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert [run(begin("exit 3")) for _ in range(20)] == [3] * 20
    for thread in threads:
        thread.join()


def test_the_exit_status_is_the_programs_own(begin: Begin) -> None:
    assert run(begin("exit 7")) == 7
    assert run(begin("kill -SEGV $$")) == -signal.SIGSEGV


def test_a_program_that_does_not_exist_is_an_error_that_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        Program(["/no/such"], environment={}, directory=None, stdout=None, mark=b"")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_where_the_kernel_has_no_process_descriptors_the_end_is_noticed_as_well(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    one = begin("sleep 0.05; exit 4")
    assert not one.wait(0.0)
    assert run(one) == 4


# ---- everything that it started ends with it ----


def test_r21_a_child_that_this_process_started_for_itself_meanwhile_is_no_orphan(
    begin: Begin,
) -> None:
    """A worker's guardian begins at about the same time as the worker's first program."""
    one = begin("true")
    ours = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        orphans.keep(ours.pid)
        assert run(one) == 0
        assert one.ended == set() and ours.poll() is None
    finally:
        ours.kill()
        ours.wait()


FAMILIES = {
    "in the background": "sleep 1000 & note $! child",
    "in the background, without streams": "sleep 1000 <&- >&- 2>&- & note $! child",
    "in a session of its own": "setsid sh -c 'echo $$ > $D/c.tmp; mv $D/c.tmp $D/child; "
    "exec sleep 1000' & while [ ! -e $D/child ]; do sleep 0.01; done",
    "after a double fork": "( (setsid sh -c 'echo $$ > $D/c.tmp; mv $D/c.tmp $D/child; "
    "exec sleep 1000' <&- >&- 2>&- &) & ); while [ ! -e $D/child ]; do sleep 0.01; done",
    "with an empty environment": "setsid env -i sh -c 'echo $$ > $1/c.tmp; "
    "mv $1/c.tmp $1/child; exec sleep 1000' sh $D & while [ ! -e $D/child ]; do sleep 0.01; done",
    "deaf to SIGTERM": "(trap '' TERM; note deaf said; exec sleep 1000) & note $! child; "
    "while [ ! -e $D/said ]; do sleep 0.01; done",
    "stopped": "sleep 1000 & note $! child; kill -STOP $!",
}


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("how", FAMILIES)
@pytest.mark.parametrize("status", [0, 5])
def test_r22_what_a_program_left_running_has_ended_and_is_reaped_when_it_is_finished(
    begin: Begin, tmp_path: Path, how: str, status: int
) -> None:
    one = begin(f"{FAMILIES[how]}; exit {status}")
    assert run(one, grace_s=0.2) == status
    child = noted(tmp_path, "child")
    assert state_of(child) == ""
    assert child in one.ended
    assert one.all_ended


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("how", FAMILIES)
def test_r22_ending_a_program_ends_and_reaps_what_it_started(
    begin: Begin, tmp_path: Path, how: str
) -> None:
    one = begin(f"{FAMILIES[how]}; note $$ ready; exec sleep 1000")
    noted(tmp_path, "ready")
    one.end(0.2)
    assert [state_of(pid) for pid in (noted(tmp_path, "child"), one.pid)] == ["", ""]


@LINUX
@pytest.mark.slow
def test_r22_what_goes_on_forking_is_ended(begin: Begin, tmp_path: Path) -> None:
    script = (
        "setsid sh -c 'while :; do sleep 1000 & echo $! >> $D/all; sleep 0.01; done' & "
        "while [ ! -e $D/all ]; do sleep 0.01; done"
    )
    assert run(begin(script), grace_s=0.0) == 0
    wait_until_gone([int(line) for line in (tmp_path / "all").read_text().split()])


@LINUX
@pytest.mark.slow
def test_r22_what_runs_from_process_to_process_is_ended(begin: Begin, tmp_path: Path) -> None:
    """Each lives for a moment and starts the next, in a group of its own."""
    (tmp_path / "hop").write_text('echo $$ > "$D/hopped"; setsid sh "$D/hop" & exit\n')
    one = begin('setsid sh "$D/hop" & while [ ! -e $D/hopped ]; do sleep 0.01; done')
    assert run(one, grace_s=0.0) == 0
    assert one.all_ended
    last = (tmp_path / "hopped").read_text()
    with pytest.raises(TimeoutError):
        wait_for(lambda: (tmp_path / "hopped").read_text() != last, "another hop", deadline_s=0.2)


@LINUX
@pytest.mark.slow
def test_r22_what_finishes_by_itself_in_a_moment_is_left_to_finish(
    begin: Begin, tmp_path: Path
) -> None:
    one = begin("(sleep 0.3; note 1 flushed) & exit 0")
    assert run(one, linger_s=10.0) == 0
    assert (tmp_path / "flushed").exists()
    assert not one.ended


@LINUX
def test_r22_a_program_that_leaves_nothing_costs_no_look_at_other_processes(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[int]:
        raise AssertionError("every process was listed")

    monkeypatch.setattr(program.table, "pids", refuse)
    assert run(begin("exit 0")) == 0


@LINUX
@pytest.mark.slow
def test_r22_a_second_signal_cuts_the_grace_short_and_leaves_nothing(
    begin: Begin, tmp_path: Path
) -> None:
    class Impatient(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Impatient

    one = begin("trap '' TERM; sleep 1000 & note $! child; note $$ ready; wait; wait")
    noted(tmp_path, "ready")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Impatient):
            one.end(1000.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [state_of(pid) for pid in (one.pid, noted(tmp_path, "child"))] == ["", ""]


@LINUX
@pytest.mark.slow
def test_r22_what_cannot_be_ended_is_waited_for_only_for_a_while_and_reported(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a process that hangs in the kernel, or is another user's: no signal reaches it."""
    one = begin("sleep 1000 & note $! child")
    child = noted(tmp_path, "child")
    with monkeypatch.context() as patch:
        patch.setattr(program, "KILL_S", 0.1)
        patch.setattr(os, "killpg", lambda group, number: None)
        assert run(one, grace_s=0.0) == 0
    assert [process.pid for process in one.unended] == [child]
    assert not one.all_ended
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: state_of(child) == "Z", "it to end")
    assert run(begin("exit 0")) == 0
    assert state_of(child) == "", "it is reaped with the next program"


@LINUX
@pytest.mark.slow
def test_r22_without_adopting_orphans_they_are_found_by_session_and_mark(
    tmp_path: Path,
) -> None:
    """In a process of its own: adopting cannot be undone for those that have begun."""
    code = f"""
import os, sys, time
from fsqueue.processes import orphans
orphans._become_subreaper = lambda: False
from fsqueue.processes.program import Program
d = {str(tmp_path)!r}
one = Program(["sh", "-c", "sleep 1000 & echo $! > $D/a; setsid sleep 1000 & echo $! > $D/b"],
    environment=os.environb | {{b"D": os.fsencode(d), b"MARK": b"me"}}, directory=None,
    stdout=None, mark=b"MARK=me")
while not one.wait(1.0):
    pass
assert one.finish(linger_s=0.0, grace_s=1.0) == 0
print(len(one.ended), one.all_ended)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 True\n", done.stderr
    wait_until_gone([int((tmp_path / name).read_text()) for name in "ab"])


@LINUX
@pytest.mark.slow
def test_r21_orphans_that_end_while_the_program_runs_are_reaped_meanwhile(
    begin: Begin, tmp_path: Path
) -> None:
    one = begin("(setsid sh -c 'echo $$ > $D/c; mv $D/c $D/child' &); exec sleep 1000")
    child = noted(tmp_path, "child")
    wait_for(lambda: state_of(child) == "Z", "the orphan to end")
    one.cpu_s()
    assert state_of(child) == ""


@LINUX
@pytest.mark.slow
def test_r21_children_of_other_threads_are_neither_ended_nor_reaped(begin: Begin) -> None:
    other = subprocess.Popen(["sleep", "1000"])
    one = begin("exit 0")
    later = subprocess.Popen(["sh", "-c", "exit 9"])
    wait_for(lambda: state_of(later.pid) == "Z", "the other child to end")
    try:
        assert run(one) == 0
        assert later.wait() == 9
        assert alive(other.pid)
    finally:
        other.kill()
        other.wait()


def test_where_processes_cannot_be_seen_its_group_is_ended_and_nothing_more_is_claimed(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "shows_this_process", lambda: False)
    one = begin("sleep 1000 & note $! child")
    assert run(one, grace_s=0.1) == 0
    wait_until_gone([noted(tmp_path, "child")])
    assert not one.all_ended
    assert one.cpu_s() is None


# ---- stderr ----


@pytest.mark.slow
def test_r23_a_huge_stderr_is_drained_and_its_end_kept(begin: Begin) -> None:
    one = begin(f"head -c {64 << 20} /dev/zero | tr '\\0' x >&2; echo the end >&2")
    assert run(one) == 0
    assert one.bytes_written > 64 << 20 or one.tail
    assert one.tail.endswith("xxxthe end\n")
    assert len(one.tail) == STDERR_KEPT
    assert len(one._kept) <= 4 * STDERR_KEPT + program._PIECE


@pytest.mark.slow
def test_r23_a_program_that_never_stops_writing_can_be_waited_for_with_a_limit(
    begin: Begin,
) -> None:
    one = begin("exec yes >&2")
    assert not one.wait(0.2)
    one.end(0.0)
    assert one.tail.endswith("y\ny\n") or one.tail.endswith("y\ny")


@LINUX
@pytest.mark.slow
def test_r23_stderr_that_a_descendant_holds_open_holds_nothing_up(
    begin: Begin, tmp_path: Path
) -> None:
    one = begin("echo before >&2; sleep 1000 & note $! child")
    assert run(one) == 0
    assert one.tail == "before\n"


def test_r23_stderr_may_be_closed_early(begin: Begin) -> None:
    one = begin("echo first >&2; exec 1>&- 2>&-; sleep 0.1; exit 2")
    assert run(one) == 2
    assert one.tail == "first\n"


# ---- what it does ----


@LINUX
@pytest.mark.slow
def test_r29_cpu_time_is_that_of_the_program_and_of_all_its_descendants(
    begin: Begin, tmp_path: Path
) -> None:
    busy = begin("setsid sh -c 'while :; do :; done' & wait")
    wait_for(lambda: (busy.cpu_s() or 0.0) > 0.1, "CPU time to be used")
    idle = begin("note $$ ready; exec sleep 1000")
    noted(tmp_path, "ready")
    assert (idle.cpu_s() or 0.0) < 0.1
