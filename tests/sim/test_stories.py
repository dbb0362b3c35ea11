"""The real protocol on a simulated shared file system: every seed is a story that must end well.

Many processes on several hosts, one file operation at a time in an order that the seed decides,
with crashes, pauses, lost replies, stale caches, full disks and power cuts; the invariants are held
against the true state of the disk after every operation, and at the end every claim is done once
or failed with its history. SIM_SEEDS=FIRST-LAST plays other seeds, or more of them:

    SIM_SEEDS=0-9999 pytest tests/sim
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.sim.mutations import MUTATIONS, Mutation, applied
from tests.sim.story import play, theatre

SEEDS = os.environ.get("SIM_SEEDS", "0-399")
MUTANT_SEEDS = int(os.environ.get("SIM_MUTANT_SEEDS", "120"))
RARE = {
    "no look after a rename that reported failure",
    "a rename that reported failure counts as done",
    "a claim that was lost is finished all the same",
    "no fsync of what was staged",
    "whoever lost the race for a lease recovers all the same",
    "end the newest beat, not the one last seen",
    "what half an attempt wrote passes for the whole",
    "leave without putting back",
    "retire before putting back",
    "a claim won without knowing is left alone",
    "tidy up after the living",
    "plans of dead planners are left half published",
}
"""Mistakes that fewer than one story in 120 shows: they are left out unless SIM_MUTANT_SEEDS asks
for more stories than that, and nothing is promised of them here."""
NOTICED = [m for m in MUTATIONS if m.name not in RARE or MUTANT_SEEDS > 120]


@pytest.fixture(autouse=True)
def stage(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Put the simulation under fsqueue; what workers log in it is noise here."""
    logging.disable(logging.CRITICAL)
    with theatre():
        yield
    logging.disable(logging.NOTSET)


def seeds() -> range:
    first, _, last = SEEDS.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(seeds().start, seeds().stop, 50))
def test_every_story_ends_with_every_claim_done_once_or_failed_with_its_history(first: int) -> None:
    for seed in range(first, min(first + 50, seeds().stop)):
        play(seed)  # raises Violation, with the plot and the end of the trace in its notes


@pytest.mark.slow
@pytest.mark.parametrize("mutation", NOTICED, ids=lambda mutation: mutation.name)
def test_a_mistake_in_the_protocol_is_noticed(mutation: Mutation) -> None:
    with applied(mutation):
        for seed in range(MUTANT_SEEDS):
            try:
                play(seed)
            except Exception:
                return  # or it broke the program outright: noticed, too
    pytest.fail(f"nobody noticed: {mutation.name}")
