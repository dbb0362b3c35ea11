"""A snapshot keeps what is true apart from what is reported, and survives whatever it reads."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqueue.dashboard import View, render
from fsqueue.handler import Work
from fsqueue.monitor.json_documents import watch_facts
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.pool import claims
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.records.status import Status, parse_status, write_status
from fsqueue.storage.untrusted import printable
from tests.support.monitor_data import enlist, fail, finish, on_disk, put_status, take, write_events
from tests.support.pools import ManualWorker, Trivial, contents, make_pool

A, B, C = "node7-1-aaaaaa", "node8-2-bbbbbb", "node9-3-cccccc"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", *(f"i{n}.10" for n in range(12)), weights=[2.0, 1.0])


def adds_up(snapshot: Snapshot) -> bool:
    count = snapshot.count
    return count.planned == count.waiting + count.running + count.done + count.failed


def test_a_snapshot_of_an_empty_pool_has_nothing_in_it(tmp_path: Path) -> None:
    snapshot = Reader(create_pool(str(tmp_path / "pool"))).snapshot()
    assert snapshot.spools == snapshot.workers == snapshot.steals == ()
    assert (snapshot.exit_status, snapshot.progress, snapshot.eta_s) == (0, 1.0, 0.0)


def test_a_real_worker_is_seen_at_work(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.40", "b.30", "c.20")
    hand = ManualWorker(pool, "gpu0")
    hand.run(hand.take())
    hand.take()
    hand.beat.flush()
    snapshot = Reader(pool).snapshot()
    (spool,) = snapshot.spools
    (worker,) = snapshot.workers
    assert (spool.workers, spool.done, spool.waiting.claims, spool.running) == (1, 1, 1, 1)
    assert worker.id == hand.id and len(worker.holds) == 1
    assert adds_up(snapshot) and snapshot.count.done.claims == 1


def test_a_snapshot_can_be_copied_pickled_and_made_a_dictionary(tmp_path: Path) -> None:
    hand = ManualWorker(make_pool(tmp_path / "pool", "a.40"), "gpu0")
    hand.beat.flush()
    seen = Reader(hand.pool).snapshot()
    assert len(seen.workers) == 1
    assert pickle.loads(pickle.dumps(seen)) == copy.deepcopy(seen) == seen
    assert asdict(seen)["workers"][0]["id"] == hand.id


def test_what_a_handler_counts_on_the_way_is_added_up_and_is_activity(tmp_path: Path) -> None:
    """Tokens, say: of no claim is it known beforehand how many there are."""
    hand = ManualWorker(make_pool(tmp_path / "pool", "a.40"), "gpu0")
    reader, seen = Reader(hand.pool), []

    class Counts(Trivial):
        def run(self, work: Work) -> None:
            for batch in range(3):
                hand.status.last_activity = 1.0
                work.progress(batch + 1, 3, tokens=100)
                assert hand.status.current is not None
                seen.append(hand.status.current.measures["tokens"])
                assert hand.status.last_activity > 1.0
            hand.status.last_activity = 1.0
            hand.beat.flush()
            reader.snapshot()
            super().run(work)

    hand.handler = Counts()
    hand.run(hand.take())
    assert seen == [100, 200, 300] and hand.status.last_activity > 1.0
    assert hand.status.measures_done["tokens"] == 300
    hand.beat.flush()
    snapshot = reader.snapshot()
    (worker,) = snapshot.workers
    assert worker.rates["tokens"] > 0 and snapshot.rates == worker.rates
    assert snapshot.counters == {"tokens": 300}


def test_what_was_stolen_is_shown_at_both_ends(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.40", "b.30", weights=[1.0, 1.0])
    victim = next(spool for spool in ("gpu0", "gpu1") if claims.waiting(pool, spool))
    thief = "gpu1" if victim == "gpu0" else "gpu0"
    enlist(pool, A)
    put_status(pool, A, spool=thief, steals_in=2, stolen_from={victim: 2, "gone": 1})
    rows = {row.name: row for row in Reader(pool).snapshot().spools}
    assert (rows[thief].stolen_in, rows[thief].stolen_out) == (2, 0)
    assert (rows[victim].stolen_in, rows[victim].stolen_out) == (0, 2)


def test_workers_without_a_spool_have_a_row_of_their_own(pool: PoolDirectory) -> None:
    enlist(pool, A)
    put_status(pool, A, spool=None, claims_done=3)
    put_status(pool, B, spool="gpu9")
    last = Reader(pool).snapshot().spools[-1]
    assert (last.name, last.workers, last.done) == ("", 1, 3)


def test_the_worst_state_of_its_workers_is_that_of_a_spool(pool: PoolDirectory) -> None:
    enlist(pool, A, B, C)
    put_status(pool, A, spool="gpu0", state="idle")
    put_status(pool, B, spool="gpu0", state="running")
    put_status(pool, C, spool="gpu0", state="loading")
    gpu0, gpu1 = Reader(pool).snapshot().spools
    assert (gpu0.state, gpu0.workers) == ("running", 3)
    assert gpu1.state == "no worker"


def test_the_gpu_use_of_a_spool_is_the_mean_of_what_is_known(pool: PoolDirectory) -> None:
    enlist(pool, A, B, C)
    put_status(pool, A, spool="gpu0", gpu={"compute_percent": 90, "uuid": "GPU-1"})
    put_status(pool, B, spool="gpu0", gpu={"compute_percent": 70})
    put_status(pool, C, spool="gpu0", gpu={})
    gpu0 = Reader(pool).snapshot().spools[0]
    assert gpu0.use.compute_percent == 80.0 and gpu0.use.memory_percent is None
    assert gpu0.gpu == "GPU-1"


# ---- ETA ----


def work(pool: PoolDirectory, worker: str, cost_per_s: float, *, weight: float = 1.0) -> None:
    """Let a worker have finished claims at this pace, and be busy."""
    enlist(pool, worker)
    facts = {"event": "finished", "cost": cost_per_s, "seconds": 1}
    write_events(pool, worker, *(facts | {"t": 4990 + n} for n in range(10)))
    put_status(pool, worker, spool="gpu0", weight=weight)


def test_the_eta_is_by_the_cost_that_is_left(pool: PoolDirectory) -> None:
    finish(pool, A)
    work(pool, A, 2.0)
    work(pool, B, 3.0)
    snapshot = Reader(pool).snapshot()
    assert snapshot.cost_per_s == pytest.approx(5.0)
    assert snapshot.eta_s == pytest.approx(110 / 5, rel=0.1)
    assert snapshot.eta_low_s is not None and snapshot.eta_high_s is not None
    assert snapshot.eta_low_s < 110 / 5 < snapshot.eta_high_s < 40


def test_a_worker_without_a_speed_yet_counts_by_its_weight(pool: PoolDirectory) -> None:
    work(pool, A, 2.0, weight=1.0)
    enlist(pool, B)
    put_status(pool, B, spool="gpu1", weight=1.5, state="loading")
    snapshot = Reader(pool).snapshot()
    assert snapshot.eta_s == pytest.approx(120 / 5.0, rel=0.1)


def test_nothing_ends_before_the_slowest_claim_that_runs(pool: PoolDirectory) -> None:
    work(pool, A, 100.0)
    work(pool, B, 0.5)
    take(pool, B)
    assert Reader(pool).snapshot().eta_s == pytest.approx(20.0, rel=0.1)


def test_without_anybody_at_work_there_is_no_eta(pool: PoolDirectory) -> None:
    assert Reader(pool).snapshot().eta_s is None


def test_an_eta_of_a_century_is_none(pool: PoolDirectory) -> None:
    work(pool, A, 1e-12)
    assert Reader(pool).snapshot().eta_s is None


# ---- failures ----


def test_the_last_failures_carry_their_errors(pool: PoolDirectory) -> None:
    for n in range(7):
        fail(pool, A, f"boom {n}")
    reader = Reader(pool)
    failures = reader.snapshot().failures
    assert len(failures) == 5 and all(f.error.startswith("boom") for f in failures)
    newest = fail(pool, A, "the newest")
    assert reader.snapshot().failures[-1].error == "the newest"
    assert reader.snapshot().failures[-1].id == newest.id


def test_a_failure_without_a_record_is_still_one(pool: PoolDirectory) -> None:
    name = fail(pool, A)
    os.unlink(pool.error(name.id, 0))
    (failure,) = Reader(pool).snapshot().failures
    assert failure.id == name.id and failure.error == "no record in errors/"


def test_a_hostile_record_is_shown_escaped(pool: PoolDirectory) -> None:
    name = fail(pool, A)
    Path(pool.error(name.id, 0)).write_text(json.dumps({"error": "\x1b[2J[red]\nx"}))
    (failure,) = Reader(pool).snapshot().failures
    assert failure.error == "\\x1b[2J[red]\\nx"


# ---- promises ----


def truth(snapshot: Snapshot) -> tuple[Any, ...]:
    spools = [
        (row.name, row.model, row.weight, row.planned, row.waiting) for row in snapshot.spools
    ]
    workers = [(row.id, row.holds, row.living) for row in snapshot.workers if row.living]
    return snapshot.count, snapshot.failures, [row for row in spools if row[0]], workers


def test_i8_deleting_status_and_events_changes_only_what_is_reported(pool: PoolDirectory) -> None:
    work(pool, A, 2.0)
    finish(pool, A)
    take(pool, A)
    fail(pool, B)
    reader = Reader(pool)
    before = reader.snapshot()
    shutil.rmtree(pool.directory("status"))
    shutil.rmtree(pool.directory("events"))
    for after in (reader.snapshot(), Reader(pool).snapshot()):
        assert truth(after) == truth(before)
    assert before.spools[0].stolen_in == 0 and before.cost_per_s


def test_looking_changes_nothing(pool: PoolDirectory) -> None:
    work(pool, A, 2.0)
    fail(pool, B)
    before = contents(pool.root)
    reader = Reader(pool)
    for _ in range(3):
        reader.snapshot()
    assert contents(pool.root) == before


def test_counts_equal_the_disk_after_each_step(pool: PoolDirectory) -> None:
    reader = Reader(pool)
    for step in range(12):
        spool = "gpu0" if claims.waiting(pool, "gpu0") else "gpu1"
        (finish, take, fail)[step % 3](pool, A, spool=spool)
        snapshot, disk = reader.snapshot(), on_disk(pool)
        count = snapshot.count
        assert adds_up(snapshot)
        assert disk == {
            "running": count.running.claims,
            "done": count.done.claims,
            "failed": count.failed.claims,
        }


@pytest.mark.parametrize(
    "directory", ["status", "events", "workers", "control", "errors", "spools"]
)
def test_a_missing_directory_stops_no_watcher(pool: PoolDirectory, directory: str) -> None:
    work(pool, A, 2.0)
    fail(pool, B)
    reader = Reader(pool)
    reader.snapshot()
    shutil.rmtree(pool.directory(directory))
    draw(reader.snapshot())
    draw(Reader(pool).snapshot())


def test_a_pool_that_vanishes_stops_no_watcher(pool: PoolDirectory) -> None:
    reader = Reader(pool)
    reader.snapshot()
    shutil.rmtree(pool.root)
    snapshot = reader.snapshot()
    assert not snapshot.finished and snapshot.warnings
    draw(snapshot)


# ---- hostile status files ----


def draw(snapshot: Snapshot) -> str:
    """Draw a snapshot every way there is; return what a terminal would get."""
    import io

    from rich.console import Console

    json.dumps(watch_facts(snapshot), allow_nan=False)
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    for by_worker in (False, True):
        console.print(render(snapshot, View(by_worker=by_worker), 80, 24))
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"worker_id": "another worker"}',
        b"[" * 50_000,
        b'{"worker_id": "node7-1-aaaaaa", "weight": NaN, "cost_done": 1e400, "busy_s": -1}',
        b'{"worker_id": "node7-1-aaaaaa", "claims_done": 1'
        + b"0" * 400
        + b', "rates": {"x": 1'
        + b"0" * 400
        + b"}}",
        b'{"worker_id": "node7-1-aaaaaa", "started": 1' + b"0" * 400 + b"}",
        b'{"worker_id": "node7-1-aaaaaa", "stolen_from": {"gpu0": -1e23, "\\u001b[2J": 5}}',
        b'{"worker_id": "node7-1-aaaaaa", "loaded": [[], {}, 1], "slurm": {"a": [1]}, "gpu": {}}',
        b'{"worker_id": "node7-1-aaaaaa", "state": "\\u001b]0;x\\u0007", "model": "[b]\\ud800\\n"}',
        b'{"worker_id": "node7-1-aaaaaa", "current": {"total": 0, "done": 5, "started": 1e23}}',
    ],
)
def test_a_hostile_status_does_no_harm(pool: PoolDirectory, data: bytes) -> None:
    enlist(pool, A)
    take(pool, A)
    Path(pool.status(A)).write_bytes(data)
    text = draw(Reader(pool).snapshot())
    for bad in ("\x1b[2J", "\x1b]0;", "\x07", "\ud800"):
        assert bad not in text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**310)
    | st.floats()
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted(Status.__slots__)
CURRENT = "id kind cost attempt spool started done total unit measures".split()


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8),
    st.dictionaries(st.sampled_from(CURRENT), JSON, max_size=8),
)
def test_no_status_whatever_its_fields_breaks_the_watcher(
    tmp_path_factory: pytest.TempPathFactory, facts: dict[str, Any], current: dict[str, Any]
) -> None:
    pool = make_pool(tmp_path_factory.mktemp("pool") / "pool", "a.40", "b.30")
    enlist(pool, A)
    take(pool, A)
    facts = {"current": current, "written_at": 5000.0} | facts | {"worker_id": A}
    Path(pool.status(A)).write_text(json.dumps(facts))
    snapshot = Reader(pool).snapshot()
    assert adds_up(snapshot)
    draw(snapshot)


def test_a_status_survives_being_written_and_read(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "pool"))
    status = Status(A, host="node7", stolen_from={"gpu1": 2}, rates={"k": 0.5}, cost_done=7)
    write_status(pool, status)
    assert parse_status(A, json.loads(Path(pool.status(A)).read_text())) == status


@given(st.text())
def test_printable_text_prints(text: str) -> None:
    assert printable(text).isprintable() or not text
    if text.isprintable() and len(text) <= 300:
        assert printable(text) == text
