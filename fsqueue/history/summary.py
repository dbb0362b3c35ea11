"""What happened in a pool, added up: what each worker did when, and how fast the whole went.

One pass over the attempts, in memory that does not grow with them: up to DRAWN_MAX are kept one by
one, and from then on only how busy each worker was in each of at most SLOTS_MAX equal slots of
time. Slots double in length whenever there would be more, so neither the beginning nor the end need
be known in advance. Times are by the workers' own clocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fsqueue.history.attempts import Attempted, Ending

DRAWN_MAX: Final = 3000
SLOTS_MAX: Final = 400
ENDINGS: Final = (
    Ending.DONE,
    Ending.FAILED,
    Ending.KILLED,
    Ending.LOST,
    Ending.RELEASED,
    Ending.UNKNOWN,
    Ending.RUNNING,
)
Slots = dict[int, float]
BAD: Final = frozenset({Ending.FAILED, Ending.KILLED, Ending.LOST})


@dataclass(slots=True)
class Lane:
    """What one worker did."""

    worker: str
    host: str
    endings: Counter[Ending] = field(default_factory=Counter)
    stolen: int = 0
    busy_s: float = 0.0
    cost: float = 0.0
    """Of the claims it finished."""
    first: float = float("inf")
    last: float = float("-inf")
    slots: Slots = field(default_factory=dict)
    """Busy seconds, by slot."""
    bad: Slots = field(default_factory=dict)
    """Attempts that ended badly, by slot."""

    @property
    def attempts(self) -> int:
        """How many attempts it made."""
        return sum(self.endings.values())


@dataclass(slots=True)
class Summary:
    """All attempts, added up."""

    now: float
    """Attempts that still run are drawn up to here."""
    lanes: dict[str, Lane] = field(default_factory=dict)
    endings: Counter[Ending] = field(default_factory=Counter)
    steals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By the spool that lost the claim and the worker that took it."""
    drawn: list[Attempted] | None = field(default_factory=list)
    """Every attempt whose start is known; None once there are too many."""
    slot_s: float = 1.0
    done: Slots = field(default_factory=dict)
    """Finished claims, by slot."""
    first: float = float("inf")
    last: float = float("-inf")

    @property
    def attempts(self) -> int:
        """How many attempts there were."""
        return sum(self.endings.values())

    def add(self, attempts: Iterable[Attempted]) -> Summary:
        """Add attempts, in any order."""
        for attempt in attempts:
            self._add_one(attempt)
        return self

    def _add_one(self, attempt: Attempted) -> None:
        lane = self.lanes.setdefault(attempt.worker, Lane(attempt.worker, attempt.host))
        lane.host = attempt.host or lane.host
        lane.endings[attempt.ending] += 1
        self.endings[attempt.ending] += 1
        if attempt.stolen:
            lane.stolen += 1
            self.steals[attempt.spool or "?", attempt.worker] += 1
        if attempt.ending == Ending.DONE:
            lane.cost += attempt.cost or 0.0
        if attempt.started is None:
            return  # its start is in no journal: it is counted, but cannot be drawn
        begin, end = attempt.started, self.end_of(attempt)
        if attempt.ending not in (Ending.KILLED, Ending.LOST):  # its time of death is not known
            lane.busy_s += end - begin
        for one in (lane, self):
            one.first, one.last = min(one.first, begin), max(one.last, end)
        self._make_room()
        for slot, seconds in self._pieces(begin, end):
            _count(lane.slots, slot, seconds)
        at = int(end // self.slot_s)
        if attempt.ending == Ending.DONE:
            _count(self.done, at, 1)
        elif attempt.ending in BAD:
            _count(lane.bad, at, 1)
        if self.drawn is not None:
            self.drawn.append(attempt)
            if len(self.drawn) > DRAWN_MAX:
                self.drawn = None

    def end_of(self, attempt: Attempted) -> float:
        """Return up to when an attempt is drawn."""
        begin = attempt.started or 0.0
        if attempt.seconds is not None:
            return begin + attempt.seconds
        return max(begin, self.now) if attempt.ending == Ending.RUNNING else begin

    def _make_room(self) -> None:
        while self.last // self.slot_s - self.first // self.slot_s >= SLOTS_MAX:
            self.slot_s *= 2
            self.done = _halved(self.done)
            for lane in self.lanes.values():
                lane.slots, lane.bad = _halved(lane.slots), _halved(lane.bad)

    def _pieces(self, begin: float, end: float) -> Iterable[tuple[int, float]]:
        for slot in range(int(begin // self.slot_s), int(end // self.slot_s) + 1):
            low, high = slot * self.slot_s, (slot + 1) * self.slot_s
            yield slot, min(end, high) - max(begin, low)


def _count(slots: Slots, slot: int, amount: float) -> None:
    slots[slot] = slots.get(slot, 0.0) + amount


def _halved(slots: Slots) -> Slots:
    wider: Slots = {}
    for slot, amount in slots.items():
        _count(wider, slot // 2, amount)
    return wider
