"""`fsqueue run`: a worker per GPU of this machine, the dashboard, and the pool's exit status."""

from __future__ import annotations

import sys

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    note,
    pool_argument,
    quiet_option,
    stealing_options,
)
from fsqueue.gpu.sharing import PER_GPU_MAX, mps_directory
from fsqueue.monitor.format import plural

EPILOG = """\b
Examples:
  fsqueue run pool/
  fsqueue run pool/ --workers 4 --no-gpu-dashboard
  fsqueue run pool/ --per-gpu 2

\b
Whether two workers on a GPU are faster than one depends on the model and on the
card; measure it: fsqueue embed calibrate MODEL --workers 2
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
    "--per-gpu",
    type=click.IntRange(1, PER_GPU_MAX),
    metavar="N",
    allow_from_autoenv=False,
    help="Start N workers for each visible GPU, or MIG instance. They share its spool, and each "
    "uses an Nth of its memory. Default: 1.",
)
@click.option(
    "--show-gpu-dashboard/--no-gpu-dashboard",
    "dashboard",
    default=None,
    help="Show the live table. Default: on a terminal.",
)
@quiet_option
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
    per_gpu: int | None,
    dashboard: bool | None,
    quiet: bool,
    work_stealing: bool,
    steal_interval: float,
    interval: float,
) -> None:
    """Run a worker per GPU here, with the dashboard, until everything is done.

    In a log there is a line with the ETA at each tenth of the work and every five minutes.
    Workers on other machines may work on the same pool meanwhile. A worker that dies is reported,
    and started again while work remains; not one that proved itself broken.
    """
    if per_gpu is not None and per_gpu > 1 and workers is None:
        _note_sharing(per_gpu)
    status = pool.run(
        workers,
        per_gpu=per_gpu,
        work_stealing=work_stealing,
        steal_interval_s=steal_interval,
        dashboard=dashboard,
        progress=not quiet,
        interval_s=interval,
        echo=click.echo,
    )
    sys.exit(status)


def _note_sharing(per_gpu: int) -> None:
    """Say how many workers start, and whether their kernels can run side by side."""
    from fsqueue.gpu.nvml import visible_gpus

    gpus = visible_gpus()
    if not gpus:
        return  # refused with the reason
    directory = mps_directory()
    side = (
        f"MPS is there ({directory}), so their kernels run side by side"
        if directory
        else "without MPS they take turns on it (docs/sharing-gpus.md)"
    )
    note(f"{per_gpu} workers for each of {plural(len(gpus), 'GPU')}; {side}.")
