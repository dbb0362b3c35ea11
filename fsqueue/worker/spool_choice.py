"""Find a worker's own spool.

In this order: the spool it was given by name; a spool of its GPU's model; the spool for its SLURM
array index; none, which makes it a pure thief. Among several spools of its model it takes the one
for its array index, if it has one, else the one that another worker on this GPU has, else the one
with the fewest living workers.

Workers that share a GPU share its spool, so that all of them take from that first: the spool was
given what the whole GPU can do. Each is taken for that part of the GPU's weight.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fsqueue.errors import UsageError
from fsqueue.gpu.nvml import Gpu, all_gpus, visible_gpus
from fsqueue.gpu.sharing import workers_per_gpu
from fsqueue.gpu.weights import get_gpu_weight, short_name
from fsqueue.pool.settings import PoolDirectory, Spool, read_spool, spool_names
from fsqueue.scheduling.peers import PeerStatuses

SPOOLS_READ: Final = 24
"""Of how many spools of its model a worker chooses one."""


@dataclass(frozen=True, slots=True)
class SpoolChoice:
    """The spool, if any, and what this worker runs on."""

    spool: str | None
    model: str
    weight: float
    """This worker's: of a GPU that several share, its part."""
    why: str
    gpu: dict[str, Any]


def choose_spool(
    pool: PoolDirectory, wanted: str | None, environ: Mapping[str, str]
) -> SpoolChoice:
    """Return the spool for this process; UsageError if there is no spool of the `wanted` name."""
    found = _choose(pool, wanted, environ)
    workers = workers_per_gpu(environ) if found.gpu else 1
    if workers == 1:
        return found
    return replace(found, weight=found.weight / workers, gpu=found.gpu | {"workers": workers})


def _choose(pool: PoolDirectory, wanted: str | None, environ: Mapping[str, str]) -> SpoolChoice:
    gpus = visible_gpus(environ)
    gpu = gpus[0] if gpus else None
    model = short_name(gpu.name, memory_gib=gpu.memory_gib) if gpu else "cpu"
    models = {model.lower(), (short_name(gpu.name) if gpu else "cpu").lower()}
    facts = {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name} if gpu else {}
    names = spool_names(pool)
    if wanted is not None:
        if wanted not in names:
            known = ", ".join(names) or "none"
            raise UsageError(f"{pool.root} has no spool {wanted!r}; it has: {known}.")
        spool = read_spool(pool, wanted)
        return SpoolChoice(spool.name, spool.model, spool.weight, "as requested", facts)
    index = environ.get("SLURM_ARRAY_TASK_ID", "")[:12]
    indexed = None
    if index.isdecimal() and names:
        indexed = read_spool(pool, names[int(index) % len(names)])
    alike = _alike(pool, names, models, indexed)
    if alike:
        spool = indexed if indexed in alike else _least_worked(pool, alike, gpu)
        return SpoolChoice(spool.name, model, spool.weight, f"its model is {model}", facts)
    if indexed:
        return SpoolChoice(indexed.name, model, indexed.weight, f"SLURM array index {index}", facts)
    return SpoolChoice(
        None, model, get_gpu_weight(model), f"no spool is planned for {model}", facts
    )


def _alike(
    pool: PoolDirectory, names: list[str], models: set[str], indexed: Spool | None
) -> list[Spool]:
    """Return the spools of these models, at most SPOOLS_READ of them, in the pool's order.

    Of many, not all are read, and not the same ones by all workers.
    """
    if indexed is not None and indexed.model.lower() in models:
        return [indexed]
    begin = os.getpid() % len(names) if len(names) > SPOOLS_READ else 0
    found: list[Spool] = []
    for name in names[begin:] + names[:begin]:
        spool = read_spool(pool, name)
        if spool.model.lower() in models:
            found.append(spool)
            if len(found) == SPOOLS_READ:
                break
    return found


def _least_worked(pool: PoolDirectory, spools: list[Spool], gpu: Gpu | None) -> Spool:
    peers = PeerStatuses(pool, os.uname().nodename).look()
    uuid = gpu.uuid if gpu else None
    workers = Counter(status.spool for status in peers)
    beside = Counter(status.spool for status in peers if uuid and status.gpu.get("uuid") == uuid)
    index = _place(gpu) if gpu else 0
    order = {spool.name: (i - index) % len(spools) for i, spool in enumerate(spools)}
    return min(spools, key=lambda s: (-beside[s.name], workers[s.name], order[s.name]))


def _place(gpu: Gpu) -> int:
    """Return a number that other GPUs of this host do not have; the instances of a card share its
    index."""
    if not gpu.mig:
        return gpu.index
    return next((n for n, each in enumerate(all_gpus()) if each.uuid == gpu.uuid), gpu.index)
