"""Workers started by hand on any host, with only a visible GPU and a path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fsqueue.pool.settings import PoolDirectory, open_pool
from fsqueue.records.status import read_statuses
from tests.support.nvml.fake_driver import Driver, install
from tests.support.planning import counts, make_inputs
from tests.support.processes import Start, fsqueue, wait_for

pytestmark = pytest.mark.slow

CARDS = ["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090", "NVIDIA L4"]
"""The GPUs of this host; the last has no spool."""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = install(monkeypatch, tmp_path)
    for index, name in enumerate(CARDS):
        driver.add(index, name, f"GPU-{index}abc")
    return driver


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    inputs = [*map(str, make_inputs(tmp_path / "in", 8))]
    made = fsqueue("plan", "command", str(tmp_path / "pool"), *inputs, "--gpus", "3090,4090", "--",
                   "sh", "-c", 'printf %s "$CUDA_VISIBLE_DEVICES"', "sh", "{input}")  # fmt: skip
    assert made.returncode == 0, made.stderr
    return open_pool(str(tmp_path / "pool"))


@pytest.mark.parametrize(
    "sees, spool, why",
    [
        ("1", "gpu1", "its model is RTX 4090"),
        ("GPU-1abc", "gpu1", "its model is RTX 4090"),
        ("0", "gpu0", "its model is RTX 3090"),
        ("2", None, "no spool is planned for L4"),
        ("", None, "no spool is planned for cpu"),
    ],
)
def test_a_worker_finds_its_spool_by_the_gpu_it_sees_or_joins_as_a_thief(
    driver: Driver, pool: PoolDirectory, sees: str, spool: str | None, why: str
) -> None:
    env = driver.environ | {"CUDA_VISIBLE_DEVICES": sees}
    run = fsqueue("work", pool.root, "--max-claims", "2", env=env)
    assert run.returncode == 75, run.stderr
    assert f"spool {spool or 'none'} ({why})" in run.stderr
    (status,) = read_statuses(pool).values()
    assert (status.spool, status.claims_done) == (spool, 2)
    assert status.steals_in == (0 if spool else 2)
    outputs = Path(pool.directory("outputs")).glob("*.out")
    assert {path.read_text() for path in outputs} == {sees}, "what the handler sees"


def test_several_workers_may_share_a_gpu(driver: Driver, start: Start, pool: PoolDirectory) -> None:
    env = driver.environ | {"CUDA_VISIBLE_DEVICES": "1"}
    both = [start("work", pool.root, "--keep-alive", env=env) for _ in range(2)]
    wait_for(lambda: len(read_statuses(pool)) == 2, "both workers")
    assert {status.spool for status in read_statuses(pool).values()} == {"gpu1"}
    wait_for(lambda: counts(pool) == {"done": 8}, "all to be done")
    assert fsqueue("drain", pool.root).returncode == 0
    assert [worker.reap() for worker in both] == [0, 0]
    rows = json.loads(fsqueue("workers", pool.root, "--json").stdout)["workers"]
    assert sum(row["claims_done"] for row in rows) == 8
