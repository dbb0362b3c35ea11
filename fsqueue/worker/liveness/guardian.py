"""A small process beside a worker: it renews the worker's lease, and acts when the worker cannot.

A thread cannot renew a lease while a handler holds the interpreter, goes on renewing it when the
main thread is stuck, and dies with the process. So a worker keeps this process, which shares a page
of memory with it (`progress`), and which no signal to the worker's group, session or terminal
reaches.

R10  A lease is renewed while the worker's process runs and its main thread gets on, or is in a
     handler, however silent that is. A main thread that is stuck elsewhere for a lease is not
     renewed for; after two, the lease is given up, and its claims go back uncharged.
R16  A handler that is still running when its time and its grace are up is ended with its worker,
     and the claim is charged with that reason. Time in which the worker was stopped is not counted.
R17  A worker that dies ends its lease at once: its guardian first ends what the worker's programs
     left behind, then the lease, from the very beat it has reached (I9), and then removes what was
     being written. A guardian that dies is noticed: then the worker's thread renews, from the beat
     last reached. Two processes never renew one lease.

             the worker's process
    runs, gets on    stopped    is stuck 1 lease    is stuck 2 leases    is gone
    renew            wait       wait                give up the lease    end all it left, the lease
"""

from __future__ import annotations

import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from fsqueue.errors import FsqueueError, LeaseLost
from fsqueue.pool import claims
from fsqueue.pool.inbox import inbox_of
from fsqueue.pool.leases import BEATS_PER_LEASE, Lease
from fsqueue.pool.names import ClaimName, LeaseName
from fsqueue.pool.proof_of_life import is_stopped
from fsqueue.pool.settings import PoolDirectory
from fsqueue.processes import orphans
from fsqueue.processes.leftovers import end_everything_of
from fsqueue.records.journal import EventKind, Journal
from fsqueue.storage import directories, permissions
from fsqueue.storage.operation_count import operations
from fsqueue.worker.liveness.progress import AWAY_S, GRACE_S, SIZE, Progress, Silence

IGNORED: Final = tuple(
    getattr(signal, name)
    for name in "SIGINT SIGTERM SIGHUP SIGUSR1 SIGUSR2 SIGQUIT SIGTSTP SIGTTIN SIGTTOU SIGPIPE "
    "SIGALRM SIGXCPU".split()
    if hasattr(signal, name)
)
"""What SLURM, a terminal or an impatient person sends to all processes of a job."""
TICK_S: Final = 0.5
BURIAL_LEASES: Final = 3
"""How long to try to end a dead worker's lease: after that, it has expired anyway."""
STOP_S: Final = 10.0


# ---- in the guardian ----


class Guardian:
    """The guardian's side: what it knows of its worker."""

    def __init__(
        self,
        pool: PoolDirectory,
        lease: Lease,
        progress: Progress,
        worker_pid: int,
        wake: int,
    ) -> None:
        """`wake`: readable when there is something to do at once."""
        self._pool = pool
        self._lease = lease
        self._progress = progress
        self._pid = worker_pid
        self._wake = wake
        self._beat_s = pool.lease_s / BEATS_PER_LEASE
        self._tick_s = min(self._beat_s / 4, TICK_S)
        self._silence = Silence(progress, pool.lease_s)
        self._renewed_at = self._ticked_at = time.monotonic()
        self._fair_after = -math.inf
        """Before this, a worker that was stopped has not had its grace yet."""
        self._timed_out = False
        self._poll = select.poll()
        self._poll.register(wake, select.POLLIN)
        try:
            self._pidfd = os.pidfd_open(worker_pid)
            self._poll.register(self._pidfd, select.POLLIN)
        except (AttributeError, OSError):
            self._pidfd = -1  # another or an old system: its death is noticed at the next tick

    def run(self) -> None:
        """Guard the worker until it ends, or asks this process to."""
        while self._is_alive():
            if self._progress.stops:
                return
            self._tick()
            if self._poll.poll(self._tick_s * 1000):
                self._empty_pipe()
        self._bury()

    def _empty_pipe(self) -> None:
        try:
            if not os.read(self._wake, 64):
                self._poll.unregister(self._wake)  # closed: it would wake us for ever
        except (BlockingIOError, KeyError):
            pass  # it was the worker's end that woke us

    def _is_alive(self) -> bool:
        return os.getppid() == self._pid

    def _tick(self) -> None:
        now = time.monotonic()
        stopped = is_stopped(self._pid)
        if stopped or now - self._ticked_at > AWAY_S:
            self._fair_after = now + GRACE_S
            self._progress.note_stopped(now - self._ticked_at)
        self._ticked_at = now
        silent_s = self._silence.look(excused=stopped)
        if not self._progress.lost and not stopped:
            if silent_s >= 2 * self._pool.lease_s:
                self._give_up()
            elif silent_s < self._pool.lease_s:
                self._renew_if_due(now)
        if self._progress.overdue and now > self._fair_after and not self._timed_out:
            self._end_overdue()
        self._progress.tick(operations.total)

    def _renew_if_due(self, now: float) -> None:
        leaves = self._progress.leaving and not self._lease.name.leaving
        at_once = leaves and not self._progress.missed
        if now - self._renewed_at < self._beat_s and not at_once:
            return
        self._renewed_at = now
        try:
            self._lease.renew(leaving=self._progress.leaving)
            self._progress.reach(self._lease.name)
        except LeaseLost as error:
            self._progress.lose(str(error))
        except (OSError, FsqueueError) as error:
            self._progress.miss(str(error))

    def _give_up(self) -> None:
        """End the lease of a worker whose main thread is stuck. R10"""
        try:
            self._progress.lose(self._lease.give_up(leaving=True))
        except (OSError, FsqueueError) as error:
            self._progress.miss(str(error))

    def _end_overdue(self) -> None:
        """End a worker whose handler could not be interrupted. R16"""
        progress = self._progress
        name, timeout_s = ClaimName.parse(progress.claim), progress.timeout_s
        pool = inbox_of(self._pool) if progress.addressed else self._pool
        if not progress.overdue:
            return  # RACE: it has just ended
        try:
            if name is not None and name.owner is not None:
                claims.record_error(pool, name, {"error": overdue_error(timeout_s)})
        except (OSError, FsqueueError):
            pass  # then recovery says that its worker was lost, which is true as well
        self._timed_out = True
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            elif self._is_alive():
                os.kill(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # RACE: it has just died by itself

    def _bury(self) -> None:
        """End what a dead worker left behind, and its lease. R17"""
        worker = self._lease.name.worker
        try:
            end_everything_of(worker)
        except OSError:
            pass  # a program that cannot be ended must not keep the claim from the living
        if self._progress.lost:
            return  # recovery has done the rest
        leaving = self._progress.leaving and not self._timed_out
        until = time.monotonic() + BURIAL_LEASES * self._pool.lease_s
        while time.monotonic() < until:
            try:
                self._lease.give_up(leaving=leaving)
                journal = Journal(self._pool, worker)  # its only other writer is dead
                journal.write(EventKind.ENDED, of=worker)
                journal.close()
                for pool in (self._pool, inbox_of(self._pool)):
                    directories.discard_at_once(pool.scratch(worker))
                return
            except (OSError, FsqueueError):
                time.sleep(self._tick_s)  # the mount may be back in time


def overdue_error(timeout_s: float) -> str:
    """Return what an attempt's record says that this process had to end."""
    return (
        f"it ran longer than --timeout {timeout_s:g} s and could not be interrupted; its worker "
        f"was ended"
    )


def main(arguments: str) -> None:
    """Guard the worker that started this process."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    given = json.loads(arguments)
    pool = PoolDirectory(**given["pool"])
    if permissions.trusts_groups():
        permissions.trust_group_of(os.stat(pool.root))
    lease = Lease(pool, given["lease"]["worker"])
    lease.name = LeaseName(**given["lease"])
    memory = mmap.mmap(given["memory"], SIZE)
    Guardian(pool, lease, Progress(memory), given["pid"], given["wake"]).run()


# ---- in the worker ----


class GuardianProcess:
    """The worker's side: its guardian, as a process."""

    def __init__(self, pool: PoolDirectory, lease: Lease) -> None:
        """Prepare the shared memory; raises OSError if there is no room for it."""
        self._pool = pool
        self._lease = lease
        self._memory = _shared_memory()
        self.progress = Progress(mmap.mmap(self._memory, SIZE))
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Raises OSError if no process can be started here."""
        given: dict[str, Any] = {
            "pool": asdict(self._pool),
            "lease": asdict(self._lease.name),
            "pid": os.getpid(),
            "memory": self._memory,
            "wake": self._wake_reader,
        }
        self.progress.reach(self._lease.name)
        # Blocked until it ignores them: a new process has them blocked like its maker.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fsqueue.worker.liveness.guardian", json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(self._memory, self._wake_reader),
                cwd="/",
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        orphans.keep(self._process.pid)

    def wake(self) -> None:
        """Let it look at once; may be called from a signal handler."""
        try:
            os.write(self._wake_writer, b"x")
        except OSError:
            pass  # it has been woken often enough, or told to stop

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def has_ended(self) -> bool:
        """Return whether it has ended, or was never started."""
        return self._process is None or self._process.poll() is not None

    def end_if_stopped(self, silent_s: float) -> None:
        """End it if it is stopped, and has not ticked for so long. Not if it waits for a mount."""
        ticked = self.progress.ticked
        if ticked and time.monotonic() - ticked > silent_s and is_stopped(self.pid):
            self._kill()

    def stop(self) -> LeaseName:
        """End it; return the beat that the lease has reached."""
        if self._process is not None:
            if self.progress.ticked:
                self.progress.ask_to_stop()
                self.wake()
                try:
                    self._process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    pass  # it is stopped, or waits for a mount
            self._kill()
        opened = (self._wake_writer, self._wake_reader, self._memory)
        self._wake_writer = self._wake_reader = self._memory = -1  # a signal may come meanwhile
        for fd in opened:
            with suppress(OSError):  # a handler may have closed what is not its own
                os.close(fd)
        return self.progress.beat_of(self._lease.name.worker)

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass  # what it waits for takes effect before, or fails: leases move by compare-and-swap


def _shared_memory() -> int:
    """Return a descriptor of memory that another process can share."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("fsqueue-progress")
    else:
        import tempfile  # not in every guardian

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, SIZE)
    return fd


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # there is nothing to tidy up, and the worker waits
