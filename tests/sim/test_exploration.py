"""All orders of the operations of a few actors: complete, not sampled; the counts are printed.

Every crash and every pause is among the orders (see `explore.py`), and a fresh worker must be able
to finish every pool that can be left behind. A mistake in an order is found without luck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.explore import Body, Explorer, Found, exploring
from tests.sim.explored_actors import completer, late_planner, make_pool, recoverer, settle, worker
from tests.sim.statistics import STATISTICS

STILL = ("plans", "control", "spools")
"""Directories that do not change once everything is planned."""

Actors = Callable[[Explorer], dict[str, Body]]


def explored(cast: Actors, *inputs: str, **how: Any) -> Found:
    """Search all orders of the actors' operations on a pool in which these inputs wait."""
    with exploring() as explorer:
        make_pool(explorer, *inputs)
        bodies = cast(explorer)
        return explorer.explore(bodies, settle=settle, **{"constant": STILL} | how)


def two_workers(explorer: Explorer) -> dict[str, Body]:
    return {"w1": worker(explorer, newcomer=True), "w2": worker(explorer, newcomer=True)}


def a_worker_and_a_recoverer(explorer: Explorer) -> dict[str, Body]:
    return {"w1": worker(explorer), "r": recoverer(explorer)}


def a_worker_that_beats_and_a_recoverer(explorer: Explorer) -> dict[str, Body]:
    return {"w1": worker(explorer, beats=1), "r": recoverer(explorer)}


def two_workers_and_a_recoverer(explorer: Explorer) -> dict[str, Body]:
    return {"w1": worker(explorer), "w2": worker(explorer), "r": recoverer(explorer)}


def two_workers_and_a_quick_recoverer(explorer: Explorer) -> dict[str, Body]:
    return {"w1": worker(explorer), "w2": worker(explorer), "r": recoverer(explorer, sweeps=2)}


def two_planners(explorer: Explorer) -> dict[str, Body]:
    return {"p": late_planner(explorer, "a.5.ok"), "q": late_planner(explorer, "a.5.ok")}


def a_planner_and_a_completer(explorer: Explorer) -> dict[str, Body]:
    return {"p": late_planner(explorer, "a.5.ok"), "c": completer(explorer)}


PROGRAMS: dict[str, tuple[Actors, tuple[str, ...], dict[str, Any]]] = {
    "two workers, one claim, a lost reply": (two_workers, ("a.5.ok",), {"lost": 1}),
    "two workers, two claims": (two_workers, ("a.5.ok", "b.6.ok"), {}),
    "a worker, a recoverer, a lost reply": (a_worker_and_a_recoverer, ("a.5.ok",), {"lost": 1}),
    "a worker, a recoverer, a request done twice": (
        a_worker_and_a_recoverer,
        ("a.5.ok",),
        {"again": 1},
    ),
    "a worker that beats, a recoverer": (a_worker_that_beats_and_a_recoverer, ("a.5.ok",), {}),
    "two workers, a recoverer, two claims": (
        two_workers_and_a_quick_recoverer,
        ("a.5.ok", "b.6.ok"),
        {},
    ),
    "two planners": (two_planners, ("z.5.ok",), {"constant": ()}),
    "a planner, a completer": (a_planner_and_a_completer, ("z.5.ok",), {"constant": ()}),
}
"""The actors, and the inputs that wait. Planners find the spool made, so that they have less to do;
scenarios cover planners that make it at the same time.
"""


@pytest.mark.slow
@pytest.mark.parametrize("play", PROGRAMS)
def test_in_every_order_the_invariants_hold_and_a_fresh_worker_ends_it_well(play: str) -> None:
    cast, inputs, how = PROGRAMS[play]
    found = STATISTICS.explored[play] = explored(cast, *inputs, **how)
    assert found.states > 500 and found.schedules > 10**6 and found.ends > 5


@pytest.mark.slow
@pytest.mark.nightly
def test_in_every_order_of_two_workers_and_a_recoverer_too() -> None:
    found = explored(two_workers_and_a_recoverer, "a.5.ok")
    STATISTICS.explored["two workers, a recoverer"] = found
