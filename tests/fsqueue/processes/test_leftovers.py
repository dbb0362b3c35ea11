"""What a dead worker's programs left running, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsqueue.processes import leftovers, table
from fsqueue.processes.leftovers import end_everything_of, everything_of
from fsqueue.processes.temporary import TemporaryDirectory
from tests.support.processes import alive, wait_for, wait_until_gone

pytestmark = pytest.mark.skipif(
    not table.shows_this_process(), reason="needs /proc of this PID namespace"
)
START = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
"""A worker that starts a program and dies at once."""

WORKER = f"node7-{os.getpid()}-aaaaaa"
"""Unlike that of another run of these tests, whose processes would be ended, too."""
OTHER = f"node7-{os.getpid()}-bbbbbb"

Leave = Callable[..., int]


@pytest.fixture
def leave(tmp_path: Path) -> Iterator[Leave]:
    """Run a shell script as the program of a worker that dies; return a number that it notes.

    The script writes the numbers of its processes, one a line, into $ALL.
    """
    pids: list[int] = []

    def leave(worker: str, script: str, count: int = 1) -> list[int]:
        note = tmp_path / f"{len(pids)}-{worker}"
        subprocess.run(
            [sys.executable, "-c", START, "sh", "-c", script],
            env=os.environ | {"FSQUEUE_WORKER": worker, "ALL": str(note)},
            check=True,
        )
        found = wait_for(
            lambda: note.exists() and len(note.read_text().split()) == count and note.read_text(),
            "the program to start",
        )
        new = [int(line) for line in str(found).split()]
        pids.extend(new)
        return new

    yield leave
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)


FAMILY = (
    "trap '' TERM; sleep 1000 & echo $! >> $ALL; "
    "setsid sh -c 'echo $$ >> $ALL; exec sleep 1000' & "
    "env -i sh -c 'echo $$ >> $1; exec sleep 1000' sh $ALL & "
    "setsid env -i sh -c 'echo $$ >> $1; exec sleep 1000' sh $ALL & "
    "(sleep 1000 & echo $! >> $ALL; kill -STOP $!); "
    "echo $$ >> $ALL; wait"
)


@pytest.mark.slow
def test_r24_all_that_a_dead_workers_programs_left_is_ended_and_counted(leave: Leave) -> None:
    pids = leave(WORKER, FAMILY, 6)
    assert end_everything_of(WORKER) == 6
    wait_until_gone(pids)


@pytest.mark.slow
def test_r24_programs_of_other_workers_go_on(leave: Leave) -> None:
    other = leave(OTHER, "echo $$ >> $ALL; exec sleep 1000")
    longer = leave(f"{WORKER}b", "echo $$ >> $ALL; exec sleep 1000")
    mine = leave(WORKER, "echo $$ >> $ALL; exec sleep 1000")
    assert end_everything_of(WORKER) == 1
    wait_until_gone(mine)
    assert alive(other[0])
    assert alive(longer[0])


@pytest.mark.slow
def test_r24_what_goes_on_forking_is_ended(leave: Leave) -> None:
    script = "echo $$ >> $ALL; while :; do (sleep 0.02; :) & sleep 0.005; done"
    (pid,) = leave(WORKER, script)
    assert end_everything_of(WORKER) >= 1
    wait_until_gone([pid])
    assert everything_of(WORKER) == []


@pytest.mark.slow
def test_r24_the_programs_of_a_worker_that_is_itself_a_program_are_ended_too(leave: Leave) -> None:
    script = (
        "echo $$ >> $ALL; FSQUEUE_WORKER=$FSQUEUE_WORKER-inner "
        "setsid sh -c 'echo $$ >> $ALL; exec sleep 1000' & wait"
    )
    pids = leave(WORKER, script, 2)
    assert end_everything_of(WORKER) == 2
    wait_until_gone(pids)


def test_r24_nothing_to_end_is_no_error_and_may_be_asked_twice() -> None:
    assert end_everything_of(f"{WORKER}-none") == 0
    assert end_everything_of(f"{WORKER}-none") == 0


@pytest.mark.slow
def test_r24_the_process_that_ends_them_spares_itself_and_its_ancestors() -> None:
    code = (
        "import os; from fsqueue.processes.leftovers import end_everything_of; "
        f"print(end_everything_of('{WORKER}'), os.getppid())"
    )
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{code}"; echo on'],
        env=os.environ | {"FSQUEUE_WORKER": WORKER},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("0 ")
    assert done.stdout.endswith("on\n")


@pytest.mark.slow
def test_r24_what_cannot_be_ended_is_given_up_after_a_while(
    leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(WORKER, "echo $$ >> $ALL; exec sleep 1000")
    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "_kill", lambda process: False)
        assert end_everything_of(WORKER, patience_s=0.1) == 0


@pytest.mark.slow
def test_without_process_descriptors_they_are_ended_by_number(
    leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = leave(WORKER, "echo $$ >> $ALL; exec sleep 1000")
    monkeypatch.delattr(os, "pidfd_open")
    assert end_everything_of(WORKER) == 1
    wait_until_gone(pids)


def test_r25_temporary_directories_of_a_dead_worker_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, living = TemporaryDirectory(), TemporaryDirectory()
    Path(dead.take(WORKER), "file").write_text("half")
    kept = living.take(OTHER)
    end_everything_of(WORKER)
    assert list(tmp_path.iterdir()) == [Path(kept)]


def test_it_imports_little() -> None:
    """The process that calls it stands beside every worker."""
    code = (
        "import sys; before = set(sys.modules); import fsqueue.processes.leftovers; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} & "
        "set('ctypes subprocess tempfile logging shutil click'.split())))"
    )
    quiet = "import types, sys; p = types.ModuleType('fsqueue'); p.__path__ = [sys.argv[1]]; "
    root = str(Path(leftovers.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{quiet} sys.modules['fsqueue'] = p; {code}", root],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
