"""GPU hours and energy, by the model of the GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fsqueue.monitor.workers import WorkerRow
from fsqueue.pool.requirements import Tier
from fsqueue.storage.untrusted import number


@dataclass(frozen=True, slots=True)
class GpuHours:
    """What the workers on one model of GPU used."""

    model: str
    workers: int
    hours: float
    """At work on claims."""
    kwh: float
    """From the power drawn at each beat, idle time included; 0 if it is not known."""


def gpu_hours(workers: Iterable[WorkerRow], busy_s: Mapping[str, float]) -> list[GpuHours]:
    """Return what was used by model, in the order of their names; nothing of CPUs.

    `busy_s`: how long each worker was at work, by id; where it is missing, by its own report.
    """
    models: dict[str, list[WorkerRow]] = {}
    for row in workers:
        if row.status.tier == Tier.GPU:
            models.setdefault(row.status.model or "unknown", []).append(row)
    return [
        GpuHours(
            model,
            len(rows),
            sum(_part(row) * max(0.0, busy_s.get(row.id, row.status.busy_s)) for row in rows)
            / 3600,
            sum(max(0.0, row.status.energy_wh) for row in rows) / 1000,
        )
        for model, rows in sorted(models.items())
    ]


def _part(row: WorkerRow) -> float:
    """Return which part of its GPU a worker has, where several share one."""
    return 1 / max(1.0, number(row.status.gpu.get("workers")) or 1.0)
