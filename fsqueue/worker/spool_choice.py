"""Find a worker's own spool.

In this order: the spool it was given by name; a spool of its GPU's model; the spool for its SLURM
array index; none, which makes it a pure thief. Among several spools of its model it takes the one
for its array index, if it has one, else the one with the fewest living workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsqueue.errors import UsageError
from fsqueue.gpu.nvml import Gpu, visible_gpus
from fsqueue.gpu.weights import get_gpu_weight, short_name
from fsqueue.pool.leases import lease_names
from fsqueue.pool.settings import PoolDirectory, Spool, read_spool, spool_names
from fsqueue.pool.status import read_status


@dataclass(frozen=True, slots=True)
class SpoolChoice:
    """The spool, if any, and what this worker runs on."""

    spool: str | None
    model: str
    weight: float
    why: str
    gpu: dict[str, Any]


def choose_spool(
    pool: PoolDirectory, wanted: str | None, environ: Mapping[str, str]
) -> SpoolChoice:
    """Return the spool for this process; UsageError if there is no spool of the `wanted` name."""
    gpus = visible_gpus(environ)
    gpu = gpus[0] if gpus else None
    model = short_name(gpu.name, memory_gib=gpu.memory_gib) if gpu else "cpu"
    models = {model.lower(), (short_name(gpu.name) if gpu else "cpu").lower()}
    facts = {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name} if gpu else {}
    spools = [read_spool(pool, name) for name in spool_names(pool)]
    if wanted is not None:
        spool = next((spool for spool in spools if spool.name == wanted), None)
        if spool is None:
            known = ", ".join(spool.name for spool in spools) or "none"
            raise UsageError(f"{pool.root} has no spool {wanted!r}; it has: {known}.")
        return SpoolChoice(spool.name, spool.model, spool.weight, "as requested", facts)
    alike = [spool for spool in spools if spool.model.lower() in models]
    index = environ.get("SLURM_ARRAY_TASK_ID", "")[:12]
    indexed = spools[int(index) % len(spools)] if index.isdecimal() and spools else None
    if alike:
        spool = indexed if indexed in alike else _least_worked(pool, alike, gpu)
        return SpoolChoice(spool.name, model, spool.weight, f"its model is {model}", facts)
    if indexed:
        return SpoolChoice(indexed.name, model, indexed.weight, f"SLURM array index {index}", facts)
    return SpoolChoice(
        None, model, get_gpu_weight(model), f"no spool is planned for {model}", facts
    )


def _least_worked(pool: PoolDirectory, spools: list[Spool], gpu: Gpu | None) -> Spool:
    living = (name.worker for name in lease_names(pool) if name.living)
    statuses = (read_status(pool, worker) for worker in living)
    workers = Counter(status.spool for status in statuses if status is not None)
    index = gpu.index if gpu else 0
    order = {spool.name: (i - index) % len(spools) for i, spool in enumerate(spools)}
    return min(spools, key=lambda spool: (workers[spool.name], order[spool.name]))
