"""Commands hold only a few bytes for each claim of a pool, so that a million fit."""

from __future__ import annotations

import os
import tracemalloc
from array import array
from collections.abc import Iterable
from pathlib import Path

import pytest

from fsqueue.pool import plans
from fsqueue.pool.claims import Claim
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.plans import Plan, Share
from fsqueue.pool.settings import PoolDirectory, Spool, add_spool, create_pool
from fsqueue.scheduling import assignment
from tests.support.handlers import install_handler
from tests.support.memory_use import MeasuredCommand

FEW, MANY = 10_000, 30_000
"""Memory that does not depend on the number of claims is used with a few already."""
NOISE = 400 << 10
HANDLER = """
from fsqueue import Handler
class Made(Handler):
    suffix = ".txt"
    def run(self, work):
        work.output.write_text("")
"""


def write(path: str, data: bytes = b"") -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, data)
    os.close(fd)


def pool_of(root: Path, count: int) -> PoolDirectory:
    """Make a pool in which one claim in eight is done and the others wait, file by file."""
    pool = create_pool(str(root))
    for spool in ("cpu0", "cpu1"):
        add_spool(pool, Spool(spool, "cpu", 1.0))
    names = [ClaimName(f"c{n:05}-5c1f09ab33d2", "noop", 1 + n % 97) for n in range(count)]
    share = Share(count, sum(name.cost for name in names))
    head = Plan("abc123", "2026-11-27", "noop", ("noop",), ".txt", share, {"cpu0": share}, {})
    path = plans.write_plan(pool, head, [("key", "/input")], ((str(n), "cpu0") for n in names))
    plans.number_plan(pool, "abc123", path, 1)
    for name in names[count // 8 :]:
        claim = Claim("noop", "cpu0", {}, {"n": name.cost}, {}, ".txt")
        write(pool.waiting("cpu0", name), claim.encode(name))
    for name in names[: count // 8]:
        write(pool.owned(State.DONE, name.owned_by("vm-1-aaaaaa")))
        write(pool.output(name.id, ".txt"))
    return pool


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[PoolDirectory, PoolDirectory]:
    root = tmp_path_factory.mktemp("pools")
    return pool_of(root / "few", FEW), pool_of(root / "many", MANY)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install_handler(tmp_path_factory.mktemp("site"), "noop", HANDLER)


def peak(words: Iterable[str], pool: PoolDirectory, env: dict[str, str]) -> int:
    command, *options = words
    used = MeasuredCommand([command, pool.root, *options], env).end()
    assert used.status in (0, 5, 75), used
    return used.peak_kib << 10


def test_assigning_holds_a_few_bytes_for_each_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "RUN", 1000)
    costs = array("d", (1 + n % 97 for n in range(30_000)))
    tracemalloc.start()
    slots = assignment.assign(costs, [1.0, 1.5])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(slots) == len(costs)
    assert most < 20 * len(costs) + 200 * assignment.RUN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "each"),
    [
        ("status", 30),
        ("watch --once", 30),
        ("check", 36),
        ("recover", 4),
        ("joblog", 4),
        ("work --spool cpu0 --max-claims 1", 80),
        ("work --spool cpu1 --max-claims 1", 80),
    ],
)
def test_a_command_holds_a_few_bytes_for_each_claim(
    pools: tuple[PoolDirectory, PoolDirectory], env: dict[str, str], words: str, each: int
) -> None:
    few, many = (peak(words.split(), pool, env) for pool in pools)
    assert many - few < NOISE + each * (MANY - FEW), (many - few) / (MANY - FEW)


@pytest.mark.slow
def test_a_plan_for_a_pool_with_many_claims_holds_nothing_of_them(
    pools: tuple[PoolDirectory, PoolDirectory], env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "input").write_text("one\n")
    few, many = (
        MeasuredCommand(
            ["plan", "noop", pool.root, str(tmp_path / "input"), "--gpus", "cpu"], env
        ).end()
        for pool in pools
    )
    assert (few.status, many.status) == (0, 0)
    assert (many.peak_kib - few.peak_kib) << 10 < NOISE + 4 * (MANY - FEW)
