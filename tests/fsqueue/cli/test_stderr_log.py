"""A reader that does not read costs log lines, and nothing else (R50)."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsqueue.cli.stderr_log import KEPT_MAX, StderrLog
from tests.support.planning import counts, make_inputs, plan_command
from tests.support.processes import FSQUEUE, environment, wait_for


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page: its reading and its writing end."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for fd in (reading, writing):
        os.close(fd)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "x", 1, text, (), None)


def test_lines_to_a_file_are_there_at_once_and_in_order(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = StderrLog(file.fileno())
        for number in range(100):
            log.emit(record(f"line {number}"))
        lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [f"line {number}" for number in range(100)]


def test_r50_a_full_pipe_holds_nothing_up_and_what_was_dropped_is_counted(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    log = StderrLog(writing)
    for number in range(3 * KEPT_MAX):
        log.emit(record(f"line {number:04}"))
    read = b""

    def everything_was_read() -> bool:
        nonlocal read
        read += os.read(reading, 65536)
        return b"lines were dropped" in read

    wait_for(everything_was_read, "the line that counts what was dropped")
    lines = read.decode().splitlines()
    kept = [int(line.split()[1]) for line in lines if line.startswith("line")]
    assert kept == sorted(kept) and kept[:1000] == list(range(1000))
    assert f"{3 * KEPT_MAX - len(kept):,} lines were dropped" in lines[-1]


def test_a_closed_descriptor_is_no_error(pipe: tuple[int, int]) -> None:
    writing = os.dup(pipe[1])
    log = StderrLog(writing)
    os.close(writing)
    log.emit(record("never read"))
    log.flush()


@pytest.mark.slow
def test_r50_a_stuck_terminal_keeps_no_claim_from_being_done(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 60), ("false", "{input}"))
    reading, writing = pipe
    worker = subprocess.Popen(
        [*FSQUEUE, "-vv", "work", pool.root],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=writing,
    )
    assert worker.wait(60) == 3
    assert counts(pool) == {"failed": 60}
