"""`fsqueue script`: print what submits workers to a batch system other than SLURM."""

from __future__ import annotations

import sys

import click

from fsqueue.api import Pool
from fsqueue.cli.options import SETTINGS, Duration, pool_argument

SYSTEMS = "sge pbs lsf flux kubernetes hyperqueue".split()
EPILOG = """\b
Examples:
  fsqueue script pool/ --for sge --workers 8 --time 4h > workers.sge && qsub workers.sge
  fsqueue script pool/ --for kubernetes --image lab/fsqueue:1 | kubectl create -f -
  fsqueue script pool/ --for hyperqueue --gpus 0 | bash

\b
For SLURM: fsqueue slurm. What each system needs: docs/batch-systems.md.
"""


@click.command("script", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--for", "system", type=click.Choice(SYSTEMS), required=True, help="The batch system."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Number of workers. Default: one per spool.",
)
@click.option("--time", "time_s", type=Duration(), help="Time limit of a worker, such as 4h.")
@click.option("--gpus", type=click.IntRange(0, 64), default=1, show_default=True,
              help="GPUs of a worker; 0 for workers on the CPU.")  # fmt: skip
@click.option("--cpus", type=click.IntRange(1, 1024), default=1, show_default=True,
              help="CPU cores of a worker.")  # fmt: skip
@click.option("--memory", "memory_gib", type=click.IntRange(1), metavar="GIB",
              help="Memory of a worker, in GiB.")  # fmt: skip
@click.option("--image", default="", help="The container's image, for Kubernetes.")
@click.option(
    "--python",
    help="The Python of the jobs, which has fsqueue. Default: this one; python3 in a container.",
)
def script(
    pool: Pool,
    system: str,
    workers: int | None,
    time_s: float | None,
    gpus: int,
    cpus: int,
    memory_gib: int | None,
    image: str,
    python: str | None,
) -> None:
    """Print an array of workers for a batch system, ready to be submitted or adapted.

    Nothing is submitted. The tasks are workers, not claims: submit as many as you like, again and
    again, and with every system that sees the pool.
    """
    from fsqueue.batch.scripts import Wanted
    from fsqueue.batch.scripts import script as write
    from fsqueue.batch.systems import System
    from fsqueue.pool.settings import spool_names

    python = python or ("python3" if system == System.KUBERNETES else sys.executable)
    wanted = Wanted(
        workers or len(spool_names(pool)), python, time_s, gpus, cpus, memory_gib, image
    )
    click.echo(write(System(system), pool, wanted), nl=False)
