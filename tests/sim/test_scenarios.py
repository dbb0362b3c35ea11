"""The real protocol on a simulated shared file system: every seed is a scenario that must end well.

Many processes on several hosts, one file operation at a time in an order that the seed decides,
with crashes, pauses, lost replies, stale caches, full disks and power cuts; the invariants are held
against the true state of the disk after every operation, and at the end every claim is done once
or failed with its history. A scenario that does not prints its parameters, its trace, and how to
replay it. SIM_SEEDS=FIRST-LAST runs other seeds, or more of them:

    SIM_SEEDS=0-9999 pytest tests/sim
"""

from __future__ import annotations

import os

import pytest

from tests.sim.planned_faults import SCENES
from tests.sim.scenario import Scenario, run_scenario
from tests.sim.statistics import STATISTICS

SEEDS = os.environ.get("SIM_SEEDS", "0-1999")
SCENE = os.environ.get("SIM_SCENE", "")
SCENE_SEEDS = 20
REPRESENTATIVE = 400
"""This many scenarios contain every kind of fault."""


def seeds() -> range:
    first, _, last = SEEDS.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.slow
@pytest.mark.skipif(bool(SCENE), reason="SIM_SCENE names one scene")
@pytest.mark.parametrize("first", range(seeds().start, seeds().stop, 100))
def test_every_scenario_ends_with_each_claim_done_once_or_failed_with_its_history(
    first: int,
) -> None:
    for seed in range(first, min(first + 100, seeds().stop)):
        STATISTICS.add(run_scenario(seed))


@pytest.mark.slow
@pytest.mark.parametrize("scene", [SCENE] if SCENE else SCENES)
def test_every_scenario_around_a_scene_ends_as_well(scene: str) -> None:
    for seed in range(SCENE_SEEDS) if SEEDS == "0-1999" else seeds():
        STATISTICS.add(run_scenario(seed, Scenario.around_scene(scene, seed)))


@pytest.mark.slow
@pytest.mark.skipif(bool(SCENE), reason="SIM_SCENE names one scene")
def test_together_the_scenarios_contain_every_step_and_every_accident() -> None:
    for seed in set(range(REPRESENTATIVE)) - STATISTICS.seeds:
        STATISTICS.add(run_scenario(seed))
    assert STATISTICS.missing() == []
