"""Spread a batch of GPU work over every GPU that can see one directory.

    import fsqueue

    fsqueue.plan("pool", "command", ["reads/"], {"argv": ["wc", "-c", "{input}"]})
    pool = fsqueue.open_pool("pool")
    pool.run(workers=2)

`plan`, `open_pool` and `Pool` are what the commands call (see `fsqueue.api`). `Handler`, `Work`,
`Item`, `Source` and `Option` are what a handler is made of (see `fsqueue.handler`). `PoolReader`
lists plans, claims and outputs for programs that put results together. `fsqueue.storage` is how a
handler keeps files of its own on a shared file system.

Programs that bring their own queue can use the parts of a load balancer on their own:
`GPU_WEIGHTS`, `get_gpu_weight`, `assign_files_weighted`, `GPUMonitor`, `get_gpu_utilization`,
`LoadBalancingDashboard`, `WorkStealingCoordinator` and `select_best_worker`.

Importing this package imports nothing heavy: most names are looked up when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fsqueue.errors import (
    BadInput,
    ClaimFailed,
    ClaimImpossible,
    FsqueueError,
    Interrupted,
    NodeTrouble,
    NotSupportedError,
    PoolError,
    UsageError,
    WorkerBroken,
)
from fsqueue.version import __version__ as __version__

if TYPE_CHECKING:
    from fsqueue.api import Pool as Pool
    from fsqueue.api import open_pool as open_pool
    from fsqueue.api import plan as plan
    from fsqueue.gpu.capability import local_gpus as local_gpus
    from fsqueue.gpu.sharing import share_gpu as share_gpu
    from fsqueue.gpu.sharing import usable_gib as usable_gib
    from fsqueue.gpu.sharing import workers_per_gpu as workers_per_gpu
    from fsqueue.handler import Computing as Computing
    from fsqueue.handler import Handler as Handler
    from fsqueue.handler import Item as Item
    from fsqueue.handler import Option as Option
    from fsqueue.handler import PlannedGpu as PlannedGpu
    from fsqueue.handler import Source as Source
    from fsqueue.handler import Work as Work
    from fsqueue.history.outputs import Output as Output
    from fsqueue.history.provenance import Provenance as Provenance
    from fsqueue.history.select import Matching as Matching
    from fsqueue.monitor.snapshot import Snapshot as Snapshot
    from fsqueue.pool.layout import Order as Order
    from fsqueue.pool.overwriting import Earlier as Earlier
    from fsqueue.pool.overwriting import refuse_overwriting as refuse_overwriting
    from fsqueue.pool.reader import ClaimView as ClaimView
    from fsqueue.pool.reader import PlanView as PlanView
    from fsqueue.pool.reader import PoolReader as PoolReader
    from fsqueue.records.status import memory_available as memory_available
    from fsqueue.scheduling.assignment import assign_files_weighted as assign_files_weighted
    from fsqueue.scheduling.planner import PlanResult as PlanResult
    from fsqueue.scheduling.score import select_best_worker as select_best_worker
    from fsqueue.storage.locks import host_lock as host_lock
    from fsqueue.worker.launch import WorkOptions as WorkOptions
    from fsqueue.worker.settings import WorkerSettings as WorkerSettings
    from fsqueue.worker.worker import Worker as Worker


_HOMES = {
    "Output": "fsqueue.history.outputs",
    "Provenance": "fsqueue.history.provenance",
    "Matching": "fsqueue.history.select",
    "Pool": "fsqueue.api",
    "open_pool": "fsqueue.api",
    "plan": "fsqueue.api",
    "PlannedGpu": "fsqueue.handler",
    "local_gpus": "fsqueue.gpu.capability",
    "Computing": "fsqueue.handler",
    "Handler": "fsqueue.handler",
    "Item": "fsqueue.handler",
    "Option": "fsqueue.handler",
    "Source": "fsqueue.handler",
    "Work": "fsqueue.handler",
    "Order": "fsqueue.pool.layout",
    "Snapshot": "fsqueue.monitor.snapshot",
    "Earlier": "fsqueue.pool.overwriting",
    "refuse_overwriting": "fsqueue.pool.overwriting",
    "ClaimView": "fsqueue.pool.reader",
    "PlanView": "fsqueue.pool.reader",
    "PoolReader": "fsqueue.pool.reader",
    "memory_available": "fsqueue.records.status",
    "share_gpu": "fsqueue.gpu.sharing",
    "usable_gib": "fsqueue.gpu.sharing",
    "workers_per_gpu": "fsqueue.gpu.sharing",
    "PlanResult": "fsqueue.scheduling.planner",
    "host_lock": "fsqueue.storage.locks",
    "GPU_WEIGHTS": "fsqueue.gpu.weights",
    "get_gpu_weight": "fsqueue.gpu.weights",
    "assign_files_weighted": "fsqueue.scheduling.assignment",
    "GPUMonitor": "fsqueue.gpu.utilization",
    "get_gpu_utilization": "fsqueue.gpu.utilization",
    "LoadBalancingDashboard": "fsqueue.dashboard",
    "WorkStealingCoordinator": "fsqueue.monitor.coordinator",
    "select_best_worker": "fsqueue.scheduling.score",
    "WorkOptions": "fsqueue.worker.launch",
    "Worker": "fsqueue.worker.worker",
    "WorkerSettings": "fsqueue.worker.settings",
}

__all__ = [
    "GPU_WEIGHTS",
    "GPUMonitor",
    "LoadBalancingDashboard",
    "WorkStealingCoordinator",
    "assign_files_weighted",
    "get_gpu_utilization",
    "get_gpu_weight",
    "select_best_worker",
    "BadInput",
    "ClaimFailed",
    "ClaimImpossible",
    "ClaimView",
    "Computing",
    "Earlier",
    "FsqueueError",
    "Handler",
    "Interrupted",
    "Item",
    "Matching",
    "NodeTrouble",
    "NotSupportedError",
    "Option",
    "Order",
    "Output",
    "PlanResult",
    "PlanView",
    "PlannedGpu",
    "Pool",
    "PoolError",
    "PoolReader",
    "Provenance",
    "Snapshot",
    "Source",
    "UsageError",
    "Work",
    "WorkOptions",
    "Worker",
    "WorkerBroken",
    "WorkerSettings",
    "host_lock",
    "local_gpus",
    "memory_available",
    "open_pool",
    "plan",
    "refuse_overwriting",
    "share_gpu",
    "usable_gib",
    "workers_per_gpu",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
