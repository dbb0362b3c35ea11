"""The built-in jobs with a real model: warmup, selftest, evict, drain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embed.handlers.embed import Embed
from embed.options import OPTIONS
from fsqueue.broadcast import broadcast
from fsqueue.broadcast.broadcast import BroadcastRequest
from fsqueue.pool.inbox import Inbox
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.worker import Worker
from tests.support.dnabert import write_model
from tests.support.planning import plan
from tests.support.pools import state_counts

pytestmark = pytest.mark.slow


@pytest.fixture
def pool(tiny_model: Path, tmp_path: Path) -> PoolDirectory:
    """A pool with one waiting claim of the tiny ESM-2."""
    path = tmp_path / "x.faa"
    path.write_text(">a\nMKVLAAGIVGLC\n")
    handler = Embed()
    options = {option.name: option.default for option in OPTIONS} | {"model": str(tiny_model)}
    return plan(tmp_path / "pool", handler, [path], options)[0]


@pytest.fixture
def worker(pool: PoolDirectory) -> Worker:
    worker = Worker(pool, WorkerSettings(spool="cpu0"))
    worker.lease.enlist()
    directories.make(pool.scratch(worker.id))
    worker.beat.flush()
    return worker


def run_job(worker: Worker, job: str, data: dict[str, Any]) -> broadcast.Copy:
    """Broadcast a job, let the worker do it, and return its copy."""
    made = broadcast.broadcast(worker.pool, BroadcastRequest(job, data))
    name = Inbox(worker.pool, worker.id).next()
    assert name is not None
    worker._run_addressed(name)
    broadcast.update_outcomes(worker.pool, made.copies)
    return made.copies[0]


def test_warmup_loads_the_planned_model_and_evict_unloads_it(worker: Worker) -> None:
    assert run_job(worker, "warmup", {}).outcome == "done"
    assert worker.status.loaded == ["tiny_esm2"]
    assert run_job(worker, "evict", {}).outcome == "done"
    assert worker.status.loaded == []
    found = worker.claim_source.next()
    assert found is not None and worker._run(*found) is None
    assert state_counts(worker.pool) == {"done": 1}, "an evicted model is loaded again when needed"


def test_warmup_loads_a_model_that_is_in_no_plan(worker: Worker, tmp_path: Path) -> None:
    write_model(tmp_path / "dna")
    data = {"handler": "embed", "options": {"model": str(tmp_path / "dna")}}
    copy = run_job(worker, "warmup", data)
    assert copy.outcome == "done", copy.error
    assert worker.status.loaded == ["dna"]
    copy = run_job(worker, "warmup", {"handler": "embed", "options": {}})
    assert copy.outcome == "failed" and "lack 'model'" in copy.error


def test_selftest_answers_for_the_device_and_the_model(worker: Worker) -> None:
    copy = run_job(worker, "selftest", {})
    assert copy.outcome == "done", copy.error
    report = json.loads(Path(copy.output).read_bytes())
    assert report["worker"] == worker.id
    found = report["handlers"]["embed"]
    assert found["kind"] == "tiny_esm2" and found["sequences"] == 3
    assert len(found["first_numbers"]) == 4


def test_selftest_fails_where_the_device_computes_wrong_results(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.engine import self_test

    monkeypatch.setitem(self_test.ANSWERS, "esm2", (9.0, 9.0))
    copy = run_job(worker, "selftest", {})
    assert copy.outcome == "failed" and "computes wrong results" in copy.error


def test_drain_orders_its_addressee_to_leave(worker: Worker) -> None:
    run_job(worker, "drain", {})
    assert atomic.names(worker.pool.directory("control")) == [f"drain@{worker.id}"]
