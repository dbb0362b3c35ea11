"""Read the kernel's table of processes, in /proc, as far as this process is allowed to see it.

What it shows is true for an instant: a process may have ended, or started another, a moment later.
Callers look again until two looks agree.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
ENVIRON_MAX: Final = 4 << 20
SPAN_MAX: Final = 200
"""Above so many numbers it is cheaper to list /proc than to ask for each of them."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process, as /proc/PID/stat shows it. Times are in ticks."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    cpu: int
    """Used by itself, and by those of its children that it has waited for."""
    started: int
    """Since the machine was booted."""

    @property
    def ended(self) -> bool:
        """Whether it has ended, and only waits to be reaped."""
        return self.state in "ZX"


def shows_this_process() -> bool:
    """Return whether /proc is there and numbers processes as this process does.

    It does not where a container was given the /proc of its host.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def read(pid: int) -> Process | None:
    """Return what is known about a process; None if it is gone or hidden."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None  # RACE: it has ended
    try:
        data = os.read(fd, 2048)
    except OSError:
        return None  # RACE: it ended between open and read
    finally:
        os.close(fd)
    state, *rest = data[data.rindex(b")") + 2 :].split()
    numbers = list(map(int, rest[:19]))
    return Process(
        pid,
        state.decode("ascii", "replace"),
        parent=numbers[0],
        group=numbers[1],
        session=numbers[2],
        cpu=sum(numbers[10:14]),
        started=numbers[18],
    )


def read_all(pids: Iterable[int]) -> list[Process]:
    """Return what is known about those of these processes that are there."""
    return [found for found in map(read, pids) if found is not None]


def pids() -> list[int]:
    """Return the number of every process that can be seen; none where there is no /proc."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def now_ticks() -> int:
    """Return the present time as `Process.started` counts it, or a tick less."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_S) - 1


def newest_pid() -> int | None:
    """Return the number that was given out last in our PID namespace; None if that is unknown."""
    try:
        fd = os.open("/proc/loadavg", os.O_RDONLY)
    except OSError:
        return None
    try:
        return int(os.read(fd, 256).split()[-1]) or None
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(fd)


def pids_since(pid: int) -> Iterable[int] | None:
    """Return every number given out after this recent one; None if only a listing can tell.

    Numbers are given out in rising order. A process that ended a moment ago, after which no number
    was given out, started nothing: it costs one small read to know that, and not a listing.
    """
    newest = newest_pid()
    if newest is None or not pid <= newest <= pid + SPAN_MAX or not _loadavg_is_the_kernels():
        return None
    return range(pid + 1, newest + 1)


_genuine: list[bool] = []


def _loadavg_is_the_kernels() -> bool:
    """Return whether /proc/loadavg is the kernel's; lxcfs puts a file there that is seconds old."""
    if not _genuine:
        try:
            _genuine.append(os.stat("/proc/loadavg").st_dev == os.stat("/proc/self/stat").st_dev)
        except OSError:
            _genuine.append(False)
    return _genuine[0]


def has_variable(pid: int, variable: bytes) -> bool:
    """Return whether a process was started with `NAME=value` in its environment.

    False if it is gone, or if its environment is not ours to read.
    """
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY)
    except OSError:
        return False
    try:
        data = b""
        while len(data) < ENVIRON_MAX and (piece := os.read(fd, 1 << 16)):
            data += piece
    except OSError:
        return False  # RACE: it has ended
    finally:
        os.close(fd)
    return variable in data.split(b"\0")
