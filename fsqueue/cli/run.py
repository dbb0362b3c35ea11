"""`fsqueue run`: a worker per GPU of this machine, the dashboard, and the pool's exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import click

from fsqueue.cli.options import SETTINGS, Duration, pool_argument, stealing_options
from fsqueue.errors import ExitStatus, UsageError, exit_status_of_signal
from fsqueue.pool.settings import PoolDirectory, spool_names

ORDERLY: Final = frozenset(
    {ExitStatus.DONE, ExitStatus.SOME_FAILED, ExitStatus.WORK_REMAINS, ExitStatus.DRAINED}
)
"""How a worker exits that ended as it should."""

EPILOG = """\b
Examples:
  fsqueue run pool/
  fsqueue run pool/ --workers 4 --no-gpu-dashboard
"""


@click.command("run", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Start N CPU workers instead of one per visible GPU.",
)
@click.option(
    "--show-gpu-dashboard/--no-gpu-dashboard",
    "dashboard",
    default=None,
    help="Show the live table (default: auto).",
)
@stealing_options
@click.option(
    "--interval",
    type=Duration(),
    default=2.0,
    show_default=True,
    help="Refresh the dashboard this often.",
)
def run(pool: PoolDirectory, **given: Any) -> None:
    """Start a worker per GPU here, with the dashboard, until all is done.

    Workers on other machines may work the same pool meanwhile. A worker that dies is reported, not
    started again: its claim goes to another.
    """
    options = ["--work-stealing" if given["work_stealing"] else "--no-work-stealing"]
    options += ["--steal-interval", str(given["steal_interval"])]
    on_terminal = sys.stdout.isatty()
    drawn = given["dashboard"] if given["dashboard"] is not None else on_terminal
    crew = LocalWorkers(pool, _seats(pool, given["workers"]), options, quiet=drawn)
    with crew.relaying_signals():
        crew.show(drawn and on_terminal, given["interval"])
        crew.wait()
    sys.exit(crew.exit_status())


def _seats(pool: PoolDirectory, workers: int | None) -> list[dict[str, str]]:
    """Return the environment of each worker to start: which GPU, which spool."""
    from fsqueue.gpu.nvml import cuda_environ, visible_gpus

    gpus = visible_gpus() if workers is None else []
    if gpus:
        return [cuda_environ(gpu) for gpu in gpus]
    spools = spool_names(pool)
    if not spools:
        raise UsageError(f"{pool.root} has no spools; plan something first: fsqueue plan --help")
    count = workers if workers is not None else 1
    return [
        {"CUDA_VISIBLE_DEVICES": "", "FSQUEUE_SPOOL": spools[seat % len(spools)]}
        for seat in range(count)
    ]


class LocalWorkers:
    """The workers that this command started."""

    def __init__(
        self, pool: PoolDirectory, seats: list[dict[str, str]], options: list[str], *, quiet: bool
    ) -> None:
        self._pool = pool
        self._signal = 0
        self._reported: set[int] = set()
        self._logs: list[str] = []
        argv = [sys.executable, "-m", "fsqueue", "work", pool.root, *options]
        self._workers = [self._start(argv, seat, index, quiet) for index, seat in enumerate(seats)]

    def _start(
        self, argv: list[str], seat: dict[str, str], index: int, quiet: bool
    ) -> subprocess.Popen[bytes]:
        """Start one worker in a session of its own: a Ctrl-C comes to it through us, once."""
        path = os.devnull
        if quiet:
            path = f"{self._pool.directory('events')}/run-{os.getpid()}-{index}.log"
            self._logs.append(path)
        with open(path, "ab") as log:
            return subprocess.Popen(
                argv,
                env=os.environ | seat,
                stderr=log if quiet else None,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @contextmanager
    def relaying_signals(self) -> Iterator[None]:
        """Hand SIGINT, SIGTERM and SIGUSR1 on to every worker."""

        def relay(number: int, frame: FrameType | None) -> None:
            self._signal = number
            for worker in self._workers:
                if worker.poll() is None:
                    worker.send_signal(number)

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = [signal.signal(number, relay) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def show(self, on_terminal: bool, interval_s: float) -> None:
        """Draw the table, or log lines, until every worker has left; keep the metrics log."""
        from fsqueue.monitor.metrics_log import MetricsLog, metrics_path
        from fsqueue.monitor.snapshot import Reader

        reader = Reader(self._pool)
        try:
            reader.tell.append(MetricsLog(metrics_path(self._pool)).keep)
        except OSError as error:
            click.echo(f"fsqueue: no metrics are kept: {error}", err=True)
        if on_terminal:
            from fsqueue.dashboard import show

            show(self._pool, until=self.over, interval_s=interval_s, reader=reader)
        else:
            from fsqueue.monitor.log_lines import follow

            echo = click.echo
            follow(self._pool, until=self.over, interval_s=interval_s, echo=echo, reader=reader)

    def over(self) -> bool:
        """Say whether every worker has left."""
        return all(worker.poll() is not None for worker in self._workers)

    def wait(self) -> None:
        """Wait for the workers, and report those that did not leave well."""
        for index, worker in enumerate(self._workers):
            status = worker.wait()
            if status not in (*ORDERLY, 130, 143):
                how = (
                    f"was ended by signal {-status}" if status < 0 else f"left with status {status}"
                )
                where = f"; its log: {self._logs[index]}" if self._logs else ""
                click.echo(f"fsqueue: worker {index} {how}{where}", err=True)

    def exit_status(self) -> int:
        """Return the pool's exit status, or that of the signal that ended the run."""
        from fsqueue.monitor.snapshot import Reader

        statuses = [worker.returncode for worker in self._workers]
        pool_status = Reader(self._pool).snapshot().exit_status
        if pool_status in (ExitStatus.DONE, ExitStatus.SOME_FAILED):
            return pool_status
        if self._signal:
            return exit_status_of_signal(self._signal)
        broken = [status for status in statuses if status not in ORDERLY]
        if broken:
            return ExitStatus.ERROR
        return max(statuses, key=lambda status: status == ExitStatus.DRAINED)
