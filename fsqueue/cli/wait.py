"""`fsqueue wait`: wait until a pool is done, changing nothing."""

from __future__ import annotations

import sys
import time

import click

from fsqueue.api import Pool
from fsqueue.cli.options import EXIT_STATUS, SETTINGS, Duration, ProgressLine, pool_argument
from fsqueue.monitor.log_lines import Lines, counted
from fsqueue.monitor.snapshot import Snapshot


@click.command("wait", context_settings=SETTINGS, epilog=EXIT_STATUS)
@pool_argument
@click.option("--timeout", type=Duration(), help="Give up after this long, such as 1h30m.")
@click.option(
    "--interval", type=Duration(), default=2.0, show_default=True, help="Refresh interval."
)
def wait(pool: Pool, timeout: float | None, interval: float) -> None:
    """Wait until nothing waits and nothing runs.

    Warnings go to stderr as they arise; on a terminal there is a progress line, too.
    """
    line, log = ProgressLine(), Lines()

    def show(snapshot: Snapshot) -> None:
        for text in log.alerts(snapshot, time.monotonic()):
            line.clear()
            click.echo(text, err=True)
        line.show(counted(snapshot))

    snapshot = pool.wait(timeout, interval_s=interval, on_snapshot=show)
    line.clear()
    click.echo(counted(snapshot))
    sys.exit(snapshot.exit_status)
