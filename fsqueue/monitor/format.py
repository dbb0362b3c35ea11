"""Numbers as people read them: times, rates, shares. What is not known is a dash."""

from __future__ import annotations

import calendar
import time
from typing import Final

from fsqueue.monitor.forecast import Forecast

UNKNOWN: Final = "-"


def duration(seconds: float | None) -> str:
    """Return a time in its two largest units: 8s, 4m10s, 3h05m, 2d04h."""
    if seconds is None:
        return UNKNOWN
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400:,}d{whole % 86400 // 3600:02d}h"


def eta(forecast: Forecast) -> str:
    """Return when all is done, with the range if it is wide: 12m, 12m10s (8m00s to 19m30s)."""
    text = duration(forecast.seconds)
    if not forecast.is_wide:
        return text
    return f"{text} ({duration(forecast.low_s)} to {duration(forecast.high_s)})"


def clock(t: float) -> str:
    """Return the local time of day, HH:MM:SS."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(t))
    except (OverflowError, ValueError, OSError):
        return "--:--:--"


def utc_seconds(text: str) -> float | None:
    """Return the seconds since 1970 of 2026-11-30T09:16:00Z, None for any other text."""
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))
    except (ValueError, OverflowError):
        return None


def rate(value: float | None) -> str:
    """Return a rate with three figures or so."""
    if value is None:
        return UNKNOWN
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return 0-100 with a percent sign."""
    return UNKNOWN if value is None else f"{value:.{digits}f}%"


def share(part: float, whole: float) -> str:
    """Return part of whole as a percentage that is 0% or 100% only if it is exactly that."""
    if not whole:
        return UNKNOWN
    value = 100.0 * part / whole
    if 0 < value < 0.1 or 99.9 < value < 100:
        return "<0.1%" if value < 1 else ">99.9%"
    return f"{value:.1f}%"


def abbreviated(name: str) -> str:
    """Return the name of a measure as it stands in a column title: items, seq, tok."""
    return name if len(name) < 6 or name == "claims" else name[:3]


def plural(count: int, noun: str) -> str:
    """Return "1 claim", "2 claims"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def stolen(came: int, went: int) -> str:
    """Return how many claims a spool's workers stole, and how many were stolen from it."""
    return f"+{came:,}/-{went:,}" if came or went else UNKNOWN
