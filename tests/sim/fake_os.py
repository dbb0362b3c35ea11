"""Fakes of `os`, `time` and other modules, patched into the modules of fsqueue.

Each call goes to the current world, on behalf of the actor that runs there. What is not simulated
raises an error: no call reaches the real file system by accident.
"""

from __future__ import annotations

import errno
import io
import math
import os
import posixpath
import random
import secrets
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import fsqueue.pool.leases
import fsqueue.pool.plans
import fsqueue.storage.atomic
import fsqueue.storage.operation_count
import fsqueue.worker.claim_source
import fsqueue.worker.handler_cache
import fsqueue.worker.liveness.guardian
import fsqueue.worker.liveness.heartbeat
import fsqueue.worker.recovery
import fsqueue.worker.worker
from fsqueue.worker.liveness.heartbeat import Heartbeat
from tests.sim.disk import Inode, failure
from tests.sim.world import Process, Table, World

OUTER_PIDS: Final = 2000
"""Where /proc is that of the outer PID namespace, it counts from there."""
QUIET: Final = ("/status/", "/events/")
"""Operations on what is only displayed (I8) are not scheduled separately."""
LOST_REPLY: Final = {
    "rename": errno.ENOENT,
    "unlink": errno.ENOENT,
    "rmdir": errno.ENOENT,
    "link": errno.EEXIST,
    "mkdir": errno.EEXIST,
}


class Context:
    """The world that is being run, and how operations are done in it."""

    world: World
    fault: Callable[[str, tuple[str, ...]], Fault | None]
    looked_into: Callable[[str], None]
    """Called with each path that is opened to be read."""
    perform: Callable[..., Any]
    """Do an operation of the running code, when it is its turn: what, how, which paths."""


class Fault:
    """What goes wrong with one operation: whether it is done, and which error its caller gets."""

    __slots__ = ("number", "done", "delay_s", "again_s")

    def __init__(
        self, number: int = 0, *, done: bool = False, delay_s: float = 0.0, again_s: float = 0.0
    ) -> None:
        self.number = number
        """The error that the caller gets; 0 for none."""
        self.done = done
        self.delay_s = delay_s
        """How long the caller waits for the reply."""
        self.again_s = again_s
        """If not 0, the server gets the request once more, this much later."""


def no_fault(what: str, paths: tuple[str, ...]) -> Fault | None:
    """Let nothing go wrong."""
    return None


SIM: Final = Context()
SIM.fault = no_fault
SIM.looked_into = lambda path: None


class OpenFile:
    """What a file descriptor stands for."""

    __slots__ = ("path", "inode", "offset")

    def __init__(self, path: str, inode: Inode) -> None:
        self.path = path
        self.inode = inode
        self.offset = 0


class SimPath:
    """`os.path` on the simulated disk."""

    def __getattr__(self, name: str) -> Any:
        if name in ("split", "dirname", "basename", "join", "abspath", "normpath", "splitext"):
            return getattr(posixpath, name)
        raise AttributeError(f"os.path.{name} is not simulated")

    def lexists(self, path: str) -> bool:
        return _found(path) is not None

    exists = lexists

    def isfile(self, path: str) -> bool:
        inode = _found(path)
        return inode is not None and inode.entries is None

    def samefile(self, path: str, other: str) -> bool:
        found = _seen(path)
        if found is None:
            raise failure(errno.ENOENT, path)
        return found is _seen(other)

    def isdir(self, path: str) -> bool:
        inode = _found(path)
        return inode is not None and inode.entries is not None


class SimOs:
    """`os` on the simulated disk."""

    path: Final = SimPath()

    def __getattr__(self, name: str) -> Any:
        if name == "environ":
            return {}
        if name.startswith("O_") or name in ("strerror", "fspath", "fsencode", "SEEK_SET"):
            return getattr(os, name)
        raise AttributeError(f"os.{name} is not simulated")

    # ---- identity ----

    def getpid(self) -> int:
        return SIM.world.me.pid if SIM.world.current else 1

    def geteuid(self) -> int:
        return 1000

    def uname(self) -> Any:
        host = SIM.world.me.host.name
        return SimpleNamespace(sysname="Sim", nodename=host, release="1.0", machine="none")

    def getppid(self) -> int:
        guarded = SIM.world.me.guards
        return guarded.pid if guarded is not None and guarded.alive else 1

    def kill(self, pid: int, number: int) -> None:
        world = SIM.world
        process = world.me.host.pids.get(pid)
        if process is None:
            raise failure(errno.ESRCH, str(pid))
        if number == signal.SIGKILL:
            process.excuses.add("dead")
            world.log("kills", process.name)
            world.end(process)
        elif world.me.host.table is Table.HIDDEN and process not in world.me.family():
            raise failure(errno.EPERM, str(pid))
        assert number in (0, signal.SIGKILL), number

    def readlink(self, path: str) -> str:
        if path == "/proc/self":
            return str(self.getpid() + OUTER_PIDS * (SIM.world.me.host.table is Table.OUTER))
        assert path.startswith("/proc/self/ns/"), path
        return f"{path.rpartition('/')[2]}:[1]"

    # ---- files ----

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        mount = SIM.world.me.host.mount
        path = _below(dir_fd, str(path))

        def act() -> Inode:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                return mount.create(path)
            if flags & os.O_CREAT:
                return mount.disk.find(path) or mount.create(path)
            inode = mount.open(path)
            if flags & os.O_DIRECTORY and inode.entries is None:
                raise failure(errno.ENOTDIR, path)
            return inode

        what = "create" if flags & os.O_CREAT else "open"
        if what == "open":
            SIM.looked_into(path)
        inode = SIM.perform(what, act, path)
        files = SIM.world.me.files
        fd = max(files, default=2) + 1
        files[fd] = OpenFile(path, inode)
        return fd

    def fdopen(self, fd: int, mode: str = "r", **_: Any) -> Any:
        assert mode == "rb", mode
        file = _file(fd)
        data = io.BytesIO(file.inode.data)
        _closed(fd)
        return data

    def close(self, fd: int) -> None:
        _closed(fd)

    def fstat(self, fd: int) -> Any:
        return _stat(_file(fd).inode)

    def read(self, fd: int, size: int) -> bytes:
        file = _file(fd)
        data = file.inode.data[file.offset : file.offset + size]
        file.offset += len(data)
        return data

    def write(self, fd: int, data: bytes) -> int:
        file = _file(fd)
        world = SIM.world
        act = lambda: world.disk.write(world.inode(file), bytes(data), file.path)  # noqa: E731
        SIM.perform("write", act, file.path)
        return len(data)

    def fsync(self, fd: int) -> None:
        file = _file(fd)
        world = SIM.world
        act = lambda: world.disk.sync(world.inode(file), file.path)  # noqa: E731
        SIM.perform("fsync", act, file.path)

    def stat(self, path: str) -> Any:
        mount = SIM.world.me.host.mount

        def act() -> Any:
            inode = mount.lookup(path)
            if inode is None:
                raise failure(errno.ENOENT, path)
            return _stat(inode, mount.links(inode))

        return SIM.perform("stat", act, path)

    lstat = stat

    # ---- names ----

    def listdir(self, where: int | str) -> list[str]:
        path = where if isinstance(where, str) else _file(where).path
        found = SIM.perform("list", lambda: SIM.world.me.host.mount.listing(path), path)
        SIM.world.me.looked[path] = SIM.world.now
        SIM.world.rng.shuffle(found)
        return found

    def scandir(self, where: int | str) -> Any:
        """List a directory in which there are only files."""
        entries = [
            SimpleNamespace(name=name, is_file=lambda follow_symlinks=True: True)
            for name in self.listdir(where)
        ]
        return nullcontext(iter(entries))

    def link(self, source: str, target: str) -> None:
        SIM.perform("link", lambda: SIM.world.me.host.mount.link(source, target), source, target)

    def rename(self, source: str, target: str) -> None:
        SIM.perform(
            "rename", lambda: SIM.world.me.host.mount.rename(source, target), source, target
        )

    replace = rename

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        path = _below(dir_fd, path)
        SIM.perform("unlink", lambda: SIM.world.me.host.mount.unlink(path), path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        SIM.perform("mkdir", lambda: SIM.world.me.host.mount.mkdir(path), path)

    def chmod(self, path: str, mode: int) -> None:
        """Do nothing: one user owns every simulated file."""

    def makedirs(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        if not self.path.isdir(path):
            try:
                self.mkdir(path)
            except FileExistsError:
                if not exist_ok:
                    raise

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        path = _below(dir_fd, path)
        SIM.perform("rmdir", lambda: SIM.world.me.host.mount.rmdir(path), path)


def _below(dir_fd: int | None, path: str) -> str:
    return path if dir_fd is None else f"{_file(dir_fd).path}/{path}"


def _found(path: str) -> Inode | None:
    """Return what a path names; like `os.path`, take an error for nothing."""
    try:
        return _seen(path)
    except OSError:
        return None


def _seen(path: str) -> Inode | None:
    return SIM.perform("stat", lambda: SIM.world.me.host.mount.lookup(str(path)), str(path))


def _stat(inode: Inode, links: int | None = None) -> Any:
    kind = stat.S_IFDIR if inode.entries is not None else stat.S_IFREG
    return SimpleNamespace(
        st_mode=kind | 0o644,
        st_size=len(inode.data),
        st_nlink=inode.links if links is None else links,
        st_uid=1000,
        st_ino=inode.number,
        st_mtime=0.0,
    )


def _file(fd: int) -> OpenFile:
    file = SIM.world.me.files.get(fd)
    if file is None:
        raise OSError(errno.EBADF, "not open")
    return file  # type: ignore[no-any-return]


def _closed(fd: int) -> None:
    SIM.world.me.files.pop(fd, None)


def _do(what: str, act: Callable[[], Any], *paths: str) -> Any:
    """Wait for the actor's turn, do one operation or let it go wrong, and log what happened."""
    world = SIM.world
    if any(part in paths[-1] for part in QUIET):
        if not world.me.alive:
            world.turn(what, paths)
        return act()
    world.turn(what, paths)
    fault = SIM.fault(what, paths)
    reported = 0
    try:
        if fault is not None:
            reported = fault.number
            return _go_wrong(what, act, paths, fault)
        result = act()
    except OSError as error:
        if error.errno != reported:  # already logged
            world.log(what, errno.errorcode.get(error.errno or 0, "?"), *paths)
        raise
    world.log(what, f"{len(result)} names" if what == "list" else "", *paths)
    return result


def _go_wrong(what: str, act: Callable[[], Any], paths: tuple[str, ...], fault: Fault) -> Any:
    world = SIM.world
    me = world.me
    number, result = fault.number, None
    reported = errno.errorcode[number] if number else "ok"
    note = f"done, but reported {reported}" if fault.done and number else reported
    if fault.again_s:
        note += f", and once more in {fault.again_s:.1f} s"
        world.at(world.now + fault.again_s, lambda: _once_more(what, paths, me))
    world.log(what, f"FAULT {note}", *paths)
    if fault.done and what in LOST_REPLY:
        me.host.mount.lose_reply(what, *paths)
    elif fault.done or not number:
        result = act()
    if fault.delay_s:
        _wait_for_reply(me, fault.delay_s)
    if number:
        raise failure(number, paths[0])
    return result


def _wait_for_reply(me: Process, seconds: float) -> None:
    world = SIM.world
    me.paused = True
    in_handler = me.worker is not None and me.worker.beat.progress.in_handler
    if world.current is not me.actors[0]:
        me.slow_beat = True
    elif not in_handler:
        me.stuck_since = world.now
    try:
        world.sleep(seconds)
    finally:
        if world.current is me.actors[0]:
            me.stuck_since = math.inf


def _once_more(what: str, paths: tuple[str, ...], process: Process) -> None:
    """Let the server do a request that arrived late or twice."""
    world = SIM.world
    outcome = "had no effect"
    world.on_behalf_of = process
    try:
        getattr(world.disk, what)(*paths)
        outcome = "took effect"
    except OSError:
        pass
    finally:
        world.on_behalf_of = None
    world.log(f"late {what} of {process}", outcome, *paths)


SIM.perform = _do

# ---- time ----


class SimTime:
    """`time`, by the clocks of the actor's host."""

    def __getattr__(self, name: str) -> Any:
        if name in ("strftime", "gmtime"):
            return getattr(time, name)
        raise AttributeError(f"time.{name} is not simulated")

    def monotonic(self) -> float:
        world = SIM.world
        if world.current is None:
            return world.now
        host = world.me.host
        return host.monotonic + world.now * host.rate

    def time(self) -> float:
        world = SIM.world
        return world.now + (world.me.host.wall if world.current else 0.0)

    def sleep(self, seconds: float) -> None:
        SIM.world.sleep(seconds)


class SimLock:
    """A lock between the threads of one process."""

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> None:
        while self._held:
            SIM.world.sleep(3600.0, lambda: not self._held)
        self._held = True

    def __exit__(self, *_: Any) -> None:
        self._held = False


class SimEvent:
    """An event between the threads of one process."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float) -> bool:
        if not self._set:
            SIM.world.sleep(timeout, lambda: self._set)
        return self._set


class SimHeartbeat(Heartbeat):
    """The real heartbeat, in a simulated thread."""

    def __init__(self, *args: Any, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self.lock = SimLock()  # type: ignore[assignment]
        self._finished = SimEvent()  # type: ignore[assignment]
        self._ended = True

    def start(self) -> None:
        self._ended = False
        if self._guardian is not None:
            self._guardian.start()
        SIM.world.thread(SIM.world.me, "beat", self._body)

    def _body(self) -> None:
        try:
            self.run()
        finally:
            self._ended = True

    def is_alive(self) -> bool:
        return not self._ended

    def join(self, timeout: float | None = None) -> None:
        SIM.world.sleep(timeout or 3600.0, lambda: self._ended)


class SimSignal:
    """`signal`, for simulated processes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("SIG", "ITIMER")) or name == "Signals":
            return getattr(signal, name)
        raise AttributeError(f"signal.{name} is not simulated")

    def getsignal(self, number: int) -> Any:
        return SIM.world.me.handlers.get(number, signal.SIG_DFL)

    def setitimer(self, which: int, seconds: float) -> None:
        world, me = SIM.world, SIM.world.me
        if me in world.alarmed:
            world.alarmed.remove(me)
        if seconds:
            me.alarm = world.now + seconds / me.host.rate + 1e-6
            world.alarmed.append(me)

    def signal(self, number: int, handler: Any) -> None:
        ignored = handler == signal.SIG_IGN
        SIM.world.me.handlers[number] = (lambda *_: None) if ignored else handler


@contextmanager
def sim_try_lock(path: str) -> Iterator[bool]:
    """A lock that excludes other processes as far as the kind of file system does."""
    world = SIM.world
    kind = world.traits.locks
    key = f"{path}@{world.me.host.name}" if kind == "host" else path
    if kind != "none" and key in world.locks:
        yield False
        return
    world.locks[key] = world.me
    try:
        yield True
    finally:
        world.locks.pop(key, None)


# ---- proof of life ----


def proc_open(path: str, *_: Any) -> io.StringIO:
    """`open` for /proc on the actor's host."""
    world = SIM.world
    host = world.me.host
    if path.endswith("/boot_id"):
        return io.StringIO(host.boot)
    pid = int(path.split("/")[2]) - OUTER_PIDS * (host.table is Table.OUTER)
    if pid < 0:  # another process of the outer namespace; they come and go
        return io.StringIO(f"1 (x) {' '.join(['S', *['0'] * 18, f'{world.now // 10}', '0'])}")
    process = host.pids.get(pid)
    hidden = host.table is Table.HIDDEN and process not in world.me.family()
    if process is None or hidden:
        raise failure(errno.ENOENT, path)
    stopped = process.stopped and process.until > world.now
    fields = ["T" if stopped else "S", *["0"] * 18, process.started, "0"]
    return io.StringIO(f"{process.pid} (python) {' '.join(fields)}")


class SimOperationCount:
    """`operation_count.operations`: every process counts its own."""

    @property
    def total(self) -> int:
        return SIM.world.me.operations if SIM.world.current else 0

    @total.setter
    def total(self, count: int) -> None:
        if SIM.world.current:
            SIM.world.me.operations = count


class SimRandom:
    """`random`, from the world's seed."""

    def uniform(self, low: float, high: float) -> float:
        return SIM.world.rng.uniform(low, high)


SIM_OS: Final = SimOs()
SIM_TIME: Final = SimTime()


def sim_open(path: str, mode: str = "r", **_: Any) -> Any:
    """`open`, to read bytes."""
    assert mode == "rb", mode
    return SIM_OS.fdopen(SIM_OS.open(path, os.O_RDONLY), mode)


@contextmanager
def simulated_modules(handler: Callable[[str], Any]) -> Iterator[Context]:
    """Patch the fakes into fsqueue; `handler` replaces `load_handler`."""
    from tests.sim import fake_guardian  # it needs this module

    counted = SimOperationCount()
    token_hex = lambda size: SIM.world.token(2 * size)  # noqa: E731
    modules: list[tuple[Any, Any]] = [
        (os, SIM_OS),
        (time, SIM_TIME),
        (signal, SimSignal()),
        (threading, SimpleNamespace(Lock=SimLock, Event=SimEvent)),
        (random, SimRandom()),
        (secrets, SimpleNamespace(token_hex=token_hex)),
    ]
    with ExitStack() as stack:
        for module in [m for name, m in sys.modules.items() if name.startswith("fsqueue.")]:
            for name, value in list(vars(module).items()):
                for real, stand_in in modules:
                    if value is real:
                        stack.enter_context(patch.object(module, name, stand_in))
                if isinstance(value, type) and value.__module__ == module.__name__:
                    stack.enter_context(_sim_clock(value.__init__))
        for module, values in {
            fsqueue.storage.atomic: {"open": sim_open, "no_delegation_flag": lambda directory: 0},
            fsqueue.pool.proof_of_life: {"open": proc_open},
            fsqueue.pool.plans: {"open": sim_open},
            fsqueue.worker.claim_source: {"try_lock": sim_try_lock},
            fsqueue.worker.handler_cache: {"load_handler": handler},
            fsqueue.worker.recovery: {"listings_may_be_old": lambda root: True},
            fsqueue.worker.worker: {"Heartbeat": SimHeartbeat},
            fsqueue.storage.operation_count: {"operations": counted},
            fsqueue.worker.liveness.guardian: {
                "operations": counted,
                "select": SimpleNamespace(poll=fake_guardian.SimPoll, POLLIN=1),
                "end_everything_of": fake_guardian.end_children_of,
            },
            fsqueue.worker.liveness.heartbeat: {
                "operations": counted,
                "GuardianProcess": fake_guardian.SimGuardianProcess,
            },
        }.items():
            stack.enter_context(patch.multiple(module, create=True, **values))
        yield SIM


@contextmanager
def _sim_clock(function: Any) -> Iterator[None]:
    """Let simulated time be the default argument wherever real time is."""
    plain = getattr(function, "__defaults__", None)
    named = getattr(function, "__kwdefaults__", None)
    if time.monotonic not in (*(plain or ()), *(named or {}).values()):
        yield
        return
    clock = lambda value: SIM_TIME.monotonic if value is time.monotonic else value  # noqa: E731
    function.__defaults__ = plain and tuple(map(clock, plain))
    function.__kwdefaults__ = named and {name: clock(value) for name, value in named.items()}
    try:
        yield
    finally:
        function.__defaults__, function.__kwdefaults__ = plain, named
