"""Run one program, and own everything that it starts.

Rules:

R20 The program leads a session and a process group of its own from its first instruction. Nothing
    of Python runs between fork and exec (`preexec_fn` does, and may deadlock in a process with
    threads), so that the kernel need not copy our page tables: vfork.
R22 However a program ends, everything that it started has ended, and is reaped, before its ending
    means anything: what it left running may finish by itself for a moment, then gets SIGTERM, and
    SIGKILL after the grace period, until none is left. What not even SIGKILL ends (it hangs in the
    kernel, or runs as another user) is waited for only for a bounded time, and reported.
R23 What a program writes to stderr is drained while it runs; its last part is kept, whatever the
    ending. It cannot fill a disk, and a descendant that holds it open holds nothing up.

Descendants are found by their parents: where `orphans` has made this process the parent of all
orphans, each of them descends from it, and belongs to the program if it began later, is not in our
own session, and was not started for ourselves. Elsewhere by the program's session and group, and by
a variable in its environment.

Threads: another thread may start and reap processes meanwhile, in the session of this process.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from fsqueue.processes import orphans, table
from fsqueue.processes.table import Process

log = logging.getLogger(__name__)

STDERR_KEPT: Final = 16 << 10
LINGER_S: Final = 2.0
"""How long what a program left running may finish by itself, at most."""
KILL_S: Final = 10.0
"""How long to wait for the end of what was sent SIGKILL."""
RECENT_S: Final = 0.5
"""The numbers of processes are not used up, and begun anew, within this time."""
LOOKS_MAX: Final = 20
_PIECE: Final = 1 << 16
_PAUSES_S: Final = (0.002, 0.1)


class Program:
    """One started program. `wait` until it has ended, then `finish`; or `end` it. Then `close`."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[bytes, bytes],
        directory: str | None,
        stdout: int | None,
        mark: bytes,
    ) -> None:
        """Start it in `directory`, with an empty stdin; without `stdout`, that goes to stderr.

        `mark` is a `NAME=value` that no other program has in its environment. Raises OSError.
        """
        self._adopting = orphans.adopt_orphans()
        self._countable = table.shows_this_process()
        self._mark = mark
        self._session = os.getsid(0)
        self._begun = time.monotonic()
        self._begun_ticks = table.now_ticks() if self._countable else 0
        self._kept = bytearray()
        self.bytes_written = 0
        """To stderr."""
        self.ended: set[int] = set()
        """The processes, beside the program, that were sent a signal to end them."""
        self.unended: list[Process] = []
        """What is left of it, although everything was tried."""
        self._exited = False
        self._stderr, theirs = os.pipe()
        self._pidfd = -1
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=theirs if stdout is None else stdout,
                stderr=theirs,
                env=environment,
                cwd=directory,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._stderr)
            raise
        finally:
            os.close(theirs)
        self.pid: Final = self._process.pid
        self._poll = select.poll()
        os.set_blocking(self._stderr, False)
        self._poll.register(self._stderr, select.POLLIN)
        with suppress(AttributeError, OSError):  # before Linux 5.3; or no descriptor is left
            self._pidfd = os.pidfd_open(self.pid)
            self._poll.register(self._pidfd, select.POLLIN)

    # ---- while it runs ----

    def wait(self, seconds: float) -> bool:
        """Wait for the program's end for up to `seconds`; return whether it has ended.

        It is not reaped: until then its number, and its group's, cannot be given to others.
        """
        deadline = time.monotonic() + seconds
        pause_s = _PAUSES_S[0]
        while not self._exited:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            if self._pidfd < 0:
                left_s, pause_s = min(left_s, pause_s), min(2 * pause_s, _PAUSES_S[1])
            for fd, _ in self._poll.poll(max(1.0, 1e3 * left_s)):
                if fd == self._stderr:
                    self._drain_once()
                else:
                    self._exited = True
            if self._pidfd < 0:
                self._exited = self._has_exited()
        return self._exited

    def _has_exited(self) -> bool:
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is not None

    def _drain_once(self) -> bool:
        """Read a piece of stderr; return whether there was any."""
        try:
            piece = os.read(self._stderr, _PIECE)
        except BlockingIOError:
            return False
        if not piece:
            with suppress(KeyError):
                self._poll.unregister(self._stderr)
            return False
        self.bytes_written += len(piece)
        self._kept += piece
        if len(self._kept) > 4 * STDERR_KEPT:
            del self._kept[:-STDERR_KEPT]
        return True

    @property
    def tail(self) -> str:
        """The last part of what it wrote to stderr."""
        for _ in range(LOOKS_MAX):  # not for ever: a descendant may still write
            if not self._drain_once():
                break
        return self._kept[-STDERR_KEPT:].decode("utf-8", "replace")

    def cpu_s(self) -> float | None:
        """Return the CPU time that the program and its living descendants have used so far.

        None if that cannot be known here. Orphans that have ended meanwhile are reaped.
        """
        if not self._countable:
            return None
        family = self._family()
        self._reap_orphans(family)
        return sum(process.cpu for process in family) / table.TICKS_PER_S

    # ---- what it started ----

    def _family(self) -> list[Process]:
        """Return the program and its descendants, those that have ended but are not reaped too."""
        numbers = table.pids_since(self.pid) if self._is_recent() else None
        numbers = table.pids() if numbers is None else [self.pid, *numbers]
        seen = {
            process.pid: process
            for process in table.read_all(numbers)
            if process.started >= self._begun_ticks
        }
        return [process for process in seen.values() if self._is_family(process, seen)]

    def _is_recent(self) -> bool:
        return time.monotonic() - self._begun < RECENT_S

    def _is_family(self, process: Process, seen: Mapping[int, Process]) -> bool:
        if self.pid in (process.pid, process.session, process.group):
            return True
        above: Process | None = process
        passed = set[int]()
        while above is not None and above.pid not in passed:
            if above.parent == self.pid or above.pid == self.pid:
                return True
            if above.parent == os.getpid():
                is_ours = above.session == self._session or orphans.is_kept(above.pid)
                return self._adopting and not is_ours
            passed.add(above.pid)
            above = seen.get(above.parent)
        return not self._adopting and table.has_variable(process.pid, self._mark)

    def _others(self) -> list[Process]:
        """Return the living descendants; reap those that have ended, if they are ours to reap."""
        if not self._countable:
            return []
        for _ in range(LOOKS_MAX):
            newest = table.newest_pid() if self._is_recent() else None
            if newest == self.pid:
                return []  # no process at all began after it
            if living := self._look():
                return living
            # RACE: one that was not seen yet may have started another, and ended.
            if newest is None:
                return self._look()
            if newest == table.newest_pid():
                return []
        return []

    def _look(self) -> list[Process]:
        family = self._family()
        self._reap_orphans(family)
        return [each for each in family if each.pid != self.pid and not each.ended]

    def _reap_orphans(self, family: Sequence[Process]) -> None:
        for process in family:
            if process.ended and process.parent == os.getpid() and process.pid != self.pid:
                orphans.reap(process.pid)

    # ---- its end ----

    def finish(self, *, linger_s: float, grace_s: float) -> int:
        """End what a program that has ended by itself left running; return its exit status.

        Negative: the signal that killed it.
        """
        assert self._exited
        deadline = time.monotonic() + linger_s
        pause_s = _PAUSES_S[0]
        while (others := self._remaining()) and time.monotonic() < deadline:
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _PAUSES_S[1])
        if others:
            self.end(grace_s)
        return self._reap()

    def end(self, grace_s: float) -> None:
        """End the program and everything it started: SIGTERM, and SIGKILL after `grace_s`.

        An exception that a signal handler raises cuts the grace short.
        """
        try:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # what is stopped acts on SIGTERM only then
            self._await_end(grace_s)
        finally:
            try:
                self._kill()
            except BaseException:
                self._kill()  # a further signal must not leave them running
                raise

    def _await_end(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        pause_s = _PAUSES_S[0]
        while not self.wait(0.0 if self._exited else pause_s) or self._remaining():
            if time.monotonic() >= deadline:
                return False
            if self._exited:
                self._pause(pause_s)
            pause_s = min(2 * pause_s, _PAUSES_S[1])
        return True

    def _kill(self) -> None:
        deadline = time.monotonic() + KILL_S
        while True:
            self._signal(signal.SIGKILL)
            if self._await_end(0.05):
                self.unended = []
                self._reap()
                return
            if time.monotonic() >= deadline:
                break
        self.unended = self._others()
        for process in self.unended:
            orphans.give_up(process.pid)
        if self._exited:
            self._reap()
        else:
            self.unended += table.read_all([self.pid])
            log.debug("process %d cannot be ended", self.pid)

    def _remaining(self) -> bool:
        """Return whether anything but the program itself still runs, as far as can be seen."""
        if self._countable:
            return bool(self._others())
        if not self._exited:
            return True
        self._reap()  # or it would count as a living member of its group
        orphans.reap_group(self.pid)
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _pause(self, seconds: float) -> None:
        """Pause, but go on draining stderr: what is about to finish may have much to say."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            if not self._drain_once():
                time.sleep(min(left_s, _PAUSES_S[0] * 5))

    def _signal(self, number: signal.Signals) -> None:
        """Signal every group in which there is something of the program.

        None of them is ours: a process can join only groups of its own session.
        """
        others = self._others()
        if number != signal.SIGCONT:
            self.ended.update(process.pid for process in others)
        groups = {process.group for process in others}
        if not (self._countable and self._is_reaped):
            groups.add(self.pid)
        for group in groups - {0, 1, os.getpgrp()}:
            # RACE: all of them have ended. EPERM: all of them run as another user.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

    @property
    def _is_reaped(self) -> bool:
        return self._process.returncode is not None

    def _reap(self) -> int:
        """Take the program's exit status, once everything else has ended."""
        orphans.reap_given_up()
        return self._process.wait()

    @property
    def all_ended(self) -> bool:
        """Whether it is certain that nothing of it runs any more."""
        return self._countable and not self.unended

    def close(self) -> None:
        """Release the descriptors."""
        os.close(self._stderr)
        if self._pidfd >= 0:
            os.close(self._pidfd)


def is_limit(error: OSError) -> bool:
    """Return whether a program was not started because a limit of this process is reached."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
