"""`fsqueue run`: a worker per GPU of this machine, the dashboard, and the pool's exit status."""

from __future__ import annotations

import sys

import click

from fsqueue.api import Pool
from fsqueue.cli.options import SETTINGS, Duration, pool_argument, stealing_options

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
    help="Show the live table. Default: on a terminal.",
)
@stealing_options
@click.option(
    "--interval",
    type=Duration(),
    default=2.0,
    show_default=True,
    help="Refresh interval of the dashboard.",
)
def run(
    pool: Pool,
    workers: int | None,
    dashboard: bool | None,
    work_stealing: bool,
    steal_interval: float,
    interval: float,
) -> None:
    """Run a worker per GPU here, with the dashboard, until everything is done.

    Workers on other machines may work on the same pool meanwhile. A worker that dies is reported,
    and started again while work remains; not one that proved itself broken.
    """
    status = pool.run(
        workers,
        work_stealing=work_stealing,
        steal_interval_s=steal_interval,
        dashboard=dashboard,
        interval_s=interval,
        echo=click.echo,
    )
    sys.exit(status)
