"""`fsqueue wait`: wait until a pool is done, changing nothing."""

from __future__ import annotations

import sys
import time

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    EXIT_STATUS,
    SETTINGS,
    Duration,
    ProgressLine,
    pool_argument,
    quiet_option,
)
from fsqueue.monitor.log_lines import Lines, States, counted
from fsqueue.monitor.snapshot import Snapshot

EPILOG = (
    """\b
Examples:
  fsqueue wait pool/ && fsqueue embed merge pool/ all.safetensors
  fsqueue wait pool/ --timeout 2h --quiet

"""
    + EXIT_STATUS
)


@click.command("wait", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option("--timeout", type=Duration(), help="Give up after this long, such as 1h30m.")
@click.option(
    "--interval", type=Duration(), default=2.0, show_default=True, help="Refresh interval."
)
@quiet_option
def wait(pool: Pool, timeout: float | None, interval: float, quiet: bool) -> None:
    """Wait until nothing waits and nothing runs.

    Warnings go to stderr as they arise, and so does the progress: on a terminal as a line that is
    kept up to date, in a log as a line at each tenth of the work and every five minutes.
    """
    line = ProgressLine()
    logged = States.NOTHING if quiet or line.live else States.PROGRESS
    log = Lines(events=False, states=logged)

    def show(snapshot: Snapshot) -> None:
        for text in log.news(snapshot, time.monotonic()):
            line.clear()
            click.echo(text, err=True)
        if not quiet:
            line.show(counted(snapshot))

    snapshot = pool.wait(timeout, interval_s=interval, on_snapshot=show)
    line.clear()
    click.echo(counted(snapshot))
    sys.exit(snapshot.exit_status)
