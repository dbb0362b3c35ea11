"""An ETA that can be believed: nine ends in ten lie in its range, in runs it has not seen."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass

import pytest

from fsqueue.monitor import format
from fsqueue.monitor.forecast import Busy, Forecast, forecast, scatter_of

RUNS = 200
LOOKS = (0.1, 0.3, 0.6, 0.85)
"""At which part of a run the forecast is asked for."""


@dataclass
class Run:
    """A simulated run: unequal workers take the largest claim next; times scatter around costs."""

    taken: list[tuple[float, float, int, float]]
    """Begin, end, worker and cost of each claim."""
    weights: list[float]
    """What the planner believes of the workers, wrong by a fifth or so."""

    @property
    def end(self) -> float:
        return max(end for _, end, _, _ in self.taken)

    def forecast(self, now: float) -> Forecast | None:
        """Return what is foreseen at `now`; None while no claim has ended."""
        workers = range(len(self.weights))
        ended = [
            [(cost, end - begin) for begin, end, by, cost in self.taken if by == w and end <= now]
            for w in workers
        ]
        rates = {
            w: sum(c for c, _ in each[-30:]) / sum(s for _, s in each[-30:])
            for w, each in enumerate(ended)
            if each
        }
        if not rates:
            return None
        per = sum(rates.values()) / sum(self.weights[w] for w in rates)
        waiting = [cost for begin, _, _, cost in self.taken if begin > now]
        busy = [
            Busy(rates.get(w, per * self.weights[w]), cost, now - begin)
            for begin, end, w, cost in self.taken
            if begin <= now < end
        ]
        return forecast(len(waiting), sum(waiting), busy, [each[-30:] for each in ended if each])


def simulate(seed: int) -> Run:
    chance = random.Random(seed)
    claims, workers = chance.choice([20, 60, 200]), chance.choice([1, 2, 4, 8])
    scatter, overhead_s = chance.choice([0.05, 0.2, 0.5]), chance.choice([0.0, 0.0, 5.0])
    spread = chance.choice([0.1, 1.0])
    costs = sorted((100 * chance.lognormvariate(0, spread) for _ in range(claims)), reverse=True)
    speeds = [chance.uniform(0.5, 2) for _ in range(workers)]
    weights = [speed * chance.lognormvariate(0, 0.2) for speed in speeds]
    free, taken = [(0.0, w) for w in range(workers)], []
    for cost in costs:
        begin, w = free[0]
        takes_s = cost * chance.lognormvariate(-(scatter**2) / 2, scatter) / speeds[w] + overhead_s
        taken.append((begin, begin + takes_s, w, cost))
        heapq.heapreplace(free, (begin + takes_s, w))
    return Run(taken, weights)


@pytest.mark.parametrize("part", LOOKS)
def test_nine_ends_in_ten_or_nearly_lie_in_the_range_and_the_middle_is_not_biased(
    part: float,
) -> None:
    inside, off = [], []
    for seed in range(RUNS):
        run = simulate(seed)
        found = run.forecast(part * run.end)
        if found is None or found.seconds is None:
            continue
        assert found.low_s is not None and found.high_s is not None
        left_s = (1 - part) * run.end
        inside.append(found.low_s <= left_s <= found.high_s)
        off.append(math.log(left_s / found.seconds))
    assert len(inside) > RUNS / 2
    assert sum(inside) / len(inside) > 0.84
    assert abs(sum(off) / len(off)) < 0.15


def test_the_range_narrows_as_claims_are_measured() -> None:
    ranges = []
    for claims in (1, 4, 30):
        found = forecast(100, 1000.0, [Busy(1.0)], [[(10.0, 10.0)] * claims])
        assert found.seconds == pytest.approx(1000.0, rel=0.1)
        assert found.low_s is not None and found.high_s is not None
        ranges.append(found.high_s / found.low_s)
    assert ranges[0] > 2 > 1.5 > ranges[2] and ranges == sorted(ranges, reverse=True)


def test_it_is_the_same_each_time_for_the_same_facts() -> None:
    facts = (7, 70.0, [Busy(1.0, 10.0, 3.0), Busy(2.0)], [[(10.0, 9.0), (10.0, 12.0)]])
    assert forecast(*facts) == forecast(*facts)


def test_a_claim_that_takes_far_too_long_moves_the_end_away() -> None:
    measured = [[(10.0, 10.0)] * 5]
    usual = forecast(0, 0.0, [Busy(1.0, 10.0, 2.0)], measured).seconds
    late = forecast(0, 0.0, [Busy(1.0, 10.0, 100.0)], measured).seconds
    assert usual is not None and late is not None and late > usual


def test_a_claim_that_reports_progress_ends_by_it() -> None:
    found = forecast(0, 0.0, [Busy(1.0, 100.0, left=20.0)], [[(100.0, 100.0)] * 20])
    assert found.seconds == pytest.approx(20.0, rel=0.1)


def test_without_anybody_at_work_nothing_is_foreseen() -> None:
    assert forecast(5, 50.0, [], [[(1.0, 1.0)]]) == Forecast()


@pytest.mark.parametrize("measured", [[], [[(0.0, 0.0)]], [[(0.0, 5.0)]], [[(5.0, 0.0)]]])
def test_claims_without_cost_or_time_harm_nothing(
    measured: list[list[tuple[float, float]]],
) -> None:
    scatter, certainty = scatter_of(measured)
    assert 0 < scatter < 1 and 0 < certainty < 1


def test_the_range_is_shown_only_where_it_says_something() -> None:
    assert format.eta(Forecast(720.0, 700.0, 740.0)) == "12m00s"
    assert format.eta(Forecast(720.0, 480.0, 1170.0)) == "12m00s (8m00s to 19m30s)"
    assert format.eta(Forecast(2.0, 1.0, 4.0)) == "2s"
    assert format.eta(Forecast()) == "-"
