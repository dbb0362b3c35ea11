"""Every interleaving of a few actors, at every file operation of the real code.

An actor's code is deterministic: its next operation follows from the replies it has got so far.
The code is therefore run only once for each sequence of replies (`Automaton`), and the search walks
over states: a disk, and each process's sequence of replies. Orders of operations that lead to the
same state are searched once from there on. No time passes: a process may pause for any duration,
whatever its lease, and one that never continues is one that was killed. So every crash and every
zombie is among the interleavings.

An operation that only its own process can see (private files, fsync, status, journal) is done
together with the operation before it. States are compared by 64-bit hashes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, Final

from greenlet import getcurrent, greenlet

from tests.sim.actors import ROOT, output_of
from tests.sim.disk import Disk, Inode, failure
from tests.sim.fake_os import LOST_REPLY, QUIET, SIM
from tests.sim.invariants import InvariantChecker
from tests.sim.mount import LOCAL, Mount
from tests.sim.world import ActorEnded, Host, Process, Violation

FIXED: Final = "pool.json plans spools running done failed errors workers outputs control".split()
"""Directories and files of the pool that are there from the beginning."""
MADE_BEFORE: Final = ("checksums", "workers/ended")
"""Directories that the first worker to need them makes; an explored pool has them already."""
LEAP_S: Final = 3.0
"""The shortest sleep, so that a process that waits for something looks again once or twice."""

Body = Callable[[Process], Any]
Reply = tuple[Any, ...]
"""What an operation answered, in a form that can be compared."""


def hidden(what: str, paths: tuple[str, ...], constant: tuple[str, ...] = ()) -> bool:
    """Return whether no other process can observe this operation or change its reply."""
    last = paths[-1].rpartition("/")[2]
    if (
        what in ("fsync", "write")
        or paths[-1].startswith(f"{ROOT}/inbox/")
        or any(part in paths[-1] for part in QUIET)
        or paths[-1].startswith(f"{ROOT}/checksums/")
        or what == "mkdir"
        and paths[-1].removeprefix(f"{ROOT}/") in MADE_BEFORE
    ):
        return True
    if what in ("create", "unlink", "stat", "open"):
        if last.startswith("."):
            return True
        if what == "create" and ".staged/" in paths[-1]:
            return True
    if what == "open" and "/workers/" in paths[-1]:
        return True  # to prove a death; no proof is possible here: each process has its own host
    if what == "list" and paths[-1] in constant:
        return True
    if what not in ("open", "stat"):
        return False
    parts = paths[-1].removeprefix(ROOT).strip("/").split("/")
    return parts[0] in ("", "pool.json") or (
        len(parts) == 1 and parts[0] in FIXED or parts[0] == "spools" and len(parts) == 2
    )


@dataclass(slots=True)
class Pending:
    """An operation that a thread is about to do, or that it has ended."""

    what: str
    paths: tuple[str, ...]
    act: Callable[[], Any] | None = None
    hidden: bool = False

    def describe(self) -> str:
        """Return it as a line of text."""
        paths = " -> ".join(path.removeprefix(f"{ROOT}/") for path in self.paths)
        return f"{self.what} {paths}"


@dataclass(slots=True, eq=False)
class Node:
    """Where a process stands after some replies: what each of its threads is about to do."""

    parent: Node | None
    thread: int
    reply: Reply
    number: int
    pending: list[Pending] = field(default_factory=list)
    children: dict[tuple[int, Reply], Node] = field(default_factory=dict)
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether the process has ended, and nothing went wrong with it."""
        return not self.error and all(pending.what == "end" for pending in self.pending)

    def path(self) -> list[tuple[int, Reply]]:
        """Return the replies that led here."""
        path = []
        node: Node = self
        while node.parent is not None:
            path.append((node.thread, node.reply))
            node = node.parent
        return path[::-1]


class Run:
    """One execution of a process's code, driven by replies."""

    def __init__(
        self, explorer: Explorer, process: Process, body: Callable[[Process], Any]
    ) -> None:
        self.explorer = explorer
        self.process = process
        self.threads: list[greenlet] = []
        self.pending: list[Pending] = []
        self.tokens = 0
        self.error = ""
        self.at_once = True
        """Whether what it does now is done in one go: what comes before what is explored."""
        process.host.monotonic = 1000.0
        process.files.clear()
        process.handlers.clear()
        self.add(lambda: body(process))

    def add(self, body: Callable[[], Any]) -> None:
        """Start a thread, and let it go on to its first operation."""
        index = len(self.threads)

        def main() -> None:
            try:
                body()
            except ActorEnded:
                return
            except BaseException as error:
                self.error = self.error or f"{type(error).__name__}: {error}"
            self.pending[index] = Pending("end", ())

        self.threads.append(greenlet(main, getcurrent()))
        self.pending.append(Pending("end", ()))
        self._switch(index)

    def reply(self, thread: int, reply: Reply) -> None:
        """Give a thread its reply, and let it go on to its next operation."""
        self._switch(thread, reply)

    def _switch(self, thread: int, *reply: Any) -> None:
        outer, self.explorer.run, self.explorer.current_thread = (
            (self.explorer.run, self.explorer.current_thread), self, thread)  # fmt: skip
        green = self.threads[thread]
        green.parent = getcurrent()
        try:
            green.switch(*reply)
        finally:
            self.explorer.run, self.explorer.current_thread = outer

    def close(self) -> None:
        """End it where it stands."""
        self.process.alive = False
        for green in self.threads:
            if not green.dead and green:
                green.parent = getcurrent()
                green.throw(ActorEnded)
        self.process.alive = True


class Automaton:
    """What one process does, as far as it was asked: a tree of replies."""

    def __init__(
        self, explorer: Explorer, process: Process, body: Callable[[Process], Any]
    ) -> None:
        self.explorer = explorer
        self.process = process
        self.body = body
        self.count = 0
        self._live: tuple[Node, Run] | None = None
        self.root = self._node(None, 0, (), Run(explorer, process, body))

    def _node(self, parent: Node | None, thread: int, reply: Reply, run: Run) -> Node:
        self.count += 1
        node = Node(parent, thread, reply, self.count, list(run.pending), error=run.error)
        self._live = node, run
        return node

    def child(self, node: Node, thread: int, reply: Reply) -> Node:
        """Return where the process stands after one more reply."""
        found = node.children.get((thread, reply))
        if found is None:
            found = node.children[thread, reply] = self._discover(node, thread, reply)
        return found

    def _discover(self, node: Node, thread: int, reply: Reply) -> Node:
        if self._live is not None and self._live[0] is node:
            run, self._live = self._live[1], None
        else:
            self.close()
            run = Run(self.explorer, self.process, self.body)
            for known, old in node.path():
                run.reply(known, old)
        run.reply(thread, reply)
        return self._node(node, thread, reply, run)

    def close(self) -> None:
        """End the code where it stands."""
        if self._live is not None:
            self._live[1].close()
            self._live = None


Trace = tuple["Trace | None", str]
"""A trace: what came before, and the last line."""


@dataclass(slots=True)
class State:
    """A disk, what the invariant checker knows of it, and where every process stands."""

    disk: Disk
    checker: InvariantChecker
    nodes: tuple[Node, ...]
    lost: int
    """How many replies may still be lost."""
    late: tuple[tuple[str, tuple[str, ...], int], ...]
    """Requests that the server may still get once more."""
    again: int
    trace: Trace | None

    def key(self) -> int:
        """Return what identifies this state."""
        places = tuple(0 if node.ended else node.number for node in self.nodes)
        return hash((self.disk.summary(), places, self.lost, self.late, self.again))


@dataclass(slots=True)
class Found:
    """What an exploration came to."""

    states: int = 0
    steps: int = 0
    schedules: int = 0
    """How many orders of the operations these states stand for."""
    replies: int = 0
    """How many sequences of replies the processes were run for."""
    ends: int = 0
    """How many different pools all this leaves, half-way or at the end; each was settled."""


class Explorer:
    """The search over all orders, in the place of `World`."""

    def __init__(self) -> None:
        self.traits = LOCAL
        self.disk = Disk(lambda: 0.0)
        self.checker: InvariantChecker
        self.violation: Violation | None = None
        self.on_behalf_of: Process | None = None
        self.run: Run | None = None
        self.current_thread = 0
        self.acting: Process | None = None
        self.direct: Process | None = None
        """The process that acts alone, before and after the exploration."""
        self.tokens = 0
        self.constant: tuple[str, ...] = ()
        """Directories that do not change during the exploration."""
        self.rng: Any = SimpleNamespace(
            shuffle=list.sort, uniform=lambda low, high: low, random=lambda: 0.0
        )
        self.locks: dict[str, Process] = {}
        self.alarmed: list[Process] = []
        self.now = 0.0
        self.processes: list[Process] = []
        self.checker = InvariantChecker(self, ROOT, output_of)  # type: ignore[arg-type]
        self.checker.lease_s = 0.0  # no pause is too short here

    # ---- what the code asks of its world ----

    @property
    def me(self) -> Process:
        """Whose code runs."""
        process = self.run.process if self.run is not None else self.acting or self.direct
        assert process is not None
        return process

    @property
    def current(self) -> Any:
        process = self.run.process if self.run is not None else self.acting or self.direct
        return SimpleNamespace(process=process) if process is not None else None

    def log(self, what: str, outcome: str, *paths: str) -> None:
        """Do nothing: the search writes the trace."""

    def sleep(self, seconds: float, ready_if: Any = None) -> None:
        """Let time pass for this process alone."""
        if not self.me.alive:
            raise ActorEnded
        self.me.host.monotonic += max(seconds, LEAP_S)

    def token(self, length: int = 12) -> str:
        """Return digits that no other call returns."""
        if self.run is not None:
            self.run.tokens += 1
            return f"{self.run.process.pid:x}{self.run.tokens:0{length - 2}x}"[:length]
        self.tokens += 1
        return f"f{self.tokens:0{length - 1}x}"

    def perform(self, what: str, act: Callable[[], Any], *paths: str) -> Any:
        """Do one operation of the code, when the search says so."""
        run = self.run
        if run is None:
            return act()
        if not run.process.alive:
            raise ActorEnded
        unseen = run.at_once or hidden(what, paths, self.constant)
        run.pending[self.current_thread] = Pending(what, paths, act, unseen)
        return revived(what, paths, self._wait())

    def _wait(self) -> Reply:
        reply: Reply = getcurrent().parent.switch()
        return reply

    def join(self) -> None:
        """Wait for the other threads of this process."""
        run = self.run
        if run is not None:
            run.pending[self.current_thread] = Pending("join", ())
            self._wait()

    def begin(self) -> None:
        """Let every operation of this process from here on be searched."""
        if self.run is not None:
            self.run.at_once = False

    def inode(self, file: Any) -> Inode:
        """Return the file that a descriptor stands for, on the disk of this moment."""
        found = self.disk.find(file.path)
        return found if found is not None else Inode(0)  # it was removed: no process sees it

    def thread(self, process: Process, name: str, body: Callable[[], None]) -> None:
        """Start a thread, but none for a process that acts alone: nothing waits for its beats."""

    # ---- making ----

    def process(self, name: str) -> Process:
        """Make a process, on its own host."""
        number = len(self.processes) + 1
        mount = Mount(self.disk, LOCAL, lambda: 0.0, Random(0))
        host = Host(f"host{number}", mount, f"boot{number}", 0.0, 1.79e9, rate=0.0)
        process = Process(name, host, 16 + number, f"{number}")
        host.pids[process.pid] = process
        self.processes.append(process)
        self.checker.workers[name] = process
        return process

    @contextmanager
    def alone(self, process: Process) -> Iterator[None]:
        """Let one process act at once, whatever it does."""
        outer, self.direct = self.direct, process
        process.host.mount.disk = self.disk
        try:
            yield
        finally:
            self.direct = outer

    # ---- searching ----

    def explore(
        self,
        bodies: dict[str, Callable[[Process], Any]],
        *,
        lost: int = 0,
        again: int = 0,
        settle: Callable[[Explorer], None] | None = None,
        constant: tuple[str, ...] = (),
        states_max: int = 10**9,
    ) -> Found:
        """Search all orders from the present disk on; raises Violation with a trace."""
        known = len(self.processes)
        self.constant = tuple(f"{ROOT}/{name}" for name in constant)
        base = self.disk, self.checker
        self.automata = [Automaton(self, self.process(name), body) for name, body in bodies.items()]
        roots = tuple(automaton.root for automaton in self.automata)
        first = State(*base, roots, lost, (), again, None)
        found, numbered, counts = Found(), set[int](), dict[int, int]()
        for index in range(len(roots)):
            self._catch_up(first, index)
        stack = [(first, self._moves(first), first.key())]
        counts[stack[0][2]] = 0
        while stack:
            state, moves, key = stack[-1]
            move = next(moves, None)
            if move is None:
                stack.pop()
                if stack:
                    counts[stack[-1][2]] += counts[key]
                continue
            following = self._step(state, *move)
            found.steps += 1
            name = following.key()
            if name in counts:
                counts[key] += counts[name]
                continue
            assert len(counts) < states_max, f"more than {states_max} states"
            moves = self._moves(following)
            counts[name] = 0
            if (
                settle is not None
                and (public := following.disk.summary(shown=True)) not in numbered
            ):
                numbered.add(public)
                self._settle(following, settle)
            if not any(True for _ in self._moves(following)):
                counts[name] = 1
                self._ended(following)
            stack.append((following, moves, name))
        found.states, found.ends = len(counts), len(numbered)
        found.schedules = counts[first.key()]
        found.replies = sum(automaton.count for automaton in self.automata)
        for automaton in self.automata:
            automaton.close()
        del self.processes[known:]
        return found

    def _moves(self, state: State) -> Iterator[tuple[int, int, str]]:
        """Yield what could happen next: whose thread goes on, and what goes wrong with it."""
        for index, node in enumerate(state.nodes):
            ended = [pending.what == "end" for pending in node.pending]
            for thread, pending in enumerate(node.pending):
                if pending.what == "end" or pending.what == "join" and not all(ended[1:]):
                    continue
                yield index, thread, ""
                if pending.what in LOST_REPLY:
                    if state.lost:
                        yield index, thread, "lost"
                    if state.again and pending.what in ("rename", "link", "unlink"):
                        yield index, thread, "again"
        for number in range(len(state.late)):
            yield -1, number, "late"

    def _step(self, state: State, index: int, thread: int, fault: str) -> State:
        disk = state.disk.copy()
        checker = state.checker.copy()
        following = State(disk, checker, state.nodes, state.lost, state.late, state.again, None)
        self._enter(following)
        try:
            if fault == "late":
                what, paths, by = state.late[thread]
                following.late = state.late[:thread] + state.late[thread + 1 :]
                self.on_behalf_of = self.automata[by].process
                text = self._late(what, paths, by)
                following.trace = state.trace, text
            else:
                pending = state.nodes[index].pending[thread]
                text = self._do(following, index, thread, fault)
                following.trace = state.trace, f"{text}{f'   FAULT {fault}' if fault else ''}"
                if fault == "again":
                    following.late = *state.late, (pending.what, pending.paths, index)
                    following.again -= 1
                self._catch_up(following, index)
        except Violation as error:
            self.violation = None
            who, doing = self.automata[index].process, state.nodes[index].pending[thread]
            error.add_note(
                self.format_trace(
                    following.trace or (state.trace, f"{who!r:10} {doing.describe()}")
                )
            )
            raise
        finally:
            self.on_behalf_of = self.acting = None
        return following

    def _enter(self, state: State) -> None:
        self.disk, self.checker = state.disk, state.checker
        self.disk.watch = self.checker.changed
        for process in self.processes:
            process.host.mount.disk = state.disk

    def _do(self, state: State, index: int, thread: int, fault: str = "") -> str:
        """Do the next operation of a thread on the state's disk; return a line of the trace."""
        automaton, node = self.automata[index], state.nodes[index]
        pending = node.pending[thread]
        process = self.acting = automaton.process
        for each in self.processes:
            each.excuses = set(state.checker.excuses.get(each.name, ()))
        if fault == "lost":
            state.lost -= 1
            process.excuses.add("lost")
        reply = self._reply(pending)
        if pending.what not in ("open", "stat", "list", "fsync", "write") and pending.paths:
            parents = {path.rpartition("/")[0] for path in pending.paths}
            assert not parents & set(self.constant), (
                f"{pending.describe()}: it was declared constant"
            )
        if fault == "lost" and reply[0] != "error":
            reply = "error", LOST_REPLY[pending.what]
        for each in self.processes:
            if each.excuses:
                state.checker.excuses[each.name] = frozenset(each.excuses)
        self.acting = None
        nodes = list(state.nodes)
        nodes[index] = automaton.child(node, thread, reply)
        state.nodes = tuple(nodes)
        tail = f"   {errno.errorcode[reply[1]]}" if reply[0] == "error" else ""
        return f"{process.name:10} {pending.describe()}{tail}"

    @staticmethod
    def _reply(pending: Pending) -> Reply:
        if pending.act is None:
            return ("joined",)
        try:
            return compared(pending.what, pending.paths, pending.act())
        except Violation:
            raise
        except OSError as error:
            return "error", error.errno

    def _catch_up(self, state: State, index: int) -> None:
        """Do what only this process can see."""
        going = True
        while going:
            going = False
            for thread, pending in enumerate(state.nodes[index].pending):
                if pending.hidden:
                    self._do(state, index, thread)
                    going = True
                    break

    def _late(self, what: str, paths: tuple[str, ...], by: int) -> str:
        outcome = "had no effect"
        try:
            getattr(self.disk, what)(*paths)
            outcome = "took effect"
        except Violation:
            raise
        except OSError:
            pass
        where = " -> ".join(path.removeprefix(f"{ROOT}/") for path in paths)
        return f"late {what} of {self.automata[by].process.name} {where}   {outcome}"

    def _ended(self, state: State) -> None:
        for automaton, node in zip(self.automata, state.nodes, strict=True):
            if node.error:
                error = Violation(f"{automaton.process.name} ended by {node.error}")
                error.add_note(self.format_trace(state.trace))
                raise error

    def _settle(self, state: State, settle: Callable[[Explorer], None]) -> None:
        """Let every process be dead; a fresh worker must be able to finish the pool."""
        left = State(state.disk.copy(), state.checker.copy(), (), 0, (), 0, state.trace)
        self._enter(left)
        for process in self.processes:
            process.excuses = set(state.checker.excuses.get(process.name, ())) | {"dead"}
        try:
            settle(self)
            if self.violation is not None:
                raise self.violation
        except Exception as error:
            self.violation = None
            error.add_note(f"{self.format_trace(state.trace)}\n(here every process dies)")
            raise

    @staticmethod
    def format_trace(trace: Trace | None) -> str:
        """Return the trace as lines of text."""
        lines = []
        while trace is not None:
            trace, line = trace
            lines.append(line)
        return "\n".join(lines[::-1])


def compared(what: str, paths: tuple[str, ...], result: Any) -> Reply:
    """Return a result in a form that can be compared, and that `revived` takes back."""
    if what == "list":
        private = "/." in paths[-1] or "/partial/" in paths[-1]
        return "names", tuple(sorted(n for n in result if private or not n.startswith(".")))
    if isinstance(result, Inode):
        return "file", result.data if result.entries is None else None
    if result is None:
        return ("none",)
    if isinstance(result, int):
        return "number", result
    return "facts", result.st_mode, result.st_size, result.st_nlink


def revived(what: str, paths: tuple[str, ...], reply: Reply) -> Any:
    """Return what the code gets as the result, or raise its error."""
    kind = reply[0]
    if kind == "error":
        raise failure(reply[1], paths[0])
    if kind == "names":
        return list(reply[1])
    if kind == "file":
        inode = Inode(0, directory=reply[1] is None)
        inode.links = 1
        inode.data = reply[1] or b""
        return inode
    if kind == "facts":
        mode, size, links = reply[1:]
        return SimpleNamespace(
            st_mode=mode, st_size=size, st_nlink=links, st_uid=1000, st_ino=0, st_mtime=0.0
        )
    return reply[1] if kind == "number" else None


@contextmanager
def exploring() -> Iterator[Explorer]:
    """Let an explorer take the place of the world."""
    explorer = Explorer()
    SIM.world = explorer  # type: ignore[assignment]
    outer, SIM.perform = SIM.perform, explorer.perform
    try:
        yield explorer
    finally:
        SIM.perform = outer
