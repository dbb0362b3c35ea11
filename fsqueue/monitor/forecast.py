"""When all will be done, and how sure that is: what is left, over the speed that was measured.

The workers' last claims give each worker's speed, and how far single claims are off their costs.
With both, what is left is played through a number of times: each worker ends what it runs and then
takes the next claim, and every claim takes as long as its cost says, give or take as much as those
before. The middle of the ends is the ETA; nine in ten lie between the low and the high one. So a
forecast after two claims is a wide range and says so, and near the end the last claims' own scatter
counts, which "cost left over speed" knows nothing of (`tests/fsqueue/monitor/test_forecast.py` has
the runs it was tried on).

What it does not foresee: workers that come or leave, and a GPU that slows down.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from statistics import NormalDist
from typing import Final

ETA_MAX_S: Final = 100 * 365 * 86400.0
SAMPLES: Final = 61
SCATTER_BEFORE: Final = 0.5
"""How far a claim's time is assumed to be off its cost, relatively, before any was measured; ..."""
CLAIMS_BEFORE: Final = 2.0
"""... and how many measured claims that assumption is worth."""
DRIFT: Final = 0.03
"""What measured claims do not tell about those to come: the largest are done first."""
SINGLY: Final = 6
"""How many of the last claims per worker are played one by one; those before flow."""
SINGLY_MAX: Final = 200
TRIES: Final = 8
"""How often a time is drawn for a claim that has run for longer than was drawn."""
WIDE: Final = 1.25
"""A range is worth showing if its ends are this far apart, ..."""
LONG_S: Final = 10.0
"""... and if it does not end at once."""

Measured = Sequence[tuple[float, float]]
"""Cost and seconds of the last claims of one worker."""


@dataclass(frozen=True, slots=True)
class Busy:
    """A worker that is at work."""

    rate: float
    """Cost per second."""
    cost: float = 0.0
    """Of the claim that it runs; 0: none."""
    ran_s: float = 0.0
    """How long it has run."""
    left: float | None = None
    """How much of the cost is left, if it reports that."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """In how many seconds all is done, and the range of nine in ten; None: not known."""

    seconds: float | None = None
    low_s: float | None = None
    high_s: float | None = None

    @property
    def is_wide(self) -> bool:
        """Whether the range says something that the number alone does not."""
        if self.low_s is None or self.high_s is None:
            return False
        return self.high_s > WIDE * self.low_s and self.high_s >= LONG_S


def forecast(
    claims: int, cost: float, busy: Sequence[Busy], measured: Iterable[Measured]
) -> Forecast:
    """Return when `claims` waiting claims that cost `cost` together, and what runs, are done."""
    if not busy:
        return Forecast()
    known = list(measured)
    scatter, certainty = scatter_of(known, busy)
    play = _Play(claims, cost, _slowed(busy, known), scatter, certainty)
    # Evenly spread instead of drawn, so that the middle is in the middle.
    ranks = ((number + 0.5) / SAMPLES for number in range(SAMPLES))
    ends = sorted(play.end(NormalDist().inv_cdf(rank)) for rank in ranks)
    if not ends[-1] < ETA_MAX_S:
        return Forecast()
    return Forecast(ends[SAMPLES // 2], ends[SAMPLES // 20], ends[-1 - SAMPLES // 20])


def _overdue(worker: Busy) -> float:
    """Return by how much a running claim takes longer than it should already, in cost."""
    return max(0.0, worker.ran_s * worker.rate - worker.cost) if worker.left is None else 0.0


def _slowed(busy: Sequence[Busy], measured: Sequence[Measured]) -> Sequence[Busy]:
    """Return the workers with rates that take into account what runs too long.

    The claims that ended first are those that went fast; the others are still running.
    """
    late = math.fsum(map(_overdue, busy))
    done = math.fsum(cost for each in measured for cost, _ in each)
    if not late or not done:
        return busy
    return [replace(worker, rate=worker.rate * done / (done + late)) for worker in busy]


def scatter_of(measured: Sequence[Measured], busy: Sequence[Busy] = ()) -> tuple[float, float]:
    """Return how far a claim's time is off its cost, and a mean of them.

    Both are standard deviations of the logarithm. Running claims count as far as they are late.
    """
    count = sum(map(len, measured))
    mean = math.fsum(cost for each in measured for cost, _ in each) / count if count else 0.0
    squares = CLAIMS_BEFORE * SCATTER_BEFORE**2
    if mean > 0:
        late = math.fsum(_overdue(worker) ** 2 for worker in busy)
        squares += (math.fsum(map(_squares, measured)) + late) / mean**2
    variance = squares / (max(0, count - len(measured)) + CLAIMS_BEFORE)
    scatter = math.sqrt(math.log1p(variance))
    return scatter, math.hypot(scatter / math.sqrt(max(count, 1)), DRIFT)


def _squares(claims: Measured) -> float:
    """Return the sum of the squares of how far each claim's time was off its cost, in cost."""
    seconds = math.fsum(each for _, each in claims)
    if seconds <= 0:
        return 0.0
    rate = math.fsum(cost for cost, _ in claims) / seconds
    return math.fsum((each * rate - cost) ** 2 for cost, each in claims)


class _Play:
    """What is left, played through once by each call of `end`, the same way in every process."""

    def __init__(
        self, claims: int, cost: float, busy: Sequence[Busy], scatter: float, certainty: float
    ) -> None:
        self._busy = busy
        self._scatter = scatter
        self._certainty = certainty
        self._each = cost / claims if claims else 0.0
        self._singly = min(claims, SINGLY * len(busy), max(SINGLY_MAX, len(busy)))
        self._flowing = claims - self._singly
        self._rate = math.fsum(worker.rate for worker in busy)
        self._random = random.Random(1)

    def end(self, deviations: float) -> float:
        """Return in how many seconds the last claim ends, if the speed is off by so much."""
        slower = math.exp(deviations * self._certainty)
        flow_s = self._flowing * self._each / self._rate
        if self._flowing:
            flow_s *= self._off(self._scatter / math.sqrt(self._flowing))
        free = [(flow_s + self._rest(worker), 1 / worker.rate) for worker in self._busy]
        last = max(at for at, _ in free) if not self._singly else 0.0
        heapify(free)
        for _ in range(self._singly):
            at, per_cost = free[0]
            at += self._each * per_cost * self._off(self._scatter)
            last = max(last, at)
            heapreplace(free, (at, per_cost))
        held = (at for (at, _), worker in zip(free, self._busy, strict=True) if worker.cost)
        return slower * max(last, *held, 0.0)

    def _off(self, scatter: float) -> float:
        """Return by what factor a time is off, whose mean is 1."""
        return math.exp(self._random.gauss(-(scatter**2) / 2, scatter))

    def _rest(self, worker: Busy) -> float:
        """Return how long the claim that a worker runs will still take."""
        if not worker.cost:
            return 0.0
        if worker.left is not None:
            part = worker.left / worker.cost
            return worker.left / worker.rate * self._off(self._scatter * math.sqrt(part))
        expected_s = worker.cost / worker.rate
        for _ in range(TRIES):
            takes_s = expected_s * self._off(self._scatter)
            if takes_s > worker.ran_s:
                return takes_s - worker.ran_s
        # It takes far longer than it should: about as long again as it is late, or more.
        return worker.ran_s * self._scatter * self._random.expovariate(1.0)
