"""What is decided about a worker before it starts: by the command line, and by where it runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Final

from fsqueue.pool.requirements import Tier
from fsqueue.records.status import Status
from fsqueue.slurm.allocation import Allocation
from fsqueue.worker.attempts.path_map import PathMap
from fsqueue.worker.backoff import OPERATIONS_MAX

CAPABILITIES_GROUP: Final = "fsqueue.capabilities"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The settings of one worker; they never change while it runs."""

    spool: str | None = None
    model: str = ""
    weight: float = 1.0
    tier: int = Tier.CPU
    specialization: frozenset[str] = frozenset()
    """Kinds that it prefers, or their first words; in lower case."""
    capabilities: frozenset[str] = frozenset()
    stealing: bool = True
    steal_interval_s: float = 3.0
    steal_threshold: int = 1
    """Steal only from spools where so many claims wait, unless no living worker has that spool."""
    models_max: int | None = None
    """How many models a handler may keep loaded; None: as many as memory allows."""
    metadata_ops_max: float = OPERATIONS_MAX
    """How many metadata operations it may do in a second."""
    linger_s: float = 0.0
    keep_alive: bool = False
    claims_max: int | None = None
    time_limit_s: float | None = None
    gpu: dict[str, object] = field(default_factory=dict)
    path_map: PathMap = field(default_factory=PathMap)
    """Where this host has what claims name."""
    owns_process: bool = False
    """Whether this process ends with the worker: then no signal may cut its end short (R5)."""
    allocation: Allocation | None = None
    """What SLURM gave this process, if it runs there."""

    @property
    def slurm(self) -> dict[str, str]:
        """The facts about its SLURM job for its status and lease."""
        return self.allocation.facts if self.allocation else {}

    def initial_status(self, worker: str) -> Status:
        """Return the status with which a worker in this process starts."""
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


def installed_capabilities() -> set[str]:
    """Return the capabilities that installed packages give every worker, by entry points."""
    return {entry.name.lower() for entry in entry_points(group=CAPABILITIES_GROUP)}
