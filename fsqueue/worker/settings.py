"""What is decided about a worker before it begins: by the command line, and by where it runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Final

from fsqueue.pool.requirements import Tier
from fsqueue.pool.status import Status
from fsqueue.slurm.allocation import Allocation
from fsqueue.worker.backoff import OPERATIONS_MAX

OFFERS: Final = "fsqueue.capabilities"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the command line decides about a worker."""

    spool: str | None = None
    model: str = ""
    weight: float = 1.0
    tier: int = Tier.CPU
    specialization: frozenset[str] = frozenset()
    """Kinds, or their first words, that it would rather do; in lower case."""
    capabilities: frozenset[str] = frozenset()
    stealing: bool = True
    steal_interval_s: float = 3.0
    steal_threshold: int = 1
    """Steal only where so many claims wait, as long as a worker of that spool lives."""
    models_max: int | None = None
    """How many models a handler may keep loaded; None: as many as memory allows."""
    metadata_ops_max: float = OPERATIONS_MAX
    """How many operations on names and directories of the pool it may do in a second."""
    linger_s: float = 0.0
    keep_alive: bool = False
    claims_max: int | None = None
    time_limit_s: float | None = None
    gpu: dict[str, object] = field(default_factory=dict)
    allocation: Allocation | None = None
    """What SLURM gave this process, if it runs there."""

    @property
    def slurm(self) -> dict[str, str]:
        """What is told of the job, in the status and in the lease."""
        return self.allocation.facts if self.allocation else {}

    def status_of(self, worker: str) -> Status:
        """Return the first status of a worker in this process."""
        return Status(
            worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            spool=self.spool,
            model=self.model,
            weight=self.weight,
            tier=int(self.tier),
            specialization=",".join(sorted(self.specialization)),
            capabilities=sorted(self.capabilities),
            stealing=self.stealing,
            metadata_ops_max=self.metadata_ops_max,
            gpu=dict(self.gpu),
            slurm=self.slurm,
        )


def offered() -> set[str]:
    """Return the capabilities that installed packages say they give a worker, by entry points."""
    return {entry.name.lower() for entry in entry_points(group=OFFERS)}
