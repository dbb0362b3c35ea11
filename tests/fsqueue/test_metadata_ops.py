"""What one claim costs a file server: metadata operations per claim taken and finished.

Counted with strace over a handler that does nothing, as the difference of two runs that take a
different number of claims, so that starting and leaving cancel out.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from fsqueue.claims import Claim
from fsqueue.names import ClaimName
from fsqueue.pool import Pool, Spool, add_spool, create_pool
from tests.support.handlers import install_handler
from tests.support.systemcalls import count_metadata

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]

NOOP = """
from fsqueue import Handler

class Made(Handler):
    suffix = None

    def run(self, work):
        pass
"""
OPERATIONS_MAX = 6.0


def fill(root: Path, count: int) -> Pool:
    """Make a pool where `count` claims wait for a handler that does nothing.

    By hand: the planner syncs every claim, which no one needs here.
    """
    pool = create_pool(str(root), lease_s=3600.0)
    add_spool(pool, Spool("cpu0", "cpu", 1.0))
    add_spool(pool, Spool("cpu1", "cpu", 1.0))
    for number in range(count):
        name = ClaimName(f"noop-{number:06d}", "noop", 1 + number % 97)
        claim = Claim("noop", "cpu0", {}, {}, {})
        Path(pool.waiting("cpu0", name)).write_bytes(claim.encode(name))
    return pool


def per_claim(tmp_path: Path, waiting: int, *words: str) -> dict[str, float]:
    """Return the operations by name per claim, with so many claims waiting."""
    env = install_handler(tmp_path / f"site-{waiting}", "noop", NOOP)
    counted: list[Counter[str]] = []
    taken = (100, 300)
    for claims_max in taken:
        pool = fill(tmp_path / f"pool-{waiting}-{claims_max}", waiting)
        limit = ["--max-claims", str(claims_max)]
        log = tmp_path / f"strace-{waiting}-{claims_max}"
        counted.append(count_metadata(pool.root, ["work", pool.root, *words, *limit], log, env=env))
        assert len(list(Path(pool.directory("done")).iterdir())) == claims_max
        shutil.rmtree(pool.root)
    difference = counted[1] - counted[0]
    return {call: round(count / (taken[1] - taken[0]), 3) for call, count in difference.items()}


@pytest.mark.parametrize("spool", ["cpu0", "cpu1"], ids=["from its own spool", "stolen"])
def test_a_claim_costs_at_most_six_metadata_operations_however_many_wait(
    tmp_path: Path, spool: str
) -> None:
    few = per_claim(tmp_path, 1_000, "--spool", spool)
    many = per_claim(tmp_path, 20_000, "--spool", spool)
    print(f"{spool}: 1,000 waiting {few}; 20,000 waiting {many}")
    assert few["rename"] >= 2.0, "strace did not see the claims move"
    assert sum(few.values()) <= OPERATIONS_MAX, few
    assert sum(many.values()) <= OPERATIONS_MAX, many
    assert sum(many.values()) <= sum(few.values()) + 0.1, (few, many)
