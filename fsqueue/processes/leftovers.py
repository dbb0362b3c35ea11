"""End everything that a dead worker's programs left running, and remove their temporary files.

Rules:

R24 Every program carries `FSQUEUE_WORKER=<worker id>` in its environment, and so does everything it
    starts. What carries a dead worker's name, and what descends from it, is ended by SIGKILL until
    none is left: a program must not run on beside its claim's next run, nor hold a GPU's memory.

Called by the process that outlives the worker. A process number may be given to another process
between the look and the signal, so the signal goes through a descriptor of the process (pidfd) that
was looked at.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from fsqueue.processes import table
from fsqueue.processes.table import Process

WORKER_VARIABLE: Final = "FSQUEUE_WORKER"
PATIENCE_S: Final = 10.0
"""A process in an uninterruptible system call ends when the call returns, which may be never."""
CLEAN_LOOKS: Final = 2
"""What forks while we look may be missed by one look."""
_PAUSES_S: Final = (0.002, 0.1)


def end_everything_of(worker: str, *, patience_s: float = PATIENCE_S) -> int:
    """End all that the programs of a dead worker left, for up to `patience_s`; return how many.

    Then remove their temporary directories. Harmless if there is nothing, and if called twice. It
    ends only what this user may end, and never the process that calls it.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + patience_s
    clean, pause_s = 0, _PAUSES_S[0]
    while clean < CLEAN_LOOKS:
        found = everything_of(worker)
        clean = 0 if found else clean + 1
        for process in found:
            if _kill(process):
                ended.add(process.pid)
        if time.monotonic() >= deadline:
            break
        if found:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSES_S[1])
    from fsqueue.processes import temporary  # late: it imports much, and is needed once at the end

    temporary.remove_all_of(worker)
    return len(ended)


def everything_of(worker: str) -> list[Process]:
    """Return the living processes that carry a worker's name, and all that descend from these.

    Descendants count because a program may clear the environment of what it starts, or be a worker
    itself, whose programs carry that one's name.
    """
    variable = f"{WORKER_VARIABLE}={worker}".encode()
    everything = {process.pid: process for process in table.read_all(table.pids())}
    spared = _ancestors(os.getpid(), everything)
    marked = {
        pid
        for pid, process in everything.items()
        if pid not in spared and not process.ended and table.has_variable(pid, variable)
    }
    # The sessions of programs. One whose leader lives and is not marked is a person's shell.
    sessions = {everything[pid].session for pid in marked} - {0}
    sessions = {session for session in sessions if session in marked or session not in everything}
    return [
        process
        for pid, process in everything.items()
        if pid not in spared
        and not process.ended
        and (process.session in sessions or _descends(pid, marked, everything))
    ]


def _ancestors(pid: int, everything: dict[int, Process]) -> set[int]:
    """Return a process and its ancestors: whatever they carry, the caller depends on them."""
    found = set[int]()
    while pid in everything and pid not in found:
        found.add(pid)
        pid = everything[pid].parent
    return found


def _descends(pid: int, roots: set[int], everything: dict[int, Process]) -> bool:
    passed = set[int]()
    while pid in everything and pid not in passed:
        if pid in roots:
            return True
        passed.add(pid)
        pid = everything[pid].parent
    return False


def _kill(process: Process) -> bool:
    """Kill the process that was looked at, and no later one of its number."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False  # RACE: it has ended
    except (AttributeError, OSError):
        return _kill_by_number(process)  # before Linux 5.3, or no descriptor is left
    try:
        now = table.read(process.pid)
        if now is None or now.started != process.started:
            return False  # RACE: it has ended, and its number was given to another
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return True
    except (ProcessLookupError, PermissionError):
        return False  # RACE: it has ended; or it runs as another user
    finally:
        os.close(fd)


def _kill_by_number(process: Process) -> bool:
    now = table.read(process.pid)
    if now is None or now.started != process.started:
        return False
    try:
        os.kill(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False  # RACE: as in `_kill`
    return True
