"""Ask nvidia-smi, where NVML's library cannot be loaded: a container with only the program, say.

It answers hundreds of times slower than NVML, and with a sick driver not at all: then the program
cannot even be killed, so nobody here waits for it.
"""

from __future__ import annotations

import csv
import logging
import subprocess
from typing import Final

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0


def query(*fields: str, timeout_s: float = TIMEOUT_S) -> list[list[str]]:
    """Return the texts of `fields` for each GPU; empty if there is no sensible answer in time."""
    try:
        program = subprocess.Popen(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
    except OSError:
        return []
    try:
        out, _ = program.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        log.warning("nvidia-smi did not answer within %g s; the driver may be hung.", timeout_s)
        _abandon(program)
        return []
    if program.returncode != 0:
        return []
    return parse(out, len(fields))


def parse(text: str, columns: int) -> list[list[str]]:
    """Return the rows of so many columns in what nvidia-smi printed."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [[text.strip() for text in row] for row in rows if len(row) == columns]


def _abandon(program: subprocess.Popen[str]) -> None:
    """Kill it, and wait no longer than it takes a program that can be killed."""
    program.kill()
    if program.stdout:
        program.stdout.close()  # not read to its end: a child of the program may hold it open
    try:
        program.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        # In an uninterruptible sleep inside the driver it may stay for days; Popen reaps it when it
        # can. subprocess.run would wait here for as long.
        log.debug("nvidia-smi (pid %d) cannot be killed", program.pid)
