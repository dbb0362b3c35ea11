"""Descriptors 0, 1 and 2 of a process that was started without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.planning import counts, make_inputs, plan_command

CODE = """
import os, sys
from fsqueue.processes.standard_streams import open_missing
open_missing()
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print("to stdout"); print("to stderr", file=sys.stderr)
os.write(opened, str(opened).encode())
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_r26_no_file_becomes_a_standard_stream_of_a_process_without_them(
    tmp_path: Path, closed: str
) -> None:
    script = f'exec "$@" {closed}'
    argv = ["sh", "-c", script, "sh", sys.executable, "-c", CODE, str(tmp_path / "file")]
    assert subprocess.run(argv, capture_output=True).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["work", "run"])
def test_r26_what_a_worker_without_stderr_reports_is_in_no_output(
    tmp_path: Path, closed: str, command: str
) -> None:
    inputs = make_inputs(tmp_path / "in", 3)
    argv = ["sh", "-c", "echo noise >&2; case $1 in *1) exit 1;; esac; cat $1", "sh", "{input}"]
    pool = plan_command(tmp_path / "pool", inputs, argv)
    script = f'exec "$@" {closed}'
    worker = [sys.executable, "-m", "fsqueue", "-v", command, pool.root]
    worker += ["--steal-interval", "0.1"]
    done = subprocess.run(["sh", "-c", script, "sh", *worker], capture_output=True, timeout=60)
    assert done.returncode == 3
    assert counts(pool) == {"done": 2, "failed": 1}
    outputs = Path(pool.directory("outputs")).glob("*.out")
    assert sorted(path.read_text() for path in outputs) == ["x", "xxx"]
