"""What needs attention: workers in trouble, work that no worker does, the disk.

An alert keeps its kind and subject for as long as it lasts, so that a log can report each once when
it begins and once when it ends.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

from fsqueue.monitor.counts import Count
from fsqueue.monitor.format import duration, plural
from fsqueue.monitor.workers import WorkerRow
from fsqueue.pool.claims import vain_runs
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import Health, LeaveReason, WorkerState
from fsqueue.storage.untrusted import number, printable

FREE_MIN: Final = 1 << 30
FREE_SHARE_MIN: Final = 0.02
IDLE_S: Final = 30.0
IN_VAIN_SHOWN: Final = 5
SLOW_FACTOR: Final = 5.0
SLOW_S: Final = 60.0
HELD_BACK_MIN: Final = 0.2
STOPPED_ITSELF: Final = frozenset({LeaveReason.BROKEN, LeaveReason.FAILURES})
ORDERS: Final = {
    "pause": "paused: workers finish their claim and wait",
    "drain": "draining: workers finish their claim and leave",
    "stop": "stopping: workers put back their claim and leave",
}


class AlertKind(StrEnum):
    """What an alert is about; the values are keys of `status --json`."""

    DAMAGE = "damage"
    """Something in the pool could not be read."""
    STALLED = "stalled"
    SLOW = "slow"
    """A claim runs for much longer than its cost let expect."""
    LIMITED = "budget"
    """A worker spends much time waiting because of --max-metadata-ops."""
    SUSPECT = "suspect"
    LOST = "lost"
    BROKEN = "broken"
    """A worker stopped itself."""
    ORDER = "order"
    IN_VAIN = "in vain"
    """A claim was put back several times although nothing came of its runs."""
    DESERTED = "deserted"
    """Claims wait and no worker is alive."""
    DISK = "disk"
    IMBALANCE = "imbalance"

    @property
    def grave(self) -> bool:
        """Whether work stands still, or is being lost."""
        return self in GRAVE


GRAVE: Final = frozenset(
    {
        AlertKind.DAMAGE,
        AlertKind.STALLED,
        AlertKind.LOST,
        AlertKind.BROKEN,
        AlertKind.DESERTED,
        AlertKind.DISK,
    }
)


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that needs attention; `subject` is a worker, a spool or ""."""

    kind: AlertKind
    subject: str
    text: str


def alerts(
    pool: PoolDirectory, count: Count, workers: Sequence[WorkerRow], orders: frozenset[str]
) -> Iterator[Alert]:
    """Yield what is wrong, most serious first."""
    yield from _disk(pool)
    if count.finished:
        return
    yield from _workers(workers)
    yield from _slow(workers)
    for order in sorted(orders & ORDERS.keys()):
        yield Alert(AlertKind.ORDER, order, f"{ORDERS[order]} (control/{order})")
    if not any(row.living for row in workers):
        waiting = count.waiting.claims
        todo = "1 claim waits" if waiting == 1 else f"{waiting:,} claims wait"
        todo += " and no worker is alive"
        yield Alert(AlertKind.DESERTED, "", f"{todo}. Start one: fsqueue work {pool.root}")
    yield from _in_vain(pool, count)
    yield from _imbalance(count, workers)


def _slow(workers: Sequence[WorkerRow]) -> Iterator[Alert]:
    """Yield the claims that run for much longer than workers' measured rates let expect."""
    measured: defaultdict[str, list[float]] = defaultdict(list)
    for row in workers:
        for kind, rate in row.status.rates.items():
            measured[kind].append(rate)
    for row in workers:
        current = row.status.current
        if not row.living or current is None or not measured[current.kind]:
            continue
        rate = row.status.rates.get(current.kind) or median(measured[current.kind])
        ran_s, expected_s = row.status.written_at - current.started, current.cost / rate
        if ran_s > max(SLOW_FACTOR * expected_s, SLOW_S):
            yield Alert(
                AlertKind.SLOW,
                row.id,
                f"{row.id}: {current.id} has run for {duration(ran_s)}, and "
                f"{duration(expected_s)} were expected. If such claims hang: plan --timeout",
            )


def _in_vain(pool: PoolDirectory, count: Count) -> Iterator[Alert]:
    for name in count.in_vain[:IN_VAIN_SHOWN]:
        last = "its workers were asked to leave"
        if runs := vain_runs(pool, name):
            ran_s = number(runs[0].get("ran_s"))
            after = "" if ran_s is None else f" after {duration(ran_s)}"
            last = f"the last run ended{after}: {printable(runs[0].get('put_back', '?'), 200)}"
        what = f"{name.id} was put back {name.vain} times without progress; {last}"
        yield Alert(
            AlertKind.IN_VAIN,
            name.id,
            f"{what}. Give it a worker with more time, or: fsqueue cancel {pool.root} {name.id}",
        )
    if (more := len(count.in_vain) - IN_VAIN_SHOWN) > 0:
        yield Alert(AlertKind.IN_VAIN, "", f"{plural(more, 'more claim')} without progress")


def _workers(workers: Sequence[WorkerRow]) -> Iterator[Alert]:
    for row in workers:
        gpu = row.status.spool or row.id
        if row.stalled:
            yield Alert(AlertKind.STALLED, row.id, f"GPU {gpu} {row.trouble}")
        elif row.living and row.status.held_back >= HELD_BACK_MIN:
            limit = f"--max-metadata-ops {row.status.metadata_ops_max:g}"
            yield Alert(
                AlertKind.LIMITED,
                row.id,
                f"{row.id}: {row.status.held_back:.0%} of its time is "
                f"spent waiting because of {limit}",
            )
        elif row.health == Health.DEGRADED:
            yield Alert(AlertKind.SUSPECT, row.id, f"{row.id}: {row.trouble}")
        elif row.health == Health.LOST and row.holds:
            what = f"{row.trouble}; its claim goes to another: fsqueue recover"
            yield Alert(AlertKind.LOST, row.id, f"{row.id}: {what}")
        if not row.living and row.status.left_because in STOPPED_ITSELF:
            yield Alert(AlertKind.BROKEN, row.id, f"{row.id} stopped itself: {row.status.message}")


def _disk(pool: PoolDirectory) -> Iterator[Alert]:
    try:
        facts = os.statvfs(pool.root)
    except OSError:
        return
    free = facts.f_bavail * facts.f_frsize
    # Without a size, free space is unknown; CephFS reports -1 free inodes.
    if facts.f_blocks and (free < FREE_MIN or facts.f_bavail < FREE_SHARE_MIN * facts.f_blocks):
        text = f"the disk is nearly full: {free / (1 << 30):.1f} GiB left under {pool.root}"
        yield Alert(AlertKind.DISK, "space", text)
    if facts.f_files and 0 <= facts.f_favail < FREE_SHARE_MIN * facts.f_files:
        text = f"the disk is nearly out of inodes: {facts.f_favail:,} left under {pool.root}"
        yield Alert(AlertKind.DISK, "inodes", text)


# ---- imbalance ----


def imbalanced(depths: Sequence[float]) -> bool:
    """Return whether queues of these depths differ suspiciously."""
    if len(depths) < 2:
        return False
    low, high = min(depths), max(depths)
    return high >= 3 and (high > 2 * low or high - low >= 3)


def weighted_depths(count: Count, weights: dict[str, float]) -> dict[str, float]:
    """Return what waits in each spool, as time on its GPU, in units of the mean claim."""
    if not count.waiting.cost:
        return dict.fromkeys(count.spools, 0.0)
    mean = count.waiting.cost / count.waiting.claims
    return {
        name: waiting.cost / mean / max(weights.get(name, 1.0), 1e-6)
        for name, (_, waiting) in count.spools.items()
    }


def _imbalance(count: Count, workers: Sequence[WorkerRow]) -> Iterator[Alert]:
    """Yield an alert if work waits in one spool while workers have been idle for a while."""
    idle = [
        row.status.spool
        for row in workers
        if row.living and row.state == WorkerState.IDLE and (row.idle_s or 0.0) > IDLE_S
    ]
    weights: dict[str, float] = {}
    for row in workers:
        if row.status.spool and row.living:
            weights[row.status.spool] = weights.get(row.status.spool, 0.0) + row.status.weight
    depths = weighted_depths(count, weights)
    if not idle or not imbalanced(list(depths.values())):
        return
    full = max(depths, key=lambda name: depths[name])
    waiting = count.spools[full][1].claims
    yield Alert(
        AlertKind.IMBALANCE,
        full,
        f"imbalanced: {plural(waiting, 'claim')} waiting in {full} while "
        f"{plural(len(idle), 'worker')} idle: check --work-stealing, and whether the workers can "
        f"do such claims",
    )
