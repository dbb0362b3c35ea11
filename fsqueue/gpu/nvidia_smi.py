"""Query nvidia-smi, where NVML's library cannot be loaded: in some containers, for example.

It is hundreds of times slower than NVML, and with a broken driver it never answers: then the
program cannot even be killed, so nothing here waits for it.
"""

from __future__ import annotations

import csv
import logging
import subprocess
from typing import Final

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0


def query(*fields: str, timeout_s: float = TIMEOUT_S) -> list[list[str]]:
    """Return `fields` for each GPU as text; empty if there is no usable answer in time."""
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
    """Return the rows of nvidia-smi's output that have this many columns."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [[text.strip() for text in row] for row in rows if len(row) == columns]


def _abandon(program: subprocess.Popen[str]) -> None:
    """Kill the program, and wait only as long as a program needs that can be killed."""
    program.kill()
    if program.stdout:
        program.stdout.close()  # not read to its end: a child of the program may hold it open
    try:
        program.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        # It may stay in an uninterruptible sleep inside the driver for days, and subprocess.run
        # would wait as long; Popen reaps it when it can.
        log.debug("nvidia-smi (pid %d) cannot be killed", program.pid)
