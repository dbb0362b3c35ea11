"""What the metrics log says about a whole run: GPU use and speed over time.

One pass over the log, in memory that does not grow with it: at most SLOTS_MAX equal slots of time,
which double in length whenever there would be more. The log is a hint: a line that is not one of
its own (a writer was killed, a disk was full) is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from fsqueue.storage import atomic

SLOTS_MAX: Final = 240
FIELDS: Final = 5
RATE_MAX: Final = 1e12


@dataclass(slots=True)
class Slot:
    """What was logged in one slot of time."""

    looks: int = 0
    """How many times the GPUs were looked at: each look logs a line per GPU."""
    rate: float = 0.0
    """The sum over all lines, in items per second."""
    compute: float = 0.0
    memory: float = 0.0
    gpus: int = 0
    """How many lines gave the use of a GPU, in percent."""
    memories: int = 0
    low: float = 100.0
    high: float = 0.0
    """Of the GPUs, the least and the most used."""

    def add(self, other: Slot) -> None:
        """Add what another slot has."""
        self.looks += other.looks
        self.rate += other.rate
        self.compute += other.compute
        self.memory += other.memory
        self.gpus += other.gpus
        self.memories += other.memories
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def items_per_s(self) -> float:
        """Of all GPUs together, on average."""
        return self.rate / self.looks if self.looks else 0.0

    @property
    def compute_percent(self) -> float | None:
        """The mean use of the GPUs; None if none was logged."""
        return self.compute / self.gpus if self.gpus else None

    @property
    def memory_percent(self) -> float | None:
        """The mean use of the GPUs' memory; None if none was logged."""
        return self.memory / self.memories if self.memories else None


@dataclass(slots=True)
class MetricsHistory:
    """The log, by slots of time."""

    slot_s: float = 2.0
    slots: dict[int, Slot] = field(default_factory=dict)

    def times(self) -> list[tuple[float, Slot]]:
        """Return the middle of each slot in which something was logged, in seconds since 1970."""
        return [((n + 0.5) * self.slot_s, self.slots[n]) for n in sorted(self.slots)]

    def add(self, t: float, slot: Slot) -> None:
        """Add what was logged at one time."""
        at = int(t // self.slot_s)
        if at not in self.slots:
            while self.slots and _span(self.slots, at) >= SLOTS_MAX:
                self._halve()
                at = int(t // self.slot_s)
            self.slots.setdefault(at, Slot())
        self.slots[at].add(slot)

    def _halve(self) -> None:
        before, self.slots = self.slots, {}
        self.slot_s *= 2
        for number, slot in before.items():
            self.slots.setdefault(number // 2, Slot()).add(slot)


def _span(slots: dict[int, Slot], at: int) -> int:
    return max(*slots, at) - min(*slots, at)


def read_metrics(path: str) -> MetricsHistory:
    """Read a metrics log, and the one that was set aside when it became large."""
    history = MetricsHistory()
    for each in (f"{path}.1", path):
        for t, slot in _looks(each):
            history.add(t, slot)
    return history


def _looks(path: str) -> Iterator[tuple[float, Slot]]:
    """Yield what was logged at each time: the lines of one look have the same."""
    text, slot, t = "", Slot(), None
    for line in _lines(path):
        parts = line.rstrip("\n").split(",")
        if len(parts) != FIELDS:
            continue
        if parts[0] != text:
            if t is not None:
                yield t, slot
            text, slot, t = parts[0], Slot(looks=1), _seconds(parts[0])
        _take_in(slot, parts)
    if t is not None:
        yield t, slot


def _lines(path: str) -> Iterator[str]:
    try:
        fd = atomic.open_for_reading(path)[0]
    except OSError:
        return  # it was never made; or a passing error, and the next page has it
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        yield from file


def _take_in(slot: Slot, parts: list[str]) -> None:
    rate, compute, memory = map(_number, parts[2:])
    if rate is not None and 0 <= rate < RATE_MAX:
        slot.rate += rate
    if compute is not None and 0 <= compute <= 100:
        slot.compute += compute
        slot.gpus += 1
        slot.low, slot.high = min(slot.low, compute), max(slot.high, compute)
    if memory is not None and 0 <= memory <= 100:
        slot.memory += memory
        slot.memories += 1


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
