"""`fsqueue work`: one worker, in this process."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, NoReturn

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    DurationOrAuto,
    pool_argument,
    stealing_options,
)
from fsqueue.gpu.sharing import PER_GPU_MAX
from fsqueue.pool.requirements import TIER_NAMES
from fsqueue.worker.backoff import OPERATIONS_MAX

EPILOG = """\b
Examples:
  CUDA_VISIBLE_DEVICES=0 fsqueue work pool/
  CUDA_VISIBLE_DEVICES= fsqueue work pool/ --spool cpu0
  ssh node7 fsqueue work /shared/pool --keep-alive

\b
SIGINT, SIGTERM and SIGUSR1 make a worker finish the batch, save a checkpoint,
put its claim back at the same attempt, and exit (status 130, 143 and 75). So do
SIGUSR2 (75) and a closed terminal (SIGHUP, 129; not under nohup). A second
signal stops it at once.

\b
Exit status 0 only if every claim was seen done. A worker that leaves while
others still run the last claims exits 5: ask fsqueue status, or fsqueue wait.

\b
In a SLURM job it also leaves before the allocation ends, and has the job
requeued if work remains and it is the job's batch process (exec it). There a
second signal changes nothing: preempted jobs get two. See: fsqueue slurm -h
"""


class PathPair(click.ParamType[str]):
    """OLD=NEW. Paths may have blanks, also in FSQUEUE_PATH_MAP, which click splits at any."""

    name = "path pair"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the pairs of the environment variable."""
        from fsqueue.worker.attempts.path_map import split_pairs

        return split_pairs(rv)


@click.command("work", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--spool", metavar="NAME", help="Work on this spool. Default: the one of the visible GPU."
)
@stealing_options
@click.option(
    "--steal-threshold",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Steal only from spools with at least N waiting claims, while their worker is alive.",
)
@click.option(
    "--max-models",
    type=click.IntRange(1),
    metavar="N",
    help="Keep at most N models loaded. Default: as many as fit; the least recently used one is "
    "evicted.",
)
@click.option(
    "--specialization",
    metavar="KIND,...",
    envvar=["FSQUEUE_SPECIALIZATION", "WORKER_SPECIALIZATION"],
    help="Prefer claims of these kinds, or of kinds that begin with this word, such as esm2. Also "
    "read from WORKER_SPECIALIZATION.",
)
@click.option(
    "--capability",
    "capabilities",
    metavar="WORD",
    multiple=True,
    envvar="FSQUEUE_CAPABILITY",
    help="Declare that this worker has what some claims require. Repeatable.",
)
@click.option(
    "--role",
    type=click.Choice(["auto", *TIER_NAMES]),
    default="auto",
    show_default=True,
    help="Tier 1, 2 or 3: a worker takes claims of its own tier and of lower ones.",
)
@click.option(
    "--max-metadata-ops",
    type=click.FloatRange(1),
    default=OPERATIONS_MAX,
    show_default=True,
    metavar="N",
    help="Limit operations on names and directories of the pool to N per second. Looking for work "
    "waits for this limit; renewing the lease and ending a claim never do.",
)
@click.option(
    "--linger", type=Duration(), default=0.0, help="Wait this long for new work before exiting."
)
@click.option("--keep-alive", is_flag=True, help="Keep waiting for new work until stopped.")
@click.option("--max-claims", type=click.IntRange(1), help="Exit after this many claims.")
@click.option(
    "--time-limit",
    type=DurationOrAuto(),
    metavar="DURATION|auto",
    help="Exit after this long, such as 1h30m; auto: before the end of its job, as Grid Engine, "
    "PBS, LSF or Flux tells it. SLURM is asked without it.",
)
@click.option(
    "--grace",
    type=Duration(),
    help="Exit this long before a SLURM allocation ends.  [default: 60s, less in a short one]",
)
@click.option(
    "--others-ok",
    is_flag=True,
    help="Exit with status 0, not 5, if nothing is left but claims that other workers still run. "
    "For batch systems, which show any other status as a failure; what comes next must look for "
    "itself: fsqueue status.",
)
@click.option(
    "--per-gpu",
    type=click.IntRange(1, PER_GPU_MAX),
    metavar="N",
    help="N workers share this one's GPU, and each uses an Nth of its memory. `run --per-gpu` sets "
    "it for those that it starts.",
)
@click.option(
    "--path-map",
    type=PathPair(),
    metavar="OLD=NEW",
    multiple=True,
    help="This host has what was planned below the directory OLD below NEW. Repeatable; for "
    "`run` and SLURM set FSQUEUE_PATH_MAP, with each pair on a line of its own.",
)
@click.option(
    "--start-delay",
    type=Duration(),
    default=0.0,
    help="Wait a random time up to this before starting, to spread the start of an array.",
)
def work(
    pool: Pool,
    spool: str | None,
    work_stealing: bool,
    steal_interval: float,
    steal_threshold: int,
    max_models: int | None,
    specialization: str | None,
    capabilities: tuple[str, ...],
    role: str,
    max_metadata_ops: float,
    linger: float,
    keep_alive: bool,
    max_claims: int | None,
    time_limit: float | Literal["auto"] | None,
    grace: float | None,
    others_ok: bool,
    per_gpu: int | None,
    path_map: tuple[str, ...],
    start_delay: float,
) -> None:
    """Work on a pool: take claims until nothing is left that this worker could take."""
    from fsqueue.worker.launch import WorkOptions

    _log_at_info()
    options = WorkOptions(
        spool=spool,
        work_stealing=work_stealing,
        steal_interval_s=steal_interval,
        steal_threshold=steal_threshold,
        role=role,
        specialization=_words(specialization or ""),
        capabilities=frozenset(word.lower() for word in capabilities),
        models_max=max_models,
        metadata_ops_max=max_metadata_ops,
        linger_s=linger,
        keep_alive=keep_alive,
        claims_max=max_claims,
        time_limit_s=time_limit,
        grace_s=grace,
        start_delay_s=start_delay,
        others_ok=others_ok,
        per_gpu=per_gpu,
        path_map=path_map,
        owns_process=True,
    )
    _exit(pool.work(options))


def _exit(status: int) -> NoReturn:
    """End this process at once: no signal may change its exit status while Python winds down (R5).

    Nor may threads that a handler left keep it alive.
    """
    this = threading.current_thread()
    left = [each.name for each in threading.enumerate() if each is not this and not each.daemon]
    if left:
        logging.getLogger("fsqueue").warning(
            "exiting with threads still running that a handler left: %s", ", ".join(left[:3])
        )
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in text.split(",") if word.strip())


def _log_at_info() -> None:
    """Log at INFO: a worker's stderr is its log."""
    root = logging.getLogger()
    if root.level > logging.INFO:
        root.setLevel(logging.INFO)
