"""`fsqueue wait`: look at a pool until it is done, and change nothing."""

from __future__ import annotations

import os
import sys
import time

import click

from fsqueue.cli.json_output import EXIT_STATUS
from fsqueue.cli.options import SETTINGS, Duration, pool_argument
from fsqueue.monitor.log_lines import Lines, counted, pause_s
from fsqueue.monitor.snapshot import Reader
from fsqueue.pool.settings import PoolDirectory


@click.command("wait", context_settings=SETTINGS, epilog=EXIT_STATUS)
@pool_argument
@click.option("--timeout", type=Duration(), help="Give up after so long, such as 1h30m.")
@click.option("--interval", type=Duration(), default=2.0, show_default=True, help="Look so often.")
def wait(pool: PoolDirectory, timeout: float | None, interval: float) -> None:
    """Wait until nothing waits and nothing runs.

    Troubles are said on stderr as they begin; a terminal also gets a progress line.
    """
    reader, lines = Reader(pool), Lines()
    deadline = time.monotonic() + timeout if timeout is not None else float("inf")
    live = sys.stderr.isatty()
    while True:
        snapshot = reader.snapshot()
        for line in lines.alerts(snapshot, time.monotonic()):
            click.echo(f"\r\x1b[K{line}" if live else line, err=True)
        left = deadline - time.monotonic()
        if snapshot.finished or left <= 0:
            break
        if live:
            width = max(20, _terminal_width(sys.stderr.fileno()) - 1)
            click.echo(f"\r\x1b[K{counted(snapshot)[:width]}", nl=False, err=True)
        time.sleep(min(pause_s(interval, snapshot), left))
    if live:
        click.echo("\r\x1b[K", nl=False, err=True)
    click.echo(counted(snapshot))
    sys.exit(snapshot.exit_status)


def _terminal_width(fd: int) -> int:
    try:
        return os.get_terminal_size(fd).columns
    except OSError:
        return 80
