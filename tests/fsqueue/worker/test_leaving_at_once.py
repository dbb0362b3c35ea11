"""When an idle worker needs no second look before it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import ExitStatus
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.shutdown import Shutdown
from fsqueue.worker.worker import Worker
from tests.support.planning import make_inputs, plan_command


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 3), ("cat", "{input}"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the worker paused, each time; it does not pause."""
    made: list[float] = []

    def sleep(self: Shutdown, seconds: float, *_: Any) -> None:
        made.append(seconds)

    monkeypatch.setattr(Shutdown, "sleep", sleep)
    return made


def work(pool: PoolDirectory) -> int:
    return Worker(pool, WorkerSettings(spool="cpu0")).run()


def test_r30_a_worker_that_sees_every_claim_done_leaves_without_a_second_look(
    pool: PoolDirectory, pauses: list[float]
) -> None:
    assert work(pool) == ExitStatus.DONE
    assert pauses == []


def test_r30_a_worker_believes_that_a_claim_is_nowhere_only_at_the_second_look(
    pool: PoolDirectory, pauses: list[float]
) -> None:
    name = next(iter(claims.waiting(pool, "cpu0")))
    Path(pool.waiting("cpu0", name)).unlink()
    assert work(pool) == ExitStatus.ERROR
    assert pauses
    assert len(list(claims.owned(pool, State.DONE))) == 2
