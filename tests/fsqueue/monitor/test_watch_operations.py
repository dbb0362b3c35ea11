"""What a look at a pool costs a file server: never a listing of done/, however much is done."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from fsqueue.pool.settings import PoolDirectory
from tests.support.large_pool import make_large_pool
from tests.support.processes import FSQUEUE
from tests.support.strace import calls_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]

WORKERS = 8
FEW, MORE = 2, 12
PER_WORKER, FIXED = 16, 60
LOOK = """
import sys
from fsqueue.monitor.snapshot import Reader
from fsqueue.pool.settings import open_pool
reader = Reader(open_pool(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    count = reader.snapshot().count
print(count.done.claims)
"""


def pool_of(directory: Path, done: int, waiting: int) -> PoolDirectory:
    return make_large_pool(directory / "pool", done=done, waiting=waiting, workers=WORKERS)


def per_look(directory: Path, pool: PoolDirectory) -> dict[str, float]:
    """Return the calls of one look, when the first is over: the difference of few and more."""
    few, more = (
        Counter(
            name
            for name, _ in calls_of(
                [sys.executable, "-c", LOOK, pool.root, str(looks)], pool, directory / "strace"
            )
        )
        for looks in (FEW, MORE)
    )
    return {name: count / (MORE - FEW) for name, count in sorted((more - few).items())}


def test_a_look_costs_the_same_however_much_is_done_or_waits(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    costs = []
    for done, waiting in ((50, 50), (3000, 50), (50, 3000)):
        directory = tmp_path_factory.mktemp("pool")
        costs.append(per_look(directory, pool_of(directory, done, waiting)))
    assert sum(costs[0].values()) <= FIXED + PER_WORKER * WORKERS, costs[0]
    for cost in costs[1:]:
        assert cost == pytest.approx(costs[0], abs=0.5)


@pytest.mark.parametrize(
    "words",
    [("watch", "--once"), ("watch", "--once", "--json"), ("status",), ("workers",)]
    + [("watch", "--once", "--metrics-only"), ("wait", "--timeout", "0")],
    ids=" ".join,
)
def test_no_command_that_looks_lists_or_opens_what_is_done(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    pool = pool_of(tmp_path, done=100, waiting=20)
    status = 0 if words[0] == "workers" else 5
    argv = [*FSQUEUE, words[0], pool.root, *words[1:]]
    calls = calls_of(argv, pool, tmp_path / "strace", status=status)
    assert any(f"{pool.root}/running" in line for _, line in calls), "strace saw nothing"
    for directory in ("done", "outputs"):
        about = [line for _, line in calls if f"{pool.root}/{directory}" in line]
        assert len(about) <= 1 and all("stat" in line for line in about), "whose it is, once"
