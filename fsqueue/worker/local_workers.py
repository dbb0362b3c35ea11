"""Worker processes that this process starts on this machine, and how they ended."""

from __future__ import annotations

import os
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

from fsqueue.errors import ExitStatus, UsageError, exit_status_of_signal
from fsqueue.gpu.nvml import cuda_environ, visible_gpus
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.worker.shutdown import SIGNALS

ORDERLY: Final = frozenset(
    {ExitStatus.DONE, ExitStatus.SOME_FAILED, ExitStatus.WORK_REMAINS, ExitStatus.DRAINED}
)
"""Exit statuses of a worker that left in good order, without a signal."""
BY_SIGNAL: Final = frozenset({130, 143})
POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """A worker that did not leave in good order. `log` is where it logged, if not to stderr."""

    index: int
    status: int
    """Negative: the signal that killed it."""
    log: str | None

    def __str__(self) -> str:
        how = (
            f"was killed by signal {-self.status}"
            if self.status < 0
            else f"exited with status {self.status}"
        )
        return f"worker {self.index} {how}{f'; its log: {self.log}' if self.log else ''}"


def local_environments(pool: PoolDirectory, workers: int | None) -> list[dict[str, str]]:
    """Return the environment of each worker to start: one per visible GPU, or N on the CPU.

    Without GPUs and without a number there is one worker. CPU workers are given the pool's spools
    in turn. Raises UsageError if the pool has no spool.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}, but a run needs at least one.")
    gpus = visible_gpus() if workers is None else []
    if gpus:
        return [cuda_environ(gpu) for gpu in gpus]
    spools = spool_names(pool)
    if not spools:
        raise UsageError(f"{pool.root} has no spools; plan something first: fsqueue plan --help")
    return [
        {"CUDA_VISIBLE_DEVICES": "", "FSQUEUE_SPOOL": spools[number % len(spools)]}
        for number in range(1 if workers is None else workers)
    ]


class LocalWorkers:
    """Workers started by this process, one for each environment.

    Each runs in a session of its own, so that Ctrl-C reaches it once: through `relaying_signals`.
    A worker that dies is not started again; its claim goes to another.
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
        self._logs: list[str] = []
        argv = [sys.executable, "-P", "-m", "fsqueue", "work", pool.root, *options]
        self._processes = [
            self._start(argv, environment, index, log_to_files)
            for index, environment in enumerate(environments)
        ]

    def _start(
        self, argv: list[str], environment: Mapping[str, str], index: int, log_to_files: bool
    ) -> subprocess.Popen[bytes]:
        path = os.devnull
        if log_to_files:
            path = f"{self._pool.directory('events')}/run-{os.getpid()}-{index}.log"
            self._logs.append(path)
        with open(path, "ab") as log:
            return subprocess.Popen(
                argv,
                env={**os.environ, **environment},
                stderr=log if log_to_files else None,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @contextmanager
    def relaying_signals(self) -> Iterator[None]:
        """Relay SIGINT, SIGTERM and SIGUSR1 to every worker. Only the main thread can."""

        def relay(number: int, frame: FrameType | None) -> None:
            self._signal = number
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.signal(number, relay) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    @property
    def finished(self) -> bool:
        """Whether every worker has left."""
        return all(process.poll() is not None for process in self._processes)

    def wait(self) -> list[WorkerExit]:
        """Wait for the workers; return those that did not leave in good order."""
        while not self.finished:
            time.sleep(POLL_S)
        return [
            WorkerExit(index, process.returncode, self._logs[index] if self._logs else None)
            for index, process in enumerate(self._processes)
            if process.returncode not in ORDERLY | BY_SIGNAL
        ]

    def exit_status(self, pool_status: int) -> int:
        """Return the exit status of the whole run, given the pool's own."""
        if pool_status in (ExitStatus.DONE, ExitStatus.SOME_FAILED):
            return pool_status
        if self._signal:
            return exit_status_of_signal(self._signal)
        statuses = [process.returncode for process in self._processes]
        if any(status not in ORDERLY for status in statuses):
            return ExitStatus.ERROR
        return max(statuses, key=lambda status: status == ExitStatus.DRAINED)
