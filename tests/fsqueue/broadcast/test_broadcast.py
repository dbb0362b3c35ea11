"""Broadcasts to every capable worker: vectors B-1 to B-8, and the outcomes of the copies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fsqueue.broadcast import broadcast
from fsqueue.broadcast.broadcast import BroadcastRequest
from fsqueue.errors import NotSupportedError, UsageError
from fsqueue.handler import Handler, Option, Work
from fsqueue.pool.inbox import Inbox, bounce_strays, inbox_of, spool_of
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from fsqueue.worker.claim_source import ClaimSource
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.worker import Worker
from tests.support.planning import counts, make_inputs, plan_command
from tests.support.pools import ManualWorker, make_pool, problems
from tests.support.processes import Start, fsqueue, wait_for

INGEST = {"documents": ["a", "b"], "collection": "manuals", "chunk_size": 512}


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.30")


@pytest.fixture(autouse=True)
def ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a handler `rag_ingestion` be installed."""

    def load(name: str) -> Handler:
        if name != "rag_ingestion":
            raise UsageError(f"no handler is called {name!r}")
        return Ingest()

    monkeypatch.setattr("fsqueue.broadcast.broadcast.load_handler", load)
    monkeypatch.setattr("fsqueue.worker.handler_cache.load_handler", load)


class Ingest(Handler):
    """Record the payload."""

    name = "rag_ingestion"
    suffix = ".json"

    def run(self, work: Work) -> None:
        work.output.write_text(json.dumps(dict(work.payload)))


def joined(pool: PoolDirectory, tier: int = 1, *capabilities: str) -> Worker:
    """Return a worker that has enlisted and written its status, and whose loop has not started."""
    settings = WorkerSettings(spool="gpu0", tier=tier, capabilities=frozenset(capabilities))
    worker = Worker(pool, settings)
    worker.lease.enlist()
    worker.beat.flush()
    return worker


def work_inbox(worker: Worker) -> int:
    """Let a worker run all that is addressed to it; return the number of claims."""
    count = 0
    while (name := Inbox(worker.pool, worker.id).next()) is not None:
        worker._run_addressed(name)
        count += 1
    return count


def send(pool: PoolDirectory, capability: str | None = None, **how: Any) -> broadcast.Broadcast:
    return broadcast.broadcast(pool, BroadcastRequest("rag_ingestion", INGEST, capability, **how))


def outcomes(pool: PoolDirectory, made: broadcast.Broadcast) -> list[str]:
    broadcast.update_outcomes(pool, made.copies)
    return [copy.outcome for copy in made.copies]


def test_b1_three_capable_workers_answer_as_the_guide_has_it(pool: PoolDirectory) -> None:
    workers = [joined(pool, tier, "embeddings") for tier in (1, 1, 2)]
    rows = [
        {"worker_id": id, "status": "accepted", "status_code": 200}
        for id in sorted(worker.id for worker in workers)
    ]
    answer = send(pool, "embeddings").response()
    assert answer == {
        "job_type": "rag_ingestion",
        "broadcasted_to": 3,
        "successful": 3,
        "failed": 0,
        "workers": rows,
    }
    assert list(answer) == ["job_type", "broadcasted_to", "successful", "failed", "workers"]


def test_b2_a_storage_worker_never_receives_one(pool: PoolDirectory) -> None:
    gpu, _ = joined(pool, 1), joined(pool, 3)
    assert [copy.worker for copy in send(pool).copies] == [gpu.id]


def test_b3_workers_without_the_capability_are_left_out(pool: PoolDirectory) -> None:
    able = {joined(pool, tier, "embeddings").id for tier in (1, 2)}
    joined(pool, 1, "ocr")
    assert {copy.worker for copy in send(pool, "embeddings").copies} == able


def test_b4_without_a_capable_worker_the_error_names_the_capability(pool: PoolDirectory) -> None:
    joined(pool, 1, "ocr")
    with pytest.raises(NotSupportedError, match="'rag_ingestion'.*'embeddings'"):
        send(pool, "embeddings")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("--job-type", "warmup"), ("--job-data", "{}"), ()], ids="type data neither".split()
)
def test_b5_what_is_missing_is_named(pool: PoolDirectory, words: tuple[str, ...]) -> None:
    done = fsqueue("broadcast", pool.root, *words)
    assert done.returncode == 2
    assert "job_type" in done.stderr and "job_data" in done.stderr


def test_b6_an_inbox_that_cannot_be_written_is_one_that_failed(pool: PoolDirectory) -> None:
    first, *_ = sorted((joined(pool, 1) for _ in range(3)), key=lambda worker: worker.id)
    send(pool)  # makes the inbox
    work_inbox(first)
    assert not os.path.lexists(inbox_of(pool).spool(spool_of(first.id))), "an empty one is removed"
    Path(inbox_of(pool).spool(spool_of(first.id))).write_text("in the way")
    answer = send(pool).response()
    assert (answer["broadcasted_to"], answer["successful"], answer["failed"]) == (3, 2, 1)
    assert answer["workers"][0]["worker_id"] == first.id
    assert answer["workers"][0]["status"] == "failed" and answer["workers"][0]["error"]
    assert "status_code" not in answer["workers"][0]


def test_b7_only_the_addressee_takes_a_copy(pool: PoolDirectory) -> None:
    one, two = joined(pool), joined(pool)
    made = broadcast.broadcast(pool, BroadcastRequest("rag_ingestion", INGEST))
    thief = ManualWorker(pool, "gpu0")
    claim_source = ClaimSource(pool, thief.beat, thief.journal, spool="gpu0", stealing=True)
    taken = claim_source.next()
    assert taken is not None and taken[0].id.startswith("a-") and claim_source.next() is None
    assert work_inbox(one) == 1 and work_inbox(one) == 0
    by_worker = dict(zip([c.worker for c in made.copies], outcomes(pool, made), strict=True))
    assert by_worker == {one.id: "done", two.id: "waiting"}


def test_b8_a_worker_not_heard_of_for_long_is_not_addressed(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(pool)
    later = time.time() + broadcast.LOST_S
    monkeypatch.setattr("fsqueue.broadcast.broadcast.time.time", lambda: later + 60)
    with pytest.raises(NotSupportedError):
        send(pool)


def test_a_worker_that_left_is_not_addressed(pool: PoolDirectory) -> None:
    worker, other = joined(pool), joined(pool)
    worker.lease.retire()
    assert [copy.worker for copy in send(pool).copies] == [other.id]


# ---- what becomes of the copies ----


def output(copy: broadcast.Copy) -> Mapping[str, Any]:
    facts: dict[str, Any] = json.loads(Path(copy.output).read_text())
    return facts


def test_every_worker_runs_its_own_copy_of_all_the_data(pool: PoolDirectory) -> None:
    workers = [joined(pool) for _ in range(2)]
    made = send(pool)
    assert [work_inbox(worker) for worker in workers] == [1, 1]
    assert outcomes(pool, made) == ["done", "done"]
    parts = [{"copy": number, "copies": 2} for number in range(2)]
    assert [output(copy) for copy in made.copies] == [INGEST | part for part in parts]
    rows = made.outcome()["workers"]
    assert [row["outcome"] for row in rows] == ["done", "done"]


def test_scattered_copies_say_which_part_they_are(pool: PoolDirectory) -> None:
    workers = [joined(pool) for _ in range(3)]
    made = send(pool, scatter=True)
    for worker in workers:
        work_inbox(worker)
    broadcast.update_outcomes(pool, made.copies)
    parts = [(output(copy)["shard"], output(copy)["shards"]) for copy in made.copies]
    assert parts == [(0, 3), (1, 3), (2, 3)]


def test_what_copies_report_as_json_is_shown_and_added_up(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(self: Ingest, work: Work) -> None:
        chunks = 3 + work.payload["copy"]
        facts = {"chunks": chunks, "failed": 0, "whole": True, "settings": {"chunk_size": 512}}
        work.output.write_text(json.dumps(facts))

    monkeypatch.setattr(Ingest, "run", report)
    workers = [joined(pool) for _ in range(2)]
    made = send(pool)
    for worker in workers:
        work_inbox(worker)
    assert outcomes(pool, made) == ["done", "done"]
    facts = made.outcome()
    assert [row["result"]["chunks"] for row in facts["workers"]] == [3, 4]
    assert facts["totals"] == {"chunks": 7, "failed": 0}
    assert broadcast.find_broadcast(pool, made.id).totals() == facts["totals"]


def test_a_job_s_handler_completes_the_data_once(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare_payload(self: Ingest, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, "documents": [f"/data/{name}" for name in data["documents"]]}

    monkeypatch.setattr(Ingest, "prepare_payload", prepare_payload)
    workers = [joined(pool) for _ in range(2)]
    made = send(pool)
    for worker in workers:
        work_inbox(worker)
    broadcast.update_outcomes(pool, made.copies)
    assert [output(copy)["documents"] for copy in made.copies] == [["/data/a", "/data/b"]] * 2


def test_planned_claims_are_counted_as_if_nothing_were_addressed(pool: PoolDirectory) -> None:
    worker = joined(pool)
    send(pool)
    work_inbox(worker)
    assert counts(pool) == {"waiting": 1}
    assert problems(pool) == []
    assert fsqueue("status", pool.root, "--json").returncode == 5


def test_a_failed_copy_is_not_retried_and_has_its_error(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Ingest, work: Work) -> None:
        raise RuntimeError("no such collection")

    monkeypatch.setattr(Ingest, "run", fail)
    worker = joined(pool)
    made = send(pool)
    assert work_inbox(worker) == 1
    assert outcomes(pool, made) == ["failed"]
    assert "no such collection" in made.copies[0].error
    assert worker.suspicion.in_a_row == [] and work_inbox(worker) == 0


def test_a_copy_that_its_worker_cannot_run_is_put_back_once_and_then_fails(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = joined(pool)
    made = send(pool)

    def lacking(name: str) -> Handler:
        raise UsageError("not installed here")

    monkeypatch.setattr("fsqueue.worker.handler_cache.load_handler", lacking)
    assert work_inbox(worker) == 1
    assert outcomes(pool, made) == ["failed"]
    assert "could not run" in made.copies[0].error


def test_copies_that_a_worker_did_not_run_before_it_left_fail_with_a_record(
    pool: PoolDirectory,
) -> None:
    worker = joined(pool)
    made = send(pool)
    worker._leave()
    assert outcomes(pool, made) == ["failed"]
    assert "left before" in made.copies[0].error
    assert not Path(inbox_of(pool).spool(spool_of(worker.id))).exists()


@pytest.mark.parametrize("taken", [False, True])
def test_the_copies_of_the_dead_fail_whether_they_ran_or_not(
    pool: PoolDirectory, taken: bool
) -> None:
    dead = joined(pool)
    made = send(pool)
    if taken:
        assert Inbox(pool, dead.id).next() is not None
    lease = Path(pool.lease(dead.lease.name))
    lease.rename(lease.with_name(f"{dead.id}.dead@{dead.id}"))
    bounce_strays(pool, "judge-1-aaaaaa")
    assert outcomes(pool, made) == ["failed"]
    assert "died" in made.copies[0].error


def test_an_idle_worker_ends_the_copies_of_the_dead(pool: PoolDirectory) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        joined(pool)
        os.write(writer, b"y")
        signal.pause()
    try:
        assert os.read(reader, 1) == b"y"
        judge = ManualWorker(pool, "gpu0")
        made = broadcast.broadcast(pool, BroadcastRequest("rag_ingestion", INGEST))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    judge.sweep()
    assert outcomes(pool, made) == ["failed"]


def test_a_broadcast_is_kept_with_its_answer(pool: PoolDirectory) -> None:
    joined(pool)
    made = send(pool)
    kept = json.loads(Path(f"{inbox_of(pool).root}/{made.id}.json").read_bytes())
    assert kept["successful"] == 1 and kept["order"]["job_data"] == INGEST


def test_a_broadcast_can_be_looked_at_later(pool: PoolDirectory) -> None:
    workers = [joined(pool), joined(pool)]
    made = send(pool)
    assert [c.outcome for c in broadcast.find_broadcast(pool, made.id).copies] == ["waiting"] * 2
    first = next(worker for worker in workers if worker.id == made.copies[0].worker)
    assert work_inbox(first) == 1
    seen = broadcast.find_broadcast(pool, "last")
    assert seen.id == made.id
    assert [copy.outcome for copy in seen.copies] == ["done", "waiting"]
    assert seen.outcome()["workers"][0]["output"] == seen.copies[0].output != ""
    with pytest.raises(UsageError, match=f"no broadcast 'never'.*{made.id}"):
        broadcast.find_broadcast(pool, "never")


def test_a_pool_without_broadcasts_is_a_usage_error(pool: PoolDirectory) -> None:
    with pytest.raises(UsageError, match="it has: none"):
        broadcast.find_broadcast(pool, "last")


def test_long_worker_ids_have_an_inbox_of_their_own(pool: PoolDirectory) -> None:
    ids = [f"{'host' * 12}-{pid}-a3f9b2" for pid in (1, 2)]
    assert len({spool_of(id) for id in ids}) == 2
    assert all(len(spool_of(id)) <= 40 for id in ids)


# ---- the jobs that every worker knows ----


def run_job(pool: PoolDirectory, worker: Worker, job: str, data: dict[str, Any]) -> broadcast.Copy:
    made = broadcast.broadcast(pool, BroadcastRequest(job, data))
    assert work_inbox(worker) == 1
    broadcast.update_outcomes(pool, made.copies)
    return made.copies[0]


class Loads(Ingest):
    """A handler with something to load."""

    def __init__(self) -> None:
        self.has: list[str] = []

    def warm(self, options: Mapping[str, Any]) -> None:
        self.has.append(options.get("model", "default"))

    def loaded(self) -> list[str]:
        return self.has

    def close(self) -> None:
        self.has = []

    def selftest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"distance": 0.0}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    handler = Loads()
    monkeypatch.setattr("fsqueue.worker.handler_cache.load_handler", lambda name: handler)
    return handler


def test_warmup_loads_what_the_plans_or_the_job_need(pool: PoolDirectory, loads: Loads) -> None:
    worker = joined(pool)
    assert run_job(pool, worker, "warmup", {}).outcome == "done"
    assert loads.has == ["default"]
    run_job(pool, worker, "warmup", {"handler": "other", "options": {"model": "m"}})
    assert loads.has == ["default", "m"]
    assert worker.status.loaded == ["default", "m"]


def test_options_of_a_job_are_completed_as_in_planning(pool: PoolDirectory, loads: Loads) -> None:
    loads.options = (Option("model", None, "which", required=True), Option("size", 3, "how large"))
    worker = joined(pool)
    given = {"handler": "other", "options": {"size": 4}}
    copy = run_job(pool, worker, "warmup", given)
    assert copy.outcome == "failed" and "lack 'model'" in copy.error


def test_evict_lets_go_of_everything(pool: PoolDirectory, loads: Loads) -> None:
    worker = joined(pool)
    run_job(pool, worker, "warmup", {})
    run_job(pool, worker, "evict", {})
    assert loads.has == [] and worker.status.loaded == []


def test_selftest_writes_the_handlers_results_and_fails_without_a_self_test(
    pool: PoolDirectory, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = joined(pool)
    copy = run_job(pool, worker, "selftest", {})
    assert output(copy)["handlers"] == {"rag_ingestion": {"distance": 0.0}}
    monkeypatch.setattr(Loads, "selftest", Handler.selftest)
    copy = run_job(pool, worker, "selftest", {})
    assert copy.outcome == "failed" and "no self-test" in copy.error


def test_drain_makes_only_the_addressee_leave(pool: PoolDirectory) -> None:
    worker = joined(pool)
    run_job(pool, worker, "drain", {})
    assert atomic.names(pool.directory("control")) == [f"drain@{worker.id}"]
    assert worker.shutdown.departure(0) is not None


# ---- the command, with real workers ----


@pytest.mark.slow
def test_real_workers_run_a_broadcast_and_the_command_waits_for_them(
    start: Start, tmp_path: Path
) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), ("cat", "{input}"))
    workers = [
        start("work", pool.root, "--keep-alive", "--steal-interval", "0.2") for _ in range(2)
    ]
    ids = sorted(worker.worker_in(pool) for worker in workers)
    wait_for(lambda: counts(pool) == {"done": 1}, "the claim to be done")
    words = ("--job-type", "evict", "--job-data", "{}", "--required-capability", "command")
    done = fsqueue("broadcast", pool.root, *words, "--wait", "--timeout", "25")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert [row["worker_id"] for row in answer["workers"]] == ids
    assert [row["outcome"] for row in answer["workers"]] == ["done", "done"]
    drained = fsqueue("broadcast", pool.root, "--job-type", "drain", "--job-data", "{}")
    assert drained.returncode == 0 and json.loads(drained.stdout)["successful"] == 2
    assert [worker.reap() for worker in workers] == [0, 0]
    assert fsqueue("check", pool.root).returncode == 0
    nobody = fsqueue("broadcast", pool.root, "--job-type", "evict", "--job-data", "{}")
    assert nobody.returncode == 4 and "no capable worker" in nobody.stderr


@pytest.mark.slow
@pytest.mark.parametrize("data", ["nonsense", "[1]", "@/nowhere"])
def test_job_data_must_be_a_json_object(pool: PoolDirectory, data: str) -> None:
    done = fsqueue("broadcast", pool.root, "--job-type", "evict", "--job-data", data)
    assert done.returncode == 2 and "job-data" in done.stderr
