"""Run a command of fsqueue and measure its peak memory.

Not by `ru_maxrss`: a child starts with its parent's value and keeps it until it is larger itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.support.processes import environment

REPORT = """
import os, sys
from fsqueue.cli import main
try:
    main()
finally:
    found = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    os.write(int(os.environ["FOOTPRINT"]), found[0].split()[1].encode())
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command used, and its exit status."""

    cpu_s: float
    peak_kib: int
    status: int


class MeasuredCommand:
    """A command that was started; `end` waits for it."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._reader, writer = os.pipe()
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-c", REPORT, *words],
            env=environment({**(env or {}), "FOOTPRINT": str(writer)}),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            pass_fds=[writer],
        )
        os.close(writer)

    def end(self) -> Usage:
        """Wait for its end; return its usage."""
        with os.fdopen(self._reader) as reader:
            peak_kib = int(reader.read() or 0)
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Usage(used.ru_utime + used.ru_stime, peak_kib, self._process.returncode)
