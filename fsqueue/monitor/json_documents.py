"""The JSON documents that commands print with --json. Keys are interface: add, never rename."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from fsqueue.monitor.gpu_hours import gpu_hours
from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.spools import SpoolRow
from fsqueue.monitor.workers import WorkerRow

MISSING_MAX: Final = 1000
"""How many missing claims are named."""


def status_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return the document of `fsqueue status`; its amounts add up to `planned`."""
    count = snapshot.count
    amounts = {
        "planned": count.planned,
        "waiting": count.waiting,
        "running": count.running,
        "done": count.done,
        "failed": count.failed,
        "superseded": count.superseded,
        "forgotten": count.forgotten,
        "missing": count.missing,
    }
    return {
        "pool": snapshot.pool,
        "time": _utc(snapshot.taken_at),
        **{name: amount.claims for name, amount in amounts.items()},
        "missing_ids": list(count.missing_ids[:MISSING_MAX]),
        "staged": count.staged.claims,
        "waiting_by_priority": {str(q.priority): q.claims for q in count.by_priority},
        "cost": {name: amount.cost for name, amount in amounts.items()},
        "measures": count.measures,
        "counters": dict(snapshot.counters),
        "progress": round(snapshot.progress, 6),
        "unit": snapshot.unit,
        "items_per_s": snapshot.items_per_s,
        **_rates(snapshot.rates),
        "cost_per_s": snapshot.cost_per_s,
        "eta_s": snapshot.eta_s,
        "eta_low_s": snapshot.eta_low_s,
        "eta_high_s": snapshot.eta_high_s,
        "spools": [spool_facts(row) for row in snapshot.spools],
        "metadata_ops_per_s": round(
            sum(row.status.metadata_ops_per_s for row in snapshot.workers if row.living), 3
        ),
        "workers": dict(Counter(row.state for row in snapshot.workers)),
        "gpu_hours": [asdict(each) for each in gpu_hours(snapshot.workers, {})],
        **asdict(snapshot.time_use),
        "orders": sorted(snapshot.orders),
        "warnings": [asdict(alert) for alert in snapshot.warnings],
        "certain": count.certain,
        "finished": snapshot.finished,
        "exit_status": snapshot.exit_status,
    }


def spool_facts(row: SpoolRow) -> dict[str, Any]:
    """Return one spool; what is not known is null."""
    return {
        "name": row.name or None,
        "model": row.model,
        "weight": row.weight,
        "planned": row.planned.claims,
        "cost_planned": row.planned.cost,
        "waiting": row.waiting.claims,
        "cost_waiting": row.waiting.cost,
        "share_left": row.share_left,
        "running": row.running,
        "done": row.done,
        "errors": row.errors,
        "stolen_in": row.stolen_in,
        "stolen_out": row.stolen_out,
        "workers": row.workers,
        "state": row.state,
        "stalled": row.stalled,
        "items_per_s": row.items_per_s,
        **_rates(row.rates),
        "cost_per_s": row.cost_per_s,
        "eta_s": row.eta_s,
        "host": row.host,
        "gpu": row.gpu,
        **asdict(row.use),
        **asdict(row.time_use),
    }


def worker_facts(row: WorkerRow) -> dict[str, Any]:
    """Return one worker: seven keys that schedulers ask for, what is known, what it reports."""
    status = row.status
    reported = asdict(status)
    for name in ("worker_id", "state", "gpu", "current", "tier", "specialization"):
        del reported[name]
    return {
        "id": row.id,
        "tier": status.tier,
        "specialization": status.specialization or None,
        "loaded_models": status.loaded,
        "active_requests": len(row.holds),
        "cpu_load": status.current_load,
        "gpu_util": row.use.compute_percent,
        "gpu_uuid": status.gpu.get("uuid"),
        "gpu_workers": status.gpu.get("workers", 1) if status.gpu else None,
        "worker_id": row.id,
        "health": row.health,
        "state": row.state,
        "trouble": row.trouble,
        "stalled": row.stalled,
        "holds": list(row.holds),
        "progress": row.progress,
        "items_per_s": row.items_per_s,
        **_rates(row.rates),
        "cost_per_s": row.cost_per_s,
        "idle_s": row.idle_s,
        "age_s": row.age_s,
        "current": asdict(status.current) if status.current and row.holds else None,
        **reported,
        **asdict(row.use),
        **asdict(row.time_use),
    }


def watch_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return the document of `fsqueue watch`: the status, and the rows that the table shows."""
    return status_facts(snapshot) | {
        "worker_rows": [worker_facts(row) for row in snapshot.workers],
        "steals": [asdict(steal) | {"time": _utc(steal.t)} for steal in snapshot.steals],
        "failures": [asdict(failure) for failure in snapshot.failures],
    }


def _rates(rates: Mapping[str, float]) -> dict[str, float]:
    """Return a key for each counter, such as tokens_per_s."""
    return {f"{name}_per_s": rate for name, rate in rates.items()}


def _utc(t: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))
