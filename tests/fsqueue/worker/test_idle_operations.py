"""What an idle worker costs a file server: fewer than two metadata operations a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsqueue.pool.settings import open_pool
from fsqueue.records.status import read_statuses
from tests.support.handlers import install_handler
from tests.support.idle_workers import IdleWorkers, start_idle_workers
from tests.support.planning import make_inputs
from tests.support.processes import FSQUEUE, fsqueue
from tests.support.strace import NOOP, calls_of, fill

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]

OPERATIONS_MAX = 2.0


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[IdleWorkers]:
    scene = IdleWorkers(tmp_path, 10.0)
    yield scene
    scene.end()


def test_an_idle_worker_costs_under_two_metadata_operations_a_second(scene: IdleWorkers) -> None:
    """Every kind of idle worker, everything included, at ten times the default rate."""
    start_idle_workers(scene)
    _assert_thrifty(scene)


@pytest.mark.nightly
def test_the_same_holds_with_the_default_interval_and_lease(tmp_path: Path) -> None:
    scene = IdleWorkers(tmp_path)
    try:
        start_idle_workers(scene)
        _assert_thrifty(scene)
    finally:
        scene.end()


def _assert_thrifty(scene: IdleWorkers) -> None:
    for name, (per_s, count) in scene.count().items():
        assert any(call.startswith("rename") for call in count), f"{name}: strace saw no beat"
        assert per_s < OPERATIONS_MAX, (name, count.most_common())


def test_a_worker_counts_its_operations_as_strace_does(tmp_path: Path) -> None:
    """So that the limit holds for what the file server sees."""
    pool = fill(tmp_path / "pool", 300)
    env = install_handler(tmp_path / "site", "noop", NOOP)
    words = ["work", pool.root, "--spool", "cpu0", "--max-claims", "250"]
    calls = calls_of([*FSQUEUE, *words], pool, tmp_path / "strace", status=75, env=env)
    (status,) = read_statuses(pool).values()
    assert len(calls) > 1000
    assert status.metadata_ops == pytest.approx(len(calls), rel=0.05)


def test_a_worker_keeps_to_its_limit_and_reports_it(tmp_path: Path) -> None:
    """Six operations a claim, and fifty a second: forty claims take more than four seconds."""
    env = install_handler(tmp_path / "site", "noop", NOOP)
    inputs = make_inputs(tmp_path / "in", 60)
    words = ["plan", "noop", str(tmp_path / "pool"), *map(str, inputs), "--gpus", "cpu"]
    assert fsqueue(*words, env=env).returncode == 0
    pool = open_pool(str(tmp_path / "pool"))
    words = ["work", pool.root, "--spool", "cpu0", "--max-claims", "60"]
    run = fsqueue(*words, env=env | {"FSQUEUE_MAX_METADATA_OPS": "50"})
    assert run.returncode == 0, run.stderr
    (status,) = read_statuses(pool).values()
    assert status.claims_done == 60
    lived_s = status.written_at - status.started
    assert status.metadata_ops_max == 50
    assert status.metadata_ops <= 50 * (lived_s + 1) + 80  # looking for all at the end never waits
    (row,) = json.loads(fsqueue("workers", pool.root, "--json").stdout)["workers"]
    assert row["metadata_ops"] == status.metadata_ops
    assert status.metadata_ops > 200
