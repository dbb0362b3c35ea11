"""Run a command of fsqueue, and tell what it used at its largest.

Not `ru_maxrss`: a child begins with that of whoever started it, until it is larger itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.support.processes import environment

TELL = """
import os, sys
from fsqueue.cli import main
try:
    main()
finally:
    told = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    os.write(int(os.environ["FOOTPRINT"]), told[0].split()[1].encode())
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
        self._told, tell = os.pipe()
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-c", TELL, *words],
            env=environment({**(env or {}), "FOOTPRINT": str(tell)}),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            pass_fds=[tell],
        )
        os.close(tell)

    def end(self) -> Usage:
        """Wait for its end; return what it used."""
        with os.fdopen(self._told) as told:
            peak_kib = int(told.read() or 0)
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Usage(used.ru_utime + used.ru_stime, peak_kib, self._process.returncode)
