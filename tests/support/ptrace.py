"""Stop a child, with its threads and children, before each system call that changes a file.

So a test sees what no hook in Python sees: what torch, HDF5 or a database in Rust does, and what
the processes do that a command starts. A seccomp filter hands those calls, and no others, to
ptrace(2), so a traced process is hardly slower. Linux, on x86-64 and 64-bit ARM.

What this module does not know: which files matter, and to what end.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

_ARM: Final = platform.machine() == "aarch64"
_FD_CALLS: Final = {  # number here and on ARM, and which argument is the descriptor
    "write": (1, 64, 0),
    "pwrite64": (18, 68, 0),
    "writev": (20, 66, 0),
    "pwritev": (296, 70, 0),
    "pwritev2": (328, 287, 0),
    "sendfile": (40, 71, 0),
    "copy_file_range": (326, 285, 2),
    "ftruncate": (77, 46, 0),
    "fallocate": (285, 47, 0),
}
_PATH_CALLS: Final = {  # the same, and which arguments are paths; the one before is a directory's
    "truncate": (76, 45, (0,)),
    "open": (2, -1, (0,)),
    "creat": (85, -1, (0,)),
    "openat": (257, 56, (1,)),
    "openat2": (437, 437, (1,)),
    "mkdir": (83, -1, (0,)),
    "mkdirat": (258, 34, (1,)),
    "rmdir": (84, -1, (0,)),
    "unlink": (87, -1, (0,)),
    "unlinkat": (263, 35, (1,)),
    "symlink": (88, -1, (1,)),
    "symlinkat": (266, 36, (2,)),
    "rename": (82, -1, (0, 1)),
    "renameat": (264, 38, (1, 3)),
    "renameat2": (316, 276, (1, 3)),
    "link": (86, -1, (0, 1)),
    "linkat": (265, 37, (1, 3)),
}
_NUMBERS: Final = {
    found[_ARM]: name for name, found in (_FD_CALLS | _PATH_CALLS).items() if found[_ARM] >= 0
}
_FLAGS_AT: Final = {"open": 1, "openat": 2}
_CREATES: Final = os.O_CREAT | os.O_TRUNC

_CONT, _GETEVENTMSG, _SEIZE, _INTERRUPT, _SYSCALL_INFO = 7, 0x4201, 0x4206, 0x4207, 0x420E
_FORK, _VFORK, _CLONE, _SECCOMP, _EXITKILL = 2, 4, 8, 0x80, 0x100000
_SECCOMP_EVENT: Final = 7
_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000
_STILL_S: Final = 0.05
"""A thread that takes longer to stop waits in the kernel, for its child or for the disk."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Call:
    """A change that is about to happen: its paths, and what would be written at which place."""

    name: str
    paths: tuple[str, ...]
    data: bytes = b""
    at: int | None = None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.paths)})"


def traced(action: Callable[[], object], about_to: Callable[[Call], bool]) -> int:
    """Run `action` in a child; return how it ended, as Popen says it.

    Before each change `about_to` is called, while the child and all that it started stand still. If
    it says True, all of them are killed there and then.
    """
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(action, ready)
    os.close(ready)
    options = _FORK | _VFORK | _CLONE | _SECCOMP | _EXITKILL
    try:
        _ptrace(_SEIZE, child, 0, options)
        os.write(go, b".")
    except OSError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(go)
    return _Tracees(child).drive(about_to)


class _Tracees:
    """A child, its threads and its children, by their thread ids."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._all = {child}
        self._stopped: list[tuple[int, int]] = []
        self._result = 0

    def drive(self, about_to: Callable[[Call], bool]) -> int:
        """Let them go on until they have all ended."""
        while self._all:
            tid, status = self._stopped.pop(0) if self._stopped else os.waitpid(-1, _WALL)
            if self._has_ended(tid, status):
                continue
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == _SECCOMP_EVENT and (call := _call(tid)) is not None:
                held = self._stand_still(tid)
                if about_to(call):
                    self._kill()
                    continue
                for other in held:
                    _go_on(other)
            _go_on(tid, 0 if event else number)
        return self._result

    def _has_ended(self, tid: int, status: int) -> bool:
        if os.WIFSTOPPED(status):
            self._all.add(tid)
            return False
        self._all.discard(tid)
        if tid == self._child:
            self._result = os.waitstatus_to_exitcode(status)
        return True

    def _stand_still(self, but: int) -> list[int]:
        """Stop all others; return those that are to be let go on. The rest have news of theirs."""
        held = []
        waiting = {tid for tid, _ in self._stopped} | {but}
        for tid in sorted(self._all - waiting):
            if _ptrace_or_gone(_INTERRUPT, tid):
                continue
            until = time.monotonic() + _STILL_S
            found, status = 0, 0
            while not found and time.monotonic() < until:
                found, status = os.waitpid(tid, _WALL | os.WNOHANG)
                if not found:
                    time.sleep(0.0002)
            if found and os.WIFSTOPPED(status) and status >> 16 == _EVENT_STOP:
                held.append(tid)
            elif found:
                self._stopped.append((tid, status))
        return held

    def _kill(self) -> None:
        self._stopped.clear()
        for tid in self._all:
            try:
                os.kill(tid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # RACE: a thread whose process was killed before it


def _go_on(tid: int, number: int = 0) -> None:
    _ptrace_or_gone(_CONT, tid, 0, number)


def _ptrace_or_gone(request: int, tid: int, address: int = 0, data: int = 0) -> bool:
    """Do the request; return True if the thread was killed meanwhile."""
    try:
        _ptrace(request, tid, address, data)
        return False
    except ProcessLookupError:
        return True


def _ptrace(request: int, tid: int, address: int, data: int) -> int:
    result: int = _libc.ptrace(request, tid, address, data)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")
    return result


# ---- what a process is about to do ----


def _call(tid: int) -> Call | None:
    """Return the change that a stopped thread is about to make; None if it has gone."""
    info = ctypes.create_string_buffer(96)
    if _ptrace_or_gone(_SYSCALL_INFO, tid, len(info), ctypes.addressof(info)):
        return None
    number, *args = struct.unpack_from("<7Q", info, 24)
    name = _NUMBERS[number]
    if name in _PATH_CALLS:
        paths = tuple(_path(tid, args, at) for at in _PATH_CALLS[name][2])
        return Call(name, paths)
    fd = args[_FD_CALLS[name][2]]
    path = _link(f"/proc/{tid}/fd/{fd}")
    if name not in ("write", "pwrite64") or not path.startswith("/"):
        return Call(name, (path,))
    return Call(name, (path,), _memory(tid, args[1], args[2]), _place(tid, fd, name, args))


def _place(tid: int, fd: int, name: str, args: list[int]) -> int | None:
    """Return where it writes; None at the end of the file."""
    if name == "pwrite64":
        return args[3]
    with open(f"/proc/{tid}/fdinfo/{fd}") as file:
        facts = dict(line.split(":", 1) for line in file if ":" in line)
    return None if int(facts["flags"], 8) & os.O_APPEND else int(facts["pos"])


def _path(tid: int, args: list[int], at: int) -> str:
    text = os.fsdecode(_memory(tid, args[at], 4096).partition(b"\0")[0])
    if text.startswith("/"):
        return text
    fd = ctypes.c_int(args[at - 1]).value if at else -1
    base = _link(f"/proc/{tid}/cwd") if fd < 0 else _link(f"/proc/{tid}/fd/{fd}")
    return os.path.join(base, text)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""  # no such descriptor: the call is about to fail


def _memory(tid: int, at: int, size: int) -> bytes:
    fd = os.open(f"/proc/{tid}/mem", os.O_RDONLY)
    try:
        return os.pread(fd, size, at)
    except OSError:
        return b""  # no such address: as above
    finally:
        os.close(fd)


# ---- the child ----


def _be_the_child(action: Callable[[], object], ready: int) -> NoReturn:
    try:
        gc.disable()  # it would touch every page that the child shares with its parent
        os.read(ready, 1)
        _hand_over_changes()
        action()
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else end.code is not None)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(99)


def _hand_over_changes() -> None:
    """Let the kernel stop this process, and all that it starts, before each change."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000
    code = [(load, 0, 0, 0)]
    for number, name in _NUMBERS.items():
        if name in _FLAGS_AT:
            flags = (load, 0, 0, 16 + 8 * _FLAGS_AT[name])
            code += [(equal, 0, 4, number), flags, (any_bit, 0, 1, _CREATES)]
            code += [(give, 0, 0, trace), (give, 0, 0, allow)]
        else:
            code += [(equal, 0, 1, number), (give, 0, 0, trace)]
    code.append((give, 0, 0, allow))
    packed = b"".join(struct.pack("<HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(buffer))
    for request, value, what in ((38, 1, None), (22, 2, program)):
        if _libc.prctl(request, value, what, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def is_possible() -> bool:
    """Return whether a child can be traced here; some containers and machines do not allow it."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return False
    try:
        return traced(lambda: None, lambda _: False) == 0
    except OSError:
        return False
