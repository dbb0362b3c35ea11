"""`fsqueue work`: one worker, in this process."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import click

from fsqueue.cli.options import SETTINGS, Duration, pool_argument, stealing_options
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import permissions
from fsqueue.worker.backoff import OPERATIONS_MAX

EPILOG = """\b
Examples:
  CUDA_VISIBLE_DEVICES=0 fsqueue work pool/
  CUDA_VISIBLE_DEVICES= fsqueue work pool/ --spool cpu0
  ssh node7 fsqueue work /shared/pool --keep-alive

\b
Stop it with SIGINT, SIGTERM or SIGUSR1: it finishes the batch, saves a
checkpoint, puts the claim back at the same attempt, and leaves (exit status
130, 143, 75). A second signal stops it at once.

\b
In a SLURM job it also leaves before the allocation ends, and has the job
requeued if work remains and it is the job's batch process (exec it). There a
second signal changes nothing: preempted jobs get two. See: fsqueue slurm -h
"""


@click.command("work", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--spool", metavar="NAME", help="Work this spool. Default: the one of the GPU it sees."
)
@stealing_options
@click.option(
    "--steal-threshold",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Steal only from spools in which N claims wait, while a worker of theirs lives.",
)
@click.option(
    "--max-models",
    type=click.IntRange(1),
    metavar="N",
    help="Keep at most N models loaded. Default: what memory allows; the least recently used goes.",
)
@click.option(
    "--specialization",
    metavar="KIND,...",
    help="Prefer claims of these kinds, or whose kind begins with this word, such as esm2. "
    "WORKER_SPECIALIZATION stands in for it.",
)
@click.option(
    "--capability",
    metavar="WORD",
    multiple=True,
    help="Say that this worker has what some claims require; may be given more than once.",
)
@click.option(
    "--role",
    type=click.Choice(["auto", "gpu", "cpu", "storage"]),
    default="auto",
    show_default=True,
    help="Tier 1, 2 or 3: a worker takes work of its own tier and of those below it.",
)
@click.option(
    "--max-metadata-ops",
    type=click.FloatRange(1),
    default=OPERATIONS_MAX,
    show_default=True,
    metavar="N",
    help="Do at most N operations a second on names and directories of the pool; looking for work "
    "waits for that, renewing the lease and ending a claim never do.",
)
@click.option("--linger", type=Duration(), default=0.0, help="Stay so long when nothing is left.")
@click.option("--keep-alive", is_flag=True, help="Stay until told to leave.")
@click.option("--max-claims", type=click.IntRange(1), help="Leave after so many claims.")
@click.option("--time-limit", type=Duration(), help="Leave after so long, such as 1h30m.")
@click.option(
    "--grace",
    type=Duration(),
    help="Leave so long before a SLURM allocation ends.  [default: 60s, less in a short one]",
)
@click.option(
    "--start-delay",
    type=Duration(),
    default=0.0,
    help="Wait a random time up to this first, so that an array does not start in step.",
)
def work(pool: PoolDirectory, **given: Any) -> None:
    """Work a pool: take claims until nothing is left that this worker could take."""
    from fsqueue.gpu.nvml import use_pci_order
    from fsqueue.slurm.allocation import Allocation
    from fsqueue.worker.settings import WorkerSettings
    from fsqueue.worker.spool_choice import choose_spool
    from fsqueue.worker.worker import Worker

    _log_by_default()
    _check_interval(given["steal_interval"])
    if given["start_delay"] > 0:
        time.sleep(random.uniform(0, given["start_delay"]))
    use_pci_order()
    match = choose_spool(pool, given["spool"], os.environ)
    allocation = Allocation(os.environ, grace_s=given["grace"])
    settings = WorkerSettings(
        spool=match.spool,
        model=match.model,
        weight=match.weight,
        tier=_tier(given["role"], match.gpu),
        specialization=_words(given["specialization"] or os.environ.get("WORKER_SPECIALIZATION")),
        capabilities=_capabilities(given["capability"]),
        stealing=given["work_stealing"],
        steal_interval_s=given["steal_interval"],
        steal_threshold=given["steal_threshold"],
        models_max=given["max_models"],
        metadata_ops_max=given["max_metadata_ops"],
        linger_s=given["linger"],
        keep_alive=given["keep_alive"],
        claims_max=given["max_claims"],
        time_limit_s=given["time_limit"],
        gpu=match.gpu,
        allocation=allocation if allocation.job else None,
    )
    worker = Worker(pool, settings, sample_gpu=_gpu_sampler(match.gpu) if match.gpu else None)
    log, every = (
        logging.getLogger("fsqueue"),
        f"enabled (interval {settings.steal_interval_s:.1f}s)",
    )
    stealing = every if settings.stealing else "disabled"
    log.info("spool %s (%s); work stealing %s", match.spool or "none", match.why, stealing)
    status = worker.run()
    if status == ExitStatus.DRAINED and worker.should_requeue() and allocation.requeue():
        log.info("work remains: this job is requeued")
    _exit(status)


def _exit(status: int) -> NoReturn:
    """End, even if a handler left threads that would keep this process from ending."""
    this = threading.current_thread()
    left = [each.name for each in threading.enumerate() if each is not this and not each.daemon]
    if left:
        logging.getLogger("fsqueue").warning(
            "a handler left %d threads running (%s, ...); this worker ends without them",
            len(left),
            left[0],
        )
        logging.shutdown()
        os._exit(status)
    sys.exit(status)


def _check_interval(interval_s: float) -> None:
    if not interval_s > 0:
        raise UsageError("--steal-interval must be more than 0 seconds; 2 to 5 are sensible.")
    if not 2 <= interval_s <= 5:
        logging.getLogger(__name__).info("--steal-interval is outside the sensible 2 to 5 seconds")


def _tier(role: str, gpu: dict[str, Any]) -> int:
    from fsqueue.pool.requirements import Tier

    if role == "auto":
        return Tier.GPU if gpu else Tier.CPU
    return {"gpu": Tier.GPU, "cpu": Tier.CPU, "storage": Tier.STORAGE}[role]


def _words(text: str | None) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in (text or "").split(",") if word.strip())


def _capabilities(given: tuple[str, ...]) -> frozenset[str]:
    """Return what was said, every handler installed, what their packages offer, and who we are."""
    from fsqueue.handler import registered
    from fsqueue.worker.settings import installed_capabilities

    said = frozenset(word.lower() for word in given)
    return said | set(registered()) | installed_capabilities() | {permissions.user_capability()}


def _log_by_default() -> None:
    """Say at INFO what a worker does: its stderr is its log file."""
    root = logging.getLogger()
    if root.level > logging.INFO:
        root.setLevel(logging.INFO)


def _gpu_sampler(gpu: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Start sampling a GPU; return what reads its last known use."""
    from fsqueue.gpu.utilization import Sampler

    sampler = Sampler(gpu["uuid"])
    sampler.start()
    return lambda: gpu | sampler.latest
