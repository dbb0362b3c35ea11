"""What one claim costs a file server: metadata operations per claim taken and finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.growth import operations_of_a_life
from tests.support.strace import fill, operations_per_claim

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]

OPERATIONS_MAX = 6.0
FEW, MANY = 1_000, 10_000
"""How many claims wait. Counted at 100,000 by scripts/bench/metadata.py."""

Counts = dict[int, dict[str, float]]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counts, Counts]:
    """What a claim costs out of the worker's own spool, and stolen, by how many wait."""
    own, stolen = {}, {}
    for waiting in (FEW, MANY):
        directory = tmp_path_factory.mktemp(f"waiting-{waiting}")
        pool = fill(directory / "pool", waiting)
        own[waiting] = operations_per_claim(directory, pool, "cpu0")
        stolen[waiting] = operations_per_claim(directory, pool, "cpu1")
        shutil.rmtree(directory)
    return own, stolen


def test_a_claim_costs_at_most_six_metadata_operations(counted: tuple[Counts, Counts]) -> None:
    own, _ = counted
    assert own[FEW]["rename"] == 2.0, "strace did not see the claims move"
    assert sum(own[FEW].values()) <= OPERATIONS_MAX, own


def test_a_claim_does_not_cost_more_the_more_claims_wait(counted: tuple[Counts, Counts]) -> None:
    for counts in counted:
        assert sum(counts[MANY].values()) <= sum(counts[FEW].values()) + 0.1, counts


def test_a_stolen_claim_costs_no_listing(counted: tuple[Counts, Counts]) -> None:
    """Neither the spool it comes from, nor the thief's own dry one, is listed."""
    _, stolen = counted
    assert stolen[FEW]["rename"] == 2.0
    assert stolen[FEW].get("getdents64", 0.0) < 0.2  # one every two seconds is no cost


def test_a_stolen_claim_too_costs_at_most_six(counted: tuple[Counts, Counts]) -> None:
    _, stolen = counted
    assert sum(stolen[FEW].values()) <= OPERATIONS_MAX, stolen


@pytest.mark.parametrize(
    "size, few, many", [("workers", 10, 200), ("left", 0, 2_000), ("spools", 10, 200)]
)
def test_r18_a_workers_life_costs_the_same_in_a_pool_that_is_larger_in_any_way(
    tmp_path: Path, size: str, few: int, many: int
) -> None:
    """`scripts/bench/metadata.py --growth` goes to 1,000 workers or spools, 100,000 that left."""
    small, large = (
        operations_of_a_life(tmp_path / f"{number}", **{size: number}) for number in (few, many)
    )
    assert small["rename"] >= 600, "strace did not see the claims move"
    assert large.total() <= 1.1 * small.total(), (small, large)
