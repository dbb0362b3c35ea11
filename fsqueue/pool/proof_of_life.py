"""Prove that a process of this host has ended, or that it still runs.

R11  "Gone" is said only where it is proved. A process that enlists a lease writes down which one
     it is (`proof_of_life`). Another process may say that it is gone only if it provably sees the
     same processes:

     host name, boot, PID namespace, time namespace    the same as in the lease
     /proc/self                                        this very process: in a PID namespace with
                                                       the outer /proc it is a stranger's number
     /proc/PID/stat                                    of another process, or a zombie's; or not
                                                       there, and kill(PID, 0) finds none either:
                                                       /proc may hide other users' processes

Everything else is UNKNOWN: then only the lease decides. Machines that were started from one image
of a running machine share even the boot and the namespaces, so each needs a host name of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Final

TRACED_LOOKS: Final = 5


class Process(Enum):
    """What a host knows about a process."""

    RUNNING = auto()
    STOPPED = auto()  # by a signal or a debugger
    GONE = auto()  # it has ended
    UNKNOWN = auto()  # it is not of this host, or nothing can be proved here


def proof_of_life() -> dict[str, Any]:
    """Return what lets another process of this host find out whether this one still runs."""
    return {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "boot": _boot_id(),
        "pid_namespace": _pid_namespace(),
        "time_namespace": _time_namespace(),
        "started": _stat(os.getpid())[1] if _proc_is_ours() else "",
    }


def look_at_process(facts: Mapping[str, Any]) -> Process:
    """Return what became of the process that these facts (see `proof_of_life`) describe. R11.

    Boot, PID namespace and start time must all match: containers on one host share the boot, a pid
    is soon reused, and in another time namespace a process shows another start time.
    """
    pid, started = facts.get("pid"), facts.get("started")
    boot, namespace = _boot_id(), _pid_namespace()
    if not (isinstance(pid, int) and pid > 0 and isinstance(started, str) and started):
        return Process.UNKNOWN
    if not (boot and namespace and facts.get("boot") == boot):
        return Process.UNKNOWN
    if (facts.get("pid_namespace"), facts.get("time_namespace")) != (namespace, _time_namespace()):
        return Process.UNKNOWN
    if facts.get("host") != os.uname().nodename or not _proc_is_ours():
        return Process.UNKNOWN
    state, now_started = _stat(pid)
    if state == "X" and not now_started:
        return Process.GONE if _does_not_exist(pid) else Process.UNKNOWN
    if not state:
        return Process.UNKNOWN
    if now_started != started or state in "ZX":
        return Process.GONE
    return Process.STOPPED if state in "Tt" else Process.RUNNING


def is_stopped(pid: int) -> bool:
    """Return whether a process of this PID namespace is stopped; False if that is not known.

    One that is traced is stopped for a moment at every system call, so it is looked at again.
    """
    if not _proc_is_ours():
        return False
    for _ in range(TRACED_LOOKS):
        state = _stat(pid)[0]
        if state != "t":
            return state == "T"
        time.sleep(0.001)
    return True


def seems_to_run(pid: int) -> bool:
    """Return whether a process with this pid runs here, be it this one or another."""
    return _proc_is_ours() and _stat(pid)[0] not in ("", "X", "Z", "T", "t")


def _does_not_exist(pid: int) -> bool:
    """Return whether no process has this pid: the kernel tells that even where /proc hides."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # not permitted: there is one
    return False


def _proc_is_ours() -> bool:
    """Return whether /proc shows this process's own PID namespace."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False  # not Linux, or /proc is not mounted


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""  # not Linux: nothing can be proved, and leases expire by time alone


def _pid_namespace() -> str:
    return _namespace("pid")


def _time_namespace() -> str:
    return _namespace("time")


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return ""  # a kernel without time namespaces: all processes share one


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state, and its start time in clock ticks since boot.

    ("X", "") if none is to be seen; ("", "") if that cannot be found out.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", ""
    except OSError:
        return "", ""  # for example no descriptors left, which proves no death
    return fields[0], fields[19]
