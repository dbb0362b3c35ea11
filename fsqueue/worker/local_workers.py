"""Worker processes that this process starts on this machine, and keeps going.

R9  While work remains that its workers could take, `run` has them: one that was killed, lost its
    lease, or ended for what a new process mends is started again. One that proved itself broken,
    or was asked to leave, is not. What becomes of the terminal decides nothing: the workers are
    looked after by a thread, and a table that cannot be drawn any more is given up.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from fsqueue.errors import ExitStatus, PoolError, UsageError, exit_status_of_signal
from fsqueue.gpu.nvml import cuda_environ, visible_gpus
from fsqueue.gpu.sharing import PER_GPU_MAX, sharing_environ
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer, Process, look_at_process
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.status import LeaveReason, read_statuses
from fsqueue.worker.signals import SIGNALS

log = logging.getLogger(__name__)

ORDERLY: Final = frozenset(
    {ExitStatus.DONE, ExitStatus.SOME_FAILED, ExitStatus.WORK_REMAINS, ExitStatus.DRAINED}
)
"""Exit statuses of a worker that left in good order, without a signal."""
BY_SIGNAL: Final = frozenset({129, 130, 143})
MENDED_BY_RESTART: Final = frozenset({LeaveReason.LEASE_LOST, LeaveReason.BROKEN, ""})
"""What a worker may have left for and a new process may do better; "": it never said."""
POLL_S: Final = 0.1
RESTART_S: Final = 1.0
RESTART_MAX_S: Final = 60.0
RESTARTS_MAX: Final = 5
"""So often in a row is a worker started again that ends within SETTLED_S."""
SETTLED_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """A worker that did not leave in good order. `log` is where it logged, if not to stderr."""

    index: int
    status: int
    """Negative: the signal that killed it."""
    log: str | None
    gpu: str = ""
    """What it has of CUDA_VISIBLE_DEVICES."""

    def __str__(self) -> str:
        how = (
            f"was killed by signal {-self.status}"
            if self.status < 0
            else f"exited with status {self.status}"
        )
        where = f" ({self.gpu})" if self.gpu else ""
        return f"worker {self.index}{where} {how}{f'; its log: {self.log}' if self.log else ''}"


def local_environments(
    pool: PoolDirectory, workers: int | None, per_gpu: int | None = None
) -> list[dict[str, str]]:
    """Return the environment of each worker to start: `per_gpu` per visible GPU, or N on the CPU.

    A MIG instance counts as a GPU. Without GPUs and without a number there is one worker. CPU
    workers are given the pool's spools in turn. Raises UsageError if the pool has no spool, and for
    numbers that mean nothing here.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}, but a run needs at least one.")
    if per_gpu is not None:
        _check_per_gpu(workers, per_gpu)
    gpus = visible_gpus() if workers is None else []
    if gpus:
        each = per_gpu or 1
        return [cuda_environ(gpu) | sharing_environ(each) for gpu in gpus for _ in range(each)]
    if per_gpu is not None:
        raise UsageError(
            f"--per-gpu {per_gpu}: no GPU is visible here (no NVIDIA driver, or "
            f"CUDA_VISIBLE_DEVICES hides all; see: fsqueue gpus). For {per_gpu} workers on the "
            f"CPU: --workers {per_gpu}"
        )
    spools = spool_names(pool)
    if not spools:
        raise UsageError(f"{pool.root} has no spools; plan something first: fsqueue plan --help")
    return [
        {"CUDA_VISIBLE_DEVICES": "", "FSQUEUE_SPOOL": spools[number % len(spools)]}
        | sharing_environ(1)
        for number in range(1 if workers is None else workers)
    ]


def _check_per_gpu(workers: int | None, per_gpu: int) -> None:
    if workers is not None:
        raise UsageError(
            f"--workers {workers} starts workers on the CPU, and --per-gpu {per_gpu} on GPUs; give "
            f"one of them. For both, start two runs."
        )
    if not 1 <= per_gpu <= PER_GPU_MAX:
        raise UsageError(f"--per-gpu {per_gpu}: must be from 1 to {PER_GPU_MAX}.")


@dataclass(slots=True)
class _Slot:
    """One worker's place: the process in it now, and how often it had to be started again."""

    index: int
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    log: str | None
    started: float
    restarts: int = 0
    start_at: float | None = None
    """When to start the next process; None: not at all."""

    def exit(self) -> WorkerExit:
        """Return how the process ended."""
        gpu = self.environment.get("CUDA_VISIBLE_DEVICES", "")
        return WorkerExit(self.index, self.process.returncode, self.log, gpu)


class LocalWorkers:
    """Workers started by this process, one for each environment, and started again (R9).

    Each runs in a session of its own, so that Ctrl-C reaches it once: through `relaying_signals`.
    """

    def __init__(
        self,
        pool: PoolDirectory,
        environments: Sequence[Mapping[str, str]],
        options: Sequence[str] = (),
        *,
        log_to_files: bool = False,
    ) -> None:
        self._pool = pool
        self._signal = 0
        self._argv = [sys.executable, "-P", "-m", "fsqueue", "work", pool.root, *options]
        self._lock = threading.RLock()
        self._slots: list[_Slot] = []
        self._all_left = threading.Event()
        for index, environment in enumerate(environments):
            path = None
            if log_to_files:
                path = f"{pool.directory('events')}/run-{os.getpid()}-{index}.log"
            process = self._start(environment, path)
            self._slots.append(_Slot(index, environment, process, path, time.monotonic()))
        self._keeper = threading.Thread(target=self._keep, name="local workers", daemon=True)
        self._keeper.start()

    def _start(self, environment: Mapping[str, str], path: str | None) -> subprocess.Popen[bytes]:
        with open(path or os.devnull, "ab") as log:
            return subprocess.Popen(
                self._argv,
                env={**os.environ, **environment},
                stderr=log if path else None,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    # ---- keeping them going ----

    def _keep(self) -> None:
        while not self.finished:
            with self._lock:
                for slot in self._slots:
                    self._look_after(slot)
            self._await_an_end()
        self._all_left.set()

    def _await_an_end(self) -> None:
        """Wait until a worker ends, but not for long."""
        descriptors: list[int] = []
        poll = select.poll()
        try:
            for slot in self._slots:
                if slot.process.poll() is None:
                    descriptors.append(os.pidfd_open(slot.process.pid))
                    poll.register(descriptors[-1], select.POLLIN)
            poll.poll(POLL_S * 1e3)
        except ProcessLookupError:
            pass  # RACE: it has just ended
        except (AttributeError, OSError):
            time.sleep(POLL_S)  # another or an old system, or no descriptor is left
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _look_after(self, slot: _Slot) -> None:
        if slot.process.poll() is None:
            return
        now = time.monotonic()
        if slot.start_at is None:
            if not self._should_restart(slot):
                return
            if now - slot.started > SETTLED_S:
                slot.restarts = 0
            delay_s = min(RESTART_S * 2**slot.restarts, RESTART_MAX_S)
            slot.start_at = now + delay_s
            log.warning("%s; it is started again in %.0f s", slot.exit(), delay_s)
        elif now >= slot.start_at:
            if not self._should_restart(slot):
                slot.start_at = None  # the others did what there was to do
                return
            slot.restarts += 1
            slot.started, slot.start_at = now, None
            slot.process = self._start(slot.environment, slot.log)

    def _should_restart(self, slot: _Slot) -> bool:
        """Return whether a new process may do better, and there is something to do."""
        status = slot.process.returncode
        if self._signal or status in ORDERLY | BY_SIGNAL or slot.restarts >= RESTARTS_MAX:
            return False
        if status > 0 and self._left_because(slot.process.pid) not in MENDED_BY_RESTART:
            return False
        try:
            return work_remains(self._pool)
        except (OSError, PoolError):
            return True  # a new process reports what is wrong

    def _left_because(self, pid: int) -> str:
        """Return why the worker in this process left, as its status says."""
        try:
            host = os.uname().nodename
            found = read_statuses(self._pool).values()
            mine = [each for each in found if (each.pid, each.host) == (pid, host)]
            return max(mine, key=lambda each: each.started).left_because if mine else ""
        except (OSError, PoolError):
            return ""

    @contextmanager
    def relaying_signals(self) -> Iterator[None]:
        """Relay what asks to leave to every worker. Only the main thread can."""

        def relay(number: int, frame: FrameType | None) -> None:
            self._signal = number
            for slot in self._slots:
                if slot.process.poll() is None:
                    slot.process.send_signal(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        relayed = [number for number in SIGNALS if not _is_nohup(number)]
        before = [signal.signal(number, relay) for number in relayed]
        try:
            yield
        finally:
            for number, handler in zip(relayed, before, strict=True):
                signal.signal(number, handler)

    @property
    def finished(self) -> bool:
        """Whether every worker has left for good."""
        with self._lock:
            return all(
                slot.process.poll() is not None
                and (self._signal or slot.start_at is None and not self._should_restart(slot))
                for slot in self._slots
            )

    def pause(self, seconds: float) -> None:
        """Sleep, but not on when every worker has left for good."""
        self._all_left.wait(seconds)

    def wait(self) -> list[WorkerExit]:
        """Wait for the workers; return those that did not leave in good order."""
        while not self.finished:
            self.pause(POLL_S)
        return [
            slot.exit()
            for slot in self._slots
            if slot.process.returncode not in ORDERLY | BY_SIGNAL
        ]

    def exit_status(self, pool_status: int) -> int:
        """Return the exit status of the whole run, given the pool's own."""
        if pool_status in (ExitStatus.DONE, ExitStatus.SOME_FAILED):
            return pool_status
        if self._signal:
            return exit_status_of_signal(self._signal)
        statuses = [slot.process.returncode for slot in self._slots]
        if any(status not in ORDERLY for status in statuses):
            return ExitStatus.ERROR
        return max(statuses, key=lambda status: status == ExitStatus.DRAINED)


def _is_nohup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def workers_here(pool: PoolDirectory) -> list[int]:
    """Return the process ids of this user's workers of the pool that run on this host already."""
    observer = Observer(pool)
    observer.look()
    facts = [observer.facts(worker) for worker in observer.workers()]
    here = [each for each in facts if look_at_process(each) is Process.RUNNING]
    return sorted(pid for each in here if _is_mine(pid := int(each["pid"])))


def _is_mine(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False  # RACE: it has ended meanwhile


def work_remains(pool: PoolDirectory) -> bool:
    """Return whether any claim waits or runs. Raises OSError, PoolError."""
    return claims.any_owned(pool, State.RUNNING) or any(
        claims.waiting(pool, spool) for spool in spool_names(pool)
    )
