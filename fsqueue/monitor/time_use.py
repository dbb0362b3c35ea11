"""What became of the time in which workers' handlers computed, as they report it.

A report is a hint (I8): numbers that cannot be true are left out. It is of a worker's whole life,
because a share of a few seconds says more about where they fell than about the worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fsqueue.storage.untrusted import number

GIB_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TimeUse:
    """Shares of the time in which one or several workers computed. None: not reported."""

    computing_percent: float | None = None
    """In which the device computed."""
    feeding_percent: float | None = None
    """In which the handler waited for input, or prepared it."""
    mfu_percent: float | None = None
    """The model's operations, by those that the devices reach in large products (model FLOPs
    utilisation)."""
    peak_gib: float | None = None
    """The most memory that any of them held."""


def time_use(reports: Iterable[Mapping[str, Any]]) -> TimeUse:
    """Return what became of the time of some workers together, by what each reports.

    `reports` are the `computing` of their statuses.
    """
    sums = dict.fromkeys(("seconds", "computing_s", "feeding_s", "teraflop", "reach_teraflop"), 0.0)
    peak = 0.0
    for report in reports:
        for name in sums:
            sums[name] += max(0.0, number(report.get(name)) or 0.0)
        peak = max(peak, number(report.get("peak_gib")) or 0.0)

    def percent(part: str, whole: str) -> float | None:
        share = sums[part] / sums[whole] if sums[whole] > 0 else -1.0
        return 100 * share if 0 <= share <= 1.05 else None

    return TimeUse(
        percent("computing_s", "seconds"),
        percent("feeding_s", "seconds"),
        percent("teraflop", "reach_teraflop"),
        peak if 0 < peak < GIB_MAX else None,
    )


def sentence(use: TimeUse) -> str:
    """Return it for a person to read; "" if nothing is known."""
    parts = []
    if use.computing_percent is not None:
        parts.append(f"computing {use.computing_percent:.0f}% of their time")
    if use.feeding_percent is not None:
        parts.append(f"waiting for input {use.feeding_percent:.0f}%")
    if use.mfu_percent is not None:
        parts.append(f"at {use.mfu_percent:.0f}% of the devices' speed in products (MFU)")
    if use.peak_gib is not None:
        parts.append(f"{use.peak_gib:.1f} GiB of memory at most")
    return f"devices: {', '.join(parts)}" if parts else ""
