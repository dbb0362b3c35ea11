"""Start a worker in this process: choose its spool and settings from its options and surroundings.

`WorkOptions` is what a person chooses; everything else (GPU, spool, SLURM allocation, installed
handlers) is found out here. Signals are handled while `work` runs, so call it from the main thread.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from fsqueue.batch import systems
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.gpu.nvml import driver_version, use_pci_order
from fsqueue.gpu.sharing import share_gpu
from fsqueue.gpu.utilization import Sampler
from fsqueue.handler import registered
from fsqueue.pool.requirements import Tier, tier_named
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import LeaveReason
from fsqueue.slurm.allocation import Allocation
from fsqueue.storage import permissions
from fsqueue.worker.attempts.path_map import PathMap
from fsqueue.worker.attempts.patience import patiently
from fsqueue.worker.backoff import OPERATIONS_MAX
from fsqueue.worker.settings import WorkerSettings, installed_capabilities
from fsqueue.worker.spool_choice import choose_spool
from fsqueue.worker.worker import Worker

log = logging.getLogger("fsqueue")

STEAL_INTERVALS_S: Final = (2.0, 5.0)
"""Shorter loads the file server, longer leaves GPUs idle."""


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """What can be chosen about one worker; the defaults suit nearly everyone."""

    spool: str | None = None
    """None: the spool of the GPU that this process sees."""
    work_stealing: bool = True
    steal_interval_s: float = 3.0
    steal_threshold: int = 1
    """Steal only from spools with at least this many waiting claims, while their worker lives."""
    role: str = "auto"
    """gpu, cpu or storage; auto: gpu if this process sees one, else cpu."""
    specialization: frozenset[str] = frozenset()
    """Kinds of claims, or first words of kinds, to prefer."""
    capabilities: frozenset[str] = frozenset()
    models_max: int | None = None
    """How many models to keep loaded; None: as many as fit."""
    metadata_ops_max: float = OPERATIONS_MAX
    """Operations per second on the pool's names and directories."""
    linger_s: float = 0.0
    """How long to wait for new work before leaving."""
    keep_alive: bool = False
    claims_max: int | None = None
    time_limit_s: float | Literal["auto"] | None = None
    """auto: as the batch system says, if it does; SLURM is asked in any case."""
    grace_s: float | None = None
    """How long before a SLURM allocation ends to leave; None: 60 s, less in a short one."""
    start_delay_s: float = 0.0
    """Wait a random time up to this first, so that an array does not start in step."""
    per_gpu: int | None = None
    """How many workers share this one's GPU; None: FSQUEUE_PER_GPU says it, else one."""
    path_map: tuple[str, ...] = ()
    """OLD=NEW: where this host has the files that were planned below OLD."""
    others_ok: bool = False
    """Whether the exit status is 0, not 5, if only claims that other workers run are left."""
    owns_process: bool = False
    """True if this process ends with the worker: signals then stay ignored once it leaves."""


def work(pool: PoolDirectory, options: WorkOptions | None = None) -> int:
    """Run one worker until it has a reason to leave; return its exit status.

    0 everything done, 3 some claims failed, 5 work remains that this worker could not take, 75
    drained, 1 broken, 130 and 143 stopped by a signal. Raises UsageError for options that do not
    fit the pool.
    """
    options = options or WorkOptions()
    _check_interval(options.steal_interval_s)
    if options.start_delay_s > 0:
        time.sleep(random.uniform(0, options.start_delay_s))
    use_pci_order()
    if options.per_gpu is not None:
        share_gpu(options.per_gpu)
    allocation = Allocation(os.environ, grace_s=options.grace_s)
    find_out = partial(settings_for, pool, options, allocation, os.environ)
    settings = patiently(find_out, pool.root, None, for_s=pool.lease_s)
    worker = Worker(pool, settings, sample_gpu=_gpu_sampler(settings.gpu), guarded=True)
    status = worker.run()
    if status == ExitStatus.DRAINED and worker.should_requeue() and allocation.requeue():
        log.info("work remains: this job was requeued")
    left = worker.departure.reason if worker.departure else None
    return ExitStatus.DONE if options.others_ok and left is LeaveReason.OTHERS_RUN else status


def settings_for(
    pool: PoolDirectory,
    options: WorkOptions,
    allocation: Allocation,
    environ: Mapping[str, str],
) -> WorkerSettings:
    """Return the settings of a worker in this process: its spool, GPU, tier and capabilities."""
    choice = choose_spool(pool, options.spool, environ)
    stealing = "disabled"
    if options.work_stealing:
        stealing = f"enabled (interval {options.steal_interval_s:.1f}s)"
    if (sharing := choice.gpu.get("workers", 1)) > 1:
        log.info("%d workers share this GPU, %s", sharing, choice.gpu["uuid"])
    log.info("spool %s (%s); work stealing %s", choice.spool or "none", choice.why, stealing)
    return WorkerSettings(
        spool=choice.spool,
        model=choice.model,
        weight=choice.weight,
        tier=_tier(options.role, choice.gpu),
        specialization=options.specialization,
        capabilities=options.capabilities
        | set(registered())
        | installed_capabilities()
        | {permissions.user_capability()},
        stealing=options.work_stealing,
        steal_interval_s=options.steal_interval_s,
        steal_threshold=options.steal_threshold,
        models_max=options.models_max,
        metadata_ops_max=options.metadata_ops_max,
        linger_s=options.linger_s,
        keep_alive=options.keep_alive,
        claims_max=options.claims_max,
        time_limit_s=_time_limit_s(options.time_limit_s, environ),
        gpu={**choice.gpu, "driver": driver_version()} if choice.gpu else {},
        path_map=PathMap.parse(options.path_map),
        owns_process=options.owns_process,
        allocation=allocation if allocation.job else None,
    )


def _time_limit_s(
    asked: float | Literal["auto"] | None, environ: Mapping[str, str]
) -> float | None:
    if asked != "auto":
        return asked
    left_s = systems.time_left_s(environ)
    if left_s is None:
        return None
    limit_s = systems.worker_limit_s(left_s)
    log.info("the batch system ends this job in %.0f s; this worker leaves before that", left_s)
    return limit_s


def _gpu_sampler(gpu: Mapping[str, Any]) -> Callable[[], dict[str, Any]] | None:
    """Start sampling this process's GPU, if it has one; return what reads its last known use."""
    if "uuid" not in gpu:
        return None
    sampler = Sampler(str(gpu["uuid"]))
    sampler.start()
    return lambda: {**gpu, **sampler.latest}


def _check_interval(interval_s: float) -> None:
    least, most = STEAL_INTERVALS_S
    if not interval_s > 0:
        raise UsageError(
            f"--steal-interval must be more than 0 seconds; {least:g} to {most:g} are sensible."
        )
    if not least <= interval_s <= most:
        log.info("--steal-interval is outside the sensible %g to %g seconds", least, most)


def _tier(role: str, gpu: Mapping[str, Any]) -> Tier:
    if role == "auto":
        return Tier.GPU if gpu else Tier.CPU
    return tier_named(role)
